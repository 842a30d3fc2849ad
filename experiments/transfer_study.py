"""What pretraining gains with few labels: SST-2 from scratch, fine-tuned, and on frozen features.

    python -m bigmodels.main --config=configs/bert.py
    python experiments/transfer_study.py [--sizes=100,500,2000] [--seeds=2]

For each size the first sentences of a shuffled training set (another order for each seed) train
configs/sst2_bert.py and its variant `scratch`, whose sizes and steps are the same; and a linear and
a nearest-neighbour probe of the frozen encoder, pretrained and as initialised. Written is the test
accuracy, mean and half range over the seeds, as results/transfer.md.
"""

import argparse
import pathlib
import random
import tempfile

import measure
import numpy as np

from bigmodels import config, experiment, runs, train
from bigmodels.data import SOURCES, pipeline, sources
from bigmodels.interpret import probes

EPOCHS, LEAST_STEPS = 5, 150
CONFIGS = {'from scratch': 'sst2_bert.py:scratch', 'pretrained': 'sst2_bert.py'}


def write_subset(path: pathlib.Path, size: int, seed: int) -> None:
    """Writes the first `size` training sentences in an order of the seed."""
    source = config.load(str(measure.ROOT / 'configs' / 'sst2_bert.py')).data.train.path
    lines = sources.read_text(source).removesuffix('\n').split('\n')
    random.Random(seed).shuffle(lines)
    path.write_text('\n'.join(lines[:size]) + '\n')


def load(name: str, seed: int, pretrained: pathlib.Path, training: pathlib.Path, size: int):
    """A config of CONFIGS for another training file."""
    steps = max(LEAST_STEPS, EPOCHS * size // 32)
    overrides = [
        f'data.train.path={training}',
        f'seed={seed}',
        f'total_steps={steps}',
        f'optimizer.schedule.warmup_steps={steps // 10}',
        'eval_every=0',
        f'checkpoint.every={steps}',
        f'task.tokenizer.path={pretrained}/preprocessing',
    ]
    if name == 'pretrained':
        overrides.append(f'init_from.workdir={pretrained}')
    return config.load(str(measure.ROOT / 'configs' / CONFIGS[name]), overrides)


def probe(workdir: pathlib.Path) -> dict[str, float]:
    """The test accuracy of both probes on the features of the network that a run began with."""
    run = runs.open_run(workdir)
    state = run.program().init_state(run.experiment.seed)
    [(labelled, _)] = experiment.training_sources(run.experiment)
    test = config.choose(SOURCES, run.experiment.data.evals['test'], 'data.evals.test')
    train_features, test_features = (
        probes.features(
            run.task,
            state.params,
            state.model_state,
            run.task.examples(source, pipeline.cache_dir(), train=False),
        )
        for source in (labelled, test)
    )
    return {
        'linear probe': probes.linear_probe(train_features, test_features),
        'nearest neighbours': probes.nearest_neighbours_probe(train_features, test_features),
    }


def accuracies(size: int, seed: int, pretrained: pathlib.Path) -> dict[str, dict[str, float]]:
    """{row: {column of CONFIGS: test accuracy}} of one training set."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        sentences = pathlib.Path(folder, 'train.tsv')
        write_subset(sentences, size, seed)
        for column in CONFIGS:
            workdir = pathlib.Path(folder, column)
            figures = train.train(load(column, seed, pretrained, sentences, size), workdir)
            rows = {'all layers': figures['test/accuracy'], **probe(workdir)}
            for row, accuracy in rows.items():
                results.setdefault(row, {})[column] = accuracy
    return results


def table(sizes: list[int], seeds: int, pretrained: pathlib.Path) -> str:
    """The accuracies of all sizes, over the seeds, as a table in Markdown."""
    lines = [('sentences', 'trained', *CONFIGS), ('---:', '---', *('---:' for _ in CONFIGS))]
    for size in sizes:
        found = [accuracies(size, seed, pretrained) for seed in range(seeds)]
        for row in found[0]:
            cells = []
            for column in CONFIGS:
                percents = 100 * np.array([one[row][column] for one in found])
                cells.append(f'{percents.mean():.1f} ± {np.ptp(percents) / 2:.1f}')
            lines.append((f'{size:,}', row, *cells))
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--sizes', default='100,500,2000')
    parser.add_argument('--seeds', type=int, default=2)
    parser.add_argument('--pretrained', type=pathlib.Path, default=pathlib.Path('runs/bert'))
    parser.add_argument('--results', type=pathlib.Path, default=measure.RESULTS)
    options = parser.parse_args()
    runs.configure_process()
    sizes = [int(size) for size in options.sizes.split(',')]
    text = table(sizes, options.seeds, options.pretrained)
    (options.results / 'transfer.md').write_text(
        f'Test accuracy on SST-2 in percent, mean and half range of {options.seeds} seeds, by '
        f'experiments/transfer_study.py.\n\n{text}'
    )
    print(text)
