"""The sides of experiments/benchmark_train.py, each in its process: they answer lines with JSON."""

import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import measure
import numpy as np

PARAMS, BATCH = 'params.npz', 'batch.npz'


def serve(side: str, row, dtype: str, shared: pathlib.Path) -> None:
    """Answers 'start', 'run SECONDS QUEUED' and 'memory' from standard input until it ends."""
    start = {'ours': ours}.get(side, pytorch)
    step = None
    for line in sys.stdin:
        request, *arguments = line.split()
        if request == 'start':
            step, answer = start(row, dtype, shared, side == 'compiled')
        elif request == 'run':
            answer = {'seconds': timed(step, float(arguments[0]), int(arguments[1]))}
        else:
            answer = {'peak_mb': round(_peak_memory(side) / 1e6)}
        print(json.dumps(answer), flush=True)


def timed(step: Callable, seconds: float, queued: int = 1) -> list[float]:
    """The seconds of steps, for about so long; the first one, which warms up, left out.

    Args:
      step: begins a step and returns its loss, which may have to be waited for.
      queued: so many steps are begun before the last of them is waited for, and their mean counts:
        an accelerator is never without work, as in training.
    """
    float(step())
    times, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until or len(times) < 2:
        began = time.perf_counter()
        losses = [step() for _ in range(queued)]
        float(losses[-1])
        times.append((time.perf_counter() - began) / queued)
    return times


def _peak_memory(side: str) -> int:
    """The most bytes held so far: of a GPU where that computes, of the process otherwise."""
    if side == 'ours':
        import jax

        on_device = (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
    else:
        import torch

        on_device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return on_device or measure.peak_memory('self')


def ours(row, dtype: str, shared: pathlib.Path, _) -> tuple[Callable, dict]:
    """The run's train step on a random batch, which it leaves to the others."""
    step, _, figures = compile_ours(row, dtype, shared)
    return step, figures


def compile_ours(row, dtype: str, shared: pathlib.Path) -> tuple[Callable, Any, dict]:
    """As `ours`, with the compiled program between the step and its figures."""
    import jax
    import jax.numpy as jnp

    from bigmodels import config, experiment, metrics, program, runs, sharding, trees

    runs.keep_freed_memory()

    overrides = [*row.overrides, f'model.dtype={dtype}', 'total_steps=1000000']
    settings = experiment.from_config(config.load(str(measure.ROOT / row.config), overrides))
    task = experiment.make_task(settings)
    batch = random_batch(task, settings.batch_size, row.inputs)
    mesh = sharding.make_mesh(settings.mesh, jax.devices()[:1])
    run = program.make_program(
        settings, task, mesh, program.shapes_of_batch(batch, settings.batch_size)
    )
    state = run.init_state(settings.seed)
    for name, tree in (('params', state.params), ('model_state', state.model_state)):
        np.savez(shared / f'{name}.npz', **trees.flatten_named(jax.device_get(tree)))
    np.savez(shared / BATCH, **batch)
    carried = [state]
    began = time.perf_counter()
    compiled = run.compile_train_step('jit')
    placed = sharding.put_batch(batch, mesh)

    def step():
        carried[0], pairs = compiled(carried[0], placed)
        return metrics.mean(pairs['loss'])

    loss = float(step())
    first = time.perf_counter() - began
    flops = task.flops_per_step(run.state_shapes.params, run.batch_shapes)
    if flops is None:
        forward = jax.jit(lambda v, x: task.model.apply(v, x))
        variables = {'params': run.state_shapes.params, **run.state_shapes.model_state}
        # As a GPU would run it: of what a CPU does in loops XLA counts one turn.
        traced = forward.trace(variables, placed['inputs'])
        flops = 3 * traced.lower(lowering_platforms=('cuda',)).cost_analysis()['flops']
    items, unit = task.items(run.batch_shapes)
    return step, compiled, {
        'first_loss': loss, 'first_step_seconds': first, 'items': items, 'unit': unit,
        'flops': flops, 'ceiling': measure.matmul_flops(jnp.dtype(dtype)),
    }  # fmt: skip


def random_batch(task, batch_size: int, inputs: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Uniform tokens or normal images with random targets; the next batch is the same one."""
    rng = np.random.default_rng(0)
    if not inputs:
        shapes = {key: (batch_size, *s.shape) for key, s in task.example_shapes().items()}
        tokens = {
            key: rng.integers(0, task.model.vocab_size, shape).astype(np.int32)
            for key, shape in shapes.items()
        }
        return tokens | {'weights': np.ones(shapes['weights'], np.float32)}
    return {
        'inputs': rng.standard_normal((batch_size, *inputs), np.float32),
        'targets': rng.integers(0, task.model.num_classes, batch_size).astype(np.int32),
        'weights': np.ones(batch_size, np.float32),
    }


def pytorch(row, dtype: str, shared: pathlib.Path, compiles: bool) -> tuple[Callable, dict]:
    """The twin's step: forward, backward, clipping, the same optimiser; autocast in bfloat16."""
    import importlib

    import torch

    from bigmodels import config, experiment

    settings = experiment.from_config(
        config.load(str(measure.ROOT / row.config), [*row.overrides, 'total_steps=1000000'])
    )
    model = experiment.make_task(settings).model
    twin = importlib.import_module(f'experiments.twins.{row.twin}')
    module = twin.make(*(nested(shared / f'{n}.npz') for n in ('params', 'model_state')), model)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    module.to(device).train()
    optimizer = make_optimizer(settings.optimizer, module)
    tensors = {
        key: torch.tensor(
            value, device=device, dtype=torch.long if value.dtype.kind == 'i' else None
        )
        for key, value in np.load(shared / BATCH).items()
    }
    loss_of = torch.compile(twin.loss) if compiles else twin.loss
    autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16')

    def step():
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = loss_of(module, tensors)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), settings.optimizer['clip_norm'])
        optimizer.step()
        return loss.detach()

    began = time.perf_counter()
    loss = float(step())
    return step, {'first_loss': loss, 'first_step_seconds': time.perf_counter() - began}


def make_optimizer(section, module):
    """PyTorch's AdamW or SGD, fused where it can be, as the config's; a constant rate will do."""
    import torch

    algorithm = dict(section['algorithm'])
    rate, decay = section['learning_rate'] / 100, section['weight_decay']  # ours warms up
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{'params': matrices, 'weight_decay': decay}, {'params': vectors, 'weight_decay': 0.0}]
    if algorithm['name'] == 'sgd':
        return torch.optim.SGD(groups, rate, momentum=0.9, nesterov=True, fused=True)
    betas = (algorithm.get('b1', 0.9), algorithm.get('b2', 0.999))
    return torch.optim.AdamW(groups, rate, betas=betas, fused=True)


def nested(path: pathlib.Path) -> dict:
    """Arrays by 'module/name' -> a tree of dicts."""
    tree = {}
    for name, value in np.load(path).items():
        *modules, last = name.split('/')
        branch = tree
        for module in modules:
            branch = branch.setdefault(module, {})
        branch[last] = value
    return tree
