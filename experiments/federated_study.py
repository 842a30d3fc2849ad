"""Federated averaging where clients are ever less alike: accuracy by clients and by method.

    python experiments/federated_study.py [--clients alike speakers] [--methods fedavg fedadam]

On MNIST each run is configs/mnist_federated.py or a variant of it, with another concentration of
the Dirichlet distribution by which clients share the digits. On spoken digits it is
configs/speech_federated.py, whose clients are the six speakers, or as many that have recordings of
all. What protects whole clients needs many of them: they are 3,000 of 20 digits each, of which 200
take part in a round, or about 120 where these are drawn by chance into 200 places. Written is the
test accuracy at the last round, as results/federated.md.
"""

import argparse
import os
import pathlib
import tempfile
import time

import measure

from bigmodels import config, runs, train

PRIVATE = ('privacy.delta=1e-5', 'privacy.clip=0.3')
# Name -> variant of the config, and what it is told.
METHODS = {
    'fedavg': ('', ()),
    'fedprox': ('fedprox', ()),
    'fedadam': ('fedadam', ()),
    'fedavg, epsilon 8': ('', ('privacy.epsilon=8', *PRIVATE)),
    'fedavg, epsilon 2': ('', ('privacy.epsilon=2', *PRIVATE)),
}
MANY = (
    'federated.alpha=0',
    'federated.clients=3000',
    'federated.per_round=200',
    'federated.local_steps=5',
    'batch_size=4000',
)
CLIENTS = {
    'alike': ('mnist', ('federated.alpha=0',)),
    'alpha 0.3': ('mnist', ('federated.alpha=0.3',)),
    'alpha 0.05': ('mnist', ('federated.alpha=0.05',)),
    '3,000 alike': ('mnist', MANY),
    'speakers mixed': ('speech', ('federated.client_key=',)),
    'speakers': ('speech', ('federated.client_key=speaker',)),
}
# Every method for all clients, but what is private for many alone.
PAIRS = [
    (method, clients)
    for method in METHODS
    for clients in CLIENTS
    if clients == '3,000 alike' or 'epsilon' not in method
]


def reached(method: str, clients: str) -> dict:
    """One run."""
    data, shared = CLIENTS[clients]
    variant, told = METHODS[method]
    path = f'{measure.ROOT}/configs/{data}_federated.py:{variant}'
    made = config.load(path, [*shared, *told, 'log_every=50'])
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
    parser.add_argument('--clients', nargs='+', default=list(CLIENTS), choices=list(CLIENTS))
    parser.add_argument('--methods', nargs='+', default=list(METHODS), choices=list(METHODS))
    options = parser.parse_args()
    os.environ.setdefault('BIGMODELS_DATA', str(measure.data_path()))
    runs.configure_process()
    chosen = [p for p in PAIRS if p[0] in options.methods and p[1] in options.clients]
    if not chosen:
        parser.error('what is private is for "3,000 alike" only')
    place = lambda r: (list(METHODS).index(r['method']), list(CLIENTS).index(r['clients']))
    for method, clients in chosen:
        result = reached(method, clients)
        measure.keep('federated', result, place, table)
        print(result, flush=True)
