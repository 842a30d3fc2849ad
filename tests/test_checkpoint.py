"""A checkpoint restores bitwise, to any placement, or says that it is damaged."""

import json
import math

import jax
import numpy as np
import pytest

from bigmodels import checkpoint, errors, sharding, trees
from bigmodels.state import TrainState


def make_state(scale: float) -> TrainState:
    values = jax.random.normal(jax.random.key(0), (16, 24)) * scale
    return TrainState(
        step=jax.numpy.asarray(int(scale)),
        params={'layer': {'kernel': values, 'bias': values[0]}},
        model_state={'batch_stats': {'mean': values[1].astype('bfloat16')}},
        opt_state=({'mu': values * 2}, (), {'count': jax.numpy.asarray(3)}),
        ema_params={'layer': {'kernel': values + 1, 'bias': values[2]}},
    )


def save(directory, values: dict[int, float], **settings) -> dict[int, TrainState]:
    saver = checkpoint.Saver(directory, checkpoint.Settings(**({'keep_last': 9} | settings)))
    states = {}
    for step, loss in values.items():
        states[step] = make_state(float(step))
        assert saver.save(step, states[step], {'valid/loss': loss}) is None
    assert saver.close() is None
    return states


def as_saved(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def test_restores_bitwise_with_the_same_types(tmp_path):
    states = save(tmp_path, {5: 1.0})
    restored = checkpoint.restore(tmp_path, 5, as_saved(states[5]))
    assert trees.first_difference(states[5], restored) is None
    assert jax.tree.structure(states[5]) == jax.tree.structure(restored)
    assert int(restored.step) == 5


@pytest.mark.parametrize(
    'shape', [dict(data=8), dict(fsdp=8), dict(fsdp=2, tensor=2, data=2)], ids=str
)
def test_restores_to_any_placement(tmp_path, shape):
    state = save(tmp_path, {5: 1.0})[5]
    mesh = sharding.make_mesh(sharding.MeshShape(**{'data': 1} | shape))
    placed, _ = sharding.state_shardings(state, (), mesh)
    restored = checkpoint.restore(tmp_path, 5, sharding.with_shardings(state, placed))
    assert trees.first_difference(state, restored) is None
    kernel = restored.params['layer']['kernel']
    assert kernel.sharding == placed.params['layer']['kernel']
    assert kernel.addressable_shards[0].data.size * shape.get('fsdp', 1) == kernel.size


def test_the_manifest_covers_every_file_that_holds_values(tmp_path):
    save(tmp_path, {5: 1.0})
    sums = json.loads((tmp_path / '5' / 'manifest.json').read_text())['files']
    files = {
        p.relative_to(tmp_path / '5').as_posix() for p in (tmp_path / '5').rglob('*') if p.is_file()
    }
    assert files - sums.keys() == {'manifest.json', '_CHECKPOINT_METADATA', 'commit_success.txt'}
    assert sums.keys() <= files


def test_a_flipped_bit_in_any_file_is_caught(tmp_path):
    save(tmp_path, {5: 1.0, 6: 1.0})
    sums = json.loads((tmp_path / '6' / 'manifest.json').read_text())['files']
    assert len(sums) > 10
    generator = np.random.default_rng(0)
    for name in sums:
        path = tmp_path / '6' / name
        good = path.read_bytes()
        bad = bytearray(good)
        if bad:
            bad[generator.integers(len(bad))] ^= 1 << generator.integers(8)
        path.write_bytes(bytes(bad) or b'x')
        assert name in checkpoint.damage(tmp_path, 6)
        assert checkpoint.newest_good(tmp_path)[0] == 5
        path.write_bytes(good)
    assert checkpoint.damage(tmp_path, 6) is None


@pytest.mark.parametrize('harm', ['truncate', 'remove', 'remove manifest', 'half a manifest'])
def test_other_damage_falls_back_to_the_step_before(tmp_path, harm):
    save(tmp_path, {5: 1.0, 6: 1.0})
    [largest] = sorted(
        (tmp_path / '6' / 'params').rglob('*'), key=lambda p: p.stat().st_size if p.is_file() else 0
    )[-1:]
    manifest = tmp_path / '6' / 'manifest.json'
    if harm == 'truncate':
        largest.write_bytes(largest.read_bytes()[:-7])
    elif harm == 'remove':
        largest.unlink()
    elif harm == 'remove manifest':
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text()[:100])
    step, damaged = checkpoint.newest_good(tmp_path)
    assert step == 5
    assert list(damaged) == [6]


