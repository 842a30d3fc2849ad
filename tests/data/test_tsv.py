"""Tab-separated files, with and without a header."""

import gzip
import pickle

import numpy as np
import pytest

from bigmodels import errors
from bigmodels.data.sources import table_sources


@pytest.mark.parametrize('suffix', ['', '.gz'])
def test_values_are_all_between_tabs(tmp_path, suffix):
    data = 'it " is\t1\r\nan \x85\u2028 odd one\t0\n\t1\n'.encode()
    path = tmp_path / f'a.tsv{suffix}'
    path.write_bytes(gzip.compress(data) if suffix else data)
    source = table_sources.Tsv(str(path), columns=('text', 'label'))
    assert [record['text'] for record in source] == ['it " is', 'an \x85\u2028 odd one', '']
    assert [record['label'] for record in source] == [1, 0, 1]
    assert source[0]['label'].dtype == np.int64
    assert source.describe() == f'tsv {path}: 3 lines of text, label'
    renamed = table_sources.Tsv(str(path), columns=('sentence', 'label'))
    assert renamed.fingerprint() != source.fingerprint()
    assert pickle.loads(pickle.dumps(source)).fingerprint() == source.fingerprint()


def test_the_first_line_may_name_the_columns(tmp_path):
    (tmp_path / 'a.tsv').write_text('x\ty\n1\tb\n2\tc\n')
    source = table_sources.Tsv(str(tmp_path / 'a.tsv'))
    assert [(record['x'], record['y']) for record in source] == [(1, 'b'), (2, 'c')]
    taken = source.take(np.array([1, 0]))
    assert taken['x'].tolist() == [2, 1]
    assert taken['y'].tolist() == ['c', 'b']
    headless = table_sources.Tsv(str(tmp_path / 'a.tsv'), columns=('x', 'y'))
    assert headless.fingerprint() != source.fingerprint()


@pytest.mark.parametrize(
    ('text', 'columns', 'message'),
    [
        ('a\t1\nb\n', ('text', 'label'), r'a\.tsv:2 has 1 values between tabs, wanted 2: text'),
        ('x\ty\na\t1\nb\t2\t3\n', (), r'a\.tsv:3 has 3 values'),
        ('a\t1\n\nb\t2\n', ('x', 'y'), r'a\.tsv:2 has 1 values'),
        ('x\tx\na\t1\n', (), r'a\.tsv: a column is named twice: x, x'),
        ('x\ty\n', (), 'no line of values'),
        ('', ('x',), 'no line of values'),
    ],
)
def test_errors_name_the_line(tmp_path, text, columns, message):
    (tmp_path / 'a.tsv').write_text(text)
    with pytest.raises(errors.UserError, match=message):
        table_sources.Tsv(str(tmp_path / 'a.tsv'), columns)


def test_sst2_has_the_published_counts(shared_data):
    for split, count, positive in (('train', 6920, 3610), ('dev', 872, 444), ('test', 1821, 909)):
        path = str(shared_data / 'sst2' / f'{split}.tsv.gz')
        source = table_sources.Tsv(path, columns=('text', 'label'))
        labels = source.take(np.arange(len(source)))['label']
        assert (len(source), int(labels.sum())) == (count, positive)
