"""The training loop: a fold of the train step over batches. The only loop there is.

state, metrics = train_step(state, batch(t))        for t = 0, 1, 2, ...
"""

import contextlib
import dataclasses
import functools
import pathlib
import shlex
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any

import grain
import jax

from bigmodels import (
    checkpoint,
    compress,
    energy,
    errors,
    evaluate,
    experiment,
    hardware,
    preemption,
    program,
    rundir,
    sharding,
    stopwatch,
    trees,
    writers,
)
from bigmodels import guard as guard_lib
from bigmodels.data import pipeline


def train(
    config: Mapping, workdir: str | pathlib.Path, resume: rundir.Resume = 'same', watch=None,
    compile_step: Callable = program.Program.compile_train_step,
) -> dict:  # fmt: skip
    """Trains to the end, from the last checkpoint if there is one.

    Args:
      config: see `experiment.Experiment`.
      workdir: see `rundir`.
      resume: what to do with a run that is there already, see `rundir.RESUME_RULES`.
      watch: a `stopwatch.Stopwatch` of the start, which may have parts already.
      compile_step: (program, config.parallel) -> what maps (state, batch) to (state, metrics).

    Returns:
      The last evaluation's figures, {'set/metric': value}.

    Raises:
      UserError: for a mistake in the config, the data or the directory, and for a loss that is
        not finite. The last good checkpoint stays.
      Stopped: after SIGTERM or Ctrl-C, with the step saved, see `preemption`.
    """
    watch = watch or stopwatch.Stopwatch()
    workdir = pathlib.Path(workdir)
    resolved = rundir.resolved(config)
    settings = experiment.from_config(resolved)
    mesh = sharding.make_mesh(settings.mesh)
    experiment.check_batch(settings, sharding.num_batch_shards(mesh))
    task = experiment.make_task(settings)
    with (
        preemption.Signals(settings.checkpoint.deadline, workdir / rundir.CHECKPOINTS) as signals,
        rundir.held(workdir, resume),
        rundir.storage_errors(workdir),
    ):
        watch.lap('devices')
        return _train(settings, mesh, task, resolved, workdir, resume, signals, watch, compile_step)


def _train(settings, mesh, task, resolved, workdir, resume, signals, watch, compile_step) -> dict:
    """`train` once its config is known to be right, in a directory that no other run uses."""
    start = rundir.prepare(workdir, resolved, resume)
    figures = rundir.final_figures(workdir, start, settings.total_steps)
    if figures is not None:
        _say_complete(workdir, start, figures)
        return figures

    compress.check_trained(settings.compress)
    data = _open_data(settings, task, workdir, start, resume, sharding.batch_shard(mesh))
    watch.lap('data')
    run = program.make_program(settings, data.task, mesh, data.shapes)
    speed = writers.Speed(
        *task.items(run.batch_shapes), flops=run.flops, peak=hardware.peak_flops(mesh)
    )
    reporter = writers.Reporter(
        workdir, start or 0, settings.total_steps, settings.log_every, speed,
        active=jax.process_index() == 0, watch=_watch(settings, run, data, workdir),
    )  # fmt: skip
    with contextlib.closing(reporter):
        reporter.start_screen(_facts(settings, run, workdir, start, data, speed))
        evaluate.check(settings, data.task, run, data.eval_sets)
        watch.lap('program')
        with futures.ThreadPoolExecutor(1) as aside:  # two programs compile at once
            initial = aside.submit(run.make_init_state(settings.seed)) if start is None else None
            train_step = compile_step(run, settings.parallel)
        watch.lap('compilation')
        since = rundir.guarded_since(workdir, start, settings.guard)
        state = initial.result() if initial else _restored(workdir, start, run, settings, since)
        rundir.record(workdir, resolved, data.fingerprints, data.shapes, since)
        watch.lap('state')
        meter = energy.Meter(mesh)
        reporter.start_screen({'compiled': f'the first step begins after {watch}'})
        state, figures = _loop(
            settings, run, data, workdir, state, train_step, start or 0, reporter, signals
        )
    if signals.requested:
        raise signals.stopped(int(state.step))
    checkpoint.check_saved(workdir / rundir.CHECKPOINTS, settings.total_steps)
    shown = data.task.demonstrate(run.eval_params(state), state.model_state)
    cost = meter.cost(int(state.step) - (start or 0), run.flops, train_step)
    _finish(workdir, shown, state, figures, cost, watch)
    return figures


