"""The baselines of experiments/recommend.py against scikit-learn and plain loops."""

import importlib

import numpy as np
import pytest
from sklearn.metrics import pairwise

from bigmodels.data.ids import Ids
from bigmodels.models.two_tower import TwoTower
from bigmodels.tasks.recommendation import Catalogue
from bigmodels.tasks.retrieval import Retrieval
from tests import commands

rng = np.random.default_rng(0)
TRAIN = [{'items': rng.choice(list('abcdefgh'), rng.integers(1, 7), replace=False).astype(object)}
         for _ in range(40)]  # fmt: skip
TASK = Retrieval(
    TwoTower(num_items=9, num_users=1, embed_dim=2),
    history_length=4,
    catalogue=Catalogue(Ids.fit(np.concatenate([record['items'] for record in TRAIN])), {}),
)


@pytest.fixture
def baselines(monkeypatch):
    monkeypatch.syspath_prepend(commands.ROOT / 'experiments')
    return importlib.import_module('recommend')


def test_similarities_are_cosines_of_the_nearest_neighbours(baselines):
    had = baselines.item_counts(TASK, TRAIN)
    dense = had.toarray()
    for record, row in zip(TRAIN, dense, strict=True):
        assert set(np.flatnonzero(row)) == set(TASK.item_ids.rows(record['items']))
    expected = pairwise.cosine_similarity(dense.T)
    np.fill_diagonal(expected, 0)
    everything = baselines.item_similarities(had, None).toarray()
    np.testing.assert_allclose(everything, expected, rtol=1e-5)
    nearest = baselines.item_similarities(had, 3).toarray()
    for row, all_of_it in zip(nearest[1:], expected[1:], strict=True):
        least = np.sort(all_of_it)[-3]
        np.testing.assert_allclose(
            row, np.where(all_of_it >= least - 1e-6, all_of_it, 0), rtol=1e-5
        )


def test_figures_are_of_all_items_but_those_before(baselines):
    records = [{'items': np.array(list(text), object)} for text in ('ab', 'ca', 'dh', 'ax')]
    had = baselines.item_counts(TASK, TRAIN)
    counts = had.sum(0)
    places = []
    for record in records[:3]:
        before, target = TASK.item_ids.rows(record['items'])
        others = [row for row in range(1, 9) if row != before]
        order = sorted(others, key=lambda row: (-counts[row], row))
        places.append(1 + order.index(target))
    found = baselines.list_figures(TASK, records, counts)
    expected = (1 / np.log2(1 + np.array(places))).sum() / 4  # 'x' is never found
    assert found['ndcg@10'] == pytest.approx(expected)
    assert found['hit_rate@10'] == 0.75
