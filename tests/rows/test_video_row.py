"""`configs/video.py` from end to end on digits made here: learnt, evaluated, answered, resumed."""

import json
import warnings

import numpy as np
import pytest

from bigmodels import config as config_lib
from bigmodels import errors, evaluate, runs
from bigmodels.data.sources.video_sources import MovingDigits
from tests import commands
from tests.data import image_files

pytestmark = pytest.mark.slow  # of one run, which all of them need


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run of the tiny variant on digits that are blots, what it reported, and its test clips."""
    folder = tmp_path_factory.mktemp('video')
    (folder / 'mnist').mkdir()
    rng = np.random.default_rng(0)
    for stem in ('train', 't10k'):
        images = np.zeros((12, 28, 28), np.uint8)
        images[:, 6:22, 6:22] = rng.integers(150, 256, (12, 16, 16))
        image_files.write_mnist(folder / 'mnist', images, np.arange(12) % 10, stem)
    with commands.trained(folder, loaded, MovingDigits) as found:
        yield found


def loaded():
    overrides = [
        'total_steps=100',
        'checkpoint.every=50',
        'data.evals.test.count=200',
    ]
    return config_lib.load(str(commands.ROOT / 'configs/video.py:tiny'), overrides)


def test_it_learns_and_is_evaluated_again(run, capsys):
    workdir, figures, _ = run
    assert figures['test/accuracy'] > 0.5  # of eight directions
    again = json.loads(commands.printed(evaluate, capsys, workdir=workdir))
    assert again['test/accuracy'] == pytest.approx(figures['test/accuracy'], abs=1e-6)


def test_clips_as_files_are_answered_as_they_were_evaluated(run, tmp_path, capsys):
    """GIF files and folders of frames, of the same clips."""
    workdir, _, source = run
    for i in range(6):
        video = source[i]['video'][..., 0]
        (tmp_path / 'gif').mkdir(exist_ok=True)
        (tmp_path / 'gif' / f'{i}.gif').write_bytes(image_files.gif(video))
        (tmp_path / 'frames' / str(i)).mkdir(parents=True)
        for t, frame in enumerate(video):
            path = tmp_path / 'frames' / str(i) / f'{t}.png'
            path.write_bytes(image_files.encoded(frame))
    opened = runs.open_run(workdir)
    inputs = opened.task.preprocess(source.take(np.arange(6)))['inputs']
    expected = opened.task.predict(opened.params, opened.model_state, {'inputs': inputs})
    for folder in ('gif', 'frames'):
        answers = commands.answered(capsys, workdir, tmp_path / folder, batch_size=4)
        assert len(answers) == 6
        for answer, probabilities in zip(answers, np.asarray(expected), strict=True):
            assert answer['label'] == probabilities.argmax()
            assert answer['probability'] == pytest.approx(probabilities.max(), abs=1e-5)


def test_longer_and_larger_clips_are_cut_to_size(run, tmp_path, capsys):
    """Twice as many frames, each twice as large, are the same clip as before."""
    workdir, _, source = run
    for i in range(20):
        video = source[i]['video'][..., 0].repeat(2, 0).repeat(2, 1).repeat(2, 2)
        video[::2, 0, 0] = 9  # Pillow leaves out a frame that is that before it
        (tmp_path / f'{i}.gif').write_bytes(image_files.gif(video))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        answers = commands.answered(capsys, workdir, tmp_path)
    assert any('scaled and cropped to the 32 x 32 pixels' in str(one.message) for one in told)
    opened = runs.open_run(workdir)
    inputs = opened.task.preprocess(source.take(np.arange(20)))['inputs']
    batch = {'inputs': inputs}
    labels = np.asarray(opened.task.predict(opened.params, opened.model_state, batch)).argmax(-1)
    right = np.mean(
        [answer['label'] == label for answer, label in zip(answers, labels, strict=True)]
    )
    assert right >= 0.8  # scaling blurs a little


def test_a_clip_that_is_too_short_is_named(run, tmp_path, capsys):
    workdir, _, source = run
    (tmp_path / 'a.gif').write_bytes(image_files.gif(source[0]['video'][:3, ..., 0]))
    with pytest.raises(errors.UserError, match=r'a\.gif: A video has 3 frames, fewer than the 8'):
        commands.answered(capsys, workdir, tmp_path / 'a.gif')


def test_resumed_is_uninterrupted(run, tmp_path):
    workdir, figures, _ = run
    assert commands.resumed(workdir, tmp_path / 'run') == figures
