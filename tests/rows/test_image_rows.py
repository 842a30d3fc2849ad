"""The configs of image classifiers, each run from end to end on images made here."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bigmodels import config as config_lib
from bigmodels import experiment, trees
from bigmodels import train as train_lib
from tests import commands
from tests.data import image_files

ROWS = (
    'mnist_mlp', 'mnist_lenet', 'cifar10_cnn', 'cifar10_resnet', 'cifar10_vit', 'alexnet', 'vgg',
    'resnet50', 'efficientnet',
)  # fmt: skip
LONG_TO_COMPILE = ('alexnet', 'vgg', 'resnet50', 'efficientnet')  # so not for resuming as well
IMAGENET = {
    'alexnet': 61_100_840,
    'vgg': 138_357_544,
    'resnet50': 25_557_032,
    'efficientnet': 5_288_548,
}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two classes of images, dark and bright, in the files that the rows read.

    Those of CIFAR-10 and MNIST are also in `pictures` of their folder, named by place and class.
    """
    rng = np.random.default_rng(0)
    labels = np.arange(48) % 2
    monkeypatch.setenv('BIGMODELS_DATA', str(tmp_path))
    (tmp_path / 'mnist').mkdir()
    images = rng.integers(0, 128, (48, 28, 28)) + 120 * labels[:, None, None]
    for stem in ('train', 't10k'):
        image_files.write_mnist(tmp_path / 'mnist', images, labels, stem)
    colours = rng.integers(0, 128, (48, 32, 32, 3)) + 120 * labels[:, None, None, None]
    files = image_files.write_cifar10(tmp_path / 'cifar10', colours.astype(np.uint8), labels)
    for folder in ('mnist', 'cifar10'):
        (tmp_path / folder / 'pictures').mkdir()
    for i, label in enumerate(labels):
        (tmp_path / 'cifar10' / 'pictures' / f'{i:02d}_{label}.jpg').write_bytes(files[i])
        grey = Image.fromarray(images[i].astype(np.uint8))
        grey.save(tmp_path / 'mnist' / 'pictures' / f'{i:02d}_{label}.png')


def load(row: str, variant: str, *overrides: str):
    return config_lib.load(f'{commands.ROOT}/configs/{row}.py{variant}', overrides)


@pytest.mark.slow
@pytest.mark.parametrize('row', ROWS)
def test_a_row_trains_learns_answers_and_resumes(row, data, tmp_path, capsys):
    config = load(row, ':tiny', 'log_every=1')  # some have learnt all by the fifth step
    figures = train_lib.train(config, tmp_path / 'run')
    assert figures['test/accuracy'] > 0.4  # of ten classes, two that there are
    losses = commands.losses(tmp_path / 'run')
    assert losses[-1] < losses[0]
    pictures = tmp_path / ('mnist' if row.startswith('mnist') else 'cifar10') / 'pictures'
    answers = commands.answered(capsys, tmp_path / 'run', pictures)
    assert len(answers) == 48
    stems = [pathlib.Path(answer['input']).stem for answer in answers]
    right = [stem.endswith(f'_{a["label"]}') for stem, a in zip(stems, answers, strict=True)]
    assert np.mean(right) == pytest.approx(figures['test/accuracy'], abs=0.03)  # one that is close
    if row not in LONG_TO_COMPILE:
        assert commands.resumed(tmp_path / 'run', tmp_path / 'resumed') == figures


@pytest.mark.parametrize('row', IMAGENET)
def test_imagenet_is_for_the_published_network(row):
    task = experiment.make_task(experiment.from_config(load(row, ':imagenet')))
    size = task.image_size
    inputs = jnp.zeros((1, size, size, 3))
    shapes = jax.eval_shape(functools.partial(task.model.init, jax.random.key(0)), inputs)
    assert trees.count(shapes['params']) == IMAGENET[row]
