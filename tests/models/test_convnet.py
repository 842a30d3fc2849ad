"""Plain convolutional networks and EfficientNet: published sizes, references, placements."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors, trees
from bigmodels.models import convnet, efficientnet
from bigmodels.models.parts import convolution
from bigmodels.models.parts.convolution import depthwise
from bigmodels.tasks import Classification
from tests import test_sharding

VGG = dict(dense_widths=(4096, 4096))
VGG_16 = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
VGG_19 = ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)
B7 = dict(width=2.0, depth=3.1)
# Parameters as published: LeCun et al. 1998, TensorFlow's tutorial on CNNs, torchvision's models.
SIZES = {
    'lenet': (
        convnet.ConvNet(10, ((6,), (16,)), (5, 5), paddings=(2, 0), dense_widths=(120, 84)),
        (28, 28),
        61_706,
    ),
    'tutorial': (
        convnet.ConvNet(
            10, ((32,), (64,), (64,)), paddings=(0, 0, 0), pool_last=False, dense_widths=(64,)
        ),
        (32, 32, 3),
        122_570,
    ),
    'alexnet': (
        convnet.ConvNet(
            1000, ((64,), (192,), (384, 256, 256)), (11, 5, 3, 3, 3), (4, 1, 1, 1, 1),
            (2, 2, 1, 1, 1), pool_size=3, dense_widths=(4096, 4096),
        ),
        (224, 224, 3),
        61_100_840,
    ),
    'vgg16': (convnet.ConvNet(1000, VGG_16, **VGG), (224, 224, 3), 138_357_544),
    'vgg16_bn': (
        convnet.ConvNet(1000, VGG_16, norm='batch_norm', **VGG), (224, 224, 3), 138_365_992
    ),
    'vgg19': (convnet.ConvNet(1000, VGG_19, **VGG), (224, 224, 3), 143_667_240),
    'efficientnet_b0': (efficientnet.EfficientNet(1000), (224, 224, 3), 5_288_548),
    'efficientnet_b1': (efficientnet.EfficientNet(1000, depth=1.1), (224, 224, 3), 7_794_184),
    'efficientnet_b7': (efficientnet.EfficientNet(1000, **B7), (224, 224, 3), 66_347_960),
}  # fmt: skip
SMALL = {
    'plain': convnet.ConvNet(10, ((16, 24), (32,)), dense_widths=(16,)),
    'normed': convnet.ConvNet(10, ((8,), (16,)), norm='batch_norm'),
    'efficientnet': efficientnet.EfficientNet(
        10, 0.25, 0.3, strides=(1, 2, 1, 2, 1, 1, 1), dropout_rate=0.0, drop_path_rate=0.0
    ),
}


def variables(model, shape):
    return model.init(jax.random.key(0), jnp.zeros((1, *shape)))


@pytest.mark.parametrize('name', SIZES)
def test_the_published_number_of_parameters(name):
    model, shape, count = SIZES[name]
    shapes = jax.eval_shape(functools.partial(variables, model, shape))
    assert trees.count(shapes['params']) == count


def batches():
    rng = np.random.default_rng(0)
    return [
        {
            'inputs': rng.normal(size=(16, 16, 16, 3)).astype(np.float32),
            'targets': rng.integers(0, 10, 16).astype(np.int32),
            'weights': np.ones(16, np.float32),
        }
        for _ in range(test_sharding.STEPS)
    ]


@pytest.mark.slow
@pytest.mark.parametrize('kind', SMALL)
def test_every_placement_computes_the_same(kind, monkeypatch):
    model = SMALL[kind]
    if kind == 'efficientnet':  # either expansion, kernel and stride, with and without a shortcut
        monkeypatch.setattr(efficientnet, 'STAGES', efficientnet.STAGES[:3])
        model = model.clone(strides=(1, 2, 1))
    task = Classification(model)
    figures, state, _ = test_sharding.train(task, batches(), num_devices=1)
    placed_figures, placed, _ = test_sharding.train(task, batches(), data=2, fsdp=2, tensor=2)
    np.testing.assert_allclose(placed_figures, figures, rtol=1e-3)
    test_sharding.assert_close(placed.model_state, state.model_state, 1e-3)
    test_sharding.assert_close(placed.params, state.params, 3e-3)


def test_lenet_by_hand():
    """Products over windows, in numpy, with the model's own parameters."""
    model, shape, _ = SIZES['lenet']
    params = jax.tree.map(
        lambda p: np.random.default_rng(p.size).normal(size=p.shape) / 10,
        variables(model, shape)['params'],
    )
    image = np.random.default_rng(0).normal(size=shape)
    x = np.pad(image, 2)[..., None]
    for name in ('conv_0', 'conv_1'):
        windows = np.lib.stride_tricks.sliding_window_view(x, (5, 5), (0, 1))
        x = np.einsum('hwcij,ijcf->hwf', windows, params[name]['kernel']) + params[name]['bias']
        x = np.maximum(x, 0)
        x = x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1).max((1, 3))
    x = x.ravel()
    for name in ('dense_0', 'dense_1', 'head'):
        x = x @ params[name]['kernel'] + params[name]['bias']
        x = x if name == 'head' else np.maximum(x, 0)
    found = model.apply({'params': params}, image[None].astype(np.float32))
    np.testing.assert_allclose(found[0], x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ('height', 'width', 'size', 'stride'), [(6, 8, 2, 2), (7, 5, 2, 2), (9, 9, 3, 2), (9, 10, 3, 3)]
)
def test_maxima_and_their_gradient(height, width, size, stride):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
    expected = windows[:, ::stride, ::stride].max((-1, -2))
    pooled = lambda x: convolution.max_pool(x, size, stride, padding=0)
    np.testing.assert_array_equal(pooled(x), expected)
    gradient = jax.grad(lambda x: pooled(x).sum())(x)
    counted = np.zeros_like(x)  # in how many windows a value is the largest
    for index in np.ndindex(expected.shape):
        b, i, j, c = index
        rows, columns = slice(stride * i, stride * i + size), slice(stride * j, stride * j + size)
        counted[b, rows, columns, c] += x[b, rows, columns, c] == expected[index]
    np.testing.assert_array_equal(gradient, counted)


