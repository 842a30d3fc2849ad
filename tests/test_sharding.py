"""Every placement of the state computes what one device computes."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bigmodels import adapters, errors, experiment, metrics, privacy, program, sharding, trees
from bigmodels.compress import distill as distill_lib
from bigmodels.compress import prune as prune_lib
from bigmodels.data import tokenizers
from bigmodels.models import transformer
from bigmodels.models.mlp import MLP
from bigmodels.privacy import federated
from bigmodels.tasks import Classification, LanguageModeling

MESHES = [
    dict(data=8),
    dict(fsdp=8),
    dict(tensor=4, data=2),
    dict(data=2, fsdp=2, tensor=2),
    dict(sequence=8),
    dict(sequence=2, fsdp=2, tensor=2),
]
STEPS, ROWS = 3, 16


def language_model(seed=0, **changes):
    rng = np.random.default_rng(seed)
    model = transformer.Transformer(
        **dict(vocab_size=256, num_layers=2, embed_dim=32, num_heads=4, max_length=16) | changes
    )
    task = LanguageModeling(model, {'name': 'bytes'}, 16, vocabulary=tokenizers.Bytes())
    ids = rng.integers(0, 256, (STEPS, ROWS, 17)).astype(np.int32)
    weights = (rng.random((STEPS, ROWS, 16)) < 0.7).astype(np.float32)
    return task, [
        {'inputs': i[:, :-1], 'targets': i[:, 1:], 'weights': w}
        for i, w in zip(ids, weights, strict=True)
    ]


def classifier(seed=0, **changes):
    rng = np.random.default_rng(seed)
    task = Classification(MLP(num_classes=10, hidden_dims=(24, 16), **changes))
    return task, [
        {
            'inputs': rng.normal(size=(ROWS, 8, 8)).astype(np.float32),
            'targets': rng.integers(0, 10, ROWS).astype(np.int32),
            'weights': (rng.random(ROWS) < 0.7).astype(np.float32),
        }
        for _ in range(STEPS)
    ]


class SplitMLP(MLP):
    """Kernels split along both dimensions."""

    sharding_rules = ((r'kernel$', ('fsdp', 'tensor')), (r'bias$', ()))


def make_program(
    task,
    batch,
    num_devices=8,
    ema_decay=0.0,
    accumulate=1,
    adapter=adapters.NONE,
    private=privacy.NONE,
    clients=federated.NONE,
    prune=prune_lib.NONE,
    distill=distill_lib.NONE,
    **mesh,
):
    settings = experiment.Experiment(
        model={},
        task={},
        optimizer=dict(
            learning_rate=0.01,
            # A large epsilon: without it Adam makes a step of rounding errors, as in key biases.
            algorithm=dict(name='adamw', eps=1e-3),
            schedule=dict(name='constant'),
            weight_decay=0.1,
            clip_norm=1.0,
        ),
        data=experiment.Data({}, {}),
        total_steps=STEPS,
        batch_size=ROWS,
        ema_decay=ema_decay,
        accumulate=accumulate,
        adapter=adapter,
        privacy=private,
        federated=clients,
        prune=prune,
        distill=distill,
    )
    mesh = sharding.make_mesh(sharding.MeshShape(**{'data': 1} | mesh), jax.devices()[:num_devices])
    return program.make_program(settings, task, mesh, program.shapes_of_batch(batch, ROWS))


def train(task, batches, parallel='jit', **settings):
    """(losses, gradient norms), the final state and the program."""
    run = make_program(task, batches[0], **settings)
    step = run.taught(run.compile_train_step(parallel))
    state, figures = run.init_state(0), []
    for batch in batches:
        state, pairs = step(state, sharding.put_batch(batch, run.mesh))
        figures.append([float(metrics.mean(pairs['loss'])), float(pairs['grad_norm'])])
    return np.array(figures), state, run


def assert_close(one, other, tolerance=2e-5):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (name, a), b in zip(trees.flatten_named(one).items(), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


def shard_fraction(array):
    """Each device's share of an array."""
    return array.addressable_shards[0].data.size / array.size


@functools.cache
def on_one_device(kind):
    task, batches = (language_model if kind == 'transformer' else classifier)()
    return task, batches, *train(task, batches, num_devices=1, ema_decay=0.9)[:2]


