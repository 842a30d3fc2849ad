"""Recall of retrieval against sorted lists, one query at a time."""

import numpy as np
import pytest

from bigmodels.scores import retrieval


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def listed(queries, gallery, right, k):
    """The share of queries with one of their `right` sets of rows among the first k."""
    hits = []
    for query, rows in zip(queries, right, strict=True):
        order = np.argsort(-(gallery @ query), kind='stable')
        hits.append(bool(set(order[:k].tolist()) & rows))
    return np.mean(hits)


@pytest.mark.parametrize('labelled', [True, False])
@pytest.mark.parametrize('chunk', [4, 1000])
def test_recall_is_of_distinct_texts_and_all_images(labelled, chunk, monkeypatch):
    monkeypatch.setattr(retrieval, 'CHUNK', chunk)
    rng = np.random.default_rng(0)
    number = rng.integers(0, 12, 30)  # of each pair's text, by which its vector and tokens are
    images, of_number = unit(rng, 30, 5), unit(rng, 12, 5)
    tokens = rng.permutation(12)[:, None] * np.ones((1, 3), int)
    labels = number % 4 if labelled else None
    found = retrieval.recalls(images, of_number[number], tokens[number], labels, ks=(1, 5))
    present = np.unique(number)
    group = labels if labelled else number
    of_text = present % 4 if labelled else present
    texts = of_number[present]
    for k in (1, 5):
        right = [set(np.flatnonzero(of_text == g).tolist()) for g in group]
        assert found[f'image_to_text_recall@{k}'] == pytest.approx(listed(images, texts, right, k))
        right = [set(np.flatnonzero(group == g).tolist()) for g in of_text]
        assert found[f'text_to_image_recall@{k}'] == pytest.approx(listed(texts, images, right, k))


def test_a_query_without_a_right_answer_is_never_found():
    vectors = np.eye(3, dtype=np.float32)
    places = retrieval.places_of_first_right(vectors, vectors, np.arange(3), np.array([0, 1, 9]))
    np.testing.assert_array_equal(places, [1, 1, 0])