@dataclasses.dataclass(frozen=True)
class _Data:
    """What a run reads: its task with fitted preprocessing, batch(t), and the held-out sets."""

    task: Any
    batches: grain.MapDataset
    eval_sets: Mapping[str, grain.MapDataset]
    described: str
    fingerprints: list[str]
    shapes: program.Shapes
    parts: Callable[[], list]  # see `experiment.training_parts`


def _open_data(settings, task, workdir: pathlib.Path, start, resume, shard) -> _Data:
    """Opens the sources; preprocessing learns from them when a run begins."""
    sources = experiment.training_sources(settings)
    fingerprints = [source.fingerprint() for source, _ in sources]
    directory = workdir / rundir.PREPROCESSING
    if start is None:
        task = task.fit(pipeline.concatenated([source for source, _ in sources]))
        if jax.process_index() == 0:
            directory.mkdir(exist_ok=True)
            task.save(directory)
    else:
        rundir.check_sources(workdir, fingerprints, resume)
        task = task.restored(directory)
    batches, described = experiment.training_batches(settings, task, sources, shard)
    eval_sets = experiment.evaluation_sets(settings, task, shard, [s for s, _ in sources])
    shapes = program.shapes_of_batch(batches[0], settings.batch_size)
    parts = functools.cache(functools.partial(experiment.training_parts, task, sources))
    return _Data(task, batches, eval_sets, described, fingerprints, shapes, parts)


def _watch(settings, run: program.Program, data: _Data, workdir) -> guard_lib.Watch:
    """Tells of bad steps by the names of parameters and examples."""

    def describe_batch(step: int) -> str:
        ids = experiment.batch_ids(settings, data.parts(), step - 1)
        options = f'--workdir={shlex.quote(str(workdir))} --steps={step}:{step + 1}'
        return (
            f'Its examples are {errors.some(ids, 64)}: python -m bigmodels.data.inspect {options} '
            f'shows them.'
        )

    names = list(trees.flatten_named(run.state_shapes.params))
    return guard_lib.Watch(settings.guard, names, describe_batch)


def _restored(workdir: pathlib.Path, step: int, run: program.Program, settings, since: int):
    """The state of a checkpoint; a guard of another config begins with an empty memory.

    Args:
      since: see `rundir.guarded_since`.
    """
    wanted = run.state_shapes
    if step <= since:
        wanted = wanted.replace(guard=None)
    state = checkpoint.restore(workdir / rundir.CHECKPOINTS, step, wanted)
    if state.guard is None:
        placed = jax.tree.map(lambda shape: shape.sharding, run.state_shapes.guard)
        state = state.replace(guard=jax.device_put(guard_lib.init_memory(settings.guard), placed))
    return state


def _loop(
    settings, run, data: _Data, workdir, state, train_step, start, reporter, signals
) -> tuple[Any, dict[str, float]]:
    """`_fold` with what it needs around it; everything is saved when it returns."""
    eval_step = jax.jit(run.eval_step)

    def evaluate_now(state):
        params, model_state = run.eval_params(state), state.model_state
        figures = evaluate.evaluate(
            eval_step, data.task, params, model_state, data.eval_sets, run.mesh,
            stop=signals.reached,
        )  # fmt: skip
        return {} if signals.requested else figures | run.spent(int(state.step))

    with signals.deferred():
        feed = pipeline.prefetched(data.batches, start, settings.data)
        saver = checkpoint.Saver(
            workdir / rundir.CHECKPOINTS, settings.checkpoint, beside=rundir.OPENED_WITH
        )
        try:
            last = _fold(
                settings, run.mesh, run.taught(train_step), state, start, feed, evaluate_now,
                saver, reporter, signals,
            )  # fmt: skip
        finally:
            reporter.warn(saver.close())
    reporter.warn(saver.finish_copies(settings.checkpoint.deadline if signals.requested else None))
    return last


