"""The mean accuracy of GCN and GAT on Cora over seeds.

    python experiments/benchmark_graph.py [--seeds=10]

Trains configs/graph.py and its variant `gat` once for each seed, in this process, and writes the
test accuracy at the last step to experiments/results/graph.json. Nothing is chosen by the test
nodes, nor by those of validation. The runs are kept in runs/benchmark_graph: the same command goes
on with what another has begun.
"""

import argparse

import measure
import numpy as np

from bigmodels import config as config_lib
from bigmodels import runs, train

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, default=10)
    seeds = range(parser.parse_args().seeds)
    runs.configure_process()
    results = {}
    for label, variant in (('gcn', ''), ('gat', ':gat')):
        accuracies = []
        for seed in seeds:
            config = config_lib.load(f'configs/graph.py{variant}', [f'seed={seed}'])
            workdir = measure.ROOT / 'runs' / 'benchmark_graph' / f'{label}_{seed}'
            accuracies.append(100 * train.train(config, workdir)['test/accuracy'])
        results[label] = {
            'test_accuracies': np.round(accuracies, 2).tolist(),
            'mean': round(float(np.mean(accuracies)), 2),
            'standard_deviation': round(float(np.std(accuracies, ddof=1)), 2),
        }
    measure.write('graph', {'seeds': len(seeds), **results})
