"""U-Nets: the published size, what a pixel depends on, and the way up against XLA's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors, trees
from bigmodels.models.unet import UNet, UpConv


def test_the_widths_of_the_paper_have_the_parameters_that_are_published():
    """As with BatchNorm and without other biases before it; 65 more for a second logit."""
    inputs = jnp.zeros((1, 32, 32, 3))
    for classes, count in ((1, 31_037_633), (2, 31_037_698)):
        init = functools.partial(UNet(num_classes=classes).init, jax.random.key(0))
        assert trees.count(jax.eval_shape(init, inputs)['params']) == count


def test_up_convolution_is_the_transpose_of_a_strided_one():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    variables = UpConv(6).init(jax.random.key(1), x)
    kernel = variables['params']['kernel'].reshape(4, 2, 2, 6).transpose(1, 2, 3, 0)
    layout = ('NHWC', 'HWIO', 'NHWC')
    expected = jax.lax.conv_transpose(x, kernel, (2, 2), 'VALID', None, layout, True)
    np.testing.assert_allclose(UpConv(6).apply(variables, x), expected, atol=1e-5)


def test_any_size_that_halves_is_taken_and_another_refused():
    model = UNet(num_classes=3, widths=(4, 8, 8))
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    image = jax.random.normal(jax.random.key(1), (1, 64, 48, 1))
    apply = jax.jit(model.apply)
    logits = apply(variables, image)
    assert logits.shape == (1, 64, 48, 3)
    # A pixel sees what is near: a part of the image has the logits of the whole in its middle.
    part = apply(variables, image[:, :48])
    np.testing.assert_allclose(part[:, :20], logits[:, :20], atol=1e-5)
    with pytest.raises(errors.UserError, match=r'10 x 8 pixels .* take multiples of 4'):
        model.apply(variables, jnp.zeros((1, 10, 8, 1)))