def _fold(
    settings, mesh, train_step, state, start, feed, evaluate_now, saver, reporter, signals
) -> tuple[Any, dict[str, float]]:
    """The loop: the state after the last step, and the figures of its evaluation."""
    figures = {}
    if start and _evaluates(settings, start) and not checkpoint.figures(saver.directory, start):
        figures = evaluate_now(state)  # a stop had cut it short
        if signals.requested:
            return state, {}
        reporter.evaluated(start, figures)
        checkpoint.add_figures(saver.directory, start, figures)
    for step in range(start + 1, settings.total_steps + 1):
        batch = sharding.put_batch(reporter.timed_wait(feed), mesh)
        state, metrics = train_step(state, batch)
        reporter.add(step, metrics)
        reporter.warn(saver.poll())
        reporter.note(saver.cost())

        stops = signals.reached()
        evaluates = _evaluates(settings, step)
        best = settings.checkpoint.best_metric
        saves = step == settings.total_steps or step % settings.checkpoint.every == 0
        if not (evaluates or saves or stops):
            continue
        reporter.flush()  # a state counts only when its metrics are known to be finite
        with reporter.pause():
            figures = evaluate_now(state) if evaluates and not stops else {}
            reporter.evaluated(step, figures)
            stops = stops or signals.requested  # which cuts an evaluation short
            if saves or stops or (evaluates and best):
                reporter.warn(saver.save(step, state, figures))
        if stops:
            return state, figures
    return state, figures or evaluate_now(state)  # the latter if resumed after the last step


def _evaluates(settings, step: int) -> bool:
    every = settings.eval_every
    return step == settings.total_steps or (every > 0 and step % every == 0)


def _facts(settings, run: program.Program, workdir, start, data: _Data, speed) -> dict[str, str]:
    """The start screen: what runs where, on what."""
    params = run.state_shapes.params
    with jax.set_mesh(run.mesh):  # what runs depends on it
        facts = data.task.facts()
    devices, kind = run.mesh.size, run.mesh.devices.flat[0].device_kind
    parts = f' in {settings.accumulate} parts' if settings.accumulate > 1 else ''
    return {
        'run': f'{workdir}, ' + (f'resumed at step {start}' if start else 'new'),
        'devices': f'{devices} x {kind}, mesh {sharding.describe(run.mesh)}, '
        f'by {settings.parallel}',
        **facts,
        'parameters': f'{trees.count(params):,} ({trees.size_bytes(params) / 1e6:.1f} MB)',
        'batch': f'{speed.items:,} {speed.unit}{parts}',
        'data': data.described,
        **({'note': '; '.join(run.notes)} if run.notes else {}),
    }


def _say_complete(workdir: pathlib.Path, step: int, figures: Mapping[str, float]) -> None:
    if jax.process_index() == 0:
        listed = ', '.join(f'{name} {value:.4g}' for name, value in figures.items())
        print(f'The run in {workdir} is complete at step {step}: {listed}.')


def _finish(workdir, shown: Mapping, state, figures: Mapping, cost: Mapping, watch) -> None:
    """Writes the summary, the plot and what the task has to show."""
    if jax.process_index() != 0:
        return
    writers.plot_curves(workdir)
    for name, text in shown.items():
        (workdir / name).write_text(text)
        print(f'\n{name}:\n{writers.printable(text)}\n')
    rundir.write_summary(workdir, int(state.step), figures, cost, watch.parts)
    print(', '.join(f'{name} {value:.5g}' for name, value in figures.items()))
    print(f'Everything is in {workdir}.')