@pytest.mark.parametrize(
    ('kind', 'mesh'),
    [*(('transformer', mesh) for mesh in MESHES), ('mlp', MESHES[0]), ('mlp', MESHES[1])],
    ids=str,
)
def test_every_mesh_computes_the_same(kind, mesh):
    task, batches, figures, state = on_one_device(kind)
    # In one of the cases each device also takes its two rows one after the other.
    accumulate = 2 if (kind, mesh) == ('mlp', dict(data=8)) else 1
    mesh_figures, mesh_state, run = train(
        task, batches, ema_decay=0.9, accumulate=accumulate, **mesh
    )
    np.testing.assert_allclose(mesh_figures, figures, rtol=2e-5)
    for part in ('params', 'ema_params'):
        assert_close(getattr(mesh_state, part), getattr(state, part))
    placed = jax.tree.map(lambda shape: shape.sharding, run.state_shapes)
    same = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), mesh_state, placed)
    assert all(jax.tree.leaves(same))  # the step leaves everything where it was
    if kind == 'transformer':
        split = mesh.get('fsdp', 1) * mesh.get('tensor', 1)
        moments = [
            x for x in jax.tree.leaves(mesh_state.opt_state, is_leaf=_is_adam) if _is_adam(x)
        ][0]
        for tree in (mesh_state.params, moments.mu, moments.nu, mesh_state.ema_params):
            for name, leaf in trees.flatten_named(tree).items():
                if name.endswith(('kernel', 'embed/embedding')):
                    assert shard_fraction(leaf) == 1 / split, name


def _is_adam(x):
    return hasattr(x, 'mu') and hasattr(x, 'nu')


def test_the_default_rule_splits_the_largest_dimension():
    task, batches = classifier()
    run = make_program(task, batches[0], fsdp=8)
    params = trees.flatten_named(run.state_shapes.params)
    specs = {name: leaf.sharding.spec for name, leaf in params.items()}
    assert specs['Linear_0/kernel'] == P('fsdp')  # [64, 24]
    assert specs['Linear_1/kernel'] == P('fsdp')  # [24, 16]
    assert specs['Linear_1/bias'] == P('fsdp')
    assert specs['head/bias'] == P()  # 10 does not divide
    assert run.notes == []


def test_scanned_layers_are_split_within_a_layer():
    task, batches = language_model(scan_layers=True)
    run = make_program(task, batches[0], fsdp=4, tensor=2)
    for name, leaf in trees.flatten_named(run.state_shapes.opt_state).items():
        if 'layers' in name and name.endswith('kernel'):
            assert leaf.sharding.spec[0] == 'stage'
            assert set(leaf.sharding.spec[1:]) == {'fsdp', 'tensor'}


def test_rows_are_told_from_features_where_there_are_as_many():
    """Unless features are gathered, XLA's partitioner gives other gradients here."""
    task, batches = classifier()
    task = Classification(SplitMLP(num_classes=10, hidden_dims=(ROWS, ROWS)))
    alone, state, _ = train(task, batches, num_devices=1)
    split, placed, _ = train(task, batches, data=2, fsdp=2, tensor=2)
    np.testing.assert_allclose(split, alone, rtol=1e-4)
    assert_close(placed.params, state.params, 1e-4)


def test_dropout_is_the_same_on_every_mesh():
    task, batches = classifier(dropout_rate=0.3)
    one, _, _ = train(task, batches, num_devices=1)
    other, _, _ = train(task, batches, data=4, fsdp=2)
    np.testing.assert_allclose(one, other, rtol=2e-5)


@pytest.mark.parametrize('kind', ['transformer', 'mlp'])
def test_pmap_is_jit(kind):
    task, batches, figures, state = on_one_device(kind)
    mapped_figures, mapped, _ = train(task, batches, 'pmap', ema_decay=0.9, data=8)
    np.testing.assert_allclose(mapped_figures, figures, rtol=2e-5)
    assert int(mapped.step) == STEPS
    assert_close(mapped, state)


def test_pmap_of_a_batch_without_weight_stays_finite():
    task, batches = classifier()
    batch = batches[0] | {'weights': np.zeros(ROWS, np.float32)}
    _, state, _ = train(task, [batch], 'pmap', data=8)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_split_sequences_with_packing_remat_scan_and_chunks():
    task, batches = language_model(
        scan_layers=True, remat='full', num_kv_heads=2, positions='learned'
    )
    task, rng = dataclasses.replace(task, loss_chunk=32), np.random.default_rng(2)
    for batch in batches:
        batch['segment_ids'] = np.cumsum(rng.random((ROWS, 16)) < 0.2, axis=1).astype(np.int32)
        batch['positions'] = np.tile(np.arange(16, dtype=np.int32), (ROWS, 1))
    one, _, _ = train(task, batches, num_devices=1)
    other, _, _ = train(task, batches, sequence=4, data=2)
    np.testing.assert_allclose(one, other, rtol=2e-5)


