"""What models give away of their training data, with and without differential privacy.

    python experiments/privacy_audit.py [--epsilons=8,2] [--seeds=2]

Of scikit-learn's digits 600 get a wrong label: canaries, which a model knows only by heart. Each
is in the training data with probability 1/2. A perceptron learns from these without privacy and at
each epsilon; an attack then tells from the losses of the canaries which of them it has seen, beside
a reference model that has seen none. Written is what the attack reaches, and the epsilon that it
proves at a confidence of 95 %, as results/privacy_audit.md: means over the seeds, and of the
epsilon the highest.
"""

import argparse
import pathlib
import tempfile

import measure
import numpy as np

from bigmodels import config, runs, train
from bigmodels.data.sources.table_sources import Digits, Npz
from bigmodels.privacy import audit, sampling

CANARIES, GUESSES, DELTA = 600, 150, 1e-5


def records(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of the digits."""
    source = Digits(split)
    taken = source.take(np.arange(len(source)))
    return taken['image'], taken['label']


def save(path: pathlib.Path, images: np.ndarray, labels: np.ndarray) -> str:
    """Writes records for the source `npz`."""
    np.savez(path, image=images, label=labels)
    return str(path)


def trained(folder: pathlib.Path, data: str, count: int, epsilon: float | None, seed: int):
    """A perceptron without dropout that has gone over its data a hundred times."""
    path = str(measure.ROOT / 'configs' / 'digits_mlp.py')
    values = ['total_steps=1000', 'model.hidden_dims=(256,)', 'model.dropout_rate=0.0']
    made = config.load(path, [f'seed={seed}', 'optimizer.learning_rate=5e-3', *values])
    made.unlock()
    made.data.train = dict(name='npz', path=data)
    made.batch_size, made.checkpoint.every, made.log_every = 128, 1000, 1000
    made.checkpoint.best_metric = ''
    made.optimizer.weight_decay = 0.0
    if epsilon:
        made.privacy = dict(epsilon=epsilon, delta=DELTA, clip=1.0, examples=count)
        made.accumulate = 4
    figures = train.train(made, folder)
    return runs.open_run(folder), figures


def attacked(folder: pathlib.Path, epsilons: list, seed: int) -> list[dict[str, float]]:
    """A model for each epsilon, of the same data, and what the attack reaches."""
    images, labels = records('train')
    rng = sampling.generator(seed)
    order = rng.permutation(len(labels))
    canaries, clean = order[:CANARIES], order[CANARIES:]
    labels[canaries] = (labels[canaries] + rng.integers(1, 10, CANARIES)) % 10
    members = rng.random(CANARIES) < 0.5
    seen = np.concatenate([clean, canaries[members]])
    shown = Npz(save(folder / 'canaries.npz', images[canaries], labels[canaries]))
    data = save(folder / 'clean.npz', images[clean], labels[clean])
    run, _ = trained(folder / 'reference', data, len(clean), None, seed)
    reference = audit.example_losses(run, shown)
    data = save(folder / 'seen.npz', images[seen], labels[seen])
    results = []
    for epsilon in epsilons:
        run, figures = trained(folder / f'{epsilon}', data, len(seen), epsilon, seed)
        scores = audit.membership_scores(audit.example_losses(run, shown), reference[None])
        proved = audit.epsilon_of_one_run(scores, members, GUESSES, DELTA if epsilon else 0.0)
        reached = {'proved': proved, 'accuracy': figures['valid/accuracy']}
        results.append(audit.membership(scores, members) | reached)
    return results


def table(results: list[dict]) -> str:
    """The results as Markdown."""
    header = ('epsilon promised', 'proved', 'AUC', 'found at 1 % mistaken', 'accuracy')
    lines = [
        (f'{r["epsilon"]:g}' if r['epsilon'] else 'none', f'{r["proved"]:.2f}', f'{r["auc"]:.3f}',
         f'{r["true_positives_at_1_percent"]:.1%}', f'{r["accuracy"]:.1%}')
        for r in results
    ]  # fmt: skip
    return measure.markdown([header, *lines])


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--epsilons', default='8,2')
    parser.add_argument('--seeds', type=int, default=2)
    options = parser.parse_args()
    runs.configure_process()
    epsilons = [None, *map(float, options.epsilons.split(','))]
    by_seed = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as directory:
            by_seed.append(attacked(pathlib.Path(directory), epsilons, seed))
    for epsilon, *found in zip(epsilons, *by_seed, strict=True):
        mean = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
        mean['proved'] = max(one['proved'] for one in found)
        result = {'epsilon': epsilon, 'seeds': options.seeds, **mean}
        measure.keep(
            'privacy_audit', result, lambda r: (-(r['epsilon'] or np.inf),), table,
            libraries=('jax', 'flax', 'dp-accounting'),
        )  # fmt: skip
        print(table([result]), flush=True)
