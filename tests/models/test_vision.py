"""ResNet and ViT: their published sizes, PyTorch's numbers, the same on every placement."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors, metrics, trees
from bigmodels.models import resnet, vit
from bigmodels.tasks import Classification
from tests import test_sharding

CLASSES = 1000
# Parameters as published: torchvision's models, and Dosovitskiy et al. 2021 in timm's count.
SIZES = [
    (resnet.ResNet(CLASSES, (2, 2, 2, 2), block='basic'), 11_689_512),
    (resnet.ResNet(CLASSES, (3, 4, 6, 3), block='basic'), 21_797_672),
    (resnet.ResNet(CLASSES), 25_557_032),
    (resnet.ResNet(CLASSES, (3, 4, 23, 3)), 44_549_160),
    (vit.ViT(CLASSES, num_layers=12, embed_dim=192, num_heads=3), 5_717_416),
    (vit.ViT(CLASSES, num_layers=12, embed_dim=768, num_heads=12), 86_567_656),
]
RESNET = dict(num_classes=10, stage_sizes=(1, 1), stage_widths=(16, 32), stem='cifar')
SMALL = {
    'basic': resnet.ResNet(**RESNET, block='basic', zero_init=False),
    'bottleneck': resnet.ResNet(**RESNET, zero_init=False),
    'pooled': resnet.ResNet(
        **RESNET, block='basic', zero_init=False, downsampling='pool', activation='gelu'
    ),
    'pooled bottleneck': resnet.ResNet(
        **RESNET, zero_init=False, downsampling='pool', activation='silu'
    ),
    'imagenet': resnet.ResNet(**RESNET | dict(stem='imagenet'), block='basic', zero_init=False),
    'token': vit.ViT(10, num_layers=2, embed_dim=32, num_heads=2, patch_size=4),
    'mean': vit.ViT(10, num_layers=2, embed_dim=32, num_heads=2, patch_size=4, pool='mean'),
}
SIDE, ROWS = 16, 16


def batches(count=test_sharding.STEPS):
    rng = np.random.default_rng(0)
    return [
        {
            'inputs': rng.normal(size=(ROWS, SIDE, SIDE, 3)).astype(np.float32),
            'targets': rng.integers(0, 10, ROWS).astype(np.int32),
            'weights': np.ones(ROWS, np.float32),
        }
        for _ in range(count)
    ]


@functools.partial(jax.jit, static_argnums=(0, 1))
def variables(model, side=SIDE):
    return model.init(jax.random.key(0), jnp.zeros((1, side, side, 3)))


@pytest.mark.parametrize(('model', 'count'), SIZES)
def test_the_published_number_of_parameters(model, count):
    shapes = jax.eval_shape(functools.partial(variables, model, 224))
    assert trees.count(shapes['params']) == count


@functools.cache
def on_one_device(kind):
    return test_sharding.train(Classification(SMALL[kind]), batches(), num_devices=1)[:2]


@pytest.mark.parametrize('kind', ['basic', 'bottleneck', 'token'])
@pytest.mark.parametrize('mesh', ['pmap', dict(data=8), dict(data=2, fsdp=2, tensor=2)], ids=str)
def test_every_placement_computes_the_same(kind, mesh):
    """Statistics of BatchNorm are those of the global batch, its averages among the state."""
    parallel, mesh = ('pmap', dict(data=8)) if mesh == 'pmap' else ('jit', mesh)
    figures, state = on_one_device(kind)
    placed_figures, placed, _ = test_sharding.train(
        Classification(SMALL[kind]), batches(), parallel, **mesh
    )
    np.testing.assert_allclose(placed_figures, figures, rtol=1e-4)
    test_sharding.assert_close(placed.model_state, state.model_state, 1e-4)
    # 3x3 convolutions are rounded otherwise on one device, and Adam's first steps make much of
    # gradients that are nearly zero: each may move a parameter by 1e-2.
    tolerance = 3e-3 if kind == 'basic' else 1e-4
    test_sharding.assert_close(placed.params, state.params, tolerance)


def test_a_mean_over_patches_takes_sequences_that_are_split():
    figures, _ = on_one_device('mean')
    split, _, _ = test_sharding.train(Classification(SMALL['mean']), batches(), data=4, sequence=2)
    np.testing.assert_allclose(split, figures, rtol=1e-4)


def test_every_patch_sees_every_other():
    """The gradient of the first patch's state reaches the last patch."""
    model = SMALL['token']
    first = lambda x: model.apply(variables(model), x)[0, 0]  # by way of the first token
    gradient = jax.jit(jax.grad(first))(jnp.asarray(batches(1)[0]['inputs'][:1]))
    assert all(abs(patch).max() > 0 for patch in vit.patches(gradient, 4)[0])


