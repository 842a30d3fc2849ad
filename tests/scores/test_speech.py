"""Error rates against the edit distance by its recursion."""

import builtins
import functools

import numpy as np
import pytest

from bigmodels import errors
from bigmodels.scores import speech


def distance(one, other) -> int:
    """Least number of substitutions, deletions and insertions."""

    @functools.cache
    def least(i, j):
        if not i or not j:
            return i + j
        same = one[i - 1] == other[j - 1]
        return min(least(i - 1, j - 1) + (not same), least(i - 1, j) + 1, least(i, j - 1) + 1)

    return least(len(one), len(other))


def test_against_the_recursion():
    rng = np.random.default_rng(0)
    texts = [
        [' '.join(rng.choice(list('abc'), rng.integers(1, 8))) for _ in range(20)] for _ in range(2)
    ]
    references, transcripts = texts
    transcripts[3] = ''  # nothing heard
    for rate, units in (
        (speech.word_error_rate, str.split),
        (speech.character_error_rate, list),
    ):
        split = [(units(a), units(b)) for a, b in zip(references, transcripts, strict=True)]
        expected = sum(distance(tuple(a), tuple(b)) for a, b in split)
        expected /= sum(len(a) for a, _ in split)
        assert rate(references, transcripts) == pytest.approx(expected, abs=1e-12)
        assert rate(references, references) == 0


def test_without_the_library_its_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **options):
        if name == 'jiwer':
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, '__import__', without)
    with pytest.raises(errors.UserError, match=r'bigmodels\[speech\]'):
        speech.word_error_rate(['a'], ['a'])
