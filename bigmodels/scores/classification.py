"""Figures of classifiers: precision, recall, F1, areas under ROC curves, calibration.

Axes: N examples, C classes.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

Average = Literal['macro', 'micro', 'none']
CALIBRATION_BINS = 15
OF_CLASS = '_of_class'  # the end of what gives a figure for each class
AVERAGES: dict[str, Average] = {'': 'macro', '_micro': 'micro', OF_CLASS: 'none'}


def confusion_matrix(targets: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """int64 [C, C]: how many examples of class `row` were taken for class `column`."""
    pairs = targets.astype(np.int64) * num_classes + predicted
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def precision(confusion: np.ndarray, average: Average = 'macro') -> np.ndarray:
    """The share of what was taken for a class that is of it; see `averaged`."""
    return averaged(np.diag(confusion), confusion.sum(0), _occurs(confusion), average)


def recall(confusion: np.ndarray, average: Average = 'macro') -> np.ndarray:
    """The share of a class that was taken for it; see `averaged`."""
    return averaged(np.diag(confusion), confusion.sum(1), _occurs(confusion), average)


def f1(confusion: np.ndarray, average: Average = 'macro') -> np.ndarray:
    """The harmonic mean of precision and recall; see `averaged`."""
    both = confusion.sum(0) + confusion.sum(1)
    return averaged(2 * np.diag(confusion), both, both > 0, average)


def averaged(
    parts: np.ndarray, wholes: np.ndarray, occurs: np.ndarray, average: Average
) -> np.ndarray:
    """parts / wholes of each class [C]; 0 where the whole is.

    'none' gives all of them, 'macro' the mean over the classes that occur, as targets or as
    predictions, and 'micro' the ratio of the sums, where each example has one class its accuracy.
    """
    if average == 'micro':
        return parts.sum() / max(wholes.sum(), 1)
    ratios = parts / np.maximum(wholes, 1)
    return ratios[occurs].mean() if average == 'macro' else ratios


def roc_auc(positive: np.ndarray, scores: np.ndarray) -> float:
    """The area under the receiver's curve: how often a positive example's score is the higher.

    Of equal scores half count (Mann and Whitney 1947). NaN unless there are both kinds, and where a
    score is NaN.

    Args:
      positive: bool [N].
      scores: [N].
    """
    positive = np.asarray(positive, bool)
    of_positive = positive.sum()
    of_negative = len(positive) - of_positive
    if not of_positive or not of_negative or np.isnan(scores).any():
        return float('nan')
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(sizes) - (sizes - 1) / 2  # from 1, the mean over equal scores
    above = ranks[group][positive].sum() - of_positive * (of_positive + 1) / 2
    return float(above / (of_positive * of_negative))


def average_precision(positive: np.ndarray, scores: np.ndarray) -> float:
    """The mean precision over positive examples, each at the threshold of its own score.

    NaN without any, and where a score is. (Manning et al. 2008, section 8.4)

    Args:
      positive: bool [N].
      scores: [N].
    """
    positive = np.asarray(positive, bool)
    if not positive.any() or np.isnan(scores).any():
        return float('nan')
    order = np.argsort(-scores, kind='stable')
    found = np.cumsum(positive[order])
    # Equal scores have one threshold: the place of the last of them.
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    gained = np.diff(found[last], prepend=0)
    return float((gained * found[last] / (last + 1)).sum() / positive.sum())


def macro_roc_auc(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean over classes of the area of one against the rest; of two, that of class 1.

    Classes without examples, or with all, do not count.
    """
    if probabilities.shape[1] == 2:
        return roc_auc(targets == 1, probabilities[:, 1])
    each = targets[:, None] == np.arange(probabilities.shape[1])
    return _mean_over_classes(roc_auc, probabilities, each)


def calibration_error(
    targets: np.ndarray, probabilities: np.ndarray, bins: int = CALIBRATION_BINS
) -> float:
    """How far confidence is from accuracy: the expected calibration error.

    Predictions are put in equally wide bins by their probability; the figure is the mean over
    examples of |accuracy - mean probability| of their bin (Guo et al. 2017, equation 3).
    """
    return binned_error(probabilities.argmax(1) == targets, probabilities.max(1), bins)