@pytest.mark.parametrize('change', [dict(scan_layers=True), dict(remat='full')], ids=str)
def test_scanned_and_rematerialised_layers_are_the_plain_ones(change):
    model, inputs = SMALL['token'], batches(1)[0]['inputs']
    params = variables(model)['params']
    changed = model.clone(**change)
    other = params
    if 'scan_layers' in change:
        layers = [params[f'layers_{i}'] for i in range(model.num_layers)]
        other = {name: leaf for name, leaf in params.items() if not name.startswith('layers_')}
        other['layers'] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    loss = lambda params, model: jnp.square(model.apply({'params': params}, inputs)).sum()
    gradients = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    value, gradient = gradients(params, model)
    same_value, same_gradient = gradients(other, changed)
    np.testing.assert_allclose(same_value, value, rtol=1e-5)
    for name in ('patch_embed', 'head'):
        test_sharding.assert_close(same_gradient[name], gradient[name], 1e-4)


def test_patches_are_squares_of_the_image():
    images = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    found = vit.patches(images, 2)
    assert found.shape == (2, 6, 12)
    np.testing.assert_array_equal(found[1, 4], images[1, 2:4, 2:4].reshape(-1))


@pytest.mark.parametrize('kind', SMALL)
def test_pytorch_computes_the_same(kind):
    """Loss, gradients and averages of a twin with the same weights."""
    torch = pytest.importorskip('torch', reason='the twins are written in PyTorch')
    from experiments.twins import resnet as resnet_twin
    from experiments.twins import vit as vit_twin

    model, batch = SMALL[kind], batches(1)[0]
    ours = dict(variables(model))
    params, model_state = ours.pop('params'), ours
    task = Classification(model)
    (loss, (pairs, new_state)), gradient = jax.value_and_grad(task.loss_fn, has_aux=True)(
        params, model_state, batch, jax.random.key(0), train=True
    )
    np.testing.assert_allclose(metrics.mean(pairs['loss']), loss)

    twins = vit_twin if isinstance(model, vit.ViT) else resnet_twin
    twin = twins.make(params, model_state, model)
    inputs, targets = (torch.tensor(batch[name]) for name in ('inputs', 'targets'))
    twin_loss = twins.loss(twin, {'inputs': inputs, 'targets': targets.long()})
    twin_loss.backward()
    np.testing.assert_allclose(loss, twin_loss.item(), rtol=1e-5)

    expected = twins.make(gradient, new_state, model)
    found = {name: parameter.grad for name, parameter in twin.named_parameters()}
    found |= {name: tensor for name, tensor in twin.named_buffers() if 'running' in name}
    for name, tensor in found.items():
        other = expected.state_dict()[name]
        np.testing.assert_allclose(tensor, other, rtol=2e-3, atol=2e-5, err_msg=name)


def test_an_impossible_shape_is_said():
    with pytest.raises(errors.UserError, match=r'patch_size = 5 does not divide images of 16 x 16'):
        variables(SMALL['token'].clone(patch_size=5))
    with pytest.raises(errors.UserError, match='one number for each stage'):
        resnet.ResNet(10, stage_sizes=(1, 1), stage_widths=(16,))
    with pytest.raises(errors.UserError, match=r"model.strides = 'v1' downsamples before them"):
        resnet.ResNet(10, strides='v1', downsampling='pool')
    with pytest.raises(errors.UserError, match='even sides: a block is given 15 x 15 pixels'):
        variables(SMALL['pooled'], 15)
