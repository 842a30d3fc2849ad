"""The config of the detector, from end to end on images made here."""

import json

import numpy as np
import pytest
from PIL import Image

from bigmodels import config as config_lib
from bigmodels import evaluate
from bigmodels import train as train_lib
from tests import commands
from tests.data import box_files

pytest.importorskip('pycocotools')
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run of `configs/detect.py`, and what it reported."""
    folder = tmp_path_factory.mktemp('detect')
    parts = {'train': box_files.scenes(24), 'val': box_files.scenes(3, seed=1)}
    box_files.write_voc(folder / 'voc', parts | {'test': box_files.scenes(5, seed=2)})
    box_files.write_zip(folder / 'bccd' / 'bccd_voc.zip', folder / 'voc')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('BIGMODELS_DATA', str(folder))
        spec = str(commands.ROOT / 'configs/detect.py:tiny')
        whole = train_lib.train(config_lib.load(spec, ['log_every=1']), folder / 'run')
    return folder, whole


def test_detect_learns_and_evaluation_draws_boxes(run, tmp_path, capsys):
    folder, figures = run
    assert {'test/map', 'test/map50', 'test/map75', 'val/map50'} < set(figures)
    losses = commands.losses(folder / 'run')
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    options = dict(workdir=folder / 'run', pictures=tmp_path / 'shown')
    printed = json.loads(commands.printed(evaluate, capsys, **options))
    assert printed['test/loss'] == pytest.approx(figures['test/loss'], rel=1e-3)
    assert printed['test/map50'] == pytest.approx(figures['test/map50'], abs=1e-3)
    with Image.open(tmp_path / 'shown' / 'test_overlays.png') as picture:
        assert min(picture.size) > 100


def test_boxes_of_raw_images_of_any_size_are_told_and_drawn(run, tmp_path, capsys):
    folder, _ = run
    sizes = ((48, 64), (120, 90), (37, 200))
    for i, size in enumerate(sizes):
        [scene] = box_files.scenes(1, *size, seed=i)
        Image.fromarray(scene['image']).save(tmp_path / f'{i}.png')
    answers = commands.answered(capsys, folder / 'run', tmp_path, pictures=tmp_path / 'drawn')
    assert len(answers) == 3
    for answer, (height, width) in zip(answers, sizes, strict=True):
        with Image.open(answer['picture']) as picture:
            assert picture.size == (width, height)
        assert len(answer['boxes']) == len(answer['labels']) == len(answer['scores'])
        for left, top, right, bottom in answer['boxes']:
            assert 0 <= left < right <= width + 0.1
            assert 0 <= top < bottom <= height + 0.1


def test_a_set_is_learnt_without_suppression(run, monkeypatch, tmp_path):
    monkeypatch.setenv('BIGMODELS_DATA', str(run[0]))
    spec = str(commands.ROOT / 'configs/detect.py')
    task = config_lib.load(f'{spec}:set', []).task
    own = ['assignment', 'box_weight', 'max_overlap']
    overrides = ['log_every=1', *(f'task.{name}={task[name]}' for name in own)]
    assert overrides[1:] == ['task.assignment=set', 'task.box_weight=1.0', 'task.max_overlap=1.0']
    figures = train_lib.train(config_lib.load(f'{spec}:tiny', overrides), tmp_path / 'set')
    assert 'test/map50' in figures
    losses = commands.losses(tmp_path / 'set')
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


def test_a_resumed_run_ends_as_one_that_was_not_stopped(run, monkeypatch, tmp_path):
    folder, whole = run
    monkeypatch.setenv('BIGMODELS_DATA', str(folder))
    assert commands.resumed(folder / 'run', tmp_path / 'run') == whole
