"""Generation beside Hugging Face's `generate`: the same random weights, in turns.

    python experiments/benchmark_decode.py [--models gpt2 llama] [--batches 1 8] [--rounds=3]

needs `pip install -e '.[parity]'`. Both sides run in this process, one after the other in every
round; the first run of each, which compiles, is not counted. Greedy tokens are the same in float32,
which is checked before anything is timed. Compared are medians of

- tokens/s: new tokens of all rows over the seconds of a whole call, prompt included;
- first token: the seconds of a call for one token;
- the share of the memory's bandwidth: bytes of kernels and cache that a token needs, over the
  seconds of a token (whole call less first token) and the bandwidth of reading, measured here.
"""

import argparse
import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable

import hugging_face
import jax
import jax.numpy as jnp
import measure
import numpy as np
import torch

from bigmodels import runs, trees
from bigmodels.deploy import decoding, weights
from bigmodels.deploy.sampling import Sampling

# Name: configuration, conversion, length of the prompts, new tokens.
MODELS = {
    'gpt2': (hugging_face.GPT2_124M, hugging_face.gpt2, 32, 64),
    'llama': (hugging_face.LLAMA_1B, hugging_face.llama, 32, 16),
}
# Ours: dtype of the computation and how kernels are kept; theirs: dtype of everything.
PAIRS = [
    ('float32', 'float32', 'float32'),
    ('bfloat16', 'bfloat16', 'bfloat16'),
    ('float32', 'int8', 'bfloat16'),
]
COLUMNS = {
    'model': 'model', 'batch': 'batch', 'weights': 'weights', 'baseline': '`generate` in',
    'tokens_per_second': 'tokens/s', 'baseline_tokens_per_second': '`generate`', 'ratio': 'ratio',
    'first_token_ms': 'first token, ms', 'baseline_first_token_ms': '`generate`',
    'share': 'of the bandwidth', 'baseline_share': '`generate`',
    'compile_seconds': 'compiling, s',
}  # fmt: skip
GREEDY = Sampling(temperature=0)


def median_of(function: Callable, rounds: int) -> float:
    """Seconds of a call; the first is not counted."""
    function()
    return statistics.median(seconds(function) for _ in range(rounds))


