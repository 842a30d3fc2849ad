"""Figures of groups against scikit-learn and by hand; weights and temperatures do what they say."""

import math

import numpy as np
import pytest
import sklearn.metrics

from bigmodels import errors
from bigmodels.data.sources import table_sources
from bigmodels.interpret import fairness
from bigmodels.models.tabular import TabularMLP
from bigmodels.tasks.tables import TableClassification


def test_groups_against_scikit_learn():
    rng = np.random.default_rng(0)
    targets, p = rng.random(300) < 0.4, rng.random(300)
    groups = rng.choice(['a', 'b', 'c'], 300)
    found = fairness.by_group(targets, p, groups, threshold=0.3)
    assert list(found) == ['all', 'a', 'b', 'c']
    for name, figures in found.items():
        own = groups == name if name != 'all' else np.ones(300, bool)
        y, taken = targets[own], p[own] >= 0.3
        (tn, fp), (fn, tp) = sklearn.metrics.confusion_matrix(y, taken)
        assert figures == pytest.approx({
            'count': own.sum(), 'base_rate': y.mean(), 'selection_rate': taken.mean(),
            'true_positive_rate': tp / (tp + fn), 'false_positive_rate': fp / (fp + tn),
            'accuracy': sklearn.metrics.accuracy_score(y, taken),
            'roc_auc': sklearn.metrics.roc_auc_score(y, p[own]),
            'calibration_error': figures['calibration_error'],
        })  # fmt: skip


def test_disparities_by_hand():
    #        group a: 2 of 4 selected, TPR 1/2, FPR 1/2;  group b: 1 of 4, TPR 1, FPR 0
    targets = [1, 1, 0, 0, 1, 0, 0, 0]
    p = [0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.1, 0.1]
    figures = fairness.by_group(targets, p, list('aaaabbbb'))
    assert figures['a']['calibration_error'] == pytest.approx(0.4)  # sure by 0.9, right in 0.5
    assert figures['b']['calibration_error'] == pytest.approx(0.1)
    assert fairness.disparities(figures) == pytest.approx({
        'demographic_parity_difference': 0.25, 'demographic_parity_ratio': 0.5,
        'equalised_odds_difference': 0.5,
    })  # fmt: skip
    # Too low below a half and too high above it: of the likelier outcome these would cancel.
    skewed = fairness.by_group([1, 0, 1, 0], [0.3, 0.3, 0.7, 0.7], list('aaaa'))
    assert skewed['a']['calibration_error'] == pytest.approx(0.2)
    lonely = fairness.by_group([1, 1, 0], [0.9, 0.2, 0.9], ['a', 'a', 'b'])
    assert math.isnan(lonely['b']['true_positive_rate'])
    assert fairness.disparities(lonely)['equalised_odds_difference'] == 0
    rates = {'selection_rate': 0.5, 'true_positive_rate': np.nan}
    figures = {'a': rates | {'false_positive_rate': 0.1}, 'b': rates | {'false_positive_rate': 0.4}}
    odds = fairness.disparities(figures)['equalised_odds_difference']
    assert odds == pytest.approx(0.3)
    with pytest.raises(errors.UserError, match=r'got \(2,\), \(3,\) and \(2,\)'):
        fairness.by_group([1, 0], [0.1, 0.2, 0.3], ['a', 'b'])
    with pytest.raises(errors.UserError, match='got'):
        fairness.by_group([], [], [])
    with pytest.raises(errors.UserError, match='name "all"'):
        fairness.by_group([1, 0], [0.1, 0.2], ['all', 'b'])


def test_reweighed_targets_are_independent_of_groups():
    rng = np.random.default_rng(1)
    groups = rng.choice(['a', 'b', 'c'], 500, p=[0.6, 0.3, 0.1])
    targets = np.where(rng.random(500) < np.where(groups == 'a', 0.5, 0.2), 'yes', 'no')
    weights = fairness.reweighing(targets, groups)
    assert weights.mean() == pytest.approx(1)
    rates = [
        np.average((targets == 'yes')[groups == name], weights=weights[groups == name])
        for name in 'abc'
    ]
    np.testing.assert_allclose(rates, (targets == 'yes').mean())


def test_a_temperature_is_found_again():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(4000, 5))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = np.array([rng.choice(5, p=row) for row in true])
    found = fairness.fitted_temperature(fairness.tempered(true, 0.4), targets)
    assert found == pytest.approx(2.5, rel=0.1)
    again = fairness.tempered(fairness.tempered(true, 0.4), 2.5)
    np.testing.assert_allclose(again, true, rtol=1e-6)


def test_a_column_of_weights_is_that_of_training_examples(tmp_path):
    model = TabularMLP(num_outputs=2, num_categories=1, hidden_dims=(2,))
    task = TableClassification(model, 'y', numeric=('a',), weight_key='w')
    columns = {'a': np.arange(4.0), 'y': np.array(list('nyny'), object), 'w': np.arange(4) / 2}
    source = table_sources.Columns(columns)
    task = task.fit(source)
    assert task.examples(source, tmp_path, train=True)[3]['weights'] == 1.5
    assert 'weights' not in task.examples(source, tmp_path, train=False)[3]
    bad = table_sources.Columns({**columns, 'w': np.array([1, -1.0, 0, 0])})
    with pytest.raises(errors.UserError, match="weight_key = 'w': a weight is missing or negative"):
        task.examples(bad, tmp_path, train=True)
    del columns['w']
    with pytest.raises(errors.UserError, match="task.weight_key = 'w'"):
        task.examples(table_sources.Columns(columns), tmp_path, train=True)
