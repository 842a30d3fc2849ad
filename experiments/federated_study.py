"""Federated averaging where clients are ever less alike: accuracy on MNIST by alpha and by method.

    python experiments/federated_study.py [--alphas=0,0.3,0.05] [--methods=fedavg,fedprox,fedadam]

Each run is configs/mnist_federated.py or a variant of it, with another concentration of the
Dirichlet distribution by which clients share the digits; 0 is clients that are alike. Written is
the test accuracy at the last round, as results/federated.md.
"""

import argparse
import pathlib
import tempfile
import time

import measure

from bigmodels import config, runs, train

METHODS = {'fedavg': '', 'fedprox': 'fedprox', 'fedadam': 'fedadam'}


def reached(method: str, alpha: float) -> dict:
    """One run."""
    path = f'{measure.ROOT}/configs/mnist_federated.py:{METHODS[method]}'
    made = config.load(path, [f'federated.alpha={alpha}', 'log_every=50'])
    for section in (made.data.train, made.data.evals.test):
        section.path = str(measure.data_path('mnist'))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        figures = train.train(made, pathlib.Path(directory))
    return {
        'method': method,
        'alpha': alpha,
        'rounds': made.total_steps,
        'accuracy': round(figures['test/accuracy'], 4),
        'seconds': round(time.perf_counter() - began, 1),
    }


def table(results: list[dict]) -> str:
    """The results as Markdown: a row for each alpha, a column for each method."""
    found = {(r['alpha'], r['method']): f'{r["accuracy"]:.1%}' for r in results}
    alphas = sorted({r['alpha'] for r in results}, key=lambda alpha: -(alpha or float('inf')))
    lines = [
        ('alike' if not alpha else f'{alpha:g}', *(found.get((alpha, m), '') for m in METHODS))
        for alpha in alphas
    ]
    return measure.markdown([('alpha', *METHODS), *lines])


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--alphas', default='0,0.3,0.05')
    parser.add_argument('--methods', default=','.join(METHODS))
    options = parser.parse_args()
    runs.configure_process()
    for method in options.methods.split(','):
        for alpha in map(float, options.alphas.split(',')):
            result = reached(method, alpha)
            place = lambda r: (list(METHODS).index(r['method']), r['alpha'])
            measure.keep('federated', result, place, table)
            print(result, flush=True)
