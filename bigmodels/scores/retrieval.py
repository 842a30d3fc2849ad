"""Figures of retrieval between two kinds of vectors, such as of images and of texts.

Axes: Q queries, G vectors of the gallery, E features.
"""

from collections.abc import Sequence

import numpy as np

from bigmodels.scores import ranking

CHUNK = 1024  # queries whose products with the whole gallery are held at once


def places_of_first_right(
    queries: np.ndarray, gallery: np.ndarray, query_groups: np.ndarray, gallery_groups: np.ndarray
) -> np.ndarray:
    """Where the first right vector is in the gallery by falling product, int [Q], see `ranking`.

    Right are those of the query's group; 0 where there is none.

    Args:
      queries: [Q, E].
      gallery: [G, E].
      query_groups: int [Q].
      gallery_groups: int [G].
    """
    places = np.zeros(len(queries), np.int64)
    for start in range(0, len(queries), CHUNK):
        rows = slice(start, start + CHUNK)
        products = queries[rows] @ gallery.T
        right = query_groups[rows, None] == gallery_groups
        best = np.where(right, products, -np.inf).argmax(1)
        places[rows] = ranking.places(products, best) * right.any(1)
    return places


def recalls(
    images: np.ndarray,
    texts: np.ndarray,
    tokens: np.ndarray,
    labels: np.ndarray | None,
    ks: Sequence[int],
) -> dict[str, float]:
    """Recall@k of texts by images and of images by texts, over a whole set of pairs.

    The share of queries with a right answer among the first k. Equal texts of the set are one
    text, else a text that many images have would fill the list. An answer is right if it is of the
    query's label or, without labels, if it is the query's own.

    Args:
      images, texts: vectors [N, E] of N pairs.
      tokens: int [N, L], equal where texts are.
      labels: int [N], or None. A text that has several counts with that of its first pair.
    """
    _, first, number = np.unique(tokens, axis=0, return_index=True, return_inverse=True)
    # NumPy 2.0 gave the inverse another shape.
    groups = number.reshape(-1) if labels is None else labels
    texts, of_texts = texts[first], groups[first]
    found = {
        'image_to_text': places_of_first_right(images, texts, groups, of_texts),
        'text_to_image': places_of_first_right(texts, images, of_texts, groups),
    }
    return {
        f'{name}_recall@{k}': ranking.hit_rate(places, k)
        for name, places in found.items()
        for k in ks
    }
