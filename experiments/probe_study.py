"""What the layers of a language model know of Python's syntax, and what sparse features keep of it.

    python experiments/probe_study.py [--workdir=runs/transformer]

Is a word in code, in a string or in a comment? Linear probes of each layer's output at the word's
last byte are trained on files of the training text and tested on held-out ones, each class as often
as another; so is their control task, a class at random for every word (Hewitt and Liang 2019); both
also on the network as it was initialised. Then configs/sparse_autoencoder.py and its `l1` learn
what layers_2 says. Without --workdir configs/transformer.py is trained first. Written are
results/probes.json, .md and .png.

Cost: two CPU cores beside other work, OMP_NUM_THREADS=1, 5 minutes after that run's training.
Result: layers_2 and layers_3 tell it in 69 and 70 % of words, where control tasks have 55 and 56 %,
and the network as it was initialised 51 %. layers_0 and layers_1 know the word rather than where it
is: 45 and 55 %, control tasks 56 and 57 %. Selectivity alone would not tell training from none:
0.14 at best, and 0.15 as initialised, whose layers keep less of the word.
"""

import argparse
import collections
import functools
import io
import pathlib
import re
import tempfile
import tokenize
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import measure
import numpy as np
from matplotlib.figure import Figure

from bigmodels import config, experiment, runs, train
from bigmodels.data.sources.stdlib_source import Stdlib
from bigmodels.interpret import activations, probes, sparse_features

CLASSES = ('code', 'string', 'comment')
TRAIN, TEST = 500, 2000  # words of each class
CODED, TOKENS, BATCHES = 'layers_2', 200_000, 64  # as the config's header has it
# Of configs/sparse_autoencoder.py; the last has about as many active features as the first.
CODERS = {'topk': ('',), 'l1': (':l1',), 'l1, sparsity 0.007': (':l1', 'task.sparsity=7e-3')}


class Word(NamedTuple):
    """A word, the text up to its last byte, and which of CLASSES it is in."""

    word: str
    text: str
    where: int


