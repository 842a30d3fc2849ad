"""The default run as a newcomer meets it: time, memory, loss, and its curve for the README.

    python experiments/benchmark_default.py

Trains configs/transformer.py with empty caches into runs/transformer (an earlier run there is
moved aside), and starts it once more to see what the caches save.
"""

import pathlib
import shutil
import tempfile

import measure

if __name__ == '__main__':
    workdir = measure.ROOT / 'runs' / 'transformer'
    with tempfile.TemporaryDirectory() as directory:
        cache = pathlib.Path(directory, 'cache')
        config = 'configs/transformer.py'
        measured = measure.train(config, workdir, cache, '--resume=restart')
        again = measure.train(config, pathlib.Path(directory, 'again'), cache, only_start=True)
    shutil.copy(workdir / 'curves.png', measure.RESULTS / 'transformer_curves.png')
    warm = again['seconds_to_first_step']
    measure.write('transformer', {**measured, 'seconds_to_first_step_with_caches': warm})
