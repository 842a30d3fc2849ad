"""The training loop: a fold of the train step over batches. The only loop there is.

state, metrics = train_step(state, batch(t))        for t = 0, 1, 2, ...
"""

import json
import pathlib
import time
from collections.abc import Mapping

import jax

from bigmodels import (
    checkpoint,
    evaluate,
    experiment,
    hardware,
    program,
    runs,
    sharding,
    trees,
    writers,
)
from bigmodels.data import pipeline


def train(config: Mapping, workdir: str | pathlib.Path, resume: runs.Resume = 'same') -> dict:
    """Trains to the end, from the last checkpoint if there is one.

    Args:
      config: see `experiment.Experiment`.
      workdir: see `runs`.
      resume: what to do with a run that is there already, see `runs.RESUME_RULES`.

    Returns:
      The last evaluation's figures, {'set/metric': value}.

    Raises:
      UserError: for a mistake in the config, the data or the directory, and for a loss that is
        not finite. The last good checkpoint stays.
    """
    began = time.perf_counter()
    workdir = pathlib.Path(workdir)
    settings = experiment.from_config(config)
    mesh = sharding.make_mesh(settings.mesh)
    experiment.check_batch(settings, sharding.num_batch_shards(mesh))
    task = experiment.make_task(settings)
    start = runs.prepare(workdir, experiment.resolved(config), resume)
    if runs.is_complete(workdir, start, settings.total_steps):
        return _say_complete(workdir, start)

    task = _with_preprocessing(task, settings, workdir, start)
    shard = sharding.batch_shard(mesh)
    batches, described = experiment.training_batches(settings, task, shard)
    eval_sets = experiment.evaluation_sets(settings, task, shard)
    shapes = program.shapes_of_batch(batches[0], settings.batch_size)
    run = program.make_program(settings, task, mesh, shapes)
    runs.save_batch_shapes(workdir, shapes)
    compiling = time.perf_counter()
    train_step = run.compile_train_step(settings.parallel)
    compile_seconds = time.perf_counter() - compiling
    if start is None:
        state = run.init_state(settings.seed)
    else:
        state = checkpoint.restore(workdir / runs.CHECKPOINTS, start, run.state_shapes)
    start = start or 0
    params = run.state_shapes.params
    items, unit = task.items(run.batch_shapes)

    reporter = writers.Reporter(
        workdir,
        start,
        settings.total_steps,
        settings.log_every,
        items,
        unit,
        flops_per_step=task.flops_per_step(params, run.batch_shapes),
        peak_flops=hardware.peak_flops(mesh.devices.flat[0].device_kind),
        num_devices=mesh.size,
        active=jax.process_index() == 0,
    )
    reporter.start_screen(
        {
            'run': f'{workdir}, ' + (f'resumed at step {start}' if start else 'new'),
            'devices': f'{mesh.size} x {mesh.devices.flat[0].device_kind}, '
            f'mesh {sharding.describe(mesh)}, by {settings.parallel}',
            **task.facts(),
            'parameters': f'{trees.count(params):,} ({trees.size_bytes(params) / 1e6:.1f} MB)',
            'batch': f'{items:,} {unit}'
            + (f' in {settings.accumulate} parts' if settings.accumulate > 1 else ''),
            'data': described,
            'compiled': f'in {compile_seconds:.1f} s, {time.perf_counter() - began:.1f} s after start',
            **({'note': '; '.join(run.notes)} if run.notes else {}),
        }
    )
    feed = pipeline.prefetched(batches, start, settings.data)
    saver = checkpoint.Saver(
        workdir / runs.CHECKPOINTS,
        settings.checkpoint.keep_last,
        settings.checkpoint.best_metric,
        settings.checkpoint.best_mode,
    )
    eval_step = jax.jit(run.eval_step)
    figures = {}
    try:
        for step in range(start + 1, settings.total_steps + 1):
            batch = sharding.put_batch(reporter.timed_wait(feed), mesh)
            state, metrics = train_step(state, batch)
            reporter.add(step, metrics)

            last = step == settings.total_steps
            evaluates = last or (settings.eval_every and step % settings.eval_every == 0)
            saves = last or step % settings.checkpoint.every == 0
            if not (evaluates or saves):
                continue
            reporter.flush()  # a state counts only when its metrics are known to be finite
            with reporter.pause():
                if evaluates:
                    figures = evaluate.evaluate(
                        eval_step, task, state.eval_params, state.model_state, eval_sets, mesh
                    )
                    reporter.evaluated(step, figures)
                if saves:
                    reporter.warn(saver.save(step, state, figures if evaluates else {}))
        reporter.warn(saver.close())
    finally:
        reporter.close()
    return _finish(workdir, task, state, figures, settings.total_steps, reporter)


def _with_preprocessing(task, settings: experiment.Experiment, workdir: pathlib.Path, start):
    """The task with what it learns from the training data, or learnt when the run began."""
    directory = workdir / runs.PREPROCESSING
    if start is not None:
        return task.restored(directory)
    sources = [source for source, _ in experiment.training_sources(settings)]
    task = task.fit(experiment.concatenated(sources))
    directory.mkdir(exist_ok=True)
    task.save(directory)
    return task


def _say_complete(workdir: pathlib.Path, step: int) -> dict:
    figures = json.loads((workdir / runs.SUMMARY).read_text())['final']
    if jax.process_index() == 0:
        listed = ', '.join(f'{name} {value:.4g}' for name, value in figures.items())
        print(f'The run in {workdir} is complete at step {step}: {listed}.')
    return figures


def _finish(workdir, task, state, figures, step, reporter) -> dict:
    """Writes the summary, the plot and what the task has to show."""
    shown = task.demonstrate(state.eval_params, state.model_state)
    if jax.process_index() == 0:
        writers.plot_curves(workdir)
        for name, text in shown.items():
            (workdir / name).write_text(text)
            print(f'\n{name}:\n{text}\n')
        runs.write_json(
            workdir / runs.SUMMARY,
            {'step': step, 'final': figures, 'seconds': round(reporter.seconds, 1)},
        )
        print(', '.join(f'{name} {value:.4f}' for name, value in figures.items()))
        print(f'Everything is in {workdir}.')
    return figures
