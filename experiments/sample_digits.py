"""Digits that a diffusion run writes, and how many of them a classifier reads as asked.

    python experiments/sample_digits.py --workdir=runs/diffusion --judge=runs/mnist_lenet

Writes ten of each class as results/diffusion.png and the figures as results/diffusion.json.
"""

import argparse

import jax
import measure
import numpy as np
from PIL import Image

from bigmodels import runs

BATCH = 100


def samples(run: runs.Run, labels: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W], of classes int [N], with the seeds 0, 1, 2, ..."""
    predict = jax.jit(run.task.predict)
    written = []
    for first in range(0, len(labels), BATCH):
        part = labels[first : first + BATCH].astype(np.int32)
        batch = {'targets': part, 'seeds': np.arange(first, first + len(part), dtype=np.uint32)}
        predictions = jax.device_get(predict(run.params, run.model_state, batch))
        written += [run.task.postprocess(prediction)['image'] for prediction in predictions]
    return np.stack(written)


def classes(judge: runs.Run, images: np.ndarray) -> np.ndarray:
    """int [N]: what a run of a classifier takes images uint8 [N, H, W] for."""
    predict = jax.jit(judge.task.predict)
    batch = {'inputs': judge.task.preprocess({judge.task.input_key: images})['inputs']}
    return np.asarray(predict(judge.params, judge.model_state, batch)).argmax(1)


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """uint8 [N, H, W] -> one picture, row by row."""
    count, height, width = images.shape
    rows = images.reshape(count // columns, columns, height, width)
    return rows.transpose(0, 2, 1, 3).reshape(count // columns * height, columns * width)


def main() -> None:
    """Samples, judges, and writes both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--workdir', required=True, help='a run of configs/diffusion.py')
    parser.add_argument('--judge', required=True, help='a run of configs/mnist_lenet.py')
    parser.add_argument('--count', type=int, default=1000, help='samples, a multiple of 100')
    arguments = parser.parse_args()
    runs.configure_process()
    run, judge = runs.open_run(arguments.workdir), runs.open_run(arguments.judge)
    labels = np.arange(arguments.count) % run.model.num_classes
    images = samples(run, labels)
    right = classes(judge, images) == labels
    found = {
        'samples': len(labels),
        'as_asked': float(right.mean()),
        'by_class': [float(right[labels == c].mean()) for c in range(run.model.num_classes)],
    }
    measure.write('diffusion', found)
    rows = run.model.num_classes
    Image.fromarray(grid(images[: rows * rows], rows)).save(measure.RESULTS / 'diffusion.png')


if __name__ == '__main__':
    main()
