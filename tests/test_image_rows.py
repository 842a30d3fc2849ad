"""The configs of image classifiers, each run from end to end on images made here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bigmodels import config as config_lib
from bigmodels import experiment, trees, writers
from bigmodels import train as train_lib
from tests import commands
from tests.data import image_files

ROWS = (
    'mnist_mlp', 'mnist_lenet', 'cifar10_cnn', 'cifar10_resnet', 'cifar10_vit', 'alexnet', 'vgg',
    'resnet50', 'efficientnet',
)  # fmt: skip
RESUMED = ('mnist_mlp', 'cifar10_resnet', 'cifar10_vit')  # the others take long to compile again
IMAGENET = {
    'alexnet': 61_100_840,
    'vgg': 138_357_544,
    'resnet50': 25_557_032,
    'efficientnet': 5_288_548,
}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two classes of images, dark and bright, in the files that the rows read."""
    rng = np.random.default_rng(0)
    labels = np.arange(48) % 2
    monkeypatch.setenv('BIGMODELS_DATA', str(tmp_path))
    for folder in ('mnist', 'cifar10'):
        (tmp_path / folder).mkdir()
    images = rng.integers(0, 128, (48, 28, 28)) + 120 * labels[:, None, None]
    for stem in ('train', 't10k'):
        image_files.write_mnist(tmp_path / 'mnist', images, labels, stem)
    colours = rng.integers(0, 128, (48, 32, 32, 3)) + 120 * labels[:, None, None, None]
    files = [image_files.encoded(image) for image in colours.astype(np.uint8)]
    archive = {
        'jpeg': np.frombuffer(b''.join(files), np.uint8),
        'offsets': np.cumsum([0, *map(len, files)]),
        'label': labels.astype(np.uint8),
    }
    np.savez(
        tmp_path / 'cifar10' / 'cifar10_jpeg.npz',
        **{f'{split}_{name}': x for split in ('train', 'test') for name, x in archive.items()},
    )


def load(row: str, variant: str, *overrides: str):
    return config_lib.load(f'{commands.ROOT}/configs/{row}.py{variant}', overrides)


@pytest.mark.slow
@pytest.mark.parametrize('row', ROWS)
def test_a_row_trains_learns_answers_and_resumes(row, data, tmp_path, capsys):
    config = load(row, ':tiny', 'log_every=1')  # some have learnt all by the fifth step
    figures = train_lib.train(config, tmp_path / 'run')
    assert figures['test/accuracy'] > 0.4  # of ten classes, two that there are
    rows = writers.read_metrics(tmp_path / 'run' / 'metrics.jsonl')
    losses = [row['train/loss'] for row in rows if 'train/loss' in row]
    assert losses[-1] < losses[0]
    (tmp_path / 'pictures').mkdir()
    for i, brightness in enumerate((20, 230, 30)):
        image = np.full((40, 32, 3), brightness, np.uint8)
        Image.fromarray(image).save(tmp_path / 'pictures' / f'{i}.png')
    answers = commands.answered(capsys, tmp_path / 'run', tmp_path / 'pictures')
    assert len(answers) == 3
    assert all(
        0.1 <= answer['probability'] <= 1 for answer in answers
    )  # of ten classes the likeliest
    if row in RESUMED:
        assert commands.resumed(tmp_path / 'run', tmp_path / 'resumed') == figures


@pytest.mark.parametrize('row', IMAGENET)
def test_imagenet_is_for_the_published_network(row):
    task = experiment.make_task(experiment.from_config(load(row, ':imagenet')))
    size = task.image_size
    inputs = jnp.zeros((1, size, size, 3))
    shapes = jax.eval_shape(functools.partial(task.model.init, jax.random.key(0)), inputs)
    assert trees.count(shapes['params']) == IMAGENET[row]
