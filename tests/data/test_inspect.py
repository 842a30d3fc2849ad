"""What the command shows is what the updates saw."""

import dataclasses
import json
import textwrap

import numpy as np
import pytest
from PIL import Image

from bigmodels import config as config_lib
from bigmodels import errors, experiment, runs
from bigmodels import train as train_lib
from bigmodels.data import inspect, pictures, pipeline, question_windows, tokenizers
from bigmodels.tasks.span_extraction import SpanExtraction
from tests import commands


@pytest.mark.parametrize(
    ('name', 'shape', 'dtype', 'has_vocabulary', 'kind'),
    [
        ('inputs', (16,), np.int32, True, 'text'),
        ('targets', (16,), np.uint16, True, 'text'),
        ('positions', (16,), np.int32, True, 'column'),
        ('inputs', (16,), np.int32, False, 'column'),
        ('weights', (512,), np.float32, True, 'column'),
        ('targets', (), np.int32, False, 'column'),
        ('inputs', (13,), np.float32, False, 'column'),
        ('inputs', (16000,), np.float32, False, 'waveform'),
        ('inputs', (8, 8), np.float32, False, 'image'),
        ('inputs', (8, 8, 3), np.float32, True, 'image'),
        ('inputs', (8, 8, 5), np.float32, False, 'column'),
    ],
)
def test_how_a_field_is_shown(name, shape, dtype, has_vocabulary, kind):
    assert inspect.show_as(name, np.zeros((2, *shape), dtype), has_vocabulary) == kind


def test_tables_align_and_nothing_steers_the_terminal(tmp_path):
    batch = {
        'inputs': np.array([[ord('a'), 27, ord('b')]] * 2),
        'targets': np.array([12, 1234567]),
        'features': np.float32([[0.5, np.nan], [1, 2]]),
        'mask': np.arange(20).reshape(2, 10) > 4,
    }
    shown = inspect.show(batch, ['one[3]', 'x[12]'], tokenizers.Bytes(), tmp_path / 'step')
    assert shown.splitlines() == [
        'example  targets  features  mask',
        'one[3]   12       0.5 nan   [10] False to True',
        'x[12]    1234567  1 2       [10] True to True',
        'one[3] inputs:',
        '    a\N{REPLACEMENT CHARACTER}b',
        'x[12] inputs:',
        '    a\N{REPLACEMENT CHARACTER}b',
    ]
    assert not list(tmp_path.iterdir())


def test_the_places_of_answers_are_not_shown_as_text(tmp_path):
    record = {
        'question': 'Who?', 'context': 'It is Bo.', 'answers': ['Bo'], 'starts': np.array([6])
    }  # fmt: skip
    windows = question_windows.Windows(tokenizers.Bytes(), 20, 5, 10, 4, 1)
    batch = pipeline.stacked(windows.of(record))
    stem, fields = tmp_path / 'step', SpanExtraction.token_fields
    shown = inspect.show(batch, ['x[0]'], tokenizers.Bytes(), stem, fields).splitlines()
    header, row = (line.split('  ') for line in shown[:2])
    columns = [[cell.strip() for cell in line if cell.strip()] for line in (header, row)]
    assert dict(zip(*columns, strict=True))['targets'] == '11 12'
    assert [line for line in shown if line.endswith(':')] == ['x[0] inputs:']


def test_the_command_shows_the_places_of_answers(tmp_path, capsys):
    context = 'It is a blue ball, which rolls.'
    answers = [{'text': 'blue', 'answer_start': 8}]
    asked = {'id': 'a', 'question': 'What?', 'answers': answers}
    paragraph = {'context': context, 'qas': [asked] * 8}
    (tmp_path / 'a.json').write_text(json.dumps({'data': [{'paragraphs': [paragraph]}]}))
    status, out, err = commands.called(
        capsys,
        'bigmodels.data.inspect',
        '--config=configs/question_answering.py:tiny',
        f'--config.data.train.path={tmp_path / "a.json"}',
        '--config.task.tokenizer.name=bytes',
        '--config.batch_size=2',
        '--steps=1:2',
    )
    assert status == 0, err
    assert ' 14 17 ' in out
    assert ' inputs:' in out
    assert ' targets:' not in out


def pixels(figure, path):
    figure.savefig(path, dpi=100)
    return np.asarray(Image.open(path).convert('RGB'))


