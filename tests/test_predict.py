"""Raw input answered by command, as its run was trained: tables, images, lines, series, graphs."""

import csv
import gzip
import json
import sys
import types
import warnings

import numpy as np
import pytest
from PIL import Image

from bigmodels import config, errors, predict, runs, train
from bigmodels.data.sources.table_sources import Digits
from bigmodels.tasks.classification import Classification
from bigmodels.tasks.sparse_coding import SparseCoding
from tests import commands
from tests.data import image_files
from tests.tasks import table_files


def fitted(folder, spec, *overrides):
    """A run of a few steps."""
    loaded = config.load(str(commands.ROOT / spec), list(overrides))
    train.train(loaded, folder)
    return str(folder)


def answers(capsys, workdir, given, *options):
    """What the command prints, line by line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, 'argv', ['predict', f'--workdir={workdir}', f'--input={given}', *options]
        )
        capsys.readouterr()
        predict.main()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture(scope='module')
def table_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('table')
    table_files.write_adult(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('BIGMODELS_DATA', str(folder))
        fitted(folder / 'run', 'configs/adult.py:tiny', 'batch_size=64', 'total_steps=60',
               'checkpoint.every=60')  # fmt: skip
    return folder


def test_a_table_is_answered_as_it_was_evaluated(table_run, tmp_path, capsys):
    test = table_run / 'adult' / 'adult_test.csv.gz'
    found = answers(capsys, table_run / 'run', test)
    with gzip.open(test, 'rt') as stream:
        labels = [row['income'] for row in csv.DictReader(stream)]
    assert [answer['input'] for answer in found] == [f'{test}, record {i}' for i in range(100)]
    right = np.mean([a['label'] == label for a, label in zip(found, labels, strict=True)])
    evaluated = json.loads((table_run / 'run' / 'summary.json').read_text())['final']
    assert right == pytest.approx(evaluated['test/accuracy'])
    # Neither how many go together nor the kind of the file changes an answer.
    lines = tmp_path / 'some.jsonl'
    with gzip.open(test, 'rt') as stream:
        rows = list(csv.DictReader(stream))[:3]
    lines.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    out = tmp_path / 'answers.jsonl'
    assert answers(capsys, table_run / 'run', lines, '--batch_size=2', f'--output={out}') == []
    for line, answer in zip(out.read_text().splitlines(), found, strict=False):
        again = json.loads(line)
        assert again['label'] == answer['label']
        assert again['probability'] == pytest.approx(answer['probability'], abs=1e-5)


def test_an_output_is_kept_until_there_is_an_answer_and_is_no_input(table_run, tmp_path, capsys):
    out, given = tmp_path / 'answers.jsonl', tmp_path / 'given.jsonl'
    out.write_text('kept\n')
    given.write_text('{}\n')
    workdir, test = table_run / 'run', table_run / 'adult' / 'adult_test.csv.gz'
    for source, output, message in (
        (given, out, 'record 0 lacks'),
        (tmp_path / 'nothing.csv', out, 'There is no file'),
        (given, given, r'--output = .*given\.jsonl is among what is read'),
        (tmp_path, tmp_path / 'new.jsonl', r'--output = .*new\.jsonl is among what is read'),
        (test, tmp_path, 'cannot be written: Is a directory'),
    ):
        with pytest.raises(errors.UserError, match=message):
            answers(capsys, workdir, source, f'--output={output}')
    assert out.read_text() == 'kept\n'
    assert given.read_text() == '{}\n'


def test_a_whole_batch_is_answered_before_the_next_record_comes():
    def records():
        for number in range(5):
            read.append(number)
            yield number

    read = []
    batches = predict._batches(records(), lambda number: number > 2, 2)
    assert [(batch, len(read)) for batch in batches] == [([0, 1], 2), ([2], 4), ([3, 4], 5)]


def test_a_new_category_is_answered_and_bad_records_are_named(table_run, tmp_path, capsys):
    [record] = table_files.rows(1, seed=2)
    unseen = [*record[:-2], 'Atlantis', 'not known']  # the target is not read
    table_files.write(tmp_path / 'new.csv', [unseen])
    assert len(answers(capsys, table_run / 'run', tmp_path / 'new.csv')) == 1
    header, rest = table_files.HEADER, record[1:]
    for name, records, columns, message in [
        ('gap.csv', [record, ['?', *rest]], header, r"gap\.csv, record 1: .*'age' has no value"),
        ('word.csv', [['old', *rest]], header, r"word\.csv, record 0: .*'age' has 'old'"),
        ('short.csv', [rest], header[1:], r"short\.csv, record 0 lacks 'age'"),
    ]:
        table_files.write(tmp_path / name, records, columns)
        with pytest.raises(errors.UserError, match=message):
            answers(capsys, table_run / 'run', tmp_path / name)


@pytest.mark.parametrize('name', ['nothing.csv', 'nothing.jsonl', 'nothing'])
def test_an_input_that_is_not_there_is_named(table_run, tmp_path, capsys, name):
    with pytest.raises(errors.UserError, match=f'There is no file .*{name}'):
        answers(capsys, table_run / 'run', tmp_path / name)


@pytest.fixture(scope='module')
def image_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    for i, name in enumerate(('dark', 'light')):
        (folder / 'all' / name).mkdir(parents=True)
        for j in range(8):
            image = np.full((8, 8, 3), 60 + 120 * i + j, np.uint8)
            (folder / 'all' / name / f'{j}.png').write_bytes(image_files.encoded(image))
    source = dict(name='image_folder', path=str(folder / 'all'))
    fitted(
        folder / 'run', 'configs/digits_mlp.py:tiny', 'model.num_classes=2', 'batch_size=16',
        'task.mean=128.0', 'task.std=64.0', 'data.train.name=image_folder',
        f'data.train.path={source["path"]}', 'data.evals.valid.name=image_folder',
        f'data.evals.valid.path={source["path"]}',
    )  # fmt: skip
    return folder


def test_images_of_a_folder_are_answered_in_any_size(image_run, tmp_path, capsys):
    found = answers(capsys, image_run / 'run', image_run / 'all', '--batch_size=5')
    assert [answer['label'] for answer in found] == ['dark'] * 8 + ['light'] * 8
    for name, level, shape in (('a.jpg', 185, (30, 20, 3)), ('b.png', 60, (4, 9))):
        kind = 'JPEG' if name.endswith('jpg') else 'PNG'
        image = np.full(shape, level, np.uint8)
        (tmp_path / name).write_bytes(image_files.encoded(image, kind))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        found = answers(capsys, image_run / 'run', tmp_path)
    assert [answer['label'] for answer in found] == ['light', 'dark']
    assert 'scaled and cropped to the 8 x 8 pixels' in str(told[0].message)


@pytest.mark.parametrize('size', [1, 5])
def test_a_damaged_image_is_named_after_the_answers_before_it(image_run, tmp_path, capsys, size):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    image = image_files.encoded(pixels)
    for name, data in (('a.png', image), ('b.png', image[: len(image) // 2]), ('c.png', image)):
        (tmp_path / name).write_bytes(data)
    with pytest.raises(errors.UserError, match=r'b\.png is not a whole JPEG or PNG'):
        answers(capsys, image_run / 'run', tmp_path, f'--batch_size={size}')
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_grey_images_are_answered_by_a_run_on_grey_ones(tmp_path, capsys):
    run = fitted(tmp_path / 'run', 'configs/digits_mlp.py:tiny')
    digit = Digits('valid')[7]['image']
    (tmp_path / 'a.png').write_bytes(image_files.encoded(np.stack([digit] * 3, -1)))
    [found] = answers(capsys, run, tmp_path / 'a.png')
    opened = runs.open_run(run)
    batch = {'inputs': opened.task.preprocess({'image': digit})['inputs'][None]}
    [expected] = opened.task.predict(opened.params, opened.model_state, batch)
    assert found['label'] == expected.argmax()
    assert found['probability'] == pytest.approx(float(expected.max()), abs=1e-5)


class Letters(Classification):
    """Lines by how often each of eight letters is in them; answers with a picture too."""

    record_fields = {'line': 'text'}  # noqa: RUF012

    def preprocess(self, raw):
        if 'line' not in raw:
            return super().preprocess(raw)
        return {'inputs': np.float32([raw['line'].count(letter) for letter in 'abcdefgh'])}

    def postprocess(self, prediction):
        return {**super().postprocess(prediction), 'bars': np.uint8(255 * prediction[None])}


def test_lines_of_text_are_answered_with_pictures(tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / 'a.npz', image=rng.random((32, 8)), label=np.arange(32) % 3)
    run = fitted(
        tmp_path / 'run', 'configs/digits_mlp.py:tiny', 'task.name=tests.test_predict.Letters',
        'data.train.name=npz', f'data.train.path={tmp_path}/a.npz', 'data.evals.valid.name=npz',
        f'data.evals.valid.path={tmp_path}/a.npz', 'model.num_classes=3', 'batch_size=16',
    )  # fmt: skip
    (tmp_path / 'lines.txt').write_text('a bad cafe\n\nhedge\n')
    options = ['--trust=tests', f'--pictures={tmp_path / "shown"}']
    found = answers(capsys, run, tmp_path / 'lines.txt', *options)
    assert [a['input'].rpartition(':')[2] for a in found] == ['1', '3']
    assert np.asarray(Image.open(found[1]['bars'])).shape == (1, 3)
    with open(tmp_path / 'lines.txt') as stream:
        monkeypatch.setattr(sys, 'stdin', stream)
        piped = answers(capsys, run, '-', *options)
    assert [a['probability'] for a in piped] == [a['probability'] for a in found]


def test_an_answer_that_json_cannot_hold_is_named():
    assert json.loads(predict._json_line({'input': 'a', 'x': 0.5})) == {'input': 'a', 'x': 0.5}
    with pytest.raises(errors.UserError, match='a: the answer has a number that is not finite'):
        predict._json_line({'input': 'a', 'x': [float('nan')]})


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').write_text('no folder')
    with pytest.raises(errors.UserError, match=r'file/000003_mask\.png cannot be written'):
        predict.as_json('a.png', {'mask': np.zeros((2, 2), np.uint8)}, tmp_path / 'file', 3)


def test_a_language_model_continues_lines(tmp_path, capsys):
    path, overrides = commands.tiny_text(tmp_path)
    overrides += ['total_steps=2', 'checkpoint.every=2', 'optimizer.schedule.warmup_steps=0']
    train.train(config.load(path, overrides), tmp_path / 'run')
    (tmp_path / 'lines.txt').write_text('one\ntwo words\n')
    given = tmp_path / 'run', tmp_path / 'lines.txt'
    short = answers(capsys, *given, '--config.task.sample_tokens=3', '--batch_size=1')
    assert [answer['input'] for answer in short] == [f'{given[1]}:1', f'{given[1]}:2']
    longer = answers(capsys, *given, '--config.task.sample_tokens=5')
    for one, more in zip(short, longer, strict=True):
        assert more['text'].startswith(one['text'])
        assert set(one) == {'input', 'text'}


def test_what_answers_nothing_says_so(capsys, monkeypatch):
    run = types.SimpleNamespace(task=SparseCoding(model=None), workdir='a')
    monkeypatch.setattr(runs, 'open_run', lambda *_, **__: run)
    with pytest.raises(errors.UserError, match=r'a holds a SparseCoding, which answers no records'):
        answers(capsys, 'a', '-')


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('--batch_size=-1', '--batch_size = -1 must be at least 0'),
        ('--output=not/there.jsonl', '--output = not/there.jsonl: there is no folder for it'),
    ],
)
def test_options_that_cannot_be_are_refused_before_the_run_is_opened(capsys, option, message):
    with pytest.raises(errors.UserError, match=message):
        answers(capsys, 'no run', '-', option)