@pytest.mark.parametrize('mesh', [dict(sequence=4, data=2), dict(sequence=4, fsdp=2)], ids=str)
def test_split_sequences_are_never_gathered(mesh):
    """Parameters are, over fsdp; nothing with a dimension for the rows or the positions."""
    task, batches = language_model(embed_dim=24)
    run = make_program(dataclasses.replace(task, loss_chunk=64), batches[0], **mesh)
    text = run.compile_train_step('jit').as_text()
    assert ' collective-permute(' in text
    assert ' all-to-all(' not in text
    gathered = [
        tuple(int(size) for size in shape.split(','))
        for shape in re.findall(r'\[([\d,]+)\]\S* all-gather\(', text)
    ]
    shapes = {leaf.shape for leaf in jax.tree.leaves(run.state_shapes.params)}
    assert set(gathered) <= shapes | {shape[::-1] for shape in shapes}
    assert bool(gathered) == ('fsdp' in mesh)


def test_pmap_splits_only_the_batch():
    task, batches = classifier()
    with pytest.raises(errors.UserError, match='parallel = "pmap" splits only the batch'):
        make_program(task, batches[0], data=4, fsdp=2).compile_train_step('pmap')


def test_another_shape_raises_instead_of_compiling_again():
    task, batches = classifier()
    run = make_program(task, batches[0], data=8)
    step = run.compile_train_step('jit')
    half = {key: value[:8] for key, value in batches[0].items()}
    with pytest.raises(TypeError, match='compiled'):
        step(run.init_state(0), sharding.put_batch(half, run.mesh))


PARAMS = {'a': {'kernel': np.zeros((8, 6)), 'bias': np.zeros(6)}, 'b': np.zeros((2, 8, 12))}


def specs(*rules, **shape):
    mesh = sharding.make_mesh(sharding.MeshShape(**{'data': 1} | shape))
    return sharding.param_specs(PARAMS, rules, mesh)


def test_rules_name_trailing_dimensions():
    placed, notes = specs(
        ('kernel', ('fsdp',)), ('b$', ('fsdp', 'tensor')), ('.*', ()), fsdp=2, tensor=4
    )
    assert placed == {
        'a': {'kernel': P(None, 'fsdp'), 'bias': P(None)},
        'b': P(None, 'fsdp', 'tensor'),
    }
    assert notes == []


def test_a_dimension_that_does_not_divide_is_noted():
    placed, notes = specs(('kernel', ('fsdp', 'tensor')), ('.*', ()), fsdp=2, tensor=4)
    assert placed['a']['kernel'] == P('fsdp', None)
    [note] = notes
    assert 'a/kernel: 6 does not divide by tensor 4' in note


def test_axes_that_a_model_without_rules_leaves_idle_are_noted():
    _, notes = specs(fsdp=2, stage=2, tensor=2)
    assert [note.split(':')[0] for note in notes] == [
        'the model has no rules for the axis stage',
        'the model has no rules for the axis tensor',
    ]
    assert specs(data=2, fsdp=2, expert=2)[1] == []


def test_mistakes_in_rules():
    with pytest.raises(errors.UserError, match='sharding table covers no rule for: a/bias, b'):
        specs(('kernel', ()), data=8)
    with pytest.raises(errors.UserError, match=r'a/kernel.* names an axis twice'):
        specs(('kernel', ('fsdp', 'fsdp')), ('.*', ()), data=8)
    with pytest.raises(errors.UserError, match='too long for a/bias'):
        specs(('bias', (None, 'fsdp')), ('.*', ()), data=8)


