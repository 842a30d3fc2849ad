"""CTC decoding against the enumeration of all paths over a tiny alphabet."""

import itertools

import jax
import numpy as np
import optax
import pytest

from bigmodels.deploy import ctc

BLANK = 2
FRAMES = 5


def collapsed(path) -> tuple[int, ...]:
    """What a path stands for: repetitions merged, then blanks removed."""
    return tuple(label for label, _ in itertools.groupby(path) if label != BLANK)


def enumerated(log_probs: np.ndarray) -> dict[tuple[int, ...], float]:
    """The probability of every sequence of labels, summed over all of its paths."""
    totals = {}
    for path in itertools.product(range(3), repeat=len(log_probs)):
        probability = np.exp(log_probs[np.arange(len(path)), path].sum())
        totals[collapsed(path)] = totals.get(collapsed(path), 0.0) + probability
    return totals


@pytest.fixture(scope='module')
def problem():
    """Logits [B, L, 3] with ties neither in paths nor in sums, and lengths."""
    logits = np.random.default_rng(0).normal(size=(40, FRAMES, 3)).astype(np.float32)
    lengths = np.arange(40) % FRAMES + 1
    return logits, lengths


def labels(row) -> tuple[int, ...]:
    """The labels of a decoded row, after which nothing but -1 comes."""
    row = row.tolist()
    count = row.index(-1) if -1 in row else len(row)
    assert set(row[count:]) <= {-1}
    return tuple(row[:count])


def test_greedy_decoding_is_the_best_path(problem):
    logits, lengths = problem
    decoded = np.asarray(ctc.decode_greedily(logits, lengths, BLANK))
    for row, path, length in zip(decoded, logits.argmax(-1), lengths, strict=True):
        assert labels(row) == collapsed(path[:length].tolist())


def test_beams_that_hold_every_sequence_find_the_most_probable_one(problem):
    logits, lengths = problem
    decoded, scores = ctc.decode_with_beams(logits, lengths, BLANK, 64)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    differs = 0
    for row, score, frames, length in zip(decoded, scores, log_probs, lengths, strict=True):
        totals = enumerated(frames[:length])
        best = max(totals, key=totals.get)
        assert labels(row) == best
        np.testing.assert_allclose(np.exp(score), totals[best], rtol=1e-4)
        differs += best != collapsed(frames[:length].argmax(-1).tolist())
    assert differs > 3  # of the best path's, else this says nothing of merging


def test_few_beams_never_claim_more_than_a_sequence_has(problem):
    """A sequence that two beams stood for would have its paths counted twice, or not at all."""
    logits, lengths = problem
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    exact = 0
    for width in (1, 2, 3, 4):
        decoded, scores = ctc.decode_with_beams(logits, lengths, BLANK, width)
        for row, score, frames, length in zip(decoded, scores, log_probs, lengths, strict=True):
            totals = enumerated(frames[:length])
            assert np.exp(score) <= totals[labels(row)] * (1 + 1e-4)
            exact += labels(row) == max(totals, key=totals.get)
    assert exact > 120


def test_the_score_is_the_loss_of_what_is_decoded(problem):
    logits, lengths = problem
    decoded, scores = ctc.decode_with_beams(logits, lengths, BLANK, 64)
    decoded = np.asarray(decoded)
    loss = optax.ctc_loss(
        logits,
        1.0 - (np.arange(FRAMES) < lengths[:, None]),
        np.maximum(decoded, 0),
        (decoded < 0).astype(np.float32),
        blank_id=BLANK,
    )
    np.testing.assert_allclose(scores, -loss, rtol=1e-3, atol=1e-3)


def test_frames_behind_the_end_do_not_count(problem):
    logits, lengths = problem
    changed = np.where((np.arange(FRAMES) < lengths[:, None])[..., None], logits, 9.0)
    for decode in (
        lambda x: ctc.decode_greedily(x, lengths, BLANK),
        lambda x: ctc.decode_with_beams(x, lengths, BLANK, 4)[0],
    ):
        np.testing.assert_array_equal(decode(logits), decode(changed))