def binned_error(
    outcomes: np.ndarray, probabilities: np.ndarray, bins: int = CALIBRATION_BINS
) -> float:
    """The mean over examples of how far their bin's share of outcomes is from its probabilities.

    Args:
      outcomes: bool [N].
      probabilities: [N], of them; equally wide bins of these.
    """
    p = probabilities.astype(np.float64)
    place = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1)  # (low, high]
    excess = np.bincount(place, outcomes - p, minlength=bins)
    return float(np.abs(excess).sum() / len(p))


def _of_labels(
    probabilities: np.ndarray, targets: np.ndarray, average: Average, parts: Callable
) -> np.ndarray:
    """A ratio of counts of each class [C], `averaged`.

    Args:
      parts: (those told rightly, those told, those there) [C] each -> (parts, wholes).
    """
    is_told, is_there = probabilities >= 0.5, targets > 0.5
    told, there = is_told.sum(0), is_there.sum(0)
    hits = (is_told & is_there).sum(0)
    return averaged(*parts(hits, told, there), told + there > 0, average)


def _averages_of(**ratios: Callable) -> dict[str, Callable]:
    """Ratios (probabilities, targets, average) by their names, with each suffix of AVERAGES."""
    return {
        name + suffix: functools.partial(ratio, average=average)
        for name, ratio in ratios.items()
        for suffix, average in AVERAGES.items()
    }


# (probabilities [N, C], targets [N]) -> a figure, or one for each class.
SCORES: dict[str, Callable[[np.ndarray, np.ndarray], float | np.ndarray]] = {
    **_averages_of(
        precision=lambda p, t, average: precision(_confusion(p, t), average),
        recall=lambda p, t, average: recall(_confusion(p, t), average),
        f1=lambda p, t, average: f1(_confusion(p, t), average),
    ),
    'roc_auc': lambda p, t: macro_roc_auc(t, p),
    'calibration_error': lambda p, t: calibration_error(t, p),
}
# Likewise where an example may have any number of classes, of targets [N, C].
OF_LABELS: dict[str, Callable[[np.ndarray, np.ndarray], float | np.ndarray]] = {
    **_averages_of(
        precision=functools.partial(_of_labels, parts=lambda hits, told, there: (hits, told)),
        recall=functools.partial(_of_labels, parts=lambda hits, told, there: (hits, there)),
        f1=functools.partial(_of_labels, parts=lambda hits, told, there: (2 * hits, told + there)),
    ),
    'roc_auc': lambda p, t: _mean_over_classes(roc_auc, p, t),
    'average_precision': lambda p, t: _mean_over_classes(average_precision, p, t),
}


def figures(
    probabilities: np.ndarray,
    targets: np.ndarray,
    names: Sequence[str],
    known: Mapping[str, Callable] = SCORES,
) -> dict[str, float]:
    """The figures of SCORES, or OF_LABELS, by name; one for each class as name_0, name_1, ...

    All are NaN if a probability is.

    Args:
      probabilities: [N, C].
      targets: int [N], or of OF_LABELS [N, C].
    """
    if np.isnan(probabilities).any():
        return dict.fromkeys(figure_names(names, probabilities.shape[1]), float('nan'))
    found = {}
    for name in names:
        value = known[name](probabilities, targets)
        keys = figure_names([name], probabilities.shape[1])
        found |= dict(zip(keys, map(float, np.atleast_1d(value)), strict=True))
    return found


def figure_names(names: Sequence[str], num_classes: int) -> tuple[str, ...]:
    """The keys of `figures`."""
    keys = []
    for name in names:
        keys += [f'{name}_{c}' for c in range(num_classes)] if name.endswith(OF_CLASS) else [name]
    return tuple(keys)


def _confusion(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return confusion_matrix(targets, probabilities.argmax(1), probabilities.shape[1])


def _occurs(confusion: np.ndarray) -> np.ndarray:
    """bool [C], whether a class is among the targets or the predictions."""
    return confusion.sum(0) + confusion.sum(1) > 0


def _mean_over_classes(figure: Callable, scores: np.ndarray, positive: np.ndarray) -> float:
    """Over the classes of which the figure is known; both are [N, C]."""
    values = np.array([figure(positive[:, c], scores[:, c]) for c in range(scores.shape[1])])
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float('nan')
