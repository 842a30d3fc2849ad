"""Everything that is measured on one GPU, in under nine minutes, with one table last.

    pip install -e '.[gpu,parity]'
    python experiments/benchmark_gpu.py              # --parts=train_8b for one of PARTS
    JAX_PLATFORMS=cpu python experiments/benchmark_gpu.py --tiny --results=/tmp   # that it runs

- gpt_124m: GPT-2 124M, T 1024, by experiments/benchmark_train.py: ours and the PyTorch twin
  compiled, in turns, each a process of its own.
- train_1b, train_8b: the whole train step of configs/transformer.py, 1.3e9 parameters at T 2048 and
  Llama 3 8B's shape at T 4096, the optimiser's moments in bfloat16 for the latter. Of several
  ways to fit the memory the first that does is measured; the others are in the table too.
- decode_8b: generation by Llama 3 8B's shape with random bfloat16 weights, batch 1 and 64. The
  share of the bandwidth is that of the bytes of kernels and cache which a token needs.

Each part is a process with a limit of time. What fails or runs out of memory is a row that says so,
and is printed only where an earlier result is kept. MFU is by the causal convention, of the data
sheet's peak.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import measure

TOTAL_SECONDS = 520
PROMPT, NEW_TOKENS = 16, 240
SMALL = dict(num_layers=2, embed_dim=64, num_heads=4, num_kv_heads=2, mlp_dim=128, vocab_size=256)
UNFINISHED = 'not finished'
LIBRARIES = ('jax', 'flax', 'torch')
COLUMNS = ('part', 'case', 'tokens/s', 'ms', 'of the peak', 'of the bandwidth', 'ratio', 'said')


@dataclasses.dataclass(frozen=True)
class Training:
    """A train step to measure: of a variant of configs/transformer.py with other fields.

    Fields:
      ways: (sequences in a batch, remat), the first that fits is measured.
      loss_chunk: see `language_modeling`; 0 where the logits of a batch fit.
    """

    variant: str
    model: dict
    length: int
    ways: tuple[tuple[int, str], ...]
    loss_chunk: int = 0


TRAININGS = {
    # Unrolled, since a scan first fills with zeros what it keeps for the backward pass.
    'train_1b': Training(
        '1b',
        dict(num_layers=18, vocab_size=50304, scan_layers=False),
        2048,
        ((8, 'none'), (8, 'dots'), (8, 'attention')),
    ),
    'train_8b': Training(
        '8b', dict(vocab_size=128256), 4096, ((3, 'dots'), (2, 'dots'), (4, 'attention')), 4096
    ),
}


def compare_124m(tiny: bool, say: Callable) -> None:
    """The rows of `gpt_124m`."""
    import benchmark_train

    name, sides = ('gpt_4x128', ['ours', 'eager']) if tiny else ('gpt_124m_gpu', GPU_SIDES)
    result = benchmark_train.compare(name, 'bfloat16', sides, *((2, 1.0) if tiny else (4, 12.0)))
    peak = _peak_flops()
    for side, figures in result['sides'].items():
        flops = 1e9 * figures['gflop_per_second']
        say({
            'case': f'{name}, {side}', 'tokens/s': figures['items_per_second'],
            'ms': figures['median_ms'], 'of the peak': flops / peak if peak else None,
            'ratio': result['ratio'] if side == 'ours' else None, 'figures': figures,
        })  # fmt: skip


GPU_SIDES = ['ours', 'compiled']


def train(part: str, tiny: bool, say: Callable) -> None:
    """The rows of a part of TRAININGS."""
    import jax

    chosen = TRAININGS[part]
    if tiny:
        chosen = dataclasses.replace(chosen, model=chosen.model | SMALL, length=64)
    for batch, remat in chosen.ways:
        case = f'{chosen.variant}, T {chosen.length}, batch {batch}, remat {remat}'
        try:
            figures = _step_seconds(chosen, batch, remat)
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if 'RESOURCE_EXHAUSTED' not in str(error) and not isinstance(error, MemoryError):
                raise
            say({'case': case, 'said': f'does not fit: {str(error).splitlines()[0][:120]}'})
            continue
        say({'case': case, **figures})
        return


def _step_seconds(training: Training, batch: int, remat: str) -> dict:
    """The figures of a compiled train step on random tokens.

    Raises:
      MemoryError: if the program needs more than the device has.
    """
    import jax
    from twins import workers

    from bigmodels import config, experiment, metrics, program, sharding, trees

    fields = {'max_length': training.length, 'remat': remat, 'logits_dtype': 'bfloat16'}
    overrides = [*(f'model.{name}={value}' for name, value in (fields | training.model).items()),
                 f'task.sequence_length={training.length}', f'batch_size={batch}',
                 f'task.loss_chunk={training.loss_chunk}']  # fmt: skip
    path = measure.ROOT / 'configs' / f'transformer.py:{training.variant}'
    settings = experiment.from_config(config.load(str(path), overrides))
    task = experiment.make_task(settings)
    tokens = workers.random_batch(task, batch, ())
    mesh = sharding.make_mesh(settings.mesh, jax.devices()[:1])
    run = program.make_program(settings, task, mesh, program.shapes_of_batch(tokens, batch))
    state = run.state_shapes
    _check_memory(trees.size_bytes((state.params, state.opt_state, state.params)))  # a gradient too
    began = time.perf_counter()
    compiled = run.compile_train_step('jit')
    compile_seconds = time.perf_counter() - began
    needed = _bytes_needed(compiled)
    _check_memory(needed)
    began = time.perf_counter()
    carried = [jax.block_until_ready(run.init_state(settings.seed))]
    state_seconds = time.perf_counter() - began
    placed = sharding.put_batch(tokens, mesh)

    def step():
        carried[0], pairs = compiled(carried[0], placed)
        return metrics.mean(pairs['loss'])

    loss = float(step())
    if not math.isfinite(loss):
        raise SystemExit(f'the loss is {loss}')
    median = statistics.median(workers.timed(step, 8.0, queued=5))
    flops, peak = task.flops_per_step(run.state_shapes.params, run.batch_shapes), _peak_flops()
    return {
        'tokens/s': batch * training.length / median, 'ms': 1e3 * median,
        'of the peak': flops / median / peak if peak else None,
        'said': f'{trees.count(run.state_shapes.params):,} parameters, {needed / 1e9:.1f} GB, '
        f'compiled in {compile_seconds:.0f} s, parameters made in {state_seconds:.0f} s',
        'first_loss': loss,
    }  # fmt: skip


def _bytes_needed(compiled) -> int:
    """What a program holds on its device while it runs; donated arguments count once."""
    m = compiled.memory_analysis()
    outputs = m.output_size_in_bytes - m.alias_size_in_bytes
    return m.argument_size_in_bytes + outputs + m.temp_size_in_bytes


def _check_memory(needed: int) -> None:
    """Raises MemoryError if the first device has less."""
    import jax

    available = (jax.devices()[0].memory_stats() or {}).get('bytes_limit', math.inf)
    if needed > available:
        raise MemoryError(f'needs {needed / 1e9:.0f} of {available / 1e9:.0f} GB')


def _peak_flops() -> float | None:
    """Of the first device, in bfloat16, by its data sheet."""
    import jax

    from bigmodels import hardware, sharding

    return hardware.peak_flops(sharding.make_mesh(sharding.MeshShape(), jax.devices()[:1]))


def decode_8b(tiny: bool, say: Callable) -> None:
    """The rows of `decode_8b`."""
    import jax
    import jax.numpy as jnp

    from bigmodels import config, experiment, trees
    from bigmodels.deploy import decoding
    from bigmodels.deploy.sampling import Sampling

    fields = dict(vocab_size=128256, scan_layers=False, remat='none')
    fields |= SMALL if tiny else {}
    path = measure.ROOT / 'configs' / 'transformer.py:8b'
    overrides = [f'model.{name}={value}' for name, value in fields.items()]
    model = experiment.make_task(experiment.from_config(config.load(str(path), overrides))).model
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
    fill = lambda s: jax.random.normal(jax.random.key(s.size), s.shape, model.dtype) * 0.02
    params = jax.jit(lambda: jax.tree.map(fill, shapes))()
    kernels = trees.size_bytes({name: part for name, part in params.items() if name != 'embed'})
    bandwidth = _bandwidth(2**22 if tiny else 2**32)
    for batch in (1, 64):
        arrays = (jnp.ones((batch, PROMPT), jnp.int32), jnp.full(batch, PROMPT),
                  jnp.zeros((0, 0), jnp.int32), jax.random.key(0))  # fmt: skip

        def generate(arrays=arrays):
            return jax.block_until_ready(
                decoding.generate_tokens(
                    model, params, *arrays, max_new_tokens=NEW_TOKENS, sampling=Sampling(0.0)
                )
            )

        began = time.perf_counter()
        generate()
        first = time.perf_counter() - began
        times = []
        for _ in range(3):
            began = time.perf_counter()
            generate()
            times.append(time.perf_counter() - began)
        each = statistics.median(times) / NEW_TOKENS
        cache = trees.size_bytes(
            jax.eval_shape(lambda b=batch: model.init_cache(b, PROMPT + NEW_TOKENS))
        )
        say({
            'case': f'8b, bfloat16, batch {batch}', 'tokens/s': batch / each, 'ms': 1e3 * each,
            'of the bandwidth': (kernels + cache) / each / bandwidth,
            'said': f'{bandwidth / 1e12:.2f} TB/s by a copy, first call {first:.0f} s',
        })  # fmt: skip


def _bandwidth(size: int) -> float:
    """Bytes/s of reading and writing an array of `size` bytes."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones(size // 4, jnp.float32)
    times = []
    add = jax.jit(lambda x: x + 1)
    for _ in range(6):
        began = time.perf_counter()
        add(x).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * size / min(times)


