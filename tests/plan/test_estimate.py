"""Plans of real configs on simulated devices, their arithmetic, and the changes they advise."""

import dataclasses
import importlib.util

import jax
import pytest

from bigmodels import config as config_lib
from bigmodels import errors, experiment, hardware
from bigmodels.plan import advice, estimate, topology
from tests import commands

TRANSFORMER = f'{commands.ROOT}/configs/transformer.py'
CHIP = hardware.Chip('cpu', 'cpu', 1e11, 1e9, 1e10, 1, 1e9, 1e9, 100.0, 2.0)


def settings(variant: str, *overrides: str) -> experiment.Experiment:
    return experiment.from_config(config_lib.load(f'{TRANSFORMER}:{variant}', overrides))


def machine(memory: float = 1e9) -> topology.Topology:
    chip = dataclasses.replace(CHIP, memory=memory)
    return topology.Topology('cpu:8', 'cpu', chip, jax.devices())


@pytest.mark.parametrize(
    ('variant', 'vocab_size', 'expected'),
    [
        ('124m', 50257, 124_439_808),  # GPT-2 small, as Hugging Face counts it
        ('8b', 128256, 8_030_261_248),  # the safetensors of Llama 3's own repositories
        ('70b', 128256, 70_553_706_496),
        ('405b', 128256, 405_853_388_800),
        ('8x7b', 32000, 46_702_792_704),  # Mixtral 8x7B's
    ],
)
def test_shapes_have_the_published_number_of_parameters(variant, vocab_size, expected):
    task = experiment.make_task(settings(variant, f'model.vocab_size={vocab_size}'))
    example = {
        key: jax.ShapeDtypeStruct((1, 8), shape.dtype)
        for key, shape in task.example_shapes().items()
    }
    params = jax.eval_shape(task.init, jax.random.key(0), example)['params']
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


def test_a_plan_on_eight_devices():
    plan = estimate.make_plan(settings('tiny', 'mesh.fsdp=4', 'mesh.data=2'), machine())
    assert plan.mesh == 'data 2 x fsdp 4'
    assert plan.fits
    assert plan.items == 8 * 128
    cost = plan.cost
    assert {one.axes for one in cost.traffic} == {'data', 'fsdp', 'data+fsdp'}
    # Each device does an eighth of the model's work; attention is counted without its mask.
    assert 1 < 8 * cost.flops / plan.model_flops < 2
    assert cost.compute_seconds == pytest.approx(cost.flops / 1e11)
    assert cost.memory_seconds == pytest.approx(cost.bytes_moved / 1e10)
    least = max(cost.compute_seconds, cost.memory_seconds)
    assert least <= cost.operation_seconds <= cost.compute_seconds + cost.memory_seconds
    assert cost.best_seconds <= cost.step_seconds == cost.operation_seconds + cost.link_seconds
    assert plan.mfu(cost.step_seconds) == plan.model_flops / (8 * 1e11 * cost.step_seconds)


def test_accumulation_does_the_same_work():
    whole, parts = (
        estimate.make_plan(settings('tiny', f'accumulate={n}', 'batch_size=32'), machine())
        for n in (1, 4)
    )
    assert parts.cost.flops == pytest.approx(whole.cost.flops, rel=1e-3)
    assert parts.items == whole.items


def test_what_a_training_run_takes():
    plan = estimate.make_plan(settings('tiny'), machine())
    steps = 1000
    whole = estimate.training(plan, steps * plan.items, watts=None, price=None)
    assert whole.seconds == pytest.approx(steps * plan.cost.step_seconds)
    assert whole.chip_hours == pytest.approx(8 * whole.seconds / 3600)
    assert whole.kilowatt_hours == pytest.approx(0.1 * whole.chip_hours)
    assert whole.dollars == pytest.approx(2 * whole.chip_hours)
    other = estimate.training(plan, steps * plan.items, watts=200, price=3)
    assert other.kilowatt_hours == pytest.approx(2 * whole.kilowatt_hours)
    assert other.dollars == pytest.approx(1.5 * whole.dollars)


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        (('mesh.fsdp=3',), 'config.mesh asks for'),
        (('mesh.fsdp=16', 'mesh.data=1'), 'there are 8'),
        (('batch_size=12',), 'does not divide over the 8'),
    ],
)
def test_what_does_not_fit_the_topology(overrides, message):
    with pytest.raises(errors.UserError, match=message):
        estimate.make_plan(settings('tiny', *overrides), machine())


def test_changes_are_compiled_and_ranked():
    """A chip between what the config needs and what it needs at best."""
    overrides = ('model.scan_layers=True', 'model.num_layers=4', 'batch_size=64')
    needed = estimate.make_plan(settings('tiny', *overrides), machine()).bytes_needed
    small = machine(0.7 * needed)

    def plan_with(changes):
        changed = settings('tiny', *overrides, *changes)
        return changed, estimate.make_plan(changed, small)

    first, plan = plan_with(())
    assert not plan.fits
    trials = advice.try_changes(first, plan_with, most=7)
    assert [trial.plan.fits for trial in trials] == sorted(
        (trial.plan.fits for trial in trials), reverse=True
    )
    fitting = [trial for trial in trials if trial.plan.fits]
    assert ('accumulate=2',) in [trial.overrides for trial in fitting]
    speeds = [trial.plan.cost.step_seconds / trial.plan.items for trial in fitting]
    assert speeds == sorted(speeds)


@pytest.mark.slow
def test_where_no_single_change_fits_they_are_combined():
    none = machine(0.0)

    def plan_with(changes):
        changed = settings('tiny', 'batch_size=64', *changes)
        return changed, estimate.make_plan(changed, none)

    first, _ = plan_with(())
    trials = advice.try_changes(first, plan_with, most=9)
    assert len(trials) == 9
    assert max(len(trial.overrides) for trial in trials) > 2
    needed = [trial.plan.bytes_needed for trial in trials]
    assert needed == sorted(needed)


@pytest.mark.parametrize('name', ['v5e:2x2', 'gpu:h200:4', 'cpu:4'])
def test_the_command(name):
    if name.startswith('v5e') and importlib.util.find_spec('libtpu') is None:
        pytest.skip('needs libtpu, which compiles for TPUs: pip install libtpu')
    status, out, err = commands.run(
        'bigmodels.plan',
        f'--config={TRANSFORMER}:tiny',
        f'--topology={name}',
        '--config.mesh.fsdp=2',
        '--config.mesh.data=2',
        '--tokens=1e9',
    )
    assert status == 0, err
    assert f'{name}: 4 x ' in out
    assert 'mesh data 2 x fsdp 2. 131,392 parameters, 1,024 tokens a step.' in out
    assert 'all-gather' in out or 'all-reduce' in out
    assert 'MFU' in out
    assert 'causal' in out
    assert '1e+09 tokens: ' in out
    assert ('stands in' in out) == name.startswith('gpu')


def test_the_command_refuses_what_it_does_not_know():
    spec = f'--config={TRANSFORMER}:tiny'
    for arguments, message in (
        (('--topology=v9:4x4',), '--topology=v9:4x4 is none of'),
        (('--topology=cpu:4', '--config.mesh.fsdp=3'), 'config.mesh asks for'),
        (('--topology=cpu:2', '--config.mesh.fsdb=3'), "'fsdb'. Did you mean 'fsdp'"),
        (('--topology=cpu:2', '--tokens=-1'), 'must be positive'),
    ):
        status, out, err = commands.run('bigmodels.plan', spec, *arguments)
        assert (status, out) == (2, '')
        assert message in err
