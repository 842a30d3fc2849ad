"""The configs whose answers are images, each from end to end on images made here."""

import json

import numpy as np
import pytest
from PIL import Image

from bigmodels import config as config_lib
from bigmodels import evaluate
from bigmodels import train as train_lib
from tests import commands
from tests.data import image_files, mask_files


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run of `configs/segment.py` on bright rectangles, and what it reported."""
    folder = tmp_path_factory.mktemp('segment')
    mask_files.write_archive(folder / 'nuclei' / 'nuclei_256.npz')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('BIGMODELS_DATA', str(folder))
        config = config_lib.load(str(commands.ROOT / 'configs/segment.py:tiny'))
        return folder / 'run', train_lib.train(config, folder / 'run')


def test_segment_learns_resumes_and_evaluation_draws_overlays(run, tmp_path, capsys):
    workdir, figures = run
    assert figures['test/dice'] > 0.5
    printed = json.loads(
        commands.printed(evaluate, capsys, workdir=workdir, pictures=tmp_path / 'shown')
    )
    assert printed['test/dice'] == pytest.approx(figures['test/dice'], abs=1e-3)
    with Image.open(tmp_path / 'shown' / 'test_overlays.png') as picture:
        assert min(picture.size) > 100
    assert commands.resumed(workdir, tmp_path / 'resumed') == figures


def test_masks_of_raw_images_of_any_size_are_written(run, tmp_path, capsys):
    workdir, figures = run
    sizes = ((32, 32), (40, 27), (9, 50))
    wanted = []
    for i, size in enumerate(sizes):
        [image], [mask] = mask_files.scenes(1, *size, seed=i)
        image = image if i else np.stack([image] * 3, -1)
        Image.fromarray(image).save(tmp_path / f'{i}.png')
        wanted.append(mask > 0)
    answers = commands.answered(capsys, workdir, tmp_path, pictures=tmp_path / 'masks')
    right = []
    for answer, mask in zip(answers, wanted, strict=True):
        found = np.asarray(Image.open(answer['mask']))
        assert found.shape == mask.shape
        assert set(np.unique(found)) <= {0, 255}
        assert answer['shares'][1] == pytest.approx((found > 0).mean())
        right.append((found > 0) == mask)
    accuracy = np.concatenate([each.ravel() for each in right]).mean()
    assert accuracy > figures['test/accuracy'] - 0.2


def test_diffusion_learns_resumes_and_writes_what_it_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('BIGMODELS_DATA', str(tmp_path))
    (tmp_path / 'mnist').mkdir()
    labels = np.arange(48) % 10
    pixels = np.broadcast_to(20 * labels[:, None, None], (48, 28, 28))
    for stem in ('train', 't10k'):
        image_files.write_mnist(tmp_path / 'mnist', pixels, labels, stem)
    config = config_lib.load(str(commands.ROOT / 'configs/diffusion.py:tiny'))
    figures = train_lib.train(config, tmp_path / 'run')
    losses = commands.losses(tmp_path / 'run')
    assert losses[-1] < losses[0]
    (tmp_path / 'asked.csv').write_text('label,seed\n3,0\n3,1\n3,0\n')
    options = dict(given=tmp_path / 'asked.csv', pictures=tmp_path / 'written')
    answers = commands.answered(capsys, tmp_path / 'run', **options)
    written = [np.asarray(Image.open(answer['image'])) for answer in answers]
    assert [image.shape for image in written] == [(28, 28)] * 3
    np.testing.assert_array_equal(written[0], written[2])
    assert (written[0] != written[1]).any()
    assert commands.resumed(tmp_path / 'run', tmp_path / 'resumed') == figures
