"""Training steps beside PyTorch: the same model, weights, optimiser and precision, in turns.

    pip install -e '.[parity]'
    python experiments/benchmark_train.py                      # the rows ON_CPU, f32 and bf16
    python experiments/benchmark_train.py --rows=gpt_124m --dtypes=bfloat16 --sides=ours,compiled

Ours is the whole train step of a run, guards included. Each side is a process of its own, which
computes only when it is its turn: A B C A B C. Both begin with our initial weights and the same
batch, and the first losses must agree. Ratios are of medians; over 1, ours is faster.

Figures: model FLOP/s by the causal convention, 6 N + 6 layers L D for a token (of others, three
times the forward pass); their share of the ceiling, this machine's large matrix products in the
same precision, is the MFU here. Needs the extra `parity`.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

import measure
from twins import workers

ADAM = ('optimizer.algorithm.name=adamw', 'optimizer.algorithm.b2=0.95')


@dataclasses.dataclass(frozen=True)
class Row:
    """A model and batch to compare: a config, overrides, and the twin that is the same."""

    config: str
    overrides: tuple[str, ...]
    twin: str
    inputs: tuple[int, ...] = ()  # of an image, where the config's data is not needed
    queued: int = 1  # steps that are begun before one is waited for, see `workers.timed`


def _gpt(
    layers: int, dim: int, heads: int, length: int, batch: int, vocab: int, *more: str, queued=1
) -> Row:
    """A GPT as in nanoGPT."""
    model = dict(num_layers=layers, embed_dim=dim, num_heads=heads, max_length=length,
                 vocab_size=vocab)  # fmt: skip
    overrides = (*(f'model.{key}={value}' for key, value in model.items()),
                 f'task.sequence_length={length}', f'batch_size={batch}')  # fmt: skip
    return Row('configs/transformer.py:124m', (*overrides, *ADAM, *more), 'gpt', queued=queued)


def _image(name: str, side: int, batch: int, optimizer: tuple[str, ...], **model) -> Row:
    """A classifier of images [side, side, 3]."""
    fields = (f'model.name={name}', *(f'model.{key}={value}' for key, value in model.items()))
    overrides = (*fields, 'task.mean=0.0', 'task.std=1.0', f'batch_size={batch}', *optimizer)
    return Row('configs/digits_mlp.py', overrides, name, (side, side, 3))


ROWS = {
    'gpt_4x128': _gpt(4, 128, 4, 64, 12, 65),
    'gpt_6x384': _gpt(6, 384, 6, 256, 16, 65),
    'gpt_124m': _gpt(12, 768, 12, 512, 2, 50304),
    'vit_ti16': _image(
        'vit', 224, 16, ADAM, num_classes=1000, num_layers=12, embed_dim=192, num_heads=3
    ),
    'resnet18_cifar': _image(
        'resnet', 32, 128, ('optimizer.algorithm.name=sgd', 'optimizer.algorithm.nesterov=True'),
        num_classes=10, block='basic', stage_sizes=(2, 2, 2, 2), stem='cifar',
    ),
    'gpt_124m_gpu': _gpt(
        12, 768, 12, 1024, 32, 50304, 'model.logits_dtype=bfloat16', queued=10  # as autocast has it
    ),
}  # fmt: skip
ON_CPU = tuple(name for name in ROWS if not name.endswith('_gpu'))
DTYPES = ('float32', 'bfloat16')
SIDES = ('ours', 'eager', 'compiled')


class Worker:
    """A side in its own process: it answers each line that it is sent with a line of JSON."""

    def __init__(self, side: str, row: str, dtype: str, shared: pathlib.Path):
        self._log = (shared / f'{side}.log').open('w+')
        self._process = subprocess.Popen(
            [sys.executable, __file__, f'--worker={side}', f'--rows={row}', f'--dtypes={dtype}',
             f'--shared={shared}'],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            cwd=measure.ROOT,
        )  # fmt: skip

    def ask(self, request: str) -> dict:
        """Sends a request, waits for the answer."""
        print(request, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            self._log.seek(0)
            raise SystemExit(f'{self._process.args} failed:\n{self._log.read()[-4000:]}')
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()


def compare(name: str, dtype: str, sides: list[str], rounds: int, seconds: float) -> dict:
    """One row in one precision: each side's figures, and the ratios to the best of PyTorch's."""
    with tempfile.TemporaryDirectory() as directory:
        running = {side: Worker(side, name, dtype, pathlib.Path(directory)) for side in sides}
        started = {side: worker.ask('start') for side, worker in running.items()}
        losses = {side: figures['first_loss'] for side, figures in started.items()}
        if max(losses.values()) - min(losses.values()) > (1e-4 if dtype == 'float32' else 2e-2):
            raise SystemExit(f'{name} {dtype}: the sides are not the same model, losses {losses}')
        times, queued = {side: [] for side in sides}, ROWS[name].queued
        for _ in range(rounds):
            for side, worker in running.items():
                times[side] += worker.ask(f'run {seconds / rounds} {queued}')['seconds']
        memory = {side: worker.ask('memory')['peak_mb'] for side, worker in running.items()}
        for worker in running.values():
            worker.close()
    result = {}
    ours = started['ours']
    for side in sides:
        median = statistics.median(times[side])
        result[side] = {
            'first_step_seconds': round(started[side]['first_step_seconds'], 2),
            'steps': queued * len(times[side]),
            'median_ms': round(1e3 * median, 2),
            'min_ms': round(1e3 * min(times[side]), 2),
            'items_per_second': round(ours['items'] / median, 1),
            'peak_memory_mb': memory[side],
            'gflop_per_second': round(ours['flops'] / median / 1e9, 1),
            'mfu': round(ours['flops'] / median / ours['ceiling'], 3),
        }
    others = [result[side]['median_ms'] for side in sides if side != 'ours']
    ratio = round(min(others) / result['ours']['median_ms'], 3) if others else None
    return {
        'row': name,
        'dtype': dtype,
        'unit': ours['unit'],
        'ratio': ratio,
        'ceiling_gflop_per_second': round(ours['ceiling'] / 1e9),
        'first_losses': losses,
        'sides': result,
    }


def table(results: list[dict]) -> str:
    """The results as Markdown."""
    header = ('row', 'dtype', 'side', 'first step, s', 'median, ms', 'min, ms', 'items/s',
              'peak MB', 'GFLOP/s', 'MFU', 'ratio')  # fmt: skip
    lines = [header]
    for result in results:
        for side, f in result['sides'].items():
            ratio = '' if side != 'ours' or result['ratio'] is None else f'{result["ratio"]:.2f}'
            lines.append((
                result['row'], result['dtype'], side, f'{f["first_step_seconds"]:.1f}',
                f'{f["median_ms"]:.1f}', f'{f["min_ms"]:.1f}',
                f'{f["items_per_second"]:,.0f} {result["unit"]}', f'{f["peak_memory_mb"]:,}',
                f'{f["gflop_per_second"]:,.0f}', f'{f["mfu"]:.0%}', ratio,
            ))  # fmt: skip
    return measure.markdown(lines)


def main() -> None:
    """Compares, or is one of the sides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rows', default=','.join(ON_CPU))
    parser.add_argument('--dtypes', default=','.join(DTYPES))
    parser.add_argument('--sides', default=','.join(SIDES))
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--seconds', type=float, default=15, help='of each side, about')
    parser.add_argument('--name', default='train', help='of the file in experiments/results')
    parser.add_argument('--worker', help=argparse.SUPPRESS)
    parser.add_argument('--shared', type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names, dtypes, sides = (
        value.split(',') for value in (options.rows, options.dtypes, options.sides)
    )
    for given, known in ((names, ROWS), (dtypes, DTYPES), (sides, SIDES)):
        if unknown := set(given) - set(known):
            parser.error(f'unknown {", ".join(sorted(unknown))}; there are: {", ".join(known)}')
    if options.worker:
        workers.serve(options.worker, ROWS[names[0]], dtypes[0], options.shared)
        return
    for name in names:
        for dtype in dtypes:
            result = compare(name, dtype, sides, options.rounds, options.seconds)
            print(table([result]), flush=True)
            measure.keep(options.name, result, place, table, ('jax', 'flax', 'torch'))


def place(result: dict) -> tuple[int, int]:
    """Of a row in a precision, among the results."""
    return list(ROWS).index(result['row']), DTYPES.index(result['dtype'])


if __name__ == '__main__':
    main()
