"""Figures of ranked lists against scikit-learn and plain NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from bigmodels.scores import ranking

rng = np.random.default_rng(0)
SCORES = rng.normal(size=(40, 30)).round(1)  # with ties
TARGETS = rng.integers(0, 30, 40)


def test_places_are_those_in_the_sorted_list():
    order = np.argsort(-SCORES, axis=1, kind='stable')
    expected = [1 + row.tolist().index(t) for row, t in zip(order, TARGETS, strict=True)]
    assert ranking.places(SCORES, TARGETS).tolist() == expected
    on_device = ranking.places(jnp.asarray(SCORES, jnp.float32), jnp.asarray(TARGETS))
    assert on_device.tolist() == expected


def test_what_cannot_be_in_the_list_has_no_place():
    scores = np.array([[3.0, -np.inf, 1.0], [3.0, 2.0, 1.0]])
    places = ranking.places(scores, np.array([1, 1]))
    assert places.tolist() == [0, 2]
    assert ranking.hit_rate(places, 10) == 0.5
    assert ranking.mean_reciprocal_rank(places) == 0.25
    np.testing.assert_allclose(ranking.ndcg(places, 10), 0.5 / np.log2(3))


@pytest.mark.parametrize('k', [1, 5, 10])
def test_figures_of_lists_with_one_right_item(k):
    scores = rng.permuted(np.tile(np.arange(30.0), (40, 1)), axis=1)
    places = ranking.places(scores, TARGETS)
    relevance = np.eye(30)[TARGETS]
    expected = metrics.ndcg_score(relevance, scores, k=k)
    np.testing.assert_allclose(ranking.ndcg(places, k), expected, rtol=1e-12)
    expected = metrics.top_k_accuracy_score(TARGETS, scores, k=k, labels=np.arange(30))
    assert ranking.hit_rate(places, k) == ranking.recall(places, k) == pytest.approx(expected)
    expected = metrics.label_ranking_average_precision_score(relevance, scores)
    np.testing.assert_allclose(ranking.mean_reciprocal_rank(places), expected, rtol=1e-12)


@pytest.mark.parametrize('k', [2, 5, 30])
def test_figures_of_lists_with_several_right_items(k):
    scores = rng.permuted(np.tile(np.arange(30.0), (40, 1)), axis=1)
    counts = rng.integers(1, 8, 40)
    relevance, places = np.zeros((40, 30)), np.full((40, 8), -1)
    for i, count in enumerate(counts):
        right = rng.choice(30, count, replace=False)
        relevance[i, right] = 1
        places[i, :count] = ranking.places(scores[[i] * count], right)
    expected = metrics.ndcg_score(relevance, scores, k=k)
    np.testing.assert_allclose(ranking.ndcg(places, k), expected, rtol=1e-12)
    first = np.take_along_axis(relevance, np.argsort(-scores, axis=1)[:, :k], axis=1)
    assert ranking.hit_rate(places, k) == pytest.approx(first.any(1).mean())
    assert ranking.recall(places, k) == pytest.approx((first.sum(1) / counts).mean())
