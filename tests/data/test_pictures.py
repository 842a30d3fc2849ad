"""Pictures show the numbers that they are of."""

import numpy as np
import pytest

from bigmodels.data import pictures


@pytest.mark.parametrize('classes', [3, 30])
def test_confusion_has_a_row_for_each_true_class(classes):
    counts = np.random.default_rng(0).integers(0, 9, (classes, classes))
    counts[1] = 0
    figure = pictures.confusion(counts)
    [axes] = figure.axes
    [image] = axes.images
    shares = np.asarray(image.get_array())
    np.testing.assert_allclose(shares.sum(1), (counts.sum(1) > 0).astype(float))
    written = {text.get_position()[::-1]: text.get_text() for text in axes.texts}
    expected = {place: f'{count}' for place, count in np.ndenumerate(counts)}
    assert written == (expected if classes <= 20 else {})
