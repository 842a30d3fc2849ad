"""Sources against plain Python and numpy readings of the same files."""

import csv
import gzip
import json
import pathlib
import pickle
import subprocess
import sys
import sysconfig
import zipfile

import numpy as np
import pytest

from bigmodels import config, errors
from bigmodels.data import SOURCES, sources
from bigmodels.data.sources import table_sources
from tests.data import image_files, mask_files, test_audio

PARTS = ['one\n', 'zwei äöü\n', '三つ 🙂\n', 'four']


def build(name, **section):
    return config.choose(SOURCES, {'name': name, **section}, 'data.source')


def write_parts(folder, suffix='.txt'):
    for i, part in enumerate(PARTS):
        opener = gzip.open if suffix.endswith('.gz') else open
        with opener(folder / f'{i}{suffix}', 'wb') as stream:
            stream.write(part.encode())
    return str(folder / f'*{suffix}')


@pytest.fixture(
    params=['stdlib', 'text', 'text_gz', 'jsonl', 'csv', 'npz', 'digits', 'image_folder',
            'jpeg_npz', 'decoded_jpeg_npz', 'mnist', 'mask_npz', 'mask_folder', 'wav_folder',
            'audio_npz', 'moving_digits', 'digit_scenes'],
    ids=lambda name: name,
)  # fmt: skip
def any_source(request, tmp_path):
    if request.param == 'stdlib':
        return build('stdlib', split='valid')
    if request.param.startswith('text'):
        suffix = '.gz' if request.param == 'text_gz' else '.txt'
        return build('text_files', path=write_parts(tmp_path, suffix))
    if request.param == 'jsonl':
        (tmp_path / 'a.jsonl').write_text('{"x": 1}\n{"x": 2}\n')
        return build('jsonl', path=str(tmp_path / 'a.jsonl'))
    if request.param == 'csv':
        (tmp_path / 'a.csv').write_text('x,y\n1,b\n2,c\n')
        return build('csv', path=str(tmp_path / 'a.csv'))
    if request.param == 'npz':
        np.savez(tmp_path / 'a.npz', x=np.arange(6).reshape(3, 2), y=np.arange(3.0))
        return build('npz', path=str(tmp_path / 'a.npz'))
    if request.param == 'image_folder':
        image_files.write_folder(tmp_path, {'cat': 2, 'dog': 3})
        return build('image_folder', path=str(tmp_path))
    if request.param.endswith('jpeg_npz'):
        image_files.write_npz(tmp_path / 'a.npz', [image_files.smooth(i) for i in range(3)])
        return build(request.param, path=str(tmp_path / 'a.npz'))
    if request.param == 'mnist':
        image_files.write_mnist(tmp_path, np.arange(12).reshape(3, 2, 2), np.arange(3))
        return build('mnist', path=str(tmp_path))
    if request.param == 'mask_npz':
        mask_files.write_archive(tmp_path / 'a.npz', count=8)
        return build('mask_npz', path=str(tmp_path / 'a.npz'), split='train', mask='instance')
    if request.param == 'mask_folder':
        mask_files.write_folder(tmp_path, *mask_files.scenes(3, 12, 8))
        return build('mask_folder', path=str(tmp_path))
    if request.param == 'wav_folder':
        return build('wav_folder', path=test_audio.write_folder(tmp_path), sample_rate=8000)
    if request.param == 'audio_npz':
        return build('audio_npz', path=test_audio.write_npz(tmp_path / 'a.npz'))
    if request.param == 'moving_digits':
        image_files.write_mnist(tmp_path, np.arange(12).reshape(3, 2, 2), np.arange(3))
        return build('moving_digits', path=str(tmp_path), count=7, size=8, speeds=(1.0, 2.0))
    if request.param == 'digit_scenes':
        image_files.write_mnist(tmp_path, np.arange(12).reshape(3, 2, 2), np.arange(3))
        return build('digit_scenes', path=str(tmp_path), count=7, size=8)
    return build('digits', split='valid')


