"""Files whose lines correspond, and what can be wrong with them."""

import gzip
import pickle

import pytest

from bigmodels import errors
from bigmodels.data.pair_sources import ParallelText


def write(directory, sources: bytes, targets: bytes, suffix=''):
    opened = gzip.open if suffix == '.gz' else open
    paths = []
    for name, content in (('a', sources), ('b', targets)):
        paths.append(str(directory / (name + suffix)))
        with opened(paths[-1], 'wb') as stream:
            stream.write(content)
    return paths


@pytest.mark.parametrize('suffix', ['', '.gz'])
def test_line_by_line(suffix, tmp_path):
    paths = write(tmp_path, b'one\r\n two \nthree', 'eins\nzwei\ndréi\n'.encode(), suffix)
    source = ParallelText(*paths)
    records = [source[i] for i in range(len(source))]
    assert [record['source'] for record in records] == ['one', ' two ', 'three']
    assert [record['target'] for record in records] == ['eins', 'zwei', 'dréi']
    assert source[-1] == pickle.loads(pickle.dumps(source))[2]
    assert source.fingerprint() == ParallelText(*paths).fingerprint()
    assert source.fingerprint() != ParallelText(*reversed(paths)).fingerprint()
    assert source.describe().endswith('3 pairs')
    with pytest.raises(IndexError):
        source[3]


def test_different_numbers_of_lines(tmp_path):
    with pytest.raises(errors.UserError, match=r'a has 2 lines and .*b 3'):
        ParallelText(*write(tmp_path, b'1\n2\n', b'1\n2\n3\n'))


@pytest.mark.parametrize(
    ('sources', 'targets', 'place'), [(b'1\n2\n', b'1\n \n', 'b:2'), (b'\n2\n', b'1\n2\n', 'a:1')]
)
def test_a_blank_line_is_named_or_its_pair_left_out(sources, targets, place, tmp_path):
    paths = write(tmp_path, sources, targets)
    with pytest.raises(errors.UserError, match=f'{place} is blank'):
        ParallelText(*paths)
    source = ParallelText(*paths, empty_lines='drop')
    kept = '2' if place == 'a:1' else '1'
    assert source[0] == {'source': kept, 'target': kept}
    assert source.describe().endswith('1 pairs, 1 left out')


def test_other_bytes_than_text_are_named(tmp_path):
    with pytest.raises(errors.UserError, match=r'b:2 is not UTF-8 text: byte 0xff at column 3'):
        ParallelText(*write(tmp_path, b'1\n2\n', b'1\nab\xff\n'))
    paths = write(tmp_path, b'\n', b'\n')
    with pytest.raises(errors.UserError, match='hold no pair'):
        ParallelText(*paths, empty_lines='drop')
    with pytest.raises(errors.UserError, match='There is no file'):
        ParallelText(paths[0], paths[1] + '.gz')