@pytest.mark.parametrize('shape', [(5, 8, 6), (5, 8, 6, 1), (5, 8, 6, 4)])
def test_images_are_drawn_in_order_and_what_is_not_finite_is_red(tmp_path, shape):
    images = np.zeros(shape, np.float32)
    images[0], images[3], images[4, 2:6, 2:4] = -3, 5, np.nan
    drawn = pixels(pictures.image_grid(images, list('abcde')), tmp_path / 'x.png')
    height, width = drawn.shape[0] // 2, drawn.shape[1] // 3
    centre = [drawn[i // 3 * height + height // 3, i % 3 * width + width // 3] for i in range(5)]
    assert [tuple(colour) for colour in centre] == [
        (0, 0, 0), (95, 95, 95), (95, 95, 95), (255, 255, 255), (255, 0, 0)
    ]  # fmt: skip


def test_waveforms_have_a_line_each(tmp_path):
    signals = np.sin(np.linspace(0, 50, 400) * np.arange(1, 4)[:, None]).astype(np.float32)
    signals[1, 100:300] = np.nan
    figure = pictures.waveforms(signals, ['a', 'b', 'c'])
    [axes] = figure.axes
    assert len(axes.lines) == 3
    assert [label.get_text() for label in axes.get_yticklabels()] == ['a', 'b', 'c']
    assert pixels(figure, tmp_path / 'x.png').std() > 10


def test_a_text_run_is_shown_as_it_was_trained(tmp_path, capsys):
    config = commands.tiny_text_config(tmp_path, ['total_steps=4', 'task.sample_tokens=0'])
    train_lib.train(config, tmp_path / 'run')
    status, out, err = commands.called(
        capsys, 'bigmodels.data.inspect', f'--workdir={tmp_path / "run"}', '--steps=2:4'
    )
    assert status == 0, err
    assert [line for line in out.splitlines() if line.startswith('step')] == [
        'step 2 (batch 1), 8 examples',
        'step 3 (batch 2), 8 examples',
    ]
    batch = runs.open_run(tmp_path / 'run').batches[1]
    text = (tmp_path / 'input.txt').read_text()
    shown = out.split('\n\nstep 3')[0]
    for tokens in batch['inputs']:
        words = bytes(tokens.tolist()).decode()
        assert words in text
        assert textwrap.indent(words, '    ') in shown
        assert f'text_files[{text.index(words) // 32}] inputs:' in shown


def test_digits_of_a_config_are_drawn_with_their_ids(tmp_path, capsys):
    status, out, err = commands.called(
        capsys,
        'bigmodels.data.inspect',
        '--config=configs/digits_mlp.py:tiny',
        '--config.batch_size=6',
        '--steps=3:4',
        f'--out={tmp_path / "pictures"}',
    )
    assert status == 0, err
    config = config_lib.load(str(commands.ROOT / 'configs/digits_mlp.py:tiny'), ['batch_size=6'])
    settings = experiment.from_config(config)
    [(source, _)] = experiment.training_sources(settings)
    rows = [line.split() for line in out.splitlines() if line.startswith('digits[')]
    batches, _ = experiment.training_batches(
        settings, experiment.make_task(settings), [(source, 1.0)]
    )
    assert [int(label) for _, label, _ in rows] == batches[2]['targets'].tolist()
    for id, label, weight in rows:
        assert source[int(id[7:-1])]['label'] == int(label)
        assert weight == '1'
    [path] = (tmp_path / 'pictures').iterdir()
    assert f'inputs: {path}' in out
    with Image.open(path) as picture:
        assert picture.format == 'PNG'
        assert picture.size[0] > 400


def test_a_mixture_s_examples_have_the_names_of_their_sources(tmp_path):
    for name in ('b', 'a'):
        np.savez(tmp_path / f'{name}.npz', image=np.zeros((5, 8, 8)), label=np.zeros(5, int))
    sources = {name: {'name': 'npz', 'path': str(tmp_path / f'{name}.npz')} for name in 'ba'}
    config = config_lib.load(str(commands.ROOT / 'configs/digits_mlp.py:tiny'))
    with config.unlocked():
        config.data.train = dict(name='mixture', sources=sources, weights=dict(b=1, a=3))
    settings = experiment.from_config(config)
    parts = experiment.training_parts(
        experiment.make_task(settings), experiment.training_sources(settings)
    )
    ids = experiment.batch_ids(dataclasses.replace(settings, batch_size=20), parts, 0)
    assert sum(id.startswith('a[') for id in ids) == 15
    assert set(ids) == {f'{name}[{i}]' for name in 'ab' for i in range(5)}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--steps=1:2'], 'one of the arguments --config --workdir is required'),
        (['--config=x.py', '--workdir=x', '--steps=1:2'], 'not allowed with'),
        (['--config=x.py', '--steps=0:2'], "'0:2' is not FIRST:STOP"),
        (['--config=x.py', '--steps=5'], "'5' is not FIRST:STOP"),
        (['--workdir=x', '--steps=1:2', '--config.seed=1'], 'takes no --config.KEY=VALUE'),
        (['--config=x.py', '--steps=1:2', '--outt=x'], 'it is none of the options above'),
    ],
)
def test_mistakes_of_the_command_line(arguments, message, capsys):
    with pytest.raises(SystemExit):
        inspect.parse(arguments)
    assert message in capsys.readouterr().err


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(errors.UserError, match='holds no run'):
        runs.open_task(tmp_path)
