"""The whole of it: what is asked for and no more, the same on every placement."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import config as config_lib
from bigmodels import errors, experiment, sharding
from bigmodels.augmentation import Augmentation
from bigmodels.models.mlp import MLP
from bigmodels.tasks import Classification
from tests import commands, programs, test_sharding

ROWS, SIDE, MEAN, STD = 16, 12, 120.0, 60.0
EACH = dict(
    crop=0.3, rotate=20.0, scale=0.2, flip=0.5, shift=2, brightness=0.3, contrast=0.3,
    saturation=0.3, hue=0.1, rand_augment=1, cutout=4, mixup=0.5, cutmix=1.0,
)  # fmt: skip
MIXED = ('mixup', 'cutmix')


def batch(rows=ROWS, channels=3):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (rows, SIDE, SIDE, channels))
    return {
        'inputs': ((pixels - MEAN) / STD).astype(np.float32),
        'targets': rng.integers(0, 10, rows).astype(np.int32),
        'weights': np.ones(rows, np.float32),
    }


def augmented(given=None, **settings):
    change = functools.partial(Augmentation(**settings), mean=MEAN, std=STD)
    return jax.jit(change)(jax.random.key(7), given or batch())


def test_nothing_asked_for_is_nothing_done():
    found = augmented()
    assert found.keys() == batch().keys()
    for name, value in batch().items():
        np.testing.assert_array_equal(found[name], value)
    off = {field.name: 0 for field in dataclasses.fields(Augmentation) if field.name in EACH}
    assert dataclasses.asdict(Augmentation(**off)) == dataclasses.asdict(Augmentation())


@pytest.mark.parametrize('name', EACH)
def test_each_changes_images_and_leaves_pixels_in_their_range(name):
    found = augmented(**{name: EACH[name]})
    changed = (found['inputs'] != batch()['inputs']).any((1, 2, 3))
    assert changed.sum() >= 5
    pixels = found['inputs'] * STD + MEAN
    assert pixels.min() > -0.01
    assert pixels.max() < 255.01
    assert ('share' in found) == (name in MIXED)
    for other in batch().keys() - {'inputs'}:
        np.testing.assert_array_equal(found[other], batch()[other])


def test_mixed_examples_are_with_the_next_of_the_batch():
    found = augmented(mixup=1.0)
    given, share = batch(), found['share'][:, None, None, None]
    expected = share * given['inputs'] + (1 - share) * np.roll(given['inputs'], -1, axis=0)
    np.testing.assert_allclose(found['inputs'], expected, atol=1e-5)
    np.testing.assert_array_equal(found['other_targets'], np.roll(given['targets'], -1))
    both = augmented(mixup=1.0, cutmix=1.0)
    own = (np.isclose(both['inputs'], given['inputs'], atol=1e-6)).all(-1).mean((1, 2))
    blended = own < 0.05  # else some pixels are the example's own, as CutMix leaves them
    assert 3 <= blended.sum() <= 13


@pytest.mark.parametrize('name', MIXED)
def test_what_is_mixed_in_is_never_padding(name):
    given, padded = batch(), batch()
    for rows in (given, padded):
        rows['weights'][-3:] = 0
    padded['inputs'][-3:], padded['targets'][-3:] = 9.0, 7
    found, other = (augmented(rows, **{name: 1.0}) for rows in (given, padded))
    for key in ('inputs', 'share'):
        np.testing.assert_array_equal(found[key][:-3], other[key][:-3])
    last = ROWS - 4
    assert found['share'][last] == 1
    np.testing.assert_array_equal(found['inputs'][last], given['inputs'][last])
    assert (found['share'][:last] < 1).any()


def test_rows_have_keys_of_their_own_that_do_not_depend_on_other_rows():
    same = batch()
    same['inputs'] = np.broadcast_to(same['inputs'][:1], same['inputs'].shape)
    settings = dict(rotate=20.0, shift=2, contrast=0.3, cutout=4)
    whole = np.asarray(augmented(same, **settings)['inputs'])
    assert len({image.tobytes() for image in whole}) == ROWS
    half = {name: value[:8] for name, value in same.items()}
    np.testing.assert_allclose(augmented(half, **settings)['inputs'], whole[:8], atol=1e-4)


@pytest.mark.parametrize('names', [EACH.keys() - MIXED, MIXED], ids=['alone', 'mixed'])
def test_eight_devices_do_as_one_and_move_nothing_but_what_is_mixed(names):
    settings = {name: EACH[name] for name in names}
    mesh = sharding.make_mesh(sharding.MeshShape(data=4, fsdp=2))
    placed = sharding.put_batch(batch(), mesh)
    change = functools.partial(Augmentation(**settings), mean=MEAN, std=STD)
    with jax.set_mesh(mesh):
        compiled = jax.jit(change).lower(jax.random.key(7), placed).compile()
    moved = {'collective-permute'} if set(names) == set(MIXED) else set()
    assert set(programs.collectives(compiled)) == moved
    expected = augmented(**settings)
    for name, value in compiled(jax.random.key(7), placed).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-4, err_msg=name)


def test_images_without_a_channel_axis():
    given = batch(channels=1)
    flat = {**given, 'inputs': given['inputs'][..., 0]}
    settings = dict(rotate=10.0, brightness=0.2, saturation=0.5, hue=0.1, rand_augment=2)
    found = augmented(flat, **settings)['inputs']
    assert found.shape == (ROWS, SIDE, SIDE)
    np.testing.assert_array_equal(found, augmented(given, **settings)['inputs'][..., 0])


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(flipp=0.5), r"Unknown key in config.task.augment 'flipp'.*flip"),
        (dict(shift=1.5), r'config.task.augment.shift = 1.5 has the wrong type'),
        (dict(flip=1.5), r'flip = 1.5 must be at most 1'),
        (dict(rotate=-1.0), r'rotate = -1.0 must not be negative'),
        (dict(magnitude=11.0), r'magnitude = 11.0 must be at most 10'),
    ],
)
def test_what_cannot_be_is_said_of_the_config(settings, message):
    spec = str(commands.ROOT / 'configs/digits_mlp.py:tiny')
    described = experiment.from_config(config_lib.load(spec, [f'task.augment={settings}']))
    with pytest.raises(errors.UserError, match=message):
        experiment.make_task(described)


def test_what_cannot_be_is_said_of_the_data():
    with pytest.raises(errors.UserError, match=r'is for images .*; inputs are \[16, 30\]'):
        augmented({'inputs': jnp.zeros((16, 30)), 'targets': jnp.zeros(16)}, flip=0.5)
    with pytest.raises(errors.UserError, match='images of 1 or 3 channels, not 4'):
        augmented(batch(channels=4), contrast=0.5)


def test_a_run_keeps_every_strength_written_out():
    spec = str(commands.ROOT / 'configs/digits_mlp.py:tiny')
    kept = experiment.resolved(config_lib.load(spec, ["task.augment={'flip': 0.5}"]))
    expected = dataclasses.asdict(Augmentation(flip=0.5))
    assert kept['task']['augment'] == expected
    assert experiment.resolved(config_lib.load(spec))['task']['augment'] is None


def test_training_is_the_same_on_eight_devices():
    task = Classification(
        MLP(num_classes=10, hidden_dims=(16,)), augment=dict(flip=0.5, shift=2, cutmix=1.0)
    )
    batches = [batch()] * test_sharding.STEPS
    figures, state, _ = test_sharding.train(task, batches, num_devices=1)
    placed_figures, placed, _ = test_sharding.train(task, batches, data=4, fsdp=2)
    np.testing.assert_allclose(placed_figures, figures, rtol=1e-4)
    test_sharding.assert_close(placed.params, state.params, 1e-4)
    plain, _, _ = test_sharding.train(dataclasses.replace(task, augment=None), batches, data=8)
    assert abs(plain - figures).max() > 1e-2
