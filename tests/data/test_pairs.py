"""Packed pairs: each of them once and whole, both texts in the same segment of the same row."""

import json

import numpy as np
import pytest

from bigmodels import errors
from bigmodels.data import pairs, sources, text, tokenizers

rng = np.random.default_rng(0)
SOURCES = ['a' * n for n in rng.integers(0, 9, 50)]
TARGETS = ['b' * n for n in rng.integers(0, 7, 50)]


@pytest.fixture
def corpora(tmp_path):
    path = tmp_path / 'pairs.jsonl'
    records = [dict(source=s, target=t) for s, t in zip(SOURCES, TARGETS, strict=True)]
    path.write_text('\n'.join(map(json.dumps, records)))
    source = sources.JsonLines(str(path))
    return [
        text.tokenize_corpus(source, tokenizers.Bytes(), tmp_path, field=name)
        for name in ('source', 'target')
    ]


def texts_of(examples) -> list[tuple[str, str]]:
    """The pair in every segment of every row, after a look at its positions and its ends."""
    batch = examples.take(np.arange(len(examples)))
    np.testing.assert_array_equal(batch['weights'], batch['segment_ids'] > 0)
    found = []
    for row, segments in enumerate(batch['segment_ids']):
        for segment in range(1, segments.max() + 1):
            pair = []
            for tokens, prefix in (('inputs', 'input_'), ('targets', '')):
                inside = batch[f'{prefix}segment_ids'][row] == segment
                ids = batch[tokens][row][inside]
                assert batch[f'{prefix}positions'][row][inside].tolist() == list(range(len(ids)))
                assert ids[-1] == tokenizers.Bytes.end_of_text
                pair.append(tokenizers.Bytes().decode(ids))
            found.append(tuple(pair))
    return found


def test_every_pair_is_in_one_segment(corpora):
    examples = pairs.PackedPairs(*corpora, 16, (9, 7))
    assert sorted(texts_of(examples)) == sorted(zip(SOURCES, TARGETS, strict=True))
    tokens = sum(len(text) + 1 for text in SOURCES + TARGETS)
    assert tokens / (2 * 16 * len(examples)) > 0.7


def test_a_row_alone_is_that_of_a_batch(corpora):
    examples = pairs.PackedPairs(*corpora, 16, (9, 7))
    batch = examples.take(np.array([4, 1]))
    for name, values in examples[1].items():
        np.testing.assert_array_equal(values, batch[name][1], err_msg=name)


def test_long_sources_are_cut_before_their_end(corpora):
    examples = pairs.PackedPairs(*corpora, 16, (5, 7), cut_sources=True)
    expected = sorted((source[:4], target) for source, target in zip(SOURCES, TARGETS, strict=True))
    assert sorted(texts_of(examples)) == expected


@pytest.mark.parametrize(('longest', 'side'), [((8, 7), 'source'), ((9, 6), 'target')])
def test_a_text_that_is_too_long_is_named(corpora, longest, side):
    texts = {'source': SOURCES, 'target': TARGETS}[side]
    record = max(range(50), key=lambda i: len(texts[i]))
    with pytest.raises(errors.UserError, match=f'The {side} of record {record} has'):
        pairs.PackedPairs(*corpora, 16, longest)
