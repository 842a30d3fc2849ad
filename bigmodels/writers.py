"""What a run says and keeps: progress on the terminal, JSON lines, TensorBoard, plots."""

import collections
import contextlib
import dataclasses
import json
import math
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import jax
import tqdm

from bigmodels import guard as guard_lib


class Progress:
    """A progress bar on a terminal, plain lines elsewhere; silent where `show` is false."""

    def __init__(self, total: int, start: int, show: bool, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._show = show
        self._total = total
        self._bar = None
        if show and self._stream.isatty():
            self._bar = tqdm.tqdm(
                total=total,
                initial=start,
                file=self._stream,
                unit='step',
                dynamic_ncols=True,
                bar_format='{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt}{postfix}',
            )

    def update(self, step: int, facts: Mapping[str, str], report: bool) -> None:
        """Shows the step; `report` says whether plain output gets a line for it."""
        text = ', '.join(f'{name} {value}' for name, value in facts.items())
        if self._bar is not None:
            self._bar.n = step
            self._bar.set_postfix_str(text)
        elif self._show and report:
            print(f'step {step}/{self._total}: {text}', file=self._stream, flush=True)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif self._show:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


class MetricWriter:
    """Appends rows of metrics to `metrics.jsonl` and to TensorBoard, on the first host only.

    Rows after `start`, of a run that was killed and is resumed from there, are dropped: they will
    be written again.
    """

    def __init__(self, workdir: pathlib.Path, start: int, active: bool):
        self._file = self._events = None
        if not active:
            return
        path = workdir / 'metrics.jsonl'
        rows = [row for row in read_metrics(path) if row['step'] <= start]
        temporary = path.with_suffix('.tmp')
        temporary.write_text(''.join(json.dumps(row) + '\n' for row in rows))
        temporary.replace(path)
        self._file = path.open('a')
        self._events = _Events(workdir / 'tensorboard', start)

    def write(self, step: int, values: Mapping[str, float]) -> str | None:
        """One row: {'step': step, **values}; returns what went wrong, or None."""
        if self._file is None:
            return None
        try:
            self._file.write(json.dumps({'step': step, **values}) + '\n')
            self._file.flush()
            self._events.write(step, values)
        except OSError as error:
            return f'the metrics of step {step} were not written: {error.strerror}'
        return None

    def close(self) -> str | None:
        """Flushes and closes both; returns what went wrong, or None."""
        problem = None
        for file in (self._file, self._events):
            try:
                if file is not None:
                    file.close()
            except OSError as error:
                problem = f'the last metrics were not written: {error.strerror}'
        return problem


class _Events:
    """Scalars for TensorBoard, written by the caller's thread.

    tensorboardX' own SummaryWriter hands them to a thread; on a full disk that thread dies, and
    the training that goes on fills its queue and waits for ever.
    """

    FLUSH_SECONDS = 30

    def __init__(self, directory: pathlib.Path, start: int):
        from tensorboardX import event_file_writer, proto, summary  # slow to import

        self._event, self._scalar = proto.event_pb2.Event, summary.scalar
        directory.mkdir(exist_ok=True)
        self._file = event_file_writer.EventsWriter(str(directory / 'events'))
        session = proto.event_pb2.SessionLog(status=proto.event_pb2.SessionLog.START)
        # What an earlier process wrote after `start` is to be forgotten.
        self._add(self._event(step=start + 1, session_log=session))
        self._flushed = time.monotonic()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._add(self._event(step=step, summary=self._scalar(name, value)))
        if time.monotonic() - self._flushed > self.FLUSH_SECONDS:
            self._flushed = time.monotonic()
            self._file.flush()

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        self._file.write_event(event)

    def close(self) -> None:
        self._file.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, float]]:
    """The rows of a `metrics.jsonl`; a last line cut off by a kill is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith('\n'):
            rows.append(json.loads(line))
    return rows


def plot_curves(workdir: pathlib.Path) -> None:
    """Draws the losses of `metrics.jsonl` over steps as `curves.png`."""
    from matplotlib.figure import Figure  # not pyplot, whose backend is a notebook's own

    rows = read_metrics(workdir / 'metrics.jsonl')
    names = sorted(
        {
            name
            for row in rows
            for name in row
            if name == 'train/loss' or (name.startswith('eval/') and 'loss' in name)
        }
    )
    figure = Figure(figsize=(7, 4), layout='constrained')
    axes = figure.subplots()
    for name in names:
        points = [(row['step'], row[name]) for row in rows if name in row]
        few = len(points) < 30
        axes.plot(
            *zip(*points, strict=True),
            label=name,
            marker='o' if few else None,
            linewidth=2 if few else 1,
        )
    axes.set(xlabel='step', ylabel='loss', title=workdir.name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(workdir / 'curves.png', dpi=120)


@dataclasses.dataclass(frozen=True)
class Speed:
    """What a step does, for rates.

    Fields:
      items, unit: in a batch, such as 4096 'tokens'.
      flops: model FLOPs of a step, where they are known.
      peak: FLOP/s of all devices, where it is known.
    """

    items: int
    unit: str
    flops: float | None = None
    peak: float | None = None


class Reporter:
    """Everything that a training loop tells: screen, progress, metrics, warnings.

    Metrics are read LAG steps after they were dispatched, so that the loop never waits for a
    step that the device has only just begun.
    """

    LAG = 2

    def __init__(
        self, workdir: pathlib.Path, start: int, total: int, log_every: int, speed: Speed,
        active: bool, watch: guard_lib.Watch = guard_lib.UNNAMED,
    ):  # fmt: skip
        """`watch` reads every step's figures, and may stop the run."""
        self._watch = watch
        self._writer = MetricWriter(workdir, start, active)
        self._progress = Progress(total, start, active)
        self._total, self._log_every, self._speed = total, log_every, speed
        self._pending = collections.deque()
        self._stretch = time.perf_counter()
        self._stretch_start, self._waited = start, 0.0
        self._noted = {}

    def start_screen(self, facts: Mapping[str, str]) -> None:
        """What runs, where and on what, a line each."""
        for name, value in facts.items():
            self._progress.say(f'{name:<10}  {value}')
        self._stretch = time.perf_counter()

    def timed_wait(self, feed: Iterator) -> Any:
        """The next batch; the time it takes counts as waiting for data."""
        begin = time.perf_counter()
        batch = next(feed)
        self._waited += time.perf_counter() - begin
        return batch

    def note(self, costs: Mapping[str, tuple[float, str]]) -> None:
        """Figures with units, such as what a save took, for the next line and row."""
        self._noted |= costs

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of a dispatched step and reads those of an earlier one."""
        self._pending.append((step, metrics))
        if len(self._pending) > self.LAG:
            self._read(*self._pending.popleft())

    def flush(self) -> None:
        """Reads what is pending, waiting for it."""
        while self._pending:
            self._read(*self._pending.popleft())

    def _read(self, step: int, metrics: Mapping[str, Any]) -> None:
        # Fetched whole and divided here: an operation on the device would queue behind newer steps.
        fetched = jax.device_get(dict(metrics))
        grad_squares = fetched.pop('grad_squares', ())
        values = {
            name: float(value[0] / max(value[1], 1e-9) if isinstance(value, tuple) else value)
            for name, value in fetched.items()
        }
        skipped = self._watch.check(step, values, grad_squares)
        self.warn(skipped)
        facts = {'loss': f'{values["loss"]:.4f}'}
        report = step % self._log_every == 0 or step == self._total
        row = {
            f'train/{name}' if isinstance(metrics[name], tuple) else name: value
            for name, value in values.items()
            if math.isfinite(value)  # JSON has no other numbers
        }
        if report:
            speed = self._measure(step)
            facts |= {name.split('_')[-1]: text for name, (_, text) in speed.items()}
            row |= {f'perf/{name}': number for name, (number, _) in speed.items()}
        if report or skipped:
            self.warn(self._writer.write(step, row))
        self._progress.update(step, facts, report)

    def _measure(self, step: int) -> dict[str, tuple[float, str]]:
        """Speed since the last measurement: name -> (number, text)."""
        now = time.perf_counter()
        seconds = max(now - self._stretch, 1e-9)
        steps_per_second = (step - self._stretch_start) / seconds
        rate = self._speed.items * steps_per_second
        left = (self._total - step) / max(steps_per_second, 1e-9)
        speed = {f'{self._speed.unit}/s': (rate, f'{rate:,.0f}')}
        if self._speed.flops and self._speed.peak:
            share = steps_per_second * self._speed.flops / self._speed.peak
            speed['mfu'] = (share, f'{share:.1%}')
        waited = self._waited / seconds
        speed['data_wait'] = (waited, f'{waited:.1%}')
        speed['seconds_left'] = (left, f'{left:.0f} s')
        for name, (number, unit) in self._noted.items():
            speed[name] = (number, f'{number:.2g} {unit}')
        self._stretch, self._stretch_start, self._waited, self._noted = now, step, 0.0, {}
        return speed

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        """Writes and shows the figures of an evaluation, if there are any."""
        if not figures:
            return
        row = {f'eval/{name}': value for name, value in figures.items() if math.isfinite(value)}
        self.warn(self._writer.write(step, row))
        self._progress.say(
            f'evaluation at step {step}: '
            + ', '.join(f'{name} {value:.5g}' for name, value in figures.items())
        )

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside does not count as time of steps."""
        begin = time.perf_counter()
        yield
        self._stretch += time.perf_counter() - begin

    def warn(self, problem: str | None) -> None:
        """A problem that does not end the run, told loudly."""
        if problem:
            self._progress.say(f'WARNING: {problem}')

    def close(self) -> None:
        """Closes the files and the bar."""
        self.warn(self._writer.close())
        self._progress.close()


def printable(text: str) -> str:
    """Text without the control characters that would steer a terminal."""
    shown = [c if c.isprintable() or c in '\n\t' else '\N{REPLACEMENT CHARACTER}' for c in text]
    return ''.join(shown)
