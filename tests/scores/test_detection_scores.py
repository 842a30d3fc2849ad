"""Average precision against its published definition, written out in NumPy."""

import sys

import numpy as np
import pytest

from bigmodels import errors
from bigmodels.scores import detection
from tests.test_boxes import reference_iou

pytest.importorskip('pycocotools')


def reference(found, wanted, label, overlap):
    """COCO's: greedy matches by descending score, precision made monotone, at 101 recalls."""
    answers, count = [], 0
    for n in range(len(wanted['labels'])):
        true = wanted['boxes'][n][wanted['labels'][n] == label]
        count += len(true)
        mine = (found['labels'][n] == label) & (found['scores'][n] > 0)
        order = np.argsort(-found['scores'][n][mine], kind='stable')
        taken = np.zeros(len(true), bool)
        for score, box in zip(
            found['scores'][n][mine][order], found['boxes'][n][mine][order], strict=True
        ):
            overlaps = [0 if taken[i] else reference_iou(box, t)[0] for i, t in enumerate(true)]
            best = int(np.argmax(overlaps)) if len(true) else -1
            right = len(true) > 0 and overlaps[best] >= overlap
            if right:
                taken[best] = True
            answers.append((score, right))
    answers.sort(key=lambda pair: -pair[0])
    right = np.cumsum([hit for _, hit in answers])
    recall, precision = right / count, right / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, np.linspace(0, 1, 101), side='left')
    return np.append(precision, 0)[np.minimum(at, len(precision))].mean()


def a_set(images=12, boxes=6, seed=0):
    rng = np.random.default_rng(seed)
    upper = rng.uniform(0, 60, (images, boxes, 2))
    true = np.concatenate([upper, upper + rng.uniform(8, 30, (images, boxes, 2))], -1)
    labels = rng.integers(-1, 2, (images, boxes))
    noise = rng.normal(size=(images, 2 * boxes, 4)) * 2
    found = np.concatenate([true, true[:, ::-1]], 1) + noise
    found[..., 2:] = np.maximum(found[..., 2:], found[..., :2] + 1)
    guess = np.where(rng.uniform(size=(images, 2 * boxes)) < 0.8,
                     np.concatenate([labels, labels[:, ::-1]], 1), 1)  # fmt: skip
    scores = rng.uniform(0.01, 1, guess.shape) * (guess >= 0)
    return (
        {'boxes': found.astype(np.float32), 'labels': guess, 'scores': scores},
        {'boxes': true.astype(np.float32), 'labels': labels},
    )


def test_average_precision_is_as_published(capsys):
    found, wanted = a_set()
    each = detection.average_precision(found, wanted, 3)
    assert each.shape == (10, 3)
    for i, overlap in enumerate(np.arange(10) * 0.05 + 0.5):
        for label in (0, 1):
            expected = reference(found, wanted, label, overlap)
            assert each[i, label] == pytest.approx(expected, abs=1e-6)
    assert np.isnan(each[:, 2]).all()
    figures = detection.figures(found, wanted, 3)
    assert tuple(figures) == detection.FIGURES
    assert figures['map50'] == pytest.approx(each[0, :2].mean())
    assert figures['map'] == pytest.approx(each[:, :2].mean())
    assert 0.05 < figures['map'] < figures['map50'] < 0.95
    assert capsys.readouterr().out == ''


def test_to_find_what_is_ignored_is_neither_right_nor_wrong():
    found, wanted = a_set()
    plain = detection.figures(found, wanted, 2)
    crowd = np.full((12, 1, 4), [200, 200, 290, 290], np.float32)
    inside = np.full((12, 2, 4), [210, 220, 260, 280], np.float32)
    more = {'boxes': np.concatenate([found['boxes'], inside], 1),
            'labels': np.pad(found['labels'], ((0, 0), (0, 2))),
            'scores': np.pad(found['scores'], ((0, 0), (0, 2)), constant_values=2)}  # fmt: skip
    true = {'boxes': np.concatenate([wanted['boxes'], crowd], 1),
            'labels': np.pad(wanted['labels'], ((0, 0), (0, 1))),
            'ignored': np.arange(7) == np.full((12, 1), 6)}  # fmt: skip
    assert detection.figures(more, true, 2) == pytest.approx(plain)
    assert detection.figures(more, true | {'ignored': np.zeros((12, 7), bool)}, 2) != plain


def test_the_truth_has_one_and_nothing_found_zero():
    _, wanted = a_set()
    scores = (wanted['labels'] >= 0) * 0.9
    assert detection.figures({**wanted, 'scores': scores}, wanted, 2)['map'] == pytest.approx(1)
    assert detection.figures({**wanted, 'scores': 0 * scores}, wanted, 2)['map'] == 0
    none = {**wanted, 'labels': np.full_like(wanted['labels'], -1)}
    assert np.isnan(detection.figures({**wanted, 'scores': scores}, none, 2)['map'])


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pycocotools.coco', None)
    with pytest.raises(errors.UserError, match=r"pip install 'bigmodels\[detection\]'"):
        detection.load_pycocotools()
