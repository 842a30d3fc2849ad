"""Federated averaging where clients are ever less alike: accuracy by clients and by method.

    python experiments/federated_study.py [--clients=alike,speakers] [--methods=fedavg,fedadam]

On MNIST each run is configs/mnist_federated.py or a variant of it, with another concentration of
the Dirichlet distribution by which clients share the digits. On spoken digits it is
configs/speech_federated.py, whose clients are the six speakers, or as many that have recordings of
all. Written is the test accuracy at the last round, as results/federated.md.
"""

import argparse
import os
import pathlib
import tempfile
import time

import measure

from bigmodels import config, runs, train

METHODS = {'fedavg': '', 'fedprox': 'fedprox', 'fedadam': 'fedadam'}
CLIENTS = {
    'alike': ('mnist', 'federated.alpha=0'),
    'alpha 0.3': ('mnist', 'federated.alpha=0.3'),
    'alpha 0.05': ('mnist', 'federated.alpha=0.05'),
    'speakers mixed': ('speech', 'federated.client_key='),
    'speakers': ('speech', 'federated.client_key=speaker'),
}


def reached(method: str, clients: str) -> dict:
    """One run."""
    data, override = CLIENTS[clients]
    path = f'{measure.ROOT}/configs/{data}_federated.py:{METHODS[method]}'
    made = config.load(path, [override, 'log_every=50'])
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        figures = train.train(made, pathlib.Path(directory))
    return {
        'method': method,
        'clients': clients,
        'rounds': made.total_steps,
        'accuracy': round(figures['test/accuracy'], 4),
        'seconds': round(time.perf_counter() - began, 1),
    }


def table(results: list[dict]) -> str:
    """The results as Markdown: a row for each kind of clients, a column for each method."""
    found = {(r['clients'], r['method']): f'{r["accuracy"]:.1%}' for r in results}
    lines = [
        (CLIENTS[clients][0], clients, *(found.get((clients, m), '') for m in METHODS))
        for clients in CLIENTS
    ]
    return measure.markdown([('data', 'clients', *METHODS), *lines])


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--clients', default=','.join(CLIENTS))
    parser.add_argument('--methods', default=','.join(METHODS))
    options = parser.parse_args()
    os.environ.setdefault('BIGMODELS_DATA', str(measure.data_path()))
    runs.configure_process()
    for method in options.methods.split(','):
        for clients in options.clients.split(','):
            result = reached(method, clients)
            place = lambda r: (list(METHODS).index(r['method']), list(CLIENTS).index(r['clients']))
            measure.keep('federated', result, place, table)
            print(result, flush=True)
