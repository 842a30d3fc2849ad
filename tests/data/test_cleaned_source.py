"""Records that are broken or there twice: counted, left out or refused; looked for once."""

import pathlib
import shutil

import numpy as np
import pytest

from bigmodels import errors
from bigmodels.data import SOURCES
from bigmodels.data.sources import cleaned_source
from tests.data import image_files, test_sources


@pytest.fixture
def folder(tmp_path):
    """cat/0 to cat/2 and dog/0; cat/1 is cut short, and cat/2 and dog/1 are as cat/0."""
    images = tmp_path / 'images'
    for name, seeds in (('cat', (0, 1)), ('dog', (2,))):
        (images / name).mkdir(parents=True)
        for i, seed in enumerate(seeds):
            (images / name / f'{i}.png').write_bytes(image_files.encoded(image_files.smooth(seed)))
    for copy in ('cat/2.png', 'dog/1.png'):
        shutil.copy(images / 'cat' / '0.png', images / copy)
    broken = images / 'cat' / '1.png'
    broken.write_bytes(broken.read_bytes()[:60])
    return str(images)


def cleaned(folder, **fields):
    return SOURCES['cleaned'](dict(name='image_folder', path=folder), **fields)


def paths(source):
    return [source[i]['path'] for i in range(len(source))]


def test_what_is_broken_or_repeated_is_left_out_and_counted(folder, monkeypatch):
    source = cleaned(folder)
    assert paths(source) == ['cat/0.png', 'dog/0.png', 'dog/1.png']  # with another label
    assert source.describe().endswith(
        'cleaned: 1 broken left out (the first is record 1), '
        '1 duplicates left out (the first is record 2)'
    )
    test_sources.test_contract(source)
    assert source.classes == ('cat', 'dog')
    same = cleaned(folder, fields=('image',))
    assert paths(same) == ['cat/0.png', 'dog/0.png']
    kept = cleaned(folder, duplicates='keep')
    assert paths(kept) == ['cat/0.png', 'cat/2.png', 'dog/0.png', 'dog/1.png']
    assert '1 duplicates kept' in kept.describe()
    assert len({s.fingerprint() for s in (source, same, kept)}) == 3

    reads = []
    whole = type(source._source).__getitem__
    monkeypatch.setattr(
        type(source._source), '__getitem__', lambda self, i: reads.append(i) or whole(self, i)
    )
    again = cleaned(folder)
    assert reads == [1]  # what was broken is looked at again, the rest is known
    assert paths(again) == paths(source)


def test_a_record_that_is_mended_is_found_again(folder, monkeypatch):
    """Also where the source's fingerprint is the same: that of many files is of a few."""
    monkeypatch.setattr(SOURCES['image_folder'], 'fingerprint', lambda self: 'the same')
    broken = cleaned(folder)
    assert 'cat/1.png' not in paths(broken)
    pathlib.Path(folder, 'cat/1.png').write_bytes(image_files.encoded(image_files.smooth(1)))
    whole = cleaned(folder)
    assert 'cat/1.png' in paths(whole)
    assert whole.fingerprint() != broken.fingerprint()


def test_what_a_missing_package_reads_is_not_broken(folder, monkeypatch):
    found = paths(cleaned(folder))

    def lacking(self, index):
        raise errors.UserError('pip install it') from ImportError('no decoder')

    monkeypatch.setenv('BIGMODELS_CACHE', f'{folder}/../cache')
    with monkeypatch.context() as patch:
        patch.setattr(SOURCES['image_folder'], '__getitem__', lacking)
        with pytest.raises(errors.UserError, match='pip install it'):
            cleaned(folder)
    assert paths(cleaned(folder)) == found


def test_a_cache_that_cannot_be_written_is_named(folder, monkeypatch):
    monkeypatch.setenv('BIGMODELS_CACHE', '/proc/c')
    with pytest.raises(errors.UserError, match='cache of data in /proc/c cannot .*BIGMODELS_CACHE'):
        cleaned(folder)


def test_what_is_refused_is_named(folder):
    for _ in range(2):  # also where it is known from before
        with pytest.raises(errors.UserError, match=r'cat/1\.png'):
            cleaned(folder, broken='refuse')
    with pytest.raises(errors.UserError, match='Record 2 of .* repeats record 0'):
        cleaned(folder, duplicates='refuse')
    with pytest.raises(errors.UserError, match="'pixels'.*image"):
        cleaned(folder, fields=('pixels',))


def test_nothing_left_is_refused(tmp_path):
    (tmp_path / 'images' / 'cat').mkdir(parents=True)
    (tmp_path / 'images' / 'cat' / '0.png').write_bytes(b'no image')
    with pytest.raises(errors.UserError, match='Every record of .* is broken'):
        cleaned(str(tmp_path / 'images'))


def test_arrays_and_texts_are_compared(tmp_path):
    arrays = dict(x=np.array([[1, 2], [1, 3], [1, 2]]), label=np.array([0, 0, 0]))
    np.savez(tmp_path / 'a.npz', **arrays)
    source = SOURCES['cleaned'](dict(name='npz', path=str(tmp_path / 'a.npz')))
    assert [source[i]['x'].tolist() for i in range(len(source))] == [[1, 2], [1, 3]]
    (tmp_path / 'b.jsonl').write_text('{"text": "a"}\n{"text": "b"}\n{"text": "a"}\n')
    texts = SOURCES['cleaned'](dict(name='jsonl', path=str(tmp_path / 'b.jsonl')))
    assert [texts[i]['text'] for i in range(len(texts))] == ['a', 'b']
    lines = ('{"x": [[1, 2], [1]]}', '{"x": [[1, 2], [2]]}', '{"x": [[1, 2], [1]]}')
    (tmp_path / 'c.jsonl').write_text('\n'.join(lines) + '\n')
    lists = SOURCES['cleaned'](dict(name='jsonl', path=str(tmp_path / 'c.jsonl')))
    assert [lists[i]['x'][1] for i in range(len(lists))] == [[1], [2]]


class InMemory(list):
    """Records that are given."""

    def fingerprint(self):
        return 'the same'

    def describe(self):
        return 'records in memory'


@pytest.mark.parametrize(
    'within',
    [
        lambda frames: list(frames),  # as TFDS has videos
        lambda frames: {'frames': [frames[0]], 'more': {'last': frames[1]}},
        lambda frames: np.array([*frames, None], object)[:2],
    ],
)
def test_large_arrays_in_others_are_compared_whole(within, tmp_path, monkeypatch):
    """Numpy's own text of them has the first and last numbers only."""
    videos = np.zeros((3, 2, 40, 40), np.uint8)
    videos[1, 1, 20, 20] = 1
    records = InMemory({'x': within(video)} for video in videos)
    monkeypatch.setenv('BIGMODELS_CACHE', str(tmp_path))
    monkeypatch.setitem(cleaned_source.SOURCES, 'in_memory', lambda: records)
    source = SOURCES['cleaned'](dict(name='in_memory'))
    assert len(source) == 2
    assert '1 duplicates left out (the first is record 2)' in source.describe()


@pytest.mark.parametrize('size', [0, 60, 130])
def test_a_cache_that_is_cut_short_is_made_again(folder, size, monkeypatch):
    cache = pathlib.Path(folder, '..', 'cache')
    monkeypatch.setenv('BIGMODELS_CACHE', str(cache))
    found = paths(cleaned(folder))
    [file] = cache.glob('cleaned-*.npy')
    whole = file.read_bytes()
    file.write_bytes(whole[:size])
    assert paths(cleaned(folder)) == found
    assert file.read_bytes() == whole
