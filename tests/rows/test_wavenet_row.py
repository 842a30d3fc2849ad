"""`configs/wavenet.py` from end to end on tones: learnt, evaluated, answered, resumed."""

import json
import wave

import pytest

from bigmodels import config as config_lib
from bigmodels import errors, evaluate
from bigmodels import train as train_lib
from tests import commands, sound_files

pytestmark = pytest.mark.slow  # of one run, which all of them need


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run of the tiny variant on tones, and what it reported."""
    folder = tmp_path_factory.mktemp('wavenet')
    (folder / 'fsdd').mkdir()
    sound_files.tones(folder / 'fsdd' / 'fsdd_8khz.npz')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('BIGMODELS_DATA', str(folder))
        yield folder / 'run', train_lib.train(loaded(), folder / 'run')


def loaded():
    overrides = ['total_steps=60', 'checkpoint.every=30']
    return config_lib.load(str(commands.ROOT / 'configs/wavenet.py:tiny'), overrides)


def test_it_learns_and_is_evaluated_again(run, capsys):
    workdir, figures = run
    assert figures['test/bits'] < 7.8  # 8 before
    again = json.loads(commands.printed(evaluate, capsys, workdir=workdir))
    assert again['test/bits'] == pytest.approx(figures['test/bits'], abs=1e-4)


def test_resumed_is_uninterrupted(run, tmp_path):
    workdir, figures = run
    assert commands.resumed(workdir, tmp_path / 'run') == figures


def test_it_says_what_it_is_asked_for(run, tmp_path, capsys):
    workdir, _ = run
    asked = tmp_path / 'asked.jsonl'
    rows = [(3, 1, 0), (3, 1, 1), (3, 1, 0), (4, 0, 0)]
    asked.write_text(
        '\n'.join(json.dumps(dict(zip(('label', 'speaker', 'seed'), row, strict=True)))
                  for row in rows)
    )  # fmt: skip
    options = dict(pictures=tmp_path / 'said', batch_size=3)
    answers = commands.answered(capsys, workdir, asked, **options)
    assert [answer['input'] for answer in answers] == [f'{asked}, record {i}' for i in range(4)]
    said = []
    for answer in answers:
        with wave.open(answer['sound']) as file:
            assert (file.getframerate(), file.getnframes(), file.getsampwidth()) == (8000, 800, 2)
            said.append(file.readframes(800))
    assert said[0] == said[2]
    assert len(set(said)) == 3
    asked.write_text('{"label": 3, "speaker": 6, "seed": 0}')
    with pytest.raises(errors.UserError, match=r'asked\.jsonl, record 0: .*num_speakers is 6'):
        commands.answered(capsys, workdir, asked, **options)
