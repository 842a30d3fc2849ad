"""The tiny rows of configs/clip.py from pictures to answers, and what they refuse."""

import json
import sys

import jax
import numpy as np
import pytest

from bigmodels import config, errors, predict, runs, sharding, train
from tests import commands
from tests.data import image_files


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Pictures of three classes, each of one brightness, where CIFAR-10 would be."""
    folder = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(0)
    pictures = [
        (rng.integers(0, 60, (32, 32, 3)) + 90 * (i % 3)).astype(np.uint8) for i in range(48)
    ]
    files = image_files.write_cifar10(folder / 'cifar10', pictures, np.arange(48) % 3)
    (folder / 'pictures').mkdir()
    for i in range(3):
        (folder / 'pictures' / f'{i}.png').write_bytes(files[i])
    return folder


def load(data, *overrides):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('BIGMODELS_DATA', str(data))
        return config.load(
            f'{commands.ROOT}/configs/clip.py:tiny', ['checkpoint.every=10', *overrides]
        )


def answers(capsys, *options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['predict', *options])
        capsys.readouterr()
        predict.main()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.slow
def test_the_tiny_row_trains_resumes_evaluates_and_answers(data, tmp_path, capsys):
    loaded = load(data)
    figures = train.train(loaded, tmp_path / 'run')
    assert 0 <= figures['test/zero_shot_accuracy'] <= 1
    assert commands.resumed(tmp_path / 'run', tmp_path / 'resumed') == figures
    classes = runs.open_run(tmp_path / 'run').task.classes
    given = f'--workdir={tmp_path / "run"}', f'--input={data / "pictures"}'
    found = answers(capsys, *given)
    assert len(found) == 3
    for answer in found:
        assert list(answer['probabilities']) == list(classes)
        assert sum(answer['probabilities'].values()) == pytest.approx(1, abs=1e-4)
        assert answer['probability'] == max(answer['probabilities'].values())
    found = answers(capsys, *given, "--config.task.classes=('animal','car')")
    assert [list(answer['probabilities']) for answer in found] == [['animal', 'car']] * 3
    with pytest.raises(errors.UserError, match=r"'task\.mean'.* Allowed: task\.classes, task\.t"):
        answers(capsys, *given, '--config.task.mean=0.0')


@pytest.mark.parametrize('field', ['accumulate=2', 'parallel=pmap'])
def test_a_batch_in_parts_is_refused(data, tmp_path, field, monkeypatch):
    make = sharding.make_mesh
    monkeypatch.setattr(sharding, 'make_mesh', lambda shape: make(shape, jax.devices()))
    with pytest.raises(errors.UserError, match='ImageText compares the examples of a batch'):
        train.train(load(data, field), tmp_path / 'run')
