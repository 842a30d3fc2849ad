"""The mean accuracy of GCN and GAT on Cora over seeds.

    python experiments/benchmark_graph.py [--seeds=10]

Trains configs/graph.py and its variant `gat` once for each seed, in this process, and writes the
test accuracy at the last step to experiments/results/graph.json. Nothing is chosen by the test
nodes, nor by those of validation.
"""

import argparse
import pathlib
import tempfile
import time

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
        began = time.perf_counter()
        accuracies = []
        for seed in seeds:
            config = config_lib.load(f'configs/graph.py{variant}', [f'seed={seed}'])
            with tempfile.TemporaryDirectory() as directory:
                figures = train.train(config, pathlib.Path(directory, 'run'))
            accuracies.append(100 * figures['test/accuracy'])
        results[label] = {
            'test_accuracies': np.round(accuracies, 2).tolist(),
            'mean': round(float(np.mean(accuracies)), 2),
            'standard_deviation': round(float(np.std(accuracies, ddof=1)), 2),
            'wall_clock_seconds': round(time.perf_counter() - began, 1),
        }
    measure.write('graph', {'seeds': len(seeds), **results})