def test_contract(any_source):
    length = len(any_source)
    copy = pickle.loads(pickle.dumps(any_source))
    assert len(copy) == length > 0
    assert copy.fingerprint() == any_source.fingerprint()
    assert int(any_source.fingerprint(), 16)
    assert '\n' not in any_source.describe()
    for i in (0, length // 2, length - 1, -1, np.int64(0)):
        record, again = any_source[i], copy[i]
        assert record.keys() == again.keys()
        for key, value in record.items():
            assert isinstance(value, np.ndarray | np.generic | str)
            np.testing.assert_array_equal(value, again[key])
    for i in (length, -length - 1):
        with pytest.raises(IndexError):
            any_source[i]
    if hasattr(any_source, 'take'):
        indices = np.array([length - 1, 0, length // 2, 0])
        for key, column in any_source.take(indices).items():
            np.testing.assert_array_equal(column, [any_source[i][key] for i in indices])
            column[:] = column[0]  # new arrays, which may be written to


def test_importing_the_package_imports_no_optional_library():
    code = (
        'import sys, bigmodels.data, bigmodels.data.text; '
        "print([m for m in ('tensorflow_datasets', 'sklearn', 'tokenizers', 'sentencepiece') "
        'if m in sys.modules])'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout.strip() == '[]', result.stderr


def test_unknown_key_and_type_are_found_by_config():
    with pytest.raises(errors.UserError, match=r"Unknown key in config.data.source 'splot'.*split"):
        build('stdlib', splot='train')
    with pytest.raises(errors.UserError, match=r"split: 'test'. Allowed: train, valid"):
        build('stdlib', split='test')


def test_stdlib_is_the_whole_library_once():
    root = pathlib.Path(sysconfig.get_path('stdlib'))
    train, valid = build('stdlib'), build('stdlib', split='valid')
    paths = [[source[i]['path'] for i in range(len(source))] for source in (train, valid)]
    assert not set(paths[0]) & set(paths[1])
    assert paths == [sorted(names) for names in paths]
    assert 0.02 < len(valid) / (len(train) + len(valid)) < 0.09
    found = {*paths[0], *paths[1]}
    assert {'os.py', 'json/decoder.py', 'asyncio/base_events.py'} <= found
    assert not any(part in path.split('/') for path in found for part in ('test', 'site-packages'))
    for source in (train, valid):
        for record in (source[0], source[len(source) // 3]):
            assert record['text'] == (root / record['path']).read_bytes().decode()


def test_stdlib_split_depends_on_the_path_alone(tmp_path, monkeypatch):
    held_out = {record['path'] for record in build('stdlib', split='valid')}
    some = [*sorted(held_out)[:3], 'os.py', 'json/decoder.py']
    for name in some:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('x = 1\n')
    (tmp_path / 'latin.py').write_bytes(b'# \xe9\n')
    (tmp_path / 'empty.py').write_bytes(b'')
    (tmp_path / 'test').mkdir()
    (tmp_path / 'test' / 'case.py').write_text('x = 1\n')
    (tmp_path / 'dangling.py').symlink_to(tmp_path / 'absent')
    monkeypatch.setattr(sysconfig, 'get_path', lambda name: str(tmp_path))
    train, valid = build('stdlib'), build('stdlib', split='valid')
    assert {record['path'] for record in valid} == held_out & set(some)
    assert {record['path'] for record in train} == set(some) - held_out


@pytest.mark.parametrize('suffix', ['.txt', '.gz'])
@pytest.mark.parametrize('limits', [(0.0, 1.0), (0.0, 0.37), (0.37, 0.81), (0.81, 1.0)])
def test_fraction_takes_characters_of_the_whole_corpus(tmp_path, suffix, limits):
    source = build('text_files', path=write_parts(tmp_path, suffix), fraction=limits)
    corpus = ''.join(PARTS)
    lo, hi = (int(limit * len(corpus)) for limit in limits)
    assert ''.join(record['text'] for record in source) == corpus[lo:hi]


@pytest.mark.parametrize('suffix', ['.txt', '.txt.gz'])
def test_a_byte_order_mark_is_no_text(tmp_path, suffix):
    data = '\ufeffé one|two'.encode()
    path = tmp_path / f'a{suffix}'
    path.write_bytes(gzip.compress(data) if suffix.endswith('gz') else data)
    parts = [record['text'] for record in sources.TextFiles(str(path), split_documents='|')]
    assert parts == ['é one', 'two']
    assert sources.TextFiles(str(path), fraction=(0.0, 0.5))[0]['text'] == 'é on'


def test_split_documents(tmp_path):
    (tmp_path / 'a.txt').write_text('é1\n--\n\n--\n漢2\n--\n3', encoding='utf-8')
    source = build('text_files', path=str(tmp_path / 'a.txt'), split_documents='\n--\n')
    assert [record['text'] for record in source] == ['é1', '漢2', '3']


def test_recursive_glob_is_sorted(tmp_path):
    for name in ('b/c.txt', 'a.txt', 'b/a/z.txt'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    source = build('text_files', path=str(tmp_path / '**' / '*.txt'))
    assert [record['text'] for record in source] == ['a.txt', 'b/a/z.txt', 'b/c.txt']


def test_fingerprint_is_of_the_content(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'b').mkdir()
    first, second = write_parts(tmp_path / 'a'), write_parts(tmp_path / 'b', '.gz')
    fingerprint = build('text_files', path=first).fingerprint()
    assert build('text_files', path=second).fingerprint() == fingerprint
    assert build('text_files', path=first, fraction=(0.0, 0.5)).fingerprint() != fingerprint
    (tmp_path / 'a' / '0.txt').write_text('onE\n')
    assert build('text_files', path=first).fingerprint() != fingerprint


def test_text_errors(tmp_path):
    def error_of(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(errors.UserError) as caught:
            sources.TextFiles(str(path))
        assert str(path) in str(caught.value)
        return str(caught.value)

    assert 'NUL at byte offset 3' in error_of('a.bin', b'abc\0def')
    assert 'byte 0xe9 at offset 2' in error_of('latin.txt', b'ab\xe9cd')
    assert 'no text' in error_of('empty.txt', b'')
    assert 'gzip' in error_of('cut.gz', gzip.compress(b'text' * 100)[:-9])
    with pytest.raises(errors.UserError, match=r"No file matches '.*nothing\*'.*path or a glob"):
        sources.TextFiles(str(tmp_path / 'nothing*'))
    with pytest.raises(errors.UserError, match=r'is a folder. Write .*/\*\*/\*'):
        sources.TextFiles(str(tmp_path))
    with pytest.raises(errors.UserError, match=r'fraction = \(0.9, 0.1\).*lo < hi'):
        sources.TextFiles(str(tmp_path), fraction=(0.9, 0.1))


@pytest.mark.parametrize('name', ['nothing.txt', 'nothing.gz', '.'])
@pytest.mark.parametrize(
    'read', [sources.read_bytes, sources.read_text, lambda path: list(sources.lines_of(path))]
)
def test_a_file_that_is_not_there_is_named(read, name, tmp_path):
    path = str(tmp_path / name)
    with pytest.raises(errors.UserError, match=f'There is no file {path!r}, seen from'):
        read(path)


def test_a_file_that_changes_or_vanishes_is_named(tmp_path):
    source = sources.TextFiles(write_parts(tmp_path))
    (tmp_path / '1.txt').write_text('longer than it was before')
    (tmp_path / '2.txt').unlink()
    assert source[0]['text'] == PARTS[0]
    with pytest.raises(errors.UserError, match=r'1\.txt changed.*12 bytes.*25 now'):
        source[1]
    with pytest.raises(errors.UserError, match=r'2\.txt vanished'):
        source[2]


@pytest.mark.parametrize('suffix', ['', '.gz'])
def test_json_lines(tmp_path, suffix):
    records = [{'t': 'ä\n', 'n': i, 'x': i / 2, 'v': [1, 2.5], 'm': [{'k': 1}]} for i in range(5)]
    data = '\n\n'.join(json.dumps(r, ensure_ascii=i % 2 == 0) for i, r in enumerate(records))
    path = tmp_path / f'a.jsonl{suffix}'
    path.write_bytes(gzip.compress(data.encode()) if suffix else data.encode())
    source = sources.JsonLines(str(path))
    assert len(source) == 5
    for i in (4, 0, 3):
        record = source[i]
        assert record['n'].dtype == np.int64
        assert record['x'].dtype == np.float32
        assert record['v'].dtype == np.float32
        assert {**record, 'v': record['v'].tolist()} == records[i]


@pytest.mark.parametrize('text', ['16777217.0', '[16777217.0, 0.5]', '[16777217, 0.5]'])
def test_whole_numbers_in_json_are_not_rounded_to_others(text):
    found = sources.parse_json_line(f'{{"id": {text}}}'.encode(), 'a')['id']
    assert found.dtype == np.float64
    assert np.ravel(found)[0] == 16777217


@pytest.mark.parametrize('line', ['{"a": 1', '[1]', f'{{"a": [0.5, 1{"0" * 400}]}}', ''])
def test_json_errors_name_the_line(tmp_path, line):
    path = tmp_path / 'a.jsonl'
    path.write_text(f'{{"a": 1}}\n\n{line}\n' if line else '\n')
    wanted = r'a\.jsonl:3 is not a JSON object' if line else 'every line is blank'
    with pytest.raises(errors.UserError, match=wanted):
        sources.JsonLines(str(path))


def test_numbers_too_large_for_int64_are_kept(tmp_path):
    large = {'id': 12345678901234567890, 'x': [1, 2**65]}
    (tmp_path / 'a.jsonl').write_text(json.dumps(large))
    [record] = sources.JsonLines(str(tmp_path / 'a.jsonl'))
    assert record == large


def test_csv_types_and_quotes(tmp_path):
    (tmp_path / 'a.csv').write_text(
        'i,f,s,id,big,gap,q\n1,2,x,007,1234567890123456789,1,"a,""b"""\n-2,.5e1,3,008,2,?,"l\nm"\n'
    )
    source = table_sources.Csv(str(tmp_path / 'a.csv'))
    first, second = source
    assert (first['i'], second['i']) == (1, -2)
    assert first['i'].dtype == np.int64
    assert first['f'].dtype == np.float32
    assert (first['f'], second['f']) == (2.0, 5.0)
    texts = [[r[k] for r in (first, second)] for k in ('s', 'id', 'big', 'gap', 'q')]
    assert texts == [
        ['x', '3'],
        ['007', '008'],
        ['1234567890123456789', '2'],
        ['1', '?'],
        ['a,"b"', 'l\nm'],
    ]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a,b\n1,2\n3\n', r'a\.csv:3 has 1 values, the header has 2'),
        ('a,b\n"1\n2",2\n3,4,5\n', r'a\.csv:4 has 3 values'),
        ('a,a\n1,2\n', r'a\.csv:1 names a column twice'),
        ('a,b\n', 'at least one row'),
        ('a\n"x" y\n', r'a\.csv:2 is not CSV'),
    ],
)
def test_csv_errors(tmp_path, text, message):
    (tmp_path / 'a.csv').write_text(text)
    with pytest.raises(errors.UserError, match=message):
        table_sources.Csv(str(tmp_path / 'a.csv'))


def test_npz(tmp_path):
    arrays = {'x': np.arange(12.0).reshape(4, 3), 'name': np.array(['a', 'b', 'c', 'd'])}
    np.savez(tmp_path / 'a.npz', other=np.arange(7), **arrays)
    source = table_sources.Npz(str(tmp_path / 'a.npz'), arrays=('x', 'name'))
    assert len(source) == 4
    for i, record in enumerate(source):
        np.testing.assert_array_equal(record['x'], arrays['x'][i])
        assert record['name'] == arrays['name'][i]
    with pytest.raises(ValueError, match='read-only'):
        source[0]['x'][0] = 5


def test_npz_errors(tmp_path):
    path = str(tmp_path / 'a.npz')
    with pytest.raises(errors.UserError, match=r"no file '.*a\.npz'"):
        table_sources.Npz(path)
    np.savez(path, x=np.arange(4), y=np.arange(5), z=np.float32(1))
    with pytest.raises(errors.UserError, match=r"array in .*a\.npz 'w'.*Allowed: x, y, z"):
        table_sources.Npz(path, ('w',))
    with pytest.raises(errors.UserError, match=r"same length, got \{'x': \(4,\), 'y': \(5,\)\}"):
        table_sources.Npz(path, ('x', 'y'))
    with pytest.raises(errors.UserError, match='leading axis'):
        table_sources.Npz(path, ('x', 'z'))
    np.savez(path, x=np.array([{}, None], object))
    with pytest.raises(errors.UserError, match='without pickled objects'):
        table_sources.Npz(path)
    np.savez(path, x=np.arange(4))
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('README', 'of what is here')
    with pytest.raises(errors.UserError, match='README is another file, not an array'):
        table_sources.Npz(path)
    assert len(table_sources.Npz(path, ('x',))) == 4
    for content in (b'', b'no archive', b'PK\x03\x04 cut short'):
        (tmp_path / 'a.npz').write_bytes(content)
        with pytest.raises(errors.UserError, match=r'is not an \.npz archive'):
            table_sources.Npz(path)
    np.save(tmp_path / 'a.npy', np.arange(3))
    with pytest.raises(errors.UserError, match=r'is not an \.npz archive'):
        table_sources.Npz(str(tmp_path / 'a.npy'))


def test_digits_is_the_bundled_set():
    datasets = pytest.importorskip('sklearn.datasets')
    reference = datasets.load_digits()
    train, valid = build('digits'), build('digits', split='valid')
    assert (len(train), len(valid)) == (1437, 360)
    for i in (0, 7, 359):
        assert valid[i]['label'] == reference.target[5 * i]
        pixels = valid[i]['image'] * (16 / 255)
        np.testing.assert_allclose(pixels, reference.images[5 * i], atol=0.04)
    assert train[4]['label'] == reference.target[6]
    assert train[0]['image'].dtype == np.uint8
    assert train.take(np.arange(99))['image'].max() == 255


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn', None)
    with pytest.raises(errors.UserError, match=r"pip install 'bigmodels\[tables\]'"):
        table_sources.Digits()


@pytest.mark.shared_data
def test_tiny_shakespeare_is_split_as_nanogpt_does(shared_data):
    path = shared_data / 'tinyshakespeare' / 'input.txt'
    text = path.read_text()
    train = build('text_files', path=str(path), fraction=(0.0, 0.9))
    valid = build('text_files', path=str(path), fraction=(0.9, 1.0))
    assert train[0]['text'] == text[: int(0.9 * len(text))]
    assert valid[0]['text'] == text[int(0.9 * len(text)) :]
    assert len(train[0]['text']) == 1_003_854


@pytest.mark.shared_data
def test_shared_tables(shared_data):
    path = shared_data / 'adult' / 'adult_train.csv.gz'
    adult = build('csv', path=str(path))
    with gzip.open(path, 'rt') as stream:
        rows = list(csv.DictReader(stream))
    assert len(adult) == len(rows) == 32_561
    for i in (0, 14, 32_560):
        assert {key: str(value) for key, value in adult[i].items()} == rows[i]
    assert {key for key, value in adult[0].items() if not isinstance(value, str)} == {
        'age', 'fnlwgt', 'education_num', 'capital_gain', 'capital_loss', 'hours_per_week',
    }  # fmt: skip
    assert len(build('jsonl', path=str(shared_data / 'gsm8k' / 'train.jsonl.gz'))) == 7_473
    nuclei = build('npz', path=str(shared_data / 'nuclei' / 'nuclei_256.npz'))
    assert nuclei[3]['image'].shape == (256, 256)
