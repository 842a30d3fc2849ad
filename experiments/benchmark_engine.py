"""Many clients at once: the engine beside one-at-a-time generation, in turns.

    python experiments/benchmark_engine.py [--weights float32 bfloat16] [--clients=64] [--rounds=2]

A random model of GPT-2 124M's shape answers clients whose prompts and answers have different
lengths, all waiting from the start. One side calls `generate_tokens` for one after the other, with
shapes of their own; the other gives all to an engine. Both run in this process, in every round one
after the other, and everything is compiled before. Tokens are greedy. Compared are medians of
tokens/s: new tokens of all clients over the seconds until the last one; and for the engine also the
seconds until half of the clients have their first token, and their last.
"""

import argparse
import functools
import pathlib
import statistics
import threading
import time

import jax
import jax.numpy as jnp
import measure
import numpy as np

from bigmodels import runs, trees
from bigmodels.deploy import decoding, weights
from bigmodels.deploy.engine import Engine
from bigmodels.deploy.requests import Settings
from bigmodels.deploy.runner import Runner
from bigmodels.deploy.sampling import Sampling
from bigmodels.models.transformer import Transformer

GPT2 = dict(
    vocab_size=50257, num_layers=12, embed_dim=768, num_heads=12, max_length=1024,
    positions='learned',
)  # fmt: skip
TINY = dict(vocab_size=256, num_layers=2, embed_dim=32, num_heads=4, max_length=256)
PROMPTS, ANSWERS = (16, 48, 96), (32, 64, 96)
GREEDY = Sampling(temperature=0)
COLUMNS = {
    'weights': 'weights', 'clients': 'clients', 'slots': 'slots', 'tokens_per_second': 'tokens/s',
    'baseline_tokens_per_second': 'one at a time', 'ratio': 'ratio',
    'median_first_token_seconds': 'half have a first token, s',
    'median_last_token_seconds': 'and their last, s', 'compile_seconds': 'compiling, s',
}  # fmt: skip


def random_model(fields: dict) -> tuple[Transformer, dict]:
    """A model and float32 params of normal values."""
    model = Transformer(**fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
    fill = lambda s: jax.random.normal(jax.random.key(s.size), s.shape) * 0.02
    return model, jax.jit(lambda: jax.tree.map(fill, shapes))()


def clients_of(count: int, vocab_size: int) -> list[tuple[np.ndarray, int]]:
    """(prompt, new tokens) of each client: all pairs of lengths in turn."""
    rng = np.random.default_rng(0)
    pairs = [(prompt, answer) for prompt in PROMPTS for answer in ANSWERS]
    return [
        (rng.integers(vocab_size, size=prompt).astype(np.int32), answer)
        for prompt, answer in (pairs[i % len(pairs)] for i in range(count))
    ]


def one_at_a_time(model, params, clients) -> list[list[int]]:
    """The answers by `generate_tokens`."""
    answers = []
    for prompt, count in clients:
        generated = decoding.generate_tokens(
            model, params, jnp.asarray(prompt[None]), jnp.asarray([len(prompt)]),
            jnp.zeros((0, 0), jnp.int32), jax.random.key(0), max_new_tokens=count, sampling=GREEDY,
        )  # fmt: skip
        answers.append(np.asarray(generated.tokens[0]).tolist())
    return answers


def together(engine: Engine, clients) -> tuple[list[list[int]], list[float], list[float]]:
    """The answers by the engine, and when each client had its first and its last token, in s."""
    first, last = [0.0] * len(clients), [0.0] * len(clients)
    left, done = [len(clients)], threading.Event()
    began = time.perf_counter()

    def listen(client, event):
        now = time.perf_counter() - began
        first[client] = first[client] or now
        if event.finish is not None:
            last[client] = now
            left[0] -= 1
            if not left[0]:
                done.set()

    with Runner(engine, most_waiting=len(clients)) as runner:
        requests = [
            runner.submit(
                prompt, Settings(count, GREEDY), listener=functools.partial(listen, client)
            )
            for client, (prompt, count) in enumerate(clients)
        ]
        done.wait()
    return [request.new_tokens for request in requests], first, last


def compare(model, params, kept: str, options) -> dict:
    """One row of the table."""
    model, params = weights.packed(model, params, kept)
    clients = clients_of(options.clients, model.vocab_size)
    shapes = {(len(prompt), count): (prompt, count) for prompt, count in clients}
    began = time.perf_counter()
    one_at_a_time(model, params, shapes.values())
    engine = Engine(
        model, params, slots=options.slots, length=max(map(sum, shapes)), widths=(16, 32, 64)
    )
    together(engine, list(shapes.values()))
    compile_seconds = time.perf_counter() - began
    new_tokens = sum(count for _, count in clients)
    times, firsts, lasts = ([], []), [], []
    for _ in range(options.rounds):
        began = time.perf_counter()
        expected = one_at_a_time(model, params, clients)
        times[0].append(time.perf_counter() - began)
        given, first, last = together(engine, clients)
        times[1].append(max(last))
        firsts.append(statistics.median(first))
        lasts.append(statistics.median(last))
    equal = [a == b for one, other in zip(expected, given, strict=True)
             for a, b in zip(one, other, strict=True)]  # fmt: skip
    alone, shared = (new_tokens / statistics.median(seconds) for seconds in times)
    return {
        'weights': kept,
        'parameters': trees.count(params),
        'prompts': PROMPTS,
        'answers': ANSWERS,
        'rounds': options.rounds,
        'clients': options.clients,
        'slots': options.slots,
        'new_tokens': new_tokens,
        'tokens_per_second': round(shared, 1),
        'baseline_tokens_per_second': round(alone, 1),
        'ratio': round(shared / alone, 2),
        'seconds': [[round(second, 2) for second in side] for side in times],
        'median_first_token_seconds': round(statistics.median(firsts), 2),
        'median_last_token_seconds': round(statistics.median(lasts), 2),
        'equal_tokens': round(statistics.mean(equal), 3),
        'compile_seconds': round(compile_seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--weights', nargs='+', choices=weights.WEIGHTS, default=['float32', 'bfloat16']
    )
    parser.add_argument('--clients', type=int, default=64)
    parser.add_argument('--slots', type=int, default=32)
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--tiny', action='store_true', help='a small model, to try this script')
    parser.add_argument('--results', type=pathlib.Path, default=measure.RESULTS)
    options = parser.parse_args()
    runs.configure_process()
    model, params = random_model(TINY if options.tiny else GPT2)
    for kept in options.weights:
        dtype = kept if kept in weights.FLOATS else model.dtype
        result = compare(model.clone(dtype=dtype), params, kept, options)
        print(result, flush=True)
        measure.keep('engine', result, place, table, folder=options.results)


def place(result: dict) -> tuple[int]:
    """Of a way to keep weights, among the results."""
    return (weights.WEIGHTS.index(result['weights']),)


def table(results: list[dict]) -> str:
    """The results as Markdown."""
    rows = ([str(result[name]) for name in COLUMNS] for result in results)
    return measure.markdown([list(COLUMNS.values()), *rows])


if __name__ == '__main__':
    main()