def words(text: str, length: int) -> Iterator[Word]:
    """The words of Python source, cut at every `length` bytes, in the second half of each piece."""
    starts = np.cumsum([0, *(len(line) + 1 for line in text.split('\n'))])
    where = np.zeros(len(text) + 1, int)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        first, last = (starts[row - 1] + column for row, column in (token.start, token.end))
        name = tokenize.tok_name[token.type]
        where[first:last] = 2 if name == 'COMMENT' else 'STRING' in name
    for found in re.finditer(r'[A-Za-z_]{2,}', text):
        end = found.end()
        before = (end - 1) % length
        if before >= max(length // 2, len(found[0])):
            yield Word(found[0], text[end - 1 - before : end], where[found.start()])


def sample(split: str, length: int, count: int) -> list[Word]:
    """`count` words of each class at random, of every tenth training file or all held-out ones.

    Of files in ASCII, whose characters are bytes, and not of encodings, whose tables are all alike.
    """
    source = Stdlib(split)
    files = [source[i] for i in range(0, len(source), 10 if split == 'train' else 1)]
    texts = [one['text'] for one in files if not one['path'].startswith('encodings/')]
    found = [word for text in filter(str.isascii, texts) for word in words(text, length)]
    order = np.random.default_rng(0).permutation(len(found))
    taken = ([i for i in order if found[i].where == c][:count] for c in range(len(CLASSES)))
    return [found[i] for one in taken for i in one]


def features(run: runs.Run, params: Any, sampled: Sequence[Word], paths: str) -> dict:
    """What modules say at the last byte of each word, {path: float [n, D]}."""
    look = jax.jit(functools.partial(activations.capture, run.task, paths=[paths]))
    found = collections.defaultdict(list)
    for rows in (sampled[i : i + 50] for i in range(0, len(sampled), 50)):
        ids = np.zeros((50, run.task.sequence_length), np.int32)
        for row, word in zip(ids, rows, strict=False):
            row[: len(word.text)] = run.task.vocabulary.encode(word.text)
        last = [len(word.text) - 1 for word in rows]
        for path, x in look(params, run.model_state, {'inputs': ids})[1].items():
            found[path].append(np.asarray(x)[np.arange(len(rows)), last])
    return {path: np.concatenate(parts) for path, parts in found.items()}


def probed(
    run: runs.Run, params: Any, learnt: Sequence[Word], tested: Sequence[Word], paths: str
) -> dict[str, tuple[float, float]]:
    """For each path the accuracy on tested words, and that of the control task."""
    sets = (learnt, tested)
    seen = [features(run, params, words, paths) for words in sets]
    targets, kinds = ([np.array([w[i] for w in words]) for words in sets] for i in (2, 0))
    found = {}
    for path in seen[0]:
        given = [(x[path], own) for x, own in zip(seen, targets, strict=True)]
        accuracy, over = probes.selectivity(*given, *kinds)
        found[path] = accuracy, accuracy - over
    return found


def by_word(learnt: Sequence[Word], tested: Sequence[Word]) -> float:
    """The accuracy of each word's most frequent class, and of code for words that are new."""
    counts = collections.Counter((word.word, word.where) for word in learnt).most_common()
    usual = {word: where for (word, where), _ in reversed(counts)}
    return float(np.mean([usual.get(word.word, 0) == word.where for word in tested]))


def coded(run: runs.Run, folder: pathlib.Path) -> dict[str, dict[str, float]]:
    """What each of CODERS reaches, and what it keeps of the run's loss."""
    overrides, found = [], {}
    for key, split, count in (('train', 'train', TOKENS), ('evals.valid', 'valid', TOKENS // 10)):
        vectors = sparse_features.collect(run, CODED, split, count)
        np.savez(folder / f'{split}.npz', **{sparse_features.KEY: vectors})
        overrides.append(f'data.{key}.path={folder / split}.npz')
    batches = experiment.evaluation_sets(run.experiment, run.task)['valid']
    for name, (variant, *own) in CODERS.items():
        path = f'{measure.ROOT}/configs/sparse_autoencoder.py{variant}'
        figures = train.train(config.load(path, [*overrides, *own]), folder / name)
        coder = runs.open_run(folder / name)
        kept = sparse_features.kept(run, coder, CODED, [batches[i] for i in range(BATCHES)])
        found[name] = {**figures, **kept._asdict(), 'recovered': kept.recovered}
    return found


def table(results: Sequence[dict]) -> str:
    """The one result in Markdown."""
    [result] = results
    networks, codes = result['networks'], result['features']
    rows = [('layer', *(f'{name}{what}' for name in networks for what in ('', ', control task')))]
    for path in networks['trained']:
        rows.append((path, *(f'{x:.3f}' for found in networks.values() for x in found[path])))
    keys = ('valid/active', 'valid/explained_variance', 'valid/dead_features', 'clean', 'coded',
            'ablated', 'recovered')  # fmt: skip
    coding = [('features', *(key.removeprefix('valid/').replace('_', ' ') for key in keys))]
    coding += [(name, *(f'{one[key]:.3f}' for key in keys)) for name, one in codes.items()]
    return (
        f'Is a word in code, a string or a comment? Accuracy of linear probes on '
        f'{TEST * len(CLASSES):,} held-out words, by experiments/probe_study.py; guessing has '
        f'0.333, and the usual class of each word {result["by word"]:.3f}.\n\n'
        f'{measure.markdown(rows)}\n\nSparse features of {CODED}: how many are active in a token, '
        "the network's loss on held-out text as it is, with them and with zeros in its place.\n\n"
        f'{measure.markdown(coding)}'
    )


def draw(result: dict, path: pathlib.Path) -> None:
    """Accuracies of probes and of their control tasks over the layers."""
    figure = Figure(figsize=(5, 3), layout='constrained')
    axes = figure.subplots()
    for colour, (name, found) in zip(('C0', 'C1'), result['networks'].items(), strict=True):
        accuracy, control = np.transpose(list(found.values()))
        axes.plot(list(found), accuracy, f'{colour}o-', label=name)
        axes.plot(list(found), control, f'{colour}s:', label=f'{name}, control task')
    axes.axhline(result['by word'], color='grey', lw=0.8, label='usual class of each word')
    axes.axhline(1 / len(CLASSES), color='grey', lw=0.8, ls='--', label='guessing')
    axes.set(ylabel='test accuracy', title='code, string or comment?')
    axes.legend(fontsize=6)
    figure.savefig(path, dpi=120)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--workdir', type=pathlib.Path, help='a finished run of that config')
    parser.add_argument('--results', type=pathlib.Path, default=measure.RESULTS)
    options = parser.parse_args()
    runs.configure_process()
    with tempfile.TemporaryDirectory() as scratch:
        workdir = options.workdir or pathlib.Path(scratch, 'transformer')
        if not options.workdir:
            train.train(config.load(f'{measure.ROOT}/configs/transformer.py'), workdir)
        run = runs.open_run(workdir)
        start = run.program().init_state(run.experiment.seed)
        length = run.task.sequence_length
        sets = sample('train', length, TRAIN), sample('valid', length, TEST)
        result = {'by word': by_word(*sets), 'networks': {}}
        for name, params in (('trained', run.params), ('as initialised', start.params)):
            result['networks'][name] = probed(run, params, *sets, r'embed|layers_\d+')
            print(name, result['networks'][name], flush=True)
        result['features'] = coded(run, pathlib.Path(scratch))
    measure.keep('probes', result, lambda one: (), table, ('jax', 'flax', 'scikit-learn'),
                 options.results)  # fmt: skip
    draw(result, options.results / 'probes.png')
