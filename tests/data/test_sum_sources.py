"""Every sum is in one of both splits, and right."""

import pytest

from bigmodels import errors
from bigmodels.data.sources.sum_sources import Sums


def test_every_sum_is_in_one_split():
    splits = {split: Sums(2, split) for split in ('train', 'valid')}
    prompts = {}
    for split, source in splits.items():
        for i in range(len(source)):
            record = source[i]
            a, b = record['prompt'].removesuffix('=').split('+')
            assert int(record['answer']) == int(a) + int(b)
            assert record['text'] == record['prompt'] + record['answer']
            assert prompts.setdefault(record['prompt'], split) == split
    assert len(prompts) == sum(map(len, splits.values())) == 10_000
    assert 900 < len(splits['valid']) < 1100
    held_out = {splits['valid'][i]['prompt'] for i in range(len(splits['valid']))}
    first, last = ({p.rstrip('=').split('+')[side] for p in held_out} for side in (0, 1))
    assert min(len(first), len(last)) > 95  # of 100 numbers: no pattern
    assert splits['train'].fingerprint() != splits['valid'].fingerprint()
    with pytest.raises(IndexError):
        splits['valid'][len(splits['valid'])]


def test_digits_are_checked():
    with pytest.raises(errors.UserError, match='digits = 4 must be from 1 to 3'):
        Sums(4)