def seconds(function: Callable) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def bandwidth(gigabytes: float = 1.0) -> dict:
    """GB/s of reading and of copying arrays far larger than any cache, the best of two libraries.

    What is copied counts twice, as read and as written.
    """
    size = int(gigabytes * 1e9) // 4
    theirs = torch.ones(size)
    ours = jnp.ones((size // 1024, 1024))
    into = torch.empty_like(theirs)
    maximum = jax.jit(lambda x: x.max(0))
    read = min(median_of(theirs.sum, 5), median_of(lambda: maximum(ours).block_until_ready(), 5))
    copied = median_of(lambda: into.copy_(theirs), 5)
    return {
        'read_gb_per_second': round(4e-9 * size / read, 1),
        'copy_gb_per_second': round(8e-9 * size / copied, 1),
    }


def compiled(model, params, prompts: np.ndarray, count: int) -> tuple[Callable, float]:
    """A function that generates `count` tokens for each prompt, and its seconds of compiling."""
    arrays = (
        params, jnp.asarray(prompts), jnp.full(len(prompts), prompts.shape[1]),
        jnp.zeros((0, 0), jnp.int32), jax.random.key(0),
        GREEDY.rows(len(prompts), only_used=True),
    )  # fmt: skip
    began = time.perf_counter()
    lowered = decoding.program().lower(model, *arrays, max_new_tokens=count)
    executable = lowered.compile()
    return lambda: np.asarray(executable(*arrays)[0]), time.perf_counter() - began


def generate(model, prompts: np.ndarray, count: int) -> np.ndarray:
    """The same by Hugging Face."""
    inputs = torch.from_numpy(prompts).long()
    with torch.inference_mode():
        out = model.generate(
            inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=count
        )
    return out[:, prompts.shape[1] :].numpy()


def elements_per_token(model, params, batch: int, length: int) -> tuple[int, int]:
    """How much a step must read: every kernel once, and the cache of `length` positions."""
    looked_up = ['position_embed'] + ['embed'] * (not model.tie_embeddings)
    kernels = trees.count({name: part for name, part in params.items() if name not in looked_up})
    return kernels, trees.count(jax.eval_shape(lambda: model.init_cache(batch, length)))


def compare(ours, kept: str, theirs, prompts: np.ndarray, count: int, rounds: int) -> dict:
    """One row of the table; `ours` are a model and its float32 params, `kept` as in PAIRS."""
    model, params = ours
    packed = weights.packed(model, params, kept)
    whole, compile_seconds = compiled(*packed, prompts, count)
    first, _ = compiled(*packed, prompts, 1)
    sides = {
        '': (whole, first),
        'baseline_': tuple(functools.partial(generate, theirs, prompts, n) for n in (count, 1)),
    }
    results = [[function() for function in functions] for functions in sides.values()]
    agree = float((results[0][0] == results[1][0]).mean())
    if kept == model.dtype == 'float32':
        assert agree == 1, f'only {agree:.1%} of the greedy tokens are those of generate'
    times = {name: ([], []) for name in sides}
    for _ in range(rounds):
        for name, functions in sides.items():
            for function, taken in zip(functions, times[name], strict=True):
                taken.append(seconds(function))
    row = {'equal_tokens': round(agree, 3), 'compile_seconds': round(compile_seconds, 1)}
    kernels, cached = elements_per_token(model, params, len(prompts), prompts.shape[1] + count // 2)
    their_size = theirs.dtype.itemsize
    needed = {
        '': kernels * jnp.dtype(kept).itemsize + cached * jnp.dtype(model.dtype).itemsize,
        'baseline_': (kernels + cached) * their_size,
    }
    for name, (total, one) in times.items():
        total, one = statistics.median(total), statistics.median(one)
        step = (total - one) / (count - 1)
        row |= {
            f'{name}tokens_per_second': round(len(prompts) * count / total, 1),
            f'{name}first_token_ms': round(1e3 * one, 1),
            f'{name}ms_per_step': round(1e3 * step, 2),
            f'{name}gb_per_second': round(needed[name] / step / 1e9, 1),
        }
    row['ratio'] = round(row['tokens_per_second'] / row['baseline_tokens_per_second'], 2)
    return row


def measured(name: str, options) -> dict:
    """All rows of a model."""
    their_config, convert, width, count = MODELS[name]
    theirs = hugging_face.random_model(their_config)
    model, params = convert(theirs)
    rng = np.random.default_rng(0)
    rows = []
    for dtype, kept, their_dtype in PAIRS:
        theirs = theirs.to(getattr(torch, their_dtype))
        for batch in options.batches:
            prompts = rng.integers(model.vocab_size, size=(batch, width)).astype(np.int32)
            ours = model.clone(dtype=dtype), params
            row = compare(ours, kept, theirs, prompts, count, options.rounds)
            row = {'weights': kept, 'compute': dtype, 'baseline': their_dtype, 'batch': batch} | row
            print(row, flush=True)
            rows.append(row)
    return {'parameters': trees.count(params), 'prompt': width, 'new_tokens': count, 'rows': rows}


def table(results: list[dict]) -> str:
    """Every row of several models' results."""
    lines = [list(COLUMNS.values())]
    for result in results:
        read = result['bandwidth']['read_gb_per_second']
        for row in result['rows']:
            shares = {
                f'{side}share': f'{row[f"{side}gb_per_second"] / read:.0%}'
                for side in ('', 'baseline_')
            }
            cells = {'model': result['model']} | row | shares
            lines.append([str(cells[name]) for name in COLUMNS])
    return measure.markdown(lines)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', nargs='+', choices=MODELS, default=list(MODELS))
    parser.add_argument('--batches', nargs='+', type=int, default=[1, 8])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--results', type=pathlib.Path, default=measure.RESULTS)
    options = parser.parse_args()
    runs.configure_process()
    libraries = ('jax', 'flax', 'torch', 'transformers')
    for name in options.models:
        result = {'model': name, 'rounds': options.rounds, 'bandwidth': bandwidth()}
        result |= measured(name, options)
        measure.write(f'decode_{name}', result, options.results, libraries)
    results = [
        json.loads(path.read_text()) for path in sorted(options.results.glob('decode_*.json'))
    ]
    heading = '\n'.join(f'{r["date"]}, {r["machine"]}: {r["bandwidth"]}' for r in results)
    (options.results / 'decode.md').write_text(f'{table(results)}\n\n{heading}\n')
