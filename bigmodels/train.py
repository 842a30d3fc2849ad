"""The training loop: a fold of the train step over batches. The only loop there is.

state, metrics = train_step(state, batch(t))        for t = 0, 1, 2, ...
"""

import contextlib
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax

from bigmodels import (
    checkpoint,
    errors,
    evaluate,
    experiment,
    hardware,
    program,
    rundir,
    sharding,
    trees,
    writers,
)
from bigmodels.data import pipeline


def train(config: Mapping, workdir: str | pathlib.Path, resume: rundir.Resume = 'same') -> dict:
    """Trains to the end, from the last checkpoint if there is one.

    Args:
      config: see `experiment.Experiment`.
      workdir: see `rundir`.
      resume: what to do with a run that is there already, see `rundir.RESUME_RULES`.

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
    shard = sharding.batch_shard(mesh)
    task = experiment.make_task(settings)
    resolved = experiment.resolved(config)
    start = rundir.prepare(workdir, resolved, resume)
    figures = rundir.final_figures(workdir, start, settings.total_steps)
    if figures is not None:
        _say_complete(workdir, start, figures)
        return figures

    sources = experiment.training_sources(settings)
    fingerprints = [source.fingerprint() for source, _ in sources]
    if start is not None:
        rundir.check_sources(workdir, fingerprints, resume)
    task = _with_preprocessing(task, sources, workdir, start)
    batches, described = experiment.training_batches(settings, task, sources, shard)
    eval_sets = experiment.evaluation_sets(settings, task, shard)
    shapes = program.shapes_of_batch(batches[0], settings.batch_size)
    run = program.make_program(settings, task, mesh, shapes)

    speed = writers.Speed(
        *task.items(run.batch_shapes),
        flops=task.flops_per_step(run.state_shapes.params, run.batch_shapes),
        peak=hardware.peak_flops(mesh),
    )
    reporter = writers.Reporter(
        workdir, start or 0, settings.total_steps, settings.log_every, speed,
        active=jax.process_index() == 0,
    )  # fmt: skip
    with contextlib.closing(reporter):
        reporter.start_screen(_facts(settings, task, run, workdir, start, described, speed))
        compiling = time.perf_counter()
        train_step = run.compile_train_step(settings.parallel)
        compiled = time.perf_counter() - compiling
        if start is None:
            state = run.init_state(settings.seed)
        else:
            state = checkpoint.restore(workdir / rundir.CHECKPOINTS, start, run.state_shapes)
        rundir.record(workdir, resolved, fingerprints, shapes)
        ready = time.perf_counter() - began
        reporter.start_screen({'compiled': f'in {compiled:.1f} s, {ready:.1f} s after start'})

        eval_step = jax.jit(run.eval_step)

        def evaluate_now(state):
            params, model_state = state.eval_params, state.model_state
            return evaluate.evaluate(eval_step, task, params, model_state, eval_sets, mesh)

        feed = pipeline.prefetched(batches, start or 0, settings.data)
        saver = checkpoint.Saver(workdir / rundir.CHECKPOINTS, settings.checkpoint)
        try:
            state, figures = _fold(
                settings, mesh, train_step, state, start or 0, feed, evaluate_now, saver, reporter
            )
        finally:
            reporter.warn(saver.close())
        _finish(workdir, task, state, figures, reporter.seconds)
    return figures


def _fold(
    settings, mesh, train_step, state, start, feed, evaluate_now, saver, reporter
) -> tuple[Any, dict[str, float]]:
    """The loop: the state after the last step, and the figures of its evaluation."""
    figures = {}
    for step in range(start + 1, settings.total_steps + 1):
        batch = sharding.put_batch(reporter.timed_wait(feed), mesh)
        state, metrics = train_step(state, batch)
        reporter.add(step, metrics)

        last = step == settings.total_steps
        evaluates = last or (settings.eval_every and step % settings.eval_every == 0)
        best = settings.checkpoint.best_metric
        saves = last or step % settings.checkpoint.every == 0 or (evaluates and best)
        if not (evaluates or saves):
            continue
        reporter.flush()  # a state counts only when its metrics are known to be finite
        with reporter.pause():
            figures = evaluate_now(state) if evaluates else {}
            reporter.evaluated(step, figures)
            if evaluates and best and best not in figures:
                raise errors.unknown('figure config.checkpoint.best_metric =', best, figures)
            if saves:
                reporter.warn(saver.save(step, state, figures))
    return state, figures or evaluate_now(state)  # the latter if resumed after the last step


def _facts(settings, task, run: program.Program, workdir, start, described, speed) -> dict:
    """The start screen: what runs where, on what."""
    params = run.state_shapes.params
    devices, kind = run.mesh.size, run.mesh.devices.flat[0].device_kind
    parts = f' in {settings.accumulate} parts' if settings.accumulate > 1 else ''
    return {
        'run': f'{workdir}, ' + (f'resumed at step {start}' if start else 'new'),
        'devices': f'{devices} x {kind}, mesh {sharding.describe(run.mesh)}, '
        f'by {settings.parallel}',
        **task.facts(),
        'parameters': f'{trees.count(params):,} ({trees.size_bytes(params) / 1e6:.1f} MB)',
        'batch': f'{speed.items:,} {speed.unit}{parts}',
        'data': described,
        **({'note': '; '.join(run.notes)} if run.notes else {}),
    }


def _with_preprocessing(task, sources, workdir: pathlib.Path, start: int | None):
    """The task with what it learns from the training data, or learnt when the run began."""
    directory = workdir / rundir.PREPROCESSING
    if start is not None:
        return task.restored(directory)
    task = task.fit(experiment.concatenated([source for source, _ in sources]))
    if jax.process_index() == 0:
        directory.mkdir(exist_ok=True)
        task.save(directory)
    return task


def _say_complete(workdir: pathlib.Path, step: int, figures: Mapping[str, float]) -> None:
    if jax.process_index() == 0:
        listed = ', '.join(f'{name} {value:.4g}' for name, value in figures.items())
        print(f'The run in {workdir} is complete at step {step}: {listed}.')


def _finish(workdir: pathlib.Path, task, state, figures: Mapping, seconds: float) -> None:
    """Writes the summary, the plot and what the task has to show."""
    shown = task.demonstrate(state.eval_params, state.model_state)
    if jax.process_index() != 0:
        return
    writers.plot_curves(workdir)
    for name, text in shown.items():
        (workdir / name).write_text(text)
        print(f'\n{name}:\n{text}\n')
    summary = {'step': int(state.step), 'final': figures, 'seconds': round(seconds, 1)}
    rundir.write_json(workdir / rundir.SUMMARY, summary)
    print(', '.join(f'{name} {value:.4f}' for name, value in figures.items()))
    print(f'Everything is in {workdir}.')
