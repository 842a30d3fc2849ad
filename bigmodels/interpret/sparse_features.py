"""Sparse features of a language model: its activations as records, and what features keep of it.

python -m bigmodels.interpret.sparse_features collect --workdir=runs/transformer --path=layers_2 \\
    --to=runs/activations
python -m bigmodels.main --config=configs/sparse_autoencoder.py
python -m bigmodels.interpret.sparse_features evaluate --workdir=runs/sparse_autoencoder \\
    --of=runs/transformer --path=layers_2
"""

import argparse
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bigmodels import config, errors, runs, tables
from bigmodels.data import SOURCES, pipeline
from bigmodels.interpret import activations
from bigmodels.tasks.language_modeling import LanguageModeling
from bigmodels.tasks.sparse_coding import SparseCoding

KEY = 'activations'  # as the task has it


class Kept(NamedTuple):
    """What a language model's loss becomes, in nats a token.

    Fields:
      clean: as it is.
      coded: with the sums of sparse features in the place of activations.
      ablated: with zeros there.
    """

    clean: float
    coded: float
    ablated: float

    @property
    def recovered(self) -> float:
        """1 where features keep all that counts, 0 where they are no better than nothing."""
        return (self.ablated - self.coded) / (self.ablated - self.clean)


def vectors_of(task: Any, params: Any, model_state: Any, batch: Any, path: str) -> jax.Array:
    """The outputs [B, L, D] of the one module at a path.

    Raises:
      UserError: for none, several, or layers that are scanned.
    """
    _, found = activations.capture(task, params, model_state, batch, [path])
    if len(found) != 1 or (vectors := next(iter(found.values()))).ndim != 3:
        shapes = [f'{name} {list(x.shape)}' for name, x in found.items()]
        raise errors.UserError(
            f'The path {path!r} must be of one module with an output [B, L, D]: it is of '
            f'{errors.some(shapes)}.'
        )
    return vectors


def kept(run: runs.Run, coder: runs.Run, path: str, batches: Any) -> Kept:
    """The losses of a language model on batches, by what is in the place of a module's output."""

    @jax.jit
    def losses(params: Any, model_state: Any, coding: Any, batch: Any) -> list:
        vectors = vectors_of(run.task, params, model_state, batch, path)
        _, made = coder.task.coded(coding, vectors)
        edits: list[Mapping] = [
            {},
            {path: activations.Edit(made.astype(vectors.dtype))},
            activations.ablated({path: vectors}),
        ]
        pairs = []
        for edit in edits:
            task = activations.edited(run.task, edit)
            _, (found, _) = task.loss_fn(params, model_state, batch, jax.random.key(0), False)
            pairs.append(found['loss'])
        return pairs

    totals = np.zeros((3, 2))
    for batch in batches:
        totals += np.array(losses(run.params, run.model_state, coder.params, batch), np.float64)
    return Kept(*(totals[:, 0] / totals[:, 1]).tolist())


def collect(run: runs.Run, path: str, split: str, count: int) -> np.ndarray:
    """float32 [count, D]: outputs of a module on the tokens of a run's training or held-out text.

    Args:
      split: 'train', or a set of config.data.evals. There may be fewer than `count`.
    """
    look = jax.jit(
        functools.partial(vectors_of, run.task, path=path),
    )
    found, have = [], 0
    for batch in _batches(run, split):
        vectors = np.asarray(look(run.params, run.model_state, batch))
        found.append(vectors[batch['weights'] > 0])
        have += len(found[-1])
        if have >= count:
            break
    return np.concatenate(found)[:count].astype(np.float32)


def _batches(run: runs.Run, split: str) -> Iterator[Mapping[str, np.ndarray]]:
    if split == 'train':
        batches = run.batches
        return (batches[t] for t in range(len(batches)))
    evals = run.experiment.data.evals
    if split not in evals:
        raise errors.unknown('held-out set', split, evals)
    source = config.choose(SOURCES, evals[split], f'data.evals.{split}')
    examples = run.task.examples(source, pipeline.cache_dir(), train=False)
    return iter(pipeline.evaluation_batches(examples, run.experiment.batch_size))


def _write(run: runs.Run, path: str, split: str, count: int, folder: pathlib.Path) -> None:
    """`count` vectors to train on, and a tenth of that, of a split, to hold out: two files.

    Held out of the training text are those behind the others, which in a text that is shorter than
    both are some of them again.
    """
    more = max(count // 10, 1)
    with errors.unwritten(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if split == 'train':
        both = collect(run, path, split, count + more)
        parts = np.split(both, [len(both) * count // (count + more)])
    else:
        parts = collect(run, path, 'train', count), collect(run, path, split, more)
    for name, vectors in zip(('train', 'valid'), parts, strict=True):
        file = folder / f'{name}.npz'
        with errors.unwritten(file):
            np.savez(file, **{KEY: vectors})
        print(f'{file}: {len(vectors):,} vectors of {vectors.shape[1]}')


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest='command', required=True)
    one = commands.add_parser('collect', help="a language model's activations as .npz files")
    two = commands.add_parser('evaluate', help='what the loss is with features in their place')
    for command in (one, two):
        runs.add_run(command)
        command.add_argument('--path', required=True, help='of a module, such as layers_2')
        command.add_argument('--split', default='valid', help='the held-out set; default valid')
    one.add_argument('--to', type=pathlib.Path, required=True, help='the folder for both files')
    one.add_argument('--tokens', type=int, default=200_000, help='for training; a tenth held out')
    two.add_argument('--of', type=pathlib.Path, required=True, help='the run of the activations')
    two.add_argument('--batches', type=int, default=64, help='that are evaluated at most')
    return parser.parse_args()


def main() -> None:
    """The command."""
    a = _parse()
    runs.configure_process()
    run = runs.open_run(a.workdir if a.command == 'collect' else a.of, a.step, trust=a.trust)
    if not isinstance(run.task, LanguageModeling):
        raise errors.UserError(
            f'{run.workdir} holds a {type(run.task).__name__}, no language model.'
        )
    if a.command == 'collect':
        _write(run, a.path, a.split, a.tokens, a.to)
        return
    coder = runs.open_run(a.workdir, trust=a.trust)
    if not isinstance(coder.task, SparseCoding):
        raise errors.UserError(f'{a.workdir} holds a {type(coder.task).__name__}, no SparseCoding.')
    batches = (batch for _, batch in zip(range(a.batches), _batches(run, a.split), strict=False))
    found = kept(run, coder, a.path, batches)
    rows = [('loss', 'nats')] + [(name, f'{value:.4f}') for name, value in found._asdict().items()]
    print(tables.aligned([*rows, ('recovered', f'{found.recovered:.4f}')], '<>'))


if __name__ == '__main__':
    errors.exit_on_user_error(main)