def test_mesh_shapes():
    make = lambda **shape: sharding.make_mesh(sharding.MeshShape(**shape))
    used = lambda mesh: {axis: size for axis, size in mesh.shape.items() if size > 1}
    assert used(make()) == {'data': 8}
    assert used(make(fsdp=2)) == {'data': 4, 'fsdp': 2}
    mesh = make(data=2, fsdp=-1, tensor=2)
    assert sharding.describe(mesh) == 'data 2 x fsdp 2 x tensor 2'
    assert sharding.num_batch_shards(mesh) == 4
    alone = sharding.make_mesh(sharding.MeshShape(), jax.devices()[:1])
    assert sharding.describe(alone) == 'one device'
    for shape in (dict(data=3), dict(fsdp=3), dict(data=16), dict(data=4, fsdp=4)):
        with pytest.raises(errors.UserError, match='but there are 8'):
            make(**shape)
    for shape in (dict(fsdp=-1), dict(fsdp=0), dict(tensor=-2)):
        with pytest.raises(errors.UserError, match='sizes are positive, and one may be -1'):
            make(**shape)


@dataclasses.dataclass(frozen=True)
class SliceDevice:
    """What is asked of a device of a TPU slice when a mesh is made."""

    id: int
    slice_index: int
    platform: str = 'cpu'
    device_kind: str = 'cpu'
    process_index: int = 0
    client: None = None


def test_slices_are_replicas():
    devices = [SliceDevice(i, i // 4) for i in (0, 4, 1, 5, 2, 6, 3, 7)]
    mesh = sharding.make_mesh(sharding.MeshShape(replica=4, data=1, fsdp=2), devices)
    slices = [{device.slice_index for device in replica.flat} for replica in mesh.devices]
    assert slices == [{0}, {0}, {1}, {1}]
    with pytest.raises(errors.UserError, match='in 2 slices.*replica to a multiple of 2, not 1'):
        sharding.make_mesh(sharding.MeshShape(), devices)


def test_hosts_of_gpus_are_no_slices():
    devices = [SliceDevice(i, i // 4, 'gpu', 'NVIDIA H100', i // 4) for i in range(8)]
    assert sharding.make_mesh(sharding.MeshShape(), devices).shape['data'] == 8
    mesh = sharding.make_mesh(sharding.MeshShape(data=2, fsdp=-1), devices)
    assert [device.id for device in mesh.devices.flat] == list(range(8))
    assert mesh.shape['fsdp'] == 4


def test_batches_are_split_by_rows():
    mesh = sharding.make_mesh(sharding.MeshShape(data=2, fsdp=2, tensor=2))
    assert sharding.batch_shard(mesh) == ((0, 1, 2, 3), 4)  # one process feeds everything
    batch = {'x': np.arange(24).reshape(8, 3), 'weights': np.ones(8, np.float32)}
    placed = sharding.put_batch(batch, mesh)
    np.testing.assert_array_equal(placed['x'], batch['x'])
    rows = {shard.device.id: shard.data for shard in placed['x'].addressable_shards}
    assert {data.shape for data in rows.values()} == {(2, 3)}
    for (_, data, _, fsdp, *_), device in np.ndenumerate(mesh.devices):
        first = 2 * (2 * data + fsdp)
        np.testing.assert_array_equal(rows[device.id], batch['x'][first : first + 2])


@dataclasses.dataclass(frozen=True)
class FewerDevices:
    """A sharding of which this process sees only some rows, as on several hosts."""

    rows: tuple

    def addressable_devices_indices_map(self, shape):
        size = shape[0] // 8
        return {row: (slice(row * size, (row + 1) * size),) for row in self.rows}


@pytest.mark.parametrize('rows', [(0, 1, 2, 3), (5,), (0, 1, 4, 5)])
def test_each_host_feeds_the_rows_of_its_devices(monkeypatch, rows):
    mesh = sharding.make_mesh(sharding.MeshShape())
    monkeypatch.setattr(sharding, 'batch_sharding', lambda _: FewerDevices(rows))
    assert sharding.batch_shard(mesh) == (rows, 8)


def test_activations_are_constrained_inside_a_mesh_only():
    x = jnp.ones((8, 4, 2))
    assert sharding.constrain_activations(x) is x
    text = lambda: jax.jit(sharding.constrain_activations).lower(x).as_text()
    assert 'sharding_constraint' not in text()
    jax.clear_caches()
    mesh = sharding.make_mesh(sharding.MeshShape(data=4, fsdp=2))
    with jax.set_mesh(mesh):
        assert '"data", "fsdp"' in text()
        placed = jax.jit(sharding.constrain_activations)(x)
    assert placed.sharding.is_equivalent_to(sharding.batch_sharding(mesh), 3)
