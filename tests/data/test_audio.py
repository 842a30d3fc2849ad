"""WAV files and resampling against what the samples are known to be."""

import io
import struct
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
import soundfile

from bigmodels import errors
from bigmodels.data import audio
from bigmodels.data.sources import audio_sources
from tests.sound_files import wav


@pytest.mark.parametrize('width', [1, 2, 3, 4])
def test_decode_wav(width):
    full = 2 ** (8 * width - 1)
    values = np.array([0, 1, -1, full // 2, full - 1, -full])
    samples, rate = audio.decode(wav(values, width, 11_025), 'a')
    assert (samples.dtype, rate) == (np.float32, 11_025)
    np.testing.assert_allclose(samples, values / full, rtol=1e-7)
    stereo = np.stack([values, np.zeros_like(values)], 1)
    np.testing.assert_allclose(audio.decode(wav(stereo, width), 'a')[0], values / full / 2)


@pytest.mark.parametrize('subtype', ['PCM_16', 'PCM_24', 'PCM_32'])
@pytest.mark.parametrize('channels', [1, 2])
def test_wav_with_an_extensible_header(subtype, channels):
    values = np.random.default_rng(0).uniform(-1, 1, (50, channels))
    buffer = io.BytesIO()
    soundfile.write(buffer, values, 11_025, format='WAVEX', subtype=subtype)
    expected, _ = soundfile.read(io.BytesIO(buffer.getvalue()), always_2d=True)
    samples, rate = audio.decode(buffer.getvalue(), 'a')
    assert rate == 11_025
    np.testing.assert_allclose(samples, expected.mean(1), atol=1e-7)
    floats = io.BytesIO()
    soundfile.write(floats, values, 11_025, format='WAVEX', subtype='FLOAT')
    with pytest.raises(errors.UserError, match='is not a PCM WAV file'):
        audio.decode(floats.getvalue(), 'a')


def test_damaged_wav_is_named():
    data = wav(np.arange(100))
    floats = bytearray(data)
    struct.pack_into('<H', floats, 20, 3)  # the format: IEEE float
    wide = bytearray(data)
    struct.pack_into('<H', wide, 34, 128)
    for damaged, message in (
        (data[:-50], r'^x\.wav \(record 3\) is cut short: it has 75 of the 100 samples'),
        (data[:20], r'^x\.wav \(record 3\) is not a PCM WAV file: it ends within its header'),
        (b'', 'ends within its header'),
        (b'RIFX' + data[4:], 'does not start with RIFF'),
        (bytes(floats), 'unknown format: 3'),
        (bytes(wide), '128 bits per sample'),
        (wav(np.zeros(9), rate=2_000_000), 'says that it has 2,000,000 samples a second'),
        (wav(np.zeros((0, 1))), r'x\.wav \(record 3\) holds no sample'),
    ):
        with pytest.raises(errors.UserError, match=message):
            audio.decode(damaged, 'x.wav (record 3)')


@pytest.mark.parametrize(
    ('rate', 'wanted'), [(8000, 16_000), (16_000, 8000), (44_100, 16_000), (22_050, 24_000)]
)
def test_resampling_keeps_what_both_rates_have(rate, wanted):
    """A tone comes out as itself in time and phase, one above the new limit is gone."""
    lower = min(rate, wanted) / 2
    time, new_time = np.arange(rate // 4) / rate, np.arange(wanted // 4) / wanted
    inside = slice(wanted // 40, -wanted // 40)
    for frequency in (0.0, 100.0, 0.5 * lower, 0.83 * lower):
        tone = np.cos(2 * np.pi * frequency * time + 0.7).astype(np.float32)
        resampled = audio.resample(tone, rate, wanted)
        assert resampled.dtype == np.float32
        assert resampled.shape == new_time.shape
        expected = np.cos(2 * np.pi * frequency * new_time + 0.7)
        np.testing.assert_allclose(resampled[inside], expected[inside], atol=2e-4)
    if wanted < rate:
        above = np.cos(2 * np.pi * 1.01 * lower * time).astype(np.float32)
        assert np.abs(audio.resample(above, rate, wanted)[inside]).max() < 2e-4


def test_resampling_to_the_same_rate_is_nothing():
    samples = np.arange(10, dtype=np.float32)
    assert audio.resample(samples, 8000, 8000) is samples
    assert len(audio.resample(samples, 3, 7)) == 24


def write_folder(root, rates=(8000, 16_000, 16_000)):
    for i, rate in enumerate(rates):
        folder = root / f'class_{i % 2}'
        folder.mkdir(exist_ok=True)
        (folder / f'{i}.wav').write_bytes(wav(np.arange(100 * (i + 1)), rate=rate))
    return str(root)


def test_wav_folder(tmp_path):
    source = audio_sources.WavFolder(write_folder(tmp_path), 8000)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('default')
        records = [source[i] for i in range(3)]
    assert [(r['path'], int(r['label']), len(r['audio'])) for r in records] == [
        ('class_0/0.wav', 0, 100),
        ('class_0/2.wav', 0, 150),
        ('class_1/1.wav', 1, 100),
    ]
    np.testing.assert_allclose(records[0]['audio'], np.arange(100) / 2**15)
    assert {r['sample_rate'] for r in records} == {8000}
    [warning] = told
    assert 'has sound of 16,000 Hz: it is resampled to 8,000 Hz' in str(warning.message)
    other = audio_sources.WavFolder(str(tmp_path), 16_000)
    assert other.fingerprint() != source.fingerprint()
    with pytest.raises(errors.UserError, match='sample_rate = 0 must be from 1 to 1,000,000 Hz'):
        audio_sources.WavFolder(str(tmp_path), 0)


def write_npz(path, **changes):
    arrays = {
        'audio': np.arange(-5, 25, dtype=np.int16),
        'offsets': np.array([0, 10, 13, 30]),
        'sample_rate': np.array([8000]),
        'is_test': np.array([False, True, False]),
        'label': np.array([4, 5, 6], np.uint8),
        'names': np.array(['a', 'b']),
    }
    np.savez(path, **(arrays | changes))
    return str(path)


def test_audio_npz(tmp_path):
    path = write_npz(tmp_path / 'a.npz')
    train, test = (audio_sources.AudioNpz(path, split) for split in ('train', 'test'))
    assert [int(train[i]['label']) for i in range(2)] == [4, 6]
    assert train[0].keys() == {'audio', 'sample_rate', 'path', 'label'}
    assert train[1]['path'] == f'{path} (recording 2)'
    assert train.column('label').tolist() == [4, 6]
    assert train.num_samples().tolist() == [len(train[i]['audio']) for i in range(2)]
    with pytest.raises(errors.UserError, match="array in .* 'speaker'"):
        train.column('speaker')
    np.testing.assert_allclose(train[1]['audio'], np.arange(8, 25) / 2**15)
    np.testing.assert_allclose(test[0]['audio'], np.arange(5, 8) / 2**15)
    faster = audio_sources.AudioNpz(path, 'test', 16_000)
    assert (len(faster[0]['audio']), faster[0]['sample_rate']) == (6, 16_000)
    assert faster.num_samples().tolist() == [6]
    assert len({train.fingerprint(), test.fingerprint(),
                faster.fingerprint()}) == 3  # fmt: skip


@pytest.mark.parametrize('kind', [np.uint16, np.int32, np.uint64])
def test_offsets_are_integers_of_any_type(tmp_path, kind):
    """A length times a rate is over 2**31 here."""
    arrays = dict(audio=np.zeros(7000, np.int16), offsets=np.array([0, 3000, 7000], kind))
    path = write_npz(tmp_path / 'a.npz', **arrays, is_test=np.zeros(2, bool))
    source = audio_sources.AudioNpz(path, sample_rate=1_000_000)
    assert source.num_samples().tolist() == [375_000, 500_000]
    assert ' 1 s,' in source.describe()


def test_audio_npz_errors(tmp_path):
    for changes, message in (
        ({'offsets': np.array([0, 10, 30])}, 'offsets must ascend from 0 to the 30 samples'),
        ({'offsets': np.array([0, 10, 10, 30])}, 'in 4 entries, one more than is_test'),
        ({'offsets': np.array([0, 10, 13, 29])}, 'must ascend'),
        ({'offsets': np.array([0, 13, 10, 30], np.uint32)}, 'must ascend'),
        ({'offsets': np.array([0, 2**63 - 1, -2, 30])}, 'must ascend'),
        ({'offsets': np.array([0, 10.5, 13, 30])}, r'offsets is float64 \[4\], and must be a row'),
        ({'audio': np.zeros(30, np.float32)}, 'audio is float32, and must be int16'),
    ):
        with pytest.raises(errors.UserError, match=message):
            audio_sources.AudioNpz(write_npz(tmp_path / 'a.npz', **changes))
    np.savez(tmp_path / 'b.npz', audio=np.zeros(3, np.int16))
    with pytest.raises(errors.UserError, match=r"array in .* 'offsets'"):
        audio_sources.AudioNpz(str(tmp_path / 'b.npz'))


@pytest.mark.shared_data
def test_shared_recordings(shared_data):
    """Against the counts that the data's own description gives."""
    path = str(shared_data / 'fsdd' / 'fsdd_8khz.npz')
    train, test = (audio_sources.AudioNpz(path, split) for split in ('train', 'test'))
    assert (len(train), len(test)) == (2700, 300)
    labels = [int(test[i]['label']) for i in range(300)]
    assert np.bincount(labels).tolist() == [30] * 10
    lengths = [len(source[i]['audio']) for source in (train, test) for i in range(len(source))]
    assert sum(lengths) == 10_498_424
    assert max(np.abs(test[i]['audio']).max() for i in range(300)) <= 1


def compressed(samples, kind, rate=16_000):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind)
    return buffer.getvalue()


KINDS = [('FLAC', 8000), ('FLAC', 16_000), ('OGG', 16_000)]
KINDS += [('MP3', rate) for rate in (8000, 11_025, 16_000, 44_100)]


@pytest.mark.parametrize(('kind', 'rate'), KINDS)
def test_compressed_sound_is_decoded(kind, rate):
    time = np.arange(5 * rate) / rate  # several blocks
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    close = 1e-4 if kind == 'FLAC' else 0.1
    samples, found = audio.decode(compressed(tone, kind, rate), 'a')
    assert (samples.dtype, samples.shape, found) == (np.float32, tone.shape, rate)
    np.testing.assert_allclose(samples[1000:-1000], tone[1000:-1000], atol=close)
    both = compressed(np.stack([tone, np.zeros_like(tone)], 1), kind, rate)
    np.testing.assert_allclose(
        audio.decode(both, 'a')[0][1000:-1000], tone[1000:-1000] / 2, atol=close
    )


def test_long_sound_is_refused_before_it_is_held():
    silence = compressed(np.zeros((1_000_000, 8)), 'FLAC')
    assert len(silence) < 50_000
    tracemalloc.start()
    with pytest.raises(errors.UserError, match=r'^a is too long, .* at most 7,999,999 samples'):
        audio.decode(silence, 'a', most=7_999_999)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert len(audio.decode(silence, 'a', most=8_000_000)[0]) == 1_000_000


def test_a_flac_file_must_say_how_long_it_is():
    """The samples of a stream are 36 bits from byte 21 on; 0 where they are not known."""
    values = np.random.default_rng(0).normal(size=100_000) / 9
    data = bytearray(compressed(values, 'FLAC'))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    with pytest.raises(errors.UserError, match=r'^a is too long, or does not say how long it is'):
        audio.decode(bytes(data), 'a')
    data[21] |= 0x0F
    data[22:26] = b'\xff' * 4
    with pytest.raises(errors.UserError, match=r'^a is too long'):
        audio.decode(bytes(data), 'a')


def test_an_ogg_file_without_its_end_is_cut_short():
    data = compressed(np.random.default_rng(0).normal(size=100_000) / 9, 'OGG')
    starts = [i for i in range(len(data)) if data.startswith(b'OggS', i)]
    assert len(starts) > 4
    assert len(audio.decode(data + bytes(9), 'a')[0]) == 100_000
    for length in (*starts[3:], starts[-1] + 10, starts[-1] + 27, len(data) - 1):
        with pytest.raises(errors.UserError, match=r'^a is cut short: the page that ends'):
            audio.decode(data[:length], 'a')


def test_damaged_compressed_sound_is_named(monkeypatch):
    flac = compressed(np.random.default_rng(0).normal(size=16_000) / 9, 'FLAC')
    for damaged in (flac[:-9000], flac[:40], b'OggS' + bytes(100), b'ID3' + bytes(50)):
        with pytest.raises(errors.UserError, match=r'^a\.flac (is cut short|cannot be decoded)'):
            audio.decode(damaged, 'a.flac')
    monkeypatch.setitem(sys.modules, 'soundfile', None)
    with pytest.raises(errors.UserError, match=r'a\.flac is no WAV file: pip install .*speech'):
        audio.decode(flac, 'a.flac')
