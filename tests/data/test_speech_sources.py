"""Tables of transcripts, and strings of digits, by what their records must be."""

import pathlib
import pickle
import shutil
import warnings

import numpy as np
import pytest
import soundfile

from bigmodels import errors
from bigmodels.data.sources import audio_sources
from bigmodels.data.sources.speech_sources import DigitStrings, LibriSpeech, Transcribed
from tests import sound_files
from tests.data import test_audio


@pytest.fixture
def folder(tmp_path):
    return pathlib.Path(sound_files.transcribed(tmp_path / 'set', ['one two', '"three, four"']))


def test_a_zip_is_read_as_the_folder_is(folder, tmp_path):
    archive = shutil.make_archive(str(tmp_path / 'archive'), 'zip', folder)
    sources = [Transcribed(str(path), 8000, keep=path == archive) for path in (folder, archive)]
    assert len({source.fingerprint() for source in sources}) == 1
    for source in (*sources, pickle.loads(pickle.dumps(sources[1]))):
        for _ in range(2):
            record = source[1]
            assert (record['text'], record['path']) == ('three, four', 'wav/1.wav')
            assert (len(record['audio']), record['sample_rate']) == (1600, 8000)
        assert [len(source[i]['audio']) for i in (-2, -1)] == [800, 1600]
        with pytest.raises(IndexError):
            source[2]


def test_another_rate_is_resampled_and_said_once(folder):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('default')
        source = Transcribed(str(folder), 16_000)
        lengths = [len(source[i]['audio']) for i in (0, 1, 0)]
    assert lengths == [1600, 3200, 1600]
    [warning] = told
    assert 'has sound of 8,000 Hz: it is resampled to 16,000 Hz' in str(warning.message)
    assert source.fingerprint() != Transcribed(str(folder), 8000).fingerprint()


@pytest.mark.parametrize(
    ('table', 'message'),
    [
        ('file,text\n0.wav,one\n1.wav, ', r'transcripts\.csv:3: the text of 1\.wav is empty'),
        ('file,text\n0.wav', r'transcripts\.csv:2 has 1 values, the header has 2'),
        ('file,words\n0.wav,one', r"column of .*transcripts\.csv 'text'.* words"),
        ('file,text\n0.wav,one, two', r'csv:2 has 3 values, .*Quote a text'),
        ('file,text\n0.wav,"one\n1.wav,two', r'transcripts\.csv:3 is not CSV: unexpected end'),
        ('file,text,text\n0.wav,one,two', 'transcripts.csv:1 names a column twice'),
        ('file,text', 'needs a header row and at least one row'),
        ('file,text\n0.wav,one\n7.wav,two', r'lacks 1 of the 2 files in .*: wav/7\.wav'),
        ('file,text\n0.wav,\xe9', 'is not UTF-8 at byte 16'),
    ],
)
def test_a_bad_table_is_named_with_its_line(folder, table, message):
    (folder / 'transcripts.csv').write_bytes(table.encode('latin-1'))
    with pytest.raises(errors.UserError, match=message):
        Transcribed(str(folder), 8000)


def test_a_wav_that_is_cut_short_is_named(folder):
    file = folder / 'wav' / '1.wav'
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(errors.UserError, match=r'wav/1\.wav \(record 1\) is cut short: it has'):
        Transcribed(str(folder), 8000)[1]


def test_a_damaged_zip_is_named(folder, tmp_path):
    archive = pathlib.Path(shutil.make_archive(str(tmp_path / 'archive'), 'zip', folder))
    content = archive.read_bytes()
    place = content.index(b'RIFF') if b'RIFF' in content else content.index(b'1.wav') + 10
    archive.write_bytes(content[:place] + bytes(40) + content[place + 40 :])
    with pytest.raises(errors.UserError, match=r'archive\.zip: wav/1\.wav cannot be read'):
        Transcribed(str(archive), 8000)[1]


@pytest.fixture(scope='module')
def tones(tmp_path_factory):
    return sound_files.tones(tmp_path_factory.mktemp('tones') / 'tones.npz')


def test_a_string_is_recordings_of_one_speaker_with_silence_between(tones):
    """Found again in the archive, sample by sample."""
    recordings = audio_sources.AudioNpz(tones, 'test')
    of_digit = {(int(r['label']), int(r['speaker'])): r['audio'] for r in recordings}
    source = DigitStrings(tones, 80, 2.0, split='test', max_pause=0.05)
    counts = set()
    for i in range(len(source)):
        record = source[i]
        digits = [int(word) for word in record['text'].split()]
        counts.add(len(digits))
        matches = [_found(record['audio'], [of_digit[d, s] for d in digits]) for s in range(2)]
        assert sum(matches) == 1, record
    assert counts == set(range(2, 8))


