"""Adapters against kernels with the product added, written out; and how they are trained."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import adapters, errors, trees
from bigmodels.models.transformer import Transformer
from bigmodels.models.unet import UNet
from bigmodels.models.vit import ViT
from tests import programs, test_sharding

LORA = adapters.Settings(rank=3, alpha=6.0)
SIZES = dict(vocab_size=32, num_layers=2, embed_dim=16, num_heads=2, max_length=8)
MODELS = {
    'unrolled': Transformer(**SIZES | dict(num_layers=1), tie_embeddings=False),
    'scanned': Transformer(**SIZES, scan_layers=True, remat='full'),
    'bfloat16': Transformer(**SIZES | dict(num_layers=1), dtype='bfloat16'),
    'vit': ViT(num_classes=8, num_layers=1, embed_dim=16, num_heads=2, patch_size=4),
}
# All that may have an adapter, and what else is trained.
EVERYTHING = dataclasses.replace(LORA, targets='kernel$|^unembed$', trained=('norm',))


def inputs_of(name):
    rng = np.random.default_rng(0)
    if name == 'vit':
        return jnp.asarray(rng.normal(size=(4, 8, 8, 3)), jnp.float32)
    return jnp.asarray(rng.integers(0, 32, (4, 8)))


@functools.cache
def made(name, settings=EVERYTHING):
    """(params of the model, adapters, frozen); the adapters are not zero."""

    @jax.jit
    def make(inputs):
        params = MODELS[name].init(jax.random.key(0), inputs)['params']
        trained, frozen = adapters.split(settings, params, jax.random.key(1))
        noise = lambda name, leaf: jax.random.normal(jax.random.key(len(name)), leaf.shape)
        moved = trees.map_named(lambda name, leaf: leaf + 0.1 * noise(name, leaf), trained)
        return params, trained, moved, frozen

    return make(inputs_of(name))


def apply(name, params):
    return jax.jit(MODELS[name].apply)({'params': params}, inputs_of(name))


def written_out(params, moved, frozen, scale):
    """The kernels with their products added, in float64."""
    moved = trees.flatten_named(moved)

    def whole(name, leaf):
        if name in moved:
            return moved[name]
        if f'{name}/down' not in moved:
            return leaf
        product = np.float64(moved[f'{name}/down']) @ np.float64(moved[f'{name}/up'])
        return jnp.float32(leaf + scale * product)

    return trees.map_named(whole, params)


@pytest.mark.parametrize('name', MODELS)
def test_a_new_adapter_changes_no_bit(name):
    params, trained, _, frozen = made(name)
    assert any('down' in leaf for leaf in trees.flatten_named(trained))
    joined = adapters.joined(EVERYTHING, trained, frozen)
    np.testing.assert_array_equal(apply(name, joined), apply(name, params))


@pytest.mark.parametrize('name', MODELS)
def test_adapted_and_merged_are_the_kernels_with_their_products_added(name):
    params, _, moved, frozen = made(name)
    joined = adapters.joined(EVERYTHING, moved, frozen)
    expected = written_out(params, moved, frozen, 2.0)
    tolerance = 0.05 if name == 'bfloat16' else 2e-5
    np.testing.assert_allclose(
        apply(name, joined), apply(name, expected), rtol=tolerance, atol=tolerance
    )
    test_sharding.assert_close(adapters.merged(joined), expected)
    assert abs(apply(name, joined) - apply(name, params)).max() > 0.1
    back = adapters.trained(EVERYTHING, joined)
    assert trees.first_difference(back, moved) is None
    base = trees.flatten_named(adapters.without(joined))
    kept = [leaf for leaf in base if 'norm' not in leaf]
    original = trees.flatten_named(params)
    assert all((base[leaf] == original[leaf]).all() for leaf in kept)


@pytest.mark.parametrize(
    ('name', 'weights'), [('scanned', 'float32'), ('unrolled', 'int4'), ('scanned', 'fp8')]
)
def test_gradients_are_those_through_the_sum(name, weights):
    settings = dataclasses.replace(EVERYTHING, weights=weights, group_size=8)
    _, _, moved, frozen = made(name, settings)

    def loss(moved, merge):
        joined = adapters.joined(settings, moved, frozen)
        params = adapters.merged(joined) if merge else joined
        return jnp.square(apply(name, params)).mean()

    ours, expected = (jax.grad(loss)(moved, merge) for merge in (False, True))
    test_sharding.assert_close(ours, expected, 1e-4)


def test_each_row_of_a_batch_has_the_adapter_that_it_asks_for():
    settings = dataclasses.replace(LORA, targets='kernel$')
    for name in ('vit', 'scanned'):
        params, _, moved, frozen = made(name, settings)
        several = [jax.tree.map(lambda leaf, k=k: k * leaf, moved) for k in (0.0, 1.0, -2.0)]
        rows = np.array([2, 0, 1, 2])
        whole = adapters.together([adapters.joined(settings, one, frozen) for one in several])
        assert adapters.count(whole) == 3
        together = apply(name, adapters.by_row(whole, jnp.asarray(rows)))
        for row, which in enumerate(rows):
            alone = apply(name, adapters.joined(settings, several[which], frozen))
            np.testing.assert_allclose(together[row], alone[row], rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(together[1], apply(name, params)[1], rtol=2e-5, atol=2e-5)


def test_up_convolutions_may_have_adapters_and_shared_experts_none():
    everything = adapters.Settings(rank=2, alpha=4.0, targets='.*')
    unet, images = UNet(num_classes=2, widths=(4, 8)), jnp.ones((1, 4, 4, 3))
    variables = jax.jit(unet.init)(jax.random.key(0), images)
    trained, frozen = adapters.split(everything, variables['params'], jax.random.key(1))
    assert 'up_0/kernel/down' in trees.flatten_named(trained)
    joined = adapters.joined(everything, jax.tree.map(lambda leaf: leaf + 0.1, trained), frozen)
    one, other = (
        jax.jit(unet.apply)({**variables, 'params': params}, images)
        for params in (joined, adapters.merged(joined))
    )
    np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)

    moe = dict(num_experts=2, experts_per_token=1, num_shared_experts=1)
    params = jax.eval_shape(Transformer(**SIZES, moe=moe).init, jax.random.key(0), inputs_of('moe'))
    names = adapters.targets(everything, params['params'])
    assert any('router' in name for name in names)
    assert not any('shared' in name for name in names)


def test_what_names_nothing_is_an_error_that_names_what_there_is():
    params = made('unrolled')[0]

    def split(**changes):
        adapters.split(dataclasses.replace(LORA, **changes), params, jax.random.key(0))

    with pytest.raises(errors.UserError, match="Did you mean 'layers_0/attention/query/kernel'"):
        split(targets='layers_0/atention/query/kernel')
    with pytest.raises(errors.UserError, match=r"adapter.trained has 'haed'.*Allowed: .*unembed"):
        split(trained=('haed',))
    with pytest.raises(errors.UserError, match='no regular expression'):
        split(targets='(')
    with pytest.raises(errors.UserError, match='no whole number of groups of 5'):
        split(weights='int4', group_size=5)
    with pytest.raises(errors.UserError, match='have no adapters'):
        adapters.without(params)


MODEL = dict(num_layers=2, embed_dim=64, scan_layers=True)
TRAINED = {
    'whole': adapters.Settings(rank=4, trained=('embed/',)),
    'quantised': adapters.Settings(rank=4, weights='int8'),
}


@functools.cache
def on_one_device(name):
    task, batches = test_sharding.language_model(**MODEL)
    figures, state, run = test_sharding.train(
        task, batches, num_devices=1, ema_decay=0.9, adapter=TRAINED[name]
    )
    return task, batches, figures, state, run


@pytest.mark.parametrize('name', TRAINED)
def test_training_moves_the_adapters_alone_and_keeps_no_state_of_the_rest(name):
    *_, state, run = on_one_device(name)
    begun = run.init_state(0)
    assert trees.first_difference(state.frozen, begun.frozen) is None
    changed = jax.tree.map(lambda a, b: (a != b).any(), state.params, begun.params)
    assert all(jax.tree.leaves(changed))
    kept = trees.size_bytes((state.params, state.opt_state, state.ema_params))
    assert kept <= 4 * trees.size_bytes(state.params) + 100
    names = set(trees.flatten_named(state.params))
    assert {n.rpartition('/')[2] for n in names if 'layers' in n} == {'down', 'up'}
    assert ('embed/embedding' in names) == (name == 'whole')
    if name == 'quantised':
        kernel = state.frozen['layers']['mlp']['up']['kernel']
        assert kernel.values.dtype == jnp.int8


@pytest.mark.parametrize(
    ('name', 'settings'),
    [
        ('whole', dict(data=2, fsdp=2, tensor=2, accumulate=2)),
        ('quantised', dict(fsdp=2, tensor=2, stage=2)),
        ('whole', dict(data=8, parallel='pmap')),
    ],
    ids=str,
)
def test_every_mesh_trains_the_same_and_splits_the_base(name, settings):
    task, batches, figures, state, _ = on_one_device(name)
    mesh_figures, mesh_state, run = test_sharding.train(
        task, batches, ema_decay=0.9, adapter=TRAINED[name], **settings
    )
    np.testing.assert_allclose(mesh_figures, figures, rtol=2e-5)
    for part in ('params', 'ema_params'):
        test_sharding.assert_close(getattr(mesh_state, part), getattr(state, part))
    if 'fsdp' not in settings:
        return
    up = mesh_state.frozen['layers']['mlp']['up']['kernel']
    for array in (up.values, up.scales) if name == 'quantised' else [up]:
        assert test_sharding.shard_fraction(array) <= 1 / 4
    for part in mesh_state.params['layers']['mlp']['up']['kernel'].values():
        assert test_sharding.shard_fraction(part) <= 1 / 2
    for leaf in jax.tree.leaves(mesh_state.frozen):
        assert leaf.sharding.mesh == run.mesh


def test_a_step_needs_the_memory_of_the_base_and_little_more():
    """Less than to train all, although a copy of the base or a gradient of it would be as large."""
    task, batches = test_sharding.language_model(
        num_layers=4, embed_dim=128, scan_layers=True, remat='full'
    )

    def needed(settings):
        run = test_sharding.make_program(task, batches[0], num_devices=1, adapter=settings)
        return run, *programs.memory(run.compile_train_step('jit'))

    run, arguments, temporary = needed(adapters.NONE)
    whole = trees.size_bytes(run.state_shapes.params)
    assert arguments >= 3 * whole
    for weights, share in (('float32', 1), ('int8', 0.3)):
        run, own_arguments, own_temporary = needed(adapters.Settings(rank=2, weights=weights))
        assert trees.size_bytes(run.state_shapes.frozen) <= share * whole
        assert own_arguments <= (share + 0.15) * whole
        assert own_temporary <= temporary
