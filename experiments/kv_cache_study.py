"""What keys and values in int8 cost a language model and save it.

    python experiments/kv_cache_study.py --workdir=runs/transformer

Compared with a cache as wide as the computation: its bytes; nats a token of held-out text, of which
every token sees what the cache has kept of those before it; tokens/s of greedy generation behind a
prompt of half the context, both in turns, the best of five. Written: results/kv_cache.json and .md.
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import measure
import numpy as np

from bigmodels import experiment, losses, runs, trees
from bigmodels.deploy import decoding, weights
from bigmodels.deploy.sampling import Sampling

ROWS, NEW_TOKENS, ROUNDS = 8, 64, 5
KINDS = ('compute', 'int8')


def nats(model, params, batch) -> float:
    """A token's, of a batch that is read through a cache."""

    @jax.jit
    def loss(params):
        count, length = batch['inputs'].shape
        positions = jnp.broadcast_to(jnp.arange(length), (count, length))
        logits, _ = model.apply(
            {'params': params}, batch['inputs'], positions=positions,
            cache=model.init_cache(count, length),
        )  # fmt: skip
        return losses.softmax_cross_entropy(logits, batch['targets']).mean()

    return float(loss(params))


def study(workdir: pathlib.Path) -> dict:
    """A row for each way to keep them."""
    run = runs.open_run(workdir)
    model, params = weights.packed(run.model, run.params)
    [examples, *_] = experiment.evaluation_sets(run.experiment, run.task).values()
    batch = {key: np.asarray(value)[:ROWS] for key, value in examples[0].items()}
    length = batch['inputs'].shape[1]
    models = {kind: model.clone(kv_cache=kind) for kind in KINDS}
    prompts = jnp.asarray(batch['inputs'][:, : length // 2])

    def seconds(kind: str) -> float:
        began = time.perf_counter()
        decoding.generate_tokens(
            models[kind], params, prompts, jnp.full(ROWS, prompts.shape[1]),
            jnp.zeros((0, 0), jnp.int32), jax.random.key(0), max_new_tokens=NEW_TOKENS,
            sampling=Sampling(temperature=0),
        ).tokens.block_until_ready()  # fmt: skip
        return time.perf_counter() - began

    rounds = [[seconds(kind) for kind in KINDS] for _ in range(ROUNDS + 1)]
    best = dict(zip(KINDS, np.min(rounds[1:], axis=0), strict=True))  # the first one compiles
    return {
        'run': run.workdir.name,
        'rows': {
            kind: {
                'bytes a token': trees.size_bytes(each.init_cache(1, 1)),
                'nats a token': round(nats(each, params, batch), 5),
                'tokens/s': round(ROWS * NEW_TOKENS / best[kind], 1),
            }
            for kind, each in models.items()
        },
    }


def table(results) -> str:
    """A row for each run and way."""
    rows = [('run', 'cache', 'bytes a token', 'nats a token', 'tokens/s')]
    for result in results:
        for kind, row in result['rows'].items():
            rows.append((result['run'], kind, *map(str, row.values())))
    return measure.markdown(rows)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--workdir', type=pathlib.Path, required=True, help='a language model')
    runs.configure_process()
    measure.keep('kv_cache', study(parser.parse_args().workdir), lambda one: one['run'], table)


if __name__ == '__main__':
    main()