def test_of_equal_values_the_first_has_the_gradient_and_nan_is_the_largest():
    pooled = lambda x: convolution.max_pool(x, 2, 2, padding=0)
    gradient = jax.grad(lambda x: pooled(x).sum())(np.ones((1, 4, 2, 1), np.float32))
    np.testing.assert_array_equal(gradient[0, ..., 0], [[1, 0], [0, 0], [1, 0], [0, 0]])
    for place in np.ndindex(2, 2):
        x = np.ones((1, 2, 2, 1), np.float32)
        x[0, *place] = np.nan
        assert np.isnan(pooled(x)).all()


@pytest.mark.parametrize(('size', 'stride'), [(3, 1), (5, 2)])
def test_depthwise_convolution_is_one_of_each_channel(size, stride):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 6, 4)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 1, 4)).astype(np.float32)
    expected = [
        convolution.convolve(x[..., c : c + 1], kernel[..., c : c + 1], stride) for c in range(4)
    ]
    found = depthwise.convolve(x, kernel[:, :, 0], stride)
    np.testing.assert_allclose(found, np.concatenate(expected, -1), rtol=1e-4, atol=1e-5)
    weights = rng.normal(size=found.shape).astype(np.float32)
    for way in (depthwise.convolve, depthwise._convolve):
        loss = lambda x, kernel, way=way: (way(x, kernel, stride) * weights).sum()
        gradients = jax.grad(loss, (0, 1))(x, kernel[:, :, 0])
        wanted = jax.grad(
            lambda x, kernel: sum(
                (convolution.convolve(x[..., c : c + 1], kernel[..., c : c + 1], stride)
                 * weights[..., c : c + 1]).sum()
                for c in range(4)
            ),
            (0, 1),
        )(x, kernel)  # fmt: skip
        np.testing.assert_allclose(gradients[0], wanted[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(gradients[1], wanted[1][:, :, 0], rtol=1e-4, atol=1e-4)


def test_branches_are_dropped_as_a_whole_and_scaled_for_it():
    block = efficientnet.MBConv(8, 3, 1, 4, drop_path_rate=0.5)
    x = np.random.default_rng(0).normal(size=(64, 4, 4, 8)).astype(np.float32)
    own = block.init(jax.random.key(0), x, False)
    steady = block.clone(drop_path_rate=0.0)
    rngs, mutable = {'dropout': jax.random.key(1)}, ['batch_stats']
    found, _ = block.apply(own, x, True, rngs=rngs, mutable=mutable)
    whole, _ = steady.apply(own, x, True, rngs=rngs, mutable=mutable)
    dropped = np.isclose(found, x).all((1, 2, 3))
    kept = np.isclose(found, x + 2 * (whole - x), atol=1e-4).all((1, 2, 3))
    assert (dropped ^ kept).all()
    assert 16 < dropped.sum() < 48


def test_channels_are_multiples_of_8_not_much_fewer_than_asked_for():
    assert [efficientnet.scaled(32, width) for width in (1.0, 1.1, 1.2, 0.3, 0.1)] == [
        32, 32, 40, 16, 8,
    ]  # fmt: skip
    assert all(efficientnet.scaled(c, 1.1) >= 0.9 * 1.1 * c for c in range(8, 400, 8))


def test_an_impossible_shape_is_said():
    with pytest.raises(errors.UserError, match=r'model.strides = \(2, 1\) must have one .* 3 conv'):
        convnet.ConvNet(10, ((8, 8), (8,)), strides=(2, 1))
    with pytest.raises(errors.UserError, match=r'Images of 2 x 8 pixels are used up after stage 1'):
        variables(SMALL['normed'], (2, 8, 3))
    within = convnet.ConvNet(10, ((8, 8),), kernel_sizes=(5, 5), paddings=(0, 0))
    with pytest.raises(errors.UserError, match=r'Images of 4 x 4 pixels are used up after stage 0'):
        variables(within, (4, 4, 3))
    with pytest.raises(errors.UserError, match=r'model.strides = \(1, 2\) must have 7 numbers'):
        efficientnet.EfficientNet(10, strides=(1, 2))
