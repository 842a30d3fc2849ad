"""`configs/vision_language.py` from end to end on digits made here, and its answers to files."""

import json

import numpy as np
import pytest

from bigmodels import config as config_lib
from bigmodels import errors, evaluate
from bigmodels.data.sources.scene_sources import DigitScenes
from tests import commands
from tests.data import image_files

pytestmark = pytest.mark.slow  # of one run, which all of them need


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run of the tiny variant on digits of one grey each, what it reported, and its test."""
    folder = tmp_path_factory.mktemp('scenes')
    (folder / 'mnist').mkdir()
    images = np.broadcast_to(25 * (np.arange(10)[:, None, None] + 1), (10, 28, 28))
    for stem in ('train', 't10k'):
        image_files.write_mnist(folder / 'mnist', images, np.arange(10), stem)
    with commands.trained(folder, loaded, DigitScenes) as found:
        yield found


def loaded():
    overrides = ['total_steps=60', 'checkpoint.every=30', 'data.evals.test.count=100']
    return config_lib.load(str(commands.ROOT / 'configs/vision_language.py:tiny'), overrides)


def test_it_learns_and_is_evaluated_again(run, capsys):
    workdir, figures, _ = run
    assert figures['test/loss'] < 4.5  # log(256) before
    again = json.loads(commands.printed(evaluate, capsys, workdir=workdir))
    for name in ('loss', 'exact', 'exact_count', 'exact_largest', 'exact_sum', 'exact_read'):
        assert again[f'test/{name}'] == pytest.approx(figures[f'test/{name}'], abs=1e-5)


def test_questions_about_files_are_answered_as_they_were_evaluated(run, tmp_path, capsys):
    workdir, figures, source = run
    records = [source[i] for i in range(100)]
    lines = []
    for i, record in enumerate(records):
        (tmp_path / f'{i}.png').write_bytes(image_files.encoded(record['image'][..., 0]))
        lines.append(json.dumps({'image': f'{i}.png', 'question': record['question']}))
    asked = tmp_path / 'asked.jsonl'
    asked.write_text('\n'.join(lines))
    answers = commands.answered(capsys, workdir, asked, batch_size=40)
    pairs = zip(answers, records, strict=True)
    right = [answer['answer'] == record['answer'] for answer, record in pairs]
    assert np.mean(right) == pytest.approx(figures['test/exact'])
    assert any(right)
    asked.write_text(lines[0] + '\n{"image": "1.png", "question": "' + 'why? ' * 9 + '"}')
    with pytest.raises(errors.UserError, match=r'asked\.jsonl, record 1: The question .* 46 tok'):
        commands.answered(capsys, workdir, asked)


def test_resumed_is_uninterrupted(run, tmp_path):
    workdir, figures, _ = run
    assert commands.resumed(workdir, tmp_path / 'run') == figures
