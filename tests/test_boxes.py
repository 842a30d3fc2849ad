"""Boxes against references written out in NumPy, and there and back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from bigmodels import boxes as boxes_lib
from bigmodels import losses


def random_boxes(count, seed=0, width=80, height=60):
    rng = np.random.default_rng(seed)
    upper = rng.uniform(0, (width - 20, height - 20), (count, 2))
    return np.concatenate([upper, upper + rng.uniform(3, 20, (count, 2))], -1).astype(np.float32)


def reference_iou(one, other):
    one, other = one.astype(np.float64), other.astype(np.float64)
    w = min(one[2], other[2]) - max(one[0], other[0])
    h = min(one[3], other[3]) - max(one[1], other[1])
    both = w * h if w > 0 and h > 0 else 0.0
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return both / (sum(areas) - both), sum(areas) - both


def test_iou_and_giou_are_as_published():
    mask = pytest.importorskip('pycocotools.mask')
    one, other = random_boxes(20), random_boxes(20, seed=1)
    found = boxes_lib.iou(one[:, None], other)
    sides = [np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], -1) for b in (one, other)]
    expected = mask.iou(*(b.astype(np.float64) for b in sides), [0] * 20)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    generalised = losses.giou(one[:, None], other)
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            iou, union = reference_iou(a, b)
            assert found[i, j] == pytest.approx(iou, abs=1e-5)
            around = np.prod(np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2]))
            expected = 1 - iou + (around - union) / around
            assert generalised[i, j] == pytest.approx(expected, abs=1e-5)
    assert boxes_lib.iou(jnp.zeros(4), jnp.zeros(4)) == 0


def test_codes_are_of_their_boxes():
    boxes = random_boxes(50)
    grid = jnp.asarray(np.random.default_rng(2).uniform(0, 80, (50, 2)), jnp.float32)
    found = boxes_lib.decode(boxes_lib.encode(boxes, grid, 4), grid, 4)
    np.testing.assert_allclose(found, boxes, atol=1e-4)
    np.testing.assert_array_equal(boxes_lib.centres(2, 3, 4)[1, 2], [10, 6])


def test_encoded_truth_decodes_to_exactly_the_boxes():
    rng = np.random.default_rng(0)
    places = rng.permutation(15 * 20)[:12]
    middle = 4 * np.stack([places % 20, places // 20], -1) + rng.uniform(0, 4, (12, 2))
    half = rng.uniform(1, 30, (12, 2))
    boxes = np.concatenate([middle - half, middle + half], -1).astype(np.float32)
    labels = np.int32([*rng.integers(0, 3, 12), -1, -1])
    padded = np.concatenate([boxes, np.zeros((2, 4), np.float32)])
    heat, owned, shares = boxes_lib.targets(padded, labels, 3, (15, 20), 4)
    grid = boxes_lib.centres(15, 20, 4)
    codes = boxes_lib.encode(owned, grid, 4)
    scores, cells, found = boxes_lib.peaks(heat, 14)
    assert (scores == 1).sum() == 12
    decoded = boxes_lib.decode(codes, grid, 4).reshape(-1, 4)[cells[:12]]
    order, wanted = np.argsort(cells[:12]), np.argsort(places)
    np.testing.assert_allclose(decoded[order], boxes[wanted], atol=1e-4)
    np.testing.assert_array_equal(found[:12][order], labels[:12][wanted])
    weight = [np.asarray(shares)[(np.asarray(owned) == box).all(-1)].sum() for box in boxes]
    np.testing.assert_allclose(weight, 1, rtol=1e-5)


def test_targets_are_gaussians_and_of_equal_peaks_the_smaller_box_is_learnt():
    boxes = np.float32([[0, 0, 40, 40], [10, 10, 30, 30], [0, 0, 0, 0]])
    heat, owned, _ = boxes_lib.targets(boxes, np.int32([0, 1, -1]), 3, (10, 10), 4)
    np.testing.assert_array_equal(owned[5, 5], boxes[1])
    np.testing.assert_array_equal(owned[5, 8], boxes[0])
    sigma = 40 / 4 * 0.54 / 6
    y, x = np.mgrid[:10, :10]
    expected = np.exp(-((x - 5) ** 2 + (y - 5) ** 2) / (2 * sigma**2))
    np.testing.assert_allclose(heat[..., 0], expected, atol=1e-6)
    assert not heat[..., 2].any()
    none = boxes_lib.targets(boxes, np.int32([-1] * 3), 3, (10, 10), 4)
    assert not none[0].any()
    assert not none[2].any()


def test_peaks_are_local_maxima():
    heat = np.random.default_rng(0).uniform(size=(9, 11, 2)).astype(np.float32)
    around = np.pad(heat, ((1, 1), (1, 1), (0, 0)))
    window = np.lib.stride_tricks.sliding_window_view(around, (3, 3), (0, 1))
    alone = np.where(heat == window.max((-1, -2)), heat, 0)
    scores, cells, labels = jax.jit(boxes_lib.peaks, static_argnums=1)(heat, 198)
    expected = np.sort(alone.ravel())[::-1]
    np.testing.assert_array_equal(scores, expected)
    count = (expected > 0).sum()
    np.testing.assert_array_equal(heat.reshape(-1, 2)[cells, labels][:count], expected[:count])


def test_suppression_is_greedy():
    boxes, rng = random_boxes(60, width=40, height=40), np.random.default_rng(3)
    labels, scores = rng.integers(0, 2, 60), np.sort(rng.uniform(size=60).astype(np.float32))[::-1]
    kept = []
    for i in range(60):
        better = [j for j in kept if labels[j] == labels[i]]
        if all(reference_iou(boxes[i], boxes[j])[0] <= 0.3 for j in better):
            kept.append(i)
    found = jax.jit(functools.partial(boxes_lib.suppressed, most_overlap=0.3))(
        boxes, labels, scores
    )
    assert np.flatnonzero(found).tolist() == kept
    assert 5 < len(kept) < 55


def test_the_focal_loss_of_centres_is_as_published():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 6)) * 3
    heat = rng.uniform(size=(5, 6))
    heat[0] = 1
    p = 1 / (1 + np.exp(-logits))
    expected = np.where(
        heat == 1, -((1 - p) ** 2) * np.log(p), -((1 - heat) ** 4) * p**2 * np.log(1 - p)
    )
    found = losses.centre_focal(jnp.float32(logits), jnp.float32(heat))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    extreme = jnp.float32([-200.0, 200.0])
    for target in (0.0, 1.0):
        grad = jax.grad(lambda x, t=target: losses.centre_focal(x, jnp.full(2, t)).sum())(extreme)
        assert np.isfinite(grad).all()


@pytest.mark.parametrize('shape', [(1, 1), (4, 9), (7, 7), (20, 300)])
def test_the_best_matching_is_that_of_scipy(shape):
    cost = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    matched = jax.jit(losses.best_matching)(cost)
    assert matched.tolist() == scipy.optimize.linear_sum_assignment(cost)[1].tolist()
    broken = jax.jit(losses.best_matching)(np.where(cost > 1, np.nan, cost))
    assert len(set(broken.tolist())) == shape[0]


def reference_box_set(logits, found, boxes, labels, size, box_weight):
    """Of one image without padding, written out in float64."""
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    as_object, as_background = -0.25 * (1 - p) ** 2 * np.log(p), -0.75 * p**2 * np.log(1 - p)
    apart = np.zeros((len(boxes), len(found)))
    for i, true in enumerate(boxes.astype(np.float64)):
        for j, box in enumerate(found.astype(np.float64)):
            iou, union = reference_iou(box, true)
            around = np.prod(np.maximum(box[2:], true[2:]) - np.minimum(box[:2], true[:2]))
            apart[i, j] = 2.5 * (np.abs(box - true) / np.tile(size, 2)).sum()
            apart[i, j] += 1 - iou + (around - union) / around
    cost = (as_object - as_background)[:, labels].T + box_weight * apart
    rows, columns = scipy.optimize.linear_sum_assignment(cost)
    of_classes = as_background.sum() + (as_object - as_background)[columns, labels].sum()
    return of_classes, apart[rows, columns].sum()


@pytest.mark.parametrize('box_weight', [0.5, 1.0, 3.0])
def test_the_set_loss_is_as_published_and_padding_changes_nothing(box_weight):
    rng, size = np.random.default_rng(4), np.float32([80, 60])
    logits = rng.normal(size=(30, 3)).astype(np.float32)
    found, boxes = random_boxes(30), random_boxes(6, seed=1)
    labels = rng.integers(0, 3, 6)
    of_set = jax.jit(losses.box_set)
    expected = reference_box_set(logits, found, boxes, labels, size, box_weight)
    given = of_set(logits, found, boxes, labels, size, box_weight)
    np.testing.assert_allclose(given, expected, rtol=1e-5)
    wide, longer = np.pad(boxes, ((5, 3), (0, 0))), np.pad(labels, (5, 3), constant_values=-1)
    padded = of_set(logits, found, wide, longer, size, box_weight)
    np.testing.assert_allclose(padded, given, rtol=1e-6)

    def total(logits, found, boxes, labels):
        of_classes, of_boxes = losses.box_set(logits, found, boxes, labels, size, box_weight)
        return of_classes + box_weight * of_boxes

    grads = jax.jit(jax.grad(total, argnums=(0, 1)))(logits, found, wide, longer)
    assert all(np.isfinite(grad).all() for grad in grads)
    assert (np.abs(grads[1]).sum(-1) > 0).sum() == 6  # the matched boxes alone are drawn


def test_a_set_that_is_the_truth_has_hardly_a_loss_and_a_second_time_costs():
    boxes, labels = random_boxes(4), np.int32([0, 1, 2, 1])
    sure = np.where(np.eye(3, dtype=bool)[labels], 9.0, -9.0).astype(np.float32)
    none = np.full((5, 3), -9.0, np.float32)
    found = np.concatenate([random_boxes(5, seed=9), boxes[::-1]])
    size = np.float32([80, 60])
    logits = np.concatenate([none, sure[::-1]])
    right = losses.box_set(logits, found, boxes, labels, size)
    np.testing.assert_allclose(right, 0, atol=1e-5)
    twice = losses.box_set(
        np.concatenate([logits, sure[:1]]), np.concatenate([found, boxes[:1]]), boxes, labels, size
    )
    assert twice[0] > 5
