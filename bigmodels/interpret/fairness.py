"""Whether a classifier treats groups alike and means its probabilities; two plain remedies.

All on the host, on what a whole set was answered. Axes: N examples, C classes.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from bigmodels import errors
from bigmodels.scores import classification

# The figures of a group; that of another group may differ.
FIGURES = (
    'count',
    'base_rate',
    'selection_rate',
    'true_positive_rate',
    'false_positive_rate',
    'accuracy',
    'roc_auc',
    'calibration_error',
)


def by_group(
    targets: np.ndarray, probabilities: np.ndarray, groups: Sequence[str], threshold: float = 0.5
) -> dict[str, dict[str, float]]:
    """FIGURES of each group and of 'all', by its name.

    'selection_rate' is the share that is taken for positive, 'base_rate' the share that is; a rate
    is NaN for a group that has nobody it is of. 'calibration_error' is that of the probability of
    the positive outcome, see `classification.binned_error`.

    Args:
      targets: bool [N], the positive outcome, such as a credit.
      probabilities: [N] of it.
      groups: [N].
      threshold: from which probability on an example is taken for positive.

    Raises:
      UserError: where the three are not of one length, or empty; and for a group 'all'.
    """
    positive, probabilities = np.asarray(targets, bool), np.asarray(probabilities, np.float64)
    names = np.asarray(groups, object)
    if not len(positive) or not positive.shape == probabilities.shape == names.shape:
        raise errors.UserError(
            f'Groups are compared by one target, probability and group an example: got '
            f'{positive.shape}, {probabilities.shape} and {names.shape}.'
        )
    if 'all' in set(map(str, names)):
        raise errors.UserError('No group may have the name "all": that is of all examples.')
    found = {'all': _figures(positive, probabilities, threshold)}
    for name in sorted(set(names.tolist()), key=str):
        own = names == name
        found[str(name)] = _figures(positive[own], probabilities[own], threshold)
    return found


def _figures(positive: np.ndarray, p: np.ndarray, threshold: float) -> dict[str, float]:
    taken = p >= threshold
    values = (
        len(positive),
        positive.mean(),
        taken.mean(),
        _share(taken, positive),
        _share(taken, ~positive),
        (taken == positive).mean(),
        classification.roc_auc(positive, p),
        classification.binned_error(positive, p),
    )
    return dict(zip(FIGURES, map(float, values), strict=True))


def _share(of: np.ndarray, among: np.ndarray) -> float:
    return of[among].mean() if among.any() else float('nan')


def disparities(figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """How far groups are apart, from what `by_group` gives.

    'demographic_parity_difference' and '..._ratio' are of selection rates, largest and smallest;
    'equalised_odds_difference' is the larger one of the differences of true and of false positive
    rates (Hardt et al. 2016). A rate that is NaN does not count.
    """

    def rates(name: str) -> np.ndarray:
        return np.array([values[name] for group, values in figures.items() if group != 'all'])

    selected = rates('selection_rate')
    return {
        'demographic_parity_difference': float(selected.max() - selected.min()),
        'demographic_parity_ratio': float(selected.min() / selected.max())
        if selected.max()
        else float('nan'),
        'equalised_odds_difference': max(
            (
                float(np.nanmax(found) - np.nanmin(found))
                for found in (rates('true_positive_rate'), rates('false_positive_rate'))
                if not np.isnan(found).all()
            ),
            default=float('nan'),
        ),
    }


def reweighing(targets: Sequence, groups: Sequence) -> np.ndarray:
    """Example weights with which targets and groups are independent: float64 [N].

    P(group) P(target) / P(group, target), by their shares of the examples (Kamiran and Calders
    2012, section 5.3). Where every group has every target their mean is 1; else they cannot be
    independent.
    """
    pairs = list(zip(map(str, groups), map(str, targets), strict=True))
    _, group = np.unique([pair[0] for pair in pairs], return_inverse=True)
    _, target = np.unique([pair[1] for pair in pairs], return_inverse=True)
    together = np.zeros((group.max() + 1, target.max() + 1))
    np.add.at(together, (group, target), 1 / len(pairs))
    expected = together.sum(1, keepdims=True) * together.sum(0)
    return expected[group, target] / together[group, target]


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities [N, C] of logits that are divided by a temperature; float64."""
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), 1e-300)) / temperature
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def fitted_temperature(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """The temperature, from 0.05 to 20, that makes targets most likely (Guo et al. 2017, 4.2).

    The loss is convex in 1 / temperature, in which it is bisected.

    Args:
      probabilities: [N, C] on examples that were not trained on.
      targets: int [N].
    """
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), 1e-300))
    own = logits[np.arange(len(targets)), targets]
    low, high = 1 / 20, 20.0
    for _ in range(60):
        inverse = (low + high) / 2
        expected = (tempered(probabilities, 1 / inverse) * logits).sum(1)
        if (expected - own).mean() > 0:  # the slope of the loss
            high = inverse
        else:
            low = inverse
    return 1 / inverse