def _found(samples: np.ndarray, parts: list[np.ndarray]) -> bool:
    """Whether samples are the parts in this order, apart from pauses of up to 400 samples."""
    start = 0
    for part in parts:
        ends = range(start, min(start + 401, len(samples) - len(part) + 1))
        places = [at for at in ends if (samples[at : at + len(part)] == part).all()]
        if not places or np.any(samples[start : places[0]]):
            return False
        start = places[0] + len(part)
    return len(samples) - start <= 400 and not np.any(samples[start:])


def test_strings_are_functions_of_the_seed_and_their_number(tones):
    one, same, other = (DigitStrings(tones, 30, 2.0, seed=seed) for seed in (0, 0, 1))
    for i in (3, 0, 29):
        np.testing.assert_array_equal(one[i]['audio'], same[i]['audio'])
    assert [one[i]['text'] for i in range(30)] != [other[i]['text'] for i in range(30)]
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()


def test_strings_end_within_their_seconds(tones):
    source = DigitStrings(tones, 50, 0.7, max_pause=0.05)
    lengths = [len(source[i]['audio']) for i in range(50)]
    assert 0.5 * 8000 < max(lengths) <= 0.7 * 8000
    assert min(len(source[i]['text'].split()) for i in range(50)) >= 2


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(max_seconds=0.3), r'max_seconds = 0\.3 may not hold min_digits = 2'),
        (dict(min_digits=5, max_digits=4), 'must be at least 1, the former not above'),
    ],
)
def test_strings_that_cannot_be(tones, fields, message):
    with pytest.raises(errors.UserError, match=message):
        DigitStrings(tones, 10, **(dict(max_seconds=2.0) | fields))


def test_an_archive_without_recordings_of_a_split_is_named(tmp_path):
    path = test_audio.write_npz(tmp_path / 'a.npz', is_test=np.zeros(3, bool))
    with pytest.raises(errors.UserError, match=r"a\.npz has no recording in the split 'test'"):
        DigitStrings(path, 10, 2.0, split='test')


def flac(path, seconds):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.ones(int(16_000 * seconds)), 16_000)


def test_librispeech_is_read_as_it_is_unpacked(tmp_path):
    folder = tmp_path / 'train-clean-100'
    for speaker, chapter, texts in ((19, 198, ['ONE TWO', "IT'S"]), (7, 3, ['THREE'])):
        name = f'{speaker}-{chapter}'
        for i in range(len(texts)):
            flac(folder / f'{speaker}' / f'{chapter}' / f'{name}-{i:04d}.flac', 0.1 + 0.1 * i)
        lines = ''.join(f'{name}-{i:04d} {text}\n' for i, text in enumerate(texts))
        (folder / f'{speaker}' / f'{chapter}' / f'{name}.trans.txt').write_text(lines)
    source = LibriSpeech(str(folder))
    assert [source[i]['text'] for i in range(3)] == ['ONE TWO', "IT'S", 'THREE']
    assert [len(source[i]['audio']) for i in range(3)] == [1600, 3200, 1600]
    assert source[1]['path'] == '19/198/19-198-0001.flac'
    assert source.fingerprint() != LibriSpeech(str(folder), 8000).fingerprint()
    assert len(pickle.loads(pickle.dumps(source))) == 3
    table = folder / '7' / '3' / '7-3.trans.txt'
    for content, message in [
        ('7-3-0000 \n', r'7-3\.trans\.txt:1 has no text after .7-3-0000'),
        ('7-3-0000 A\n7-3-0001 B\n', r'lacks 1 of the 4 files .* 7/3/7-3-0001\.flac'),
    ]:
        table.write_text(content)
        with pytest.raises(errors.UserError, match=message):
            LibriSpeech(str(folder))
    with pytest.raises(errors.UserError, match='There is no folder'):
        LibriSpeech(str(tmp_path / 'nowhere'))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(errors.UserError, match=r'has no \.trans\.txt file'):
        LibriSpeech(str(tmp_path / 'empty'))


def test_common_voice_is_read_as_it_is_unpacked(tmp_path):
    (tmp_path / 'clips').mkdir()
    sentences = ['He said "no, thanks', 'Two\u2019s company']
    rows = ['client_id\tpath\tsentence\tup_votes']
    for i, sentence in enumerate(sentences):
        soundfile.write(tmp_path / 'clips' / f'{i}.mp3', 0.1 * np.ones(4800 * (i + 1)), 48_000)
        rows.append(f'a\t{i}.mp3\t{sentence}\t2')
    (tmp_path / 'train.tsv').write_text('\n'.join(rows) + '\n')
    columns = dict(file_column='path', text_column='sentence')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that the files are resampled
        source = Transcribed(str(tmp_path), 16_000, 'train.tsv', 'clips', **columns)
        assert [source[i]['text'] for i in range(2)] == sentences
        assert [len(source[i]['audio']) for i in range(2)] == [1600, 3200]