# Name: what measures it and its limit in seconds. Those that matter most are first.
PARTS: dict[str, tuple[Callable, int]] = {
    'gpt_124m': (compare_124m, 160),
    'train_8b': (lambda *a: train('train_8b', *a), 150),
    'decode_8b': (decode_8b, 110),
    'train_1b': (lambda *a: train('train_1b', *a), 100),
}


def run_part(part: str, limit: float, tiny: bool) -> list[dict]:
    """The rows of a part, measured in its own process; one that ends badly adds a row."""
    with tempfile.TemporaryDirectory() as directory:
        rows, log = pathlib.Path(directory, 'rows'), pathlib.Path(directory, 'log')
        rows.touch()
        command = [sys.executable, __file__, f'--parts={part}', f'--rows_to={rows}']
        # PyTorch's process needs memory too: JAX takes it as it goes.
        environment = os.environ | (
            {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
            if part == 'gpt_124m'
            else {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.95'}
        )
        # The same numbers by a kernel: those of many parameters take long to compile otherwise.
        environment['JAX_THREEFRY_GPU_KERNEL_LOWERING'] = '1'
        with log.open('w') as output:
            process = subprocess.Popen(
                command + ['--tiny'] * tiny, env=environment, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
            problem = None
            try:
                if status := process.wait(limit):
                    last = [line for line in log.read_text().splitlines() if line.strip()][-1:]
                    problem = f'ended with status {status}: {"".join(last)[:160]}'
            except subprocess.TimeoutExpired:
                problem = f'stopped after {limit:.0f} s'
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        found = [json.loads(line) for line in rows.read_text().splitlines()]
        if problem:
            print(log.read_text()[-2000:], file=sys.stderr)
            found.append({'case': UNFINISHED, 'said': problem})
        return found


def place(result: dict) -> tuple[int]:
    """Of a part among the results."""
    return (list(PARTS).index(result['part']),)


def table(results: list[dict]) -> str:
    """The rows of all parts as Markdown."""
    rows = [{'part': result['part'], **row} for result in results for row in result['rows']]
    formats = {'tokens/s': '{:,.0f}', 'ms': '{:.2f}', 'of the peak': '{:.1%}',
               'of the bandwidth': '{:.1%}', 'ratio': '{:.3f}'}  # fmt: skip

    def cell(row: dict, column: str) -> str:
        value = row.get(column)
        return '' if value is None else formats.get(column, '{}').format(value)

    return measure.markdown([COLUMNS, *([cell(row, c) for c in COLUMNS] for row in rows)])


def main() -> None:
    """Measures every part, or is the process of one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--parts', default=','.join(PARTS))
    parser.add_argument('--tiny', action='store_true', help='small shapes, to see that it runs')
    parser.add_argument('--results', type=pathlib.Path, default=measure.RESULTS)
    parser.add_argument('--rows_to', type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    parts = options.parts.split(',')
    if unknown := set(parts) - set(PARTS):
        parser.error(f'unknown {", ".join(sorted(unknown))}; there are: {", ".join(PARTS)}')
    if options.rows_to:

        def say(row: dict) -> None:
            with options.rows_to.open('a') as file:
                print(json.dumps(row), file=file)

        PARTS[parts[0]][0](options.tiny, say)
        return
    until, name = time.monotonic() + TOTAL_SECONDS, 'gpu_tiny' if options.tiny else 'gpu'
    for part in parts:
        left = until - time.monotonic()
        rows = run_part(part, min(PARTS[part][1], max(left, 1)), options.tiny)
        result = {'part': part, 'rows': rows}
        path = options.results / f'{name}.json'
        kept = json.loads(path.read_text())['results'] if path.exists() else []
        if rows[-1]['case'] == UNFINISHED and part in [other['part'] for other in kept]:
            print(table([result]))
        else:
            measure.keep(name, result, place, table, LIBRARIES, options.results)
    print((options.results / f'{name}.md').read_text())


if __name__ == '__main__':
    main()
