"""Dice and intersection over union are scikit-learn's F1 and Jaccard of all pixels."""

import numpy as np
import pytest

from bigmodels.scores import classification, segmentation

CLASSES = 4


@pytest.fixture
def pixels():
    """Targets and predictions [N, P] that often agree; class 3 is in some images alone."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, CLASSES - 1, (5, 60))
    targets[3:, :20] = 3
    noise = rng.integers(0, CLASSES, targets.shape)
    return targets, np.where(rng.random(targets.shape) < 0.7, targets, noise)


def test_figures_are_those_of_scikit_learn(pixels):
    sklearn_metrics = pytest.importorskip('sklearn.metrics')
    targets, predicted = pixels
    pairs = list(zip(targets, predicted, strict=True))
    confusion = np.stack([classification.confusion_matrix(*pair, CLASSES) for pair in pairs])
    found = segmentation.figures(confusion)
    of_all = targets.ravel(), predicted.ravel()
    for name, score in (('dice', 'f1_score'), ('iou', 'jaccard_score')):
        score = getattr(sklearn_metrics, score)
        each = score(*of_all, average=None)
        np.testing.assert_allclose(getattr(segmentation, name)(confusion.sum(0)), each)
        assert found[name] == pytest.approx(each[1:].mean())
    options = dict(labels=range(1, CLASSES), average=None, zero_division=np.nan)
    each = [sklearn_metrics.f1_score(*pair, **options) for pair in pairs]
    assert found['image_dice'] == pytest.approx(np.nanmean(each))
    assert set(found) == set(segmentation.FIGURES)


def test_classes_that_are_in_nothing_do_not_count():
    confusion = np.zeros((2, 3, 3), int)
    confusion[0] = [[5, 1, 0], [1, 2, 0], [0, 0, 0]]
    confusion[1, 0, 0] = 8  # background alone
    found = segmentation.figures(confusion)
    assert found == {'dice': 4 / 6, 'iou': 2 / 4, 'image_dice': 4 / 6}
    assert np.isnan(segmentation.figures(confusion[1:])['dice'])
