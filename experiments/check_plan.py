"""Plans of this machine's cores beside what their steps then take.

    python experiments/check_plan.py

Writes experiments/results/check_plan.json. The peak and the bandwidth of the plan are measured by
`bigmodels.plan.calibration` in the same run; the step is the real one, on random tokens.
"""

import statistics
import time

import jax
import measure
import numpy as np

from bigmodels import config, experiment, explain, sharding
from bigmodels.plan import estimate, topology

GPT = ('model.positions=learned', 'model.norm=layer_norm', 'model.activation=gelu')
# Name -> variant of configs/transformer.py, overrides, steps that are timed.
CASES = {
    'GPT-2 124M, 512 x 2, float32': (
        '124m',
        ('model.vocab_size=50257', 'model.dtype=float32', 'task.sequence_length=512',
         'batch_size=2', 'optimizer.algorithm.name=adamw'),
        5,
    ),
    'GPT-2 124M, 512 x 2, bfloat16': (
        '124m',
        ('model.vocab_size=50257', 'task.sequence_length=512', 'batch_size=2'),
        5,
    ),
    '6 layers of 384, 256 x 16, float32': (
        '',
        (*GPT, 'model.num_layers=6', 'model.embed_dim=384', 'model.num_heads=6',
         'model.sliding_window=None', 'task.sequence_length=256', 'batch_size=16',
         'optimizer.algorithm.name=adamw'),
        9,
    ),
    'Llama shape, 8 layers of 1024, 1024 x 1, float32': (
        '1b',
        ('model.num_layers=8', 'model.embed_dim=1024', 'model.num_heads=16', 'model.mlp_dim=4096',
         'model.dtype=float32', 'model.remat=none', 'task.sequence_length=1024', 'batch_size=1'),
        5,
    ),
}  # fmt: skip


def main() -> None:
    machine = topology.open_topology('cpu:1')
    chip = machine.chip
    result = {
        'measured_peaks': {
            'float32': chip.float32_flops,
            'bfloat16': chip.peak_flops,
            'bytes_per_second': chip.bandwidth,
        },
        'steps': {},
    }
    for name, (variant, overrides, repeats) in CASES.items():
        path = str(measure.ROOT / 'configs' / 'transformer.py') + (variant and f':{variant}')
        settings = experiment.from_config(config.load(path, overrides))
        plan = estimate.make_plan(settings, machine)
        measured = step_seconds(settings, machine, repeats)
        result['steps'][name] = {
            'planned_seconds': round(plan.cost.step_seconds, 4),
            'measured_seconds': round(measured, 4),
            'planned_over_measured': round(plan.cost.step_seconds / measured, 3),
            'flops': plan.cost.flops,
            'bytes': plan.cost.bytes_moved,
        }
    measure.write('check_plan', result)


def step_seconds(settings: experiment.Experiment, machine: topology.Topology, repeats: int):
    """The median time of a step, after two."""
    mesh = sharding.make_mesh(settings.mesh, machine.devices)
    _, run = explain.abstract_program(settings, mesh)
    step, state = run.compile_train_step('jit'), run.init_state(0)
    random = np.random.default_rng(0)
    batch = {
        name: random.integers(0, 256, shape.shape).astype(shape.dtype)
        if np.issubdtype(shape.dtype, np.integer)
        else np.ones(shape.shape, shape.dtype)
        for name, shape in run.batch_shapes.items()
    }
    batch = sharding.put_batch(batch, mesh)
    times = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


if __name__ == '__main__':
    main()
