"""Figures of classifiers against scikit-learn's and hand counts."""

import itertools

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from bigmodels.scores import classification as scores

rng = np.random.default_rng(0)


def predictions(count, classes, present):
    """Probabilities rounded so that some are equal, and targets of the classes `present` only."""
    logits = rng.normal(size=(count, classes))
    targets = rng.choice(present, count)
    logits[np.arange(count), targets] += 1
    probabilities = np.exp(logits).round(1) + 0.1
    return (probabilities / probabilities.sum(1, keepdims=True)).astype(np.float32), targets


CASES = {
    'balanced': predictions(300, 4, range(4)),
    'a class without targets': predictions(200, 5, [0, 1, 4]),
    'two classes': predictions(100, 2, range(2)),
}


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('average', ['macro', 'micro', 'none'])
def test_precision_recall_and_f1(case, average):
    probabilities, targets = CASES[case]
    predicted = probabilities.argmax(1)
    confusion = scores.confusion_matrix(targets, predicted, probabilities.shape[1])
    labels = list(range(probabilities.shape[1]))
    expected = sklearn_metrics.confusion_matrix(targets, predicted, labels=labels)
    np.testing.assert_array_equal(confusion, expected)
    # Without labels, means are over the classes that occur.
    options = dict(labels=labels, average=None) if average == 'none' else dict(average=average)
    for ours, theirs in (
        (scores.precision, sklearn_metrics.precision_score),
        (scores.recall, sklearn_metrics.recall_score),
        (scores.f1, sklearn_metrics.f1_score),
    ):
        expected = theirs(targets, predicted, zero_division=0, **options)
        np.testing.assert_allclose(ours(confusion, average), expected)


def test_a_class_that_never_occurs_has_zeros_and_counts_in_no_mean():
    confusion = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    np.testing.assert_allclose(scores.recall(confusion, 'none'), [0.75, 1, 0])
    assert scores.recall(confusion) == 0.875


@pytest.mark.parametrize('case', ['balanced', 'two classes'])
def test_area_under_the_curve(case):
    probabilities, targets = CASES[case]
    if probabilities.shape[1] == 2:
        expected = sklearn_metrics.roc_auc_score(targets, probabilities[:, 1])
    else:
        expected = np.mean(
            [
                sklearn_metrics.roc_auc_score(targets == c, probabilities[:, c])
                for c in range(probabilities.shape[1])
            ]
        )
    np.testing.assert_allclose(scores.macro_roc_auc(targets, probabilities), expected)


def test_area_counts_equal_scores_by_half_and_is_not_known_of_one_kind():
    assert scores.roc_auc([0, 1, 1, 0], np.array([0.1, 0.1, 0.9, 0.5])) == (0.5 + 1 + 0 + 1) / 4
    assert np.isnan(scores.roc_auc([1, 1], np.array([0.1, 0.2])))
    probabilities, targets = CASES['a class without targets']
    known = [scores.roc_auc(targets == c, probabilities[:, c]) for c in (0, 1, 4)]
    assert scores.macro_roc_auc(targets, probabilities) == pytest.approx(np.mean(known))


def test_calibration_error():
    """Two bins: eight of ten right at 0.6, one of two right at 0.9."""
    confidence = np.array([0.6] * 10 + [0.9] * 2)
    probabilities = np.stack([confidence, 1 - confidence], 1)
    targets = np.array([0] * 8 + [1] * 2 + [0, 1])
    assert scores.calibration_error(targets, probabilities) == pytest.approx(
        (10 * 0.2 + 2 * 0.4) / 12
    )
    drawn = rng.uniform(0.5, 1, 200_000)
    right = rng.uniform(size=drawn.size) < drawn
    probabilities = np.stack([drawn, 1 - drawn], 1)
    assert scores.calibration_error(np.where(right, 0, 1), probabilities) < 5e-3
    assert scores.calibration_error(np.zeros(3), np.eye(2)[[0, 0, 0]]) == 0  # in the last bin


def test_figures_have_the_names_that_are_told_before():
    probabilities, targets = CASES['balanced']
    figures = scores.figures(probabilities, targets, list(scores.SCORES))
    assert tuple(figures) == scores.figure_names(list(scores.SCORES), 4)
    assert figures['f1_micro'] == pytest.approx((probabilities.argmax(1) == targets).mean())
    averages = {'': 'macro', '_micro': 'micro', '_of_class': None}
    for name, (suffix, average) in itertools.product(
        ('precision', 'recall', 'f1'), averages.items()
    ):
        theirs = getattr(sklearn_metrics, f'{name}_score')
        expected = theirs(targets, probabilities.argmax(1), average=average)
        found = [figures[key] for key in scores.figure_names([name + suffix], 4)]
        np.testing.assert_allclose(found, np.atleast_1d(expected))
    assert all(isinstance(value, float) for value in figures.values())
    unknown = np.where(np.arange(len(targets))[:, None] == 3, np.nan, probabilities)
    figures_of_nan = scores.figures(unknown, targets, list(scores.SCORES))
    assert figures_of_nan.keys() == figures.keys()
    assert np.isnan([*figures_of_nan.values()]).all()