def test_when_all_are_damaged_nothing_is_deleted(tmp_path):
    save(tmp_path, {5: 1.0})
    (tmp_path / '5' / 'manifest.json').unlink()
    with pytest.raises(errors.UserError, match='Every checkpoint.*Nothing was deleted'):
        checkpoint.newest_good(tmp_path)
    assert checkpoint.steps(tmp_path) == [5]


def test_keeps_the_last_ones_and_the_best(tmp_path):
    losses = {1: 5.0, 2: 1.0, 3: 4.0, 4: 3.0, 5: 2.0}
    save(tmp_path / 'min', losses, keep_last=2, best_metric='valid/loss', best_mode='min')
    assert checkpoint.steps(tmp_path / 'min') == [2, 4, 5]
    save(tmp_path / 'max', losses, keep_last=2, best_metric='valid/loss', best_mode='max')
    assert checkpoint.steps(tmp_path / 'max') == [1, 4, 5]
    settings = checkpoint.Settings(best_metric='valid/loss')
    assert checkpoint.best_step(tmp_path / 'max', settings) == 5
    save(tmp_path / 'nan', {1: math.nan, 2: 3.0, 3: math.nan, 4: 2.0}, keep_last=4)
    assert checkpoint.best_step(tmp_path / 'nan', settings) == 4
    save(tmp_path / 'none', {1: math.nan})
    assert checkpoint.best_step(tmp_path / 'none', settings) is None
    with pytest.raises(
        errors.UserError, match='no such checkpoint with a value of config.checkpoint.best_metric'
    ):
        checkpoint.good_step(tmp_path / 'none', 'best', settings)


def test_a_part_alone_is_restored_without_reading_the_rest(tmp_path):
    state = save(tmp_path, {5: 1.0})[5]
    wanted = as_saved(state).replace(opt_state={}, ema_params=None, model_state={})
    (tmp_path / '5' / 'opt_state' / 'manifest.ocdbt').unlink()
    restored = checkpoint.restore(tmp_path, 5, wanted)
    assert trees.first_difference(state.params, restored.params) is None


def test_an_unfinished_save_is_not_a_step(tmp_path):
    save(tmp_path, {5: 1.0})
    (tmp_path / '6.orbax-checkpoint-tmp').mkdir()
    assert checkpoint.steps(tmp_path) == [5]
    states = save(tmp_path, {6: 1.0})
    assert checkpoint.damage(tmp_path, 6) is None
    assert (
        trees.first_difference(states[6], checkpoint.restore(tmp_path, 6, as_saved(states[6])))
        is None
    )


def test_a_failed_save_is_told_and_the_next_one_works(tmp_path, monkeypatch):
    saver = checkpoint.Saver(tmp_path, checkpoint.Settings(keep_last=3))
    assert saver.save(1, make_state(1.0), {}) is None
    assert saver.wait() is None
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, '_sha256', _no_space)
        saver.save(2, make_state(2.0), {})
        assert 'step 2 was not saved: OSError' in saver.wait()
    assert saver.save(3, make_state(3.0), {}) is None
    assert saver.close() is None
    assert checkpoint.damage(tmp_path, 3) is None
    assert checkpoint.newest_good(tmp_path)[0] == 3
    assert checkpoint.damage(tmp_path, 1) is None


def _no_space(path):
    raise OSError(28, 'No space left on device')
