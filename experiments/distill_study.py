"""What a small model gains by a teacher: the same one trained alone and distilled, several seeds.

    python experiments/distill_study.py --runs=FOLDER [--sets=sst2,cifar10] [--seeds=3]

For each set a teacher is trained, once, and for each seed a student alone and one that learns from
the teacher too, of the same initial parameters, batches and steps. A run that is in the folder is
not trained again: the command goes on where it was stopped. Written: experiments/results/
distill.json and .md, in the place of the last results of the same set.
"""

import argparse
import pathlib

import jax
import measure
import numpy as np

from bigmodels import config, runs, train, trees

BAG = dict(name='recurrent', num_classes=2, vocab_size=4096, embed_dim=16, hidden_dim=16)
NET = dict(name='convnet', num_classes=10, stages=((16,), (32,), (32,)), dense_widths=(32,))
# Set -> its config; what changes for the teacher and for both students; how the latter learns.
SETS = {
    'sst2': dict(
        config='sst2_lstm.py',
        teacher=['total_steps=600', 'eval_every=0'],
        student=['total_steps=600', 'eval_every=0', f'model={BAG}'],
        distill=dict(temperature=2.0, weight=0.7),
    ),
    'cifar10': dict(
        config='cifar10_resnet.py',
        teacher=['total_steps=600', 'eval_every=0', 'optimizer.schedule.warmup_steps=100'],
        student=[
            'total_steps=1200', 'eval_every=0', 'optimizer.schedule.warmup_steps=100',
            'task.label_smoothing=0.0', f'model={NET}',
        ],
        distill=dict(temperature=4.0, weight=0.9),
    ),
}  # fmt: skip


def trained(folder: pathlib.Path, given, *changes: str, model=None, distill=None) -> float:
    """The test accuracy of a run that is trained if it is not complete."""
    loaded = config.load(str(measure.ROOT / 'configs' / given['config']), changes)
    with loaded.unlocked():
        if model:
            loaded.model = model
        if distill:
            loaded.distill = distill
    return train.train(loaded, folder)['test/accuracy']
