"""Texts of a file continued by the command, as each is continued alone."""

import dataclasses
import json
import pathlib
import types

import pytest

from bigmodels import errors, predict
from bigmodels.data import inputs
from bigmodels.deploy.continuations import Continuations
from tests.deploy.test_generate import GREEDY, generate_text, task_and_params

PROMPTS = ['abc', 'b', 'a head', 'cabbage', 'deaf', 'bad egg']


def make_run(**fields):
    task, params = task_and_params()
    task = dataclasses.replace(task, **dict(sample_tokens=9) | fields)
    config = {'task': {'name': 'language_modeling'}}
    return types.SimpleNamespace(
        task=task, model=task.model, params=params, workdir=pathlib.Path('run'), config=config
    )


def answers(run, path, batch_size=0):
    records = inputs.read_inputs(str(path), predict.record_fields(run))
    return list(predict.predict(run, records, batch_size))


@pytest.mark.parametrize('batch_size', [0, 1, 4])
def test_each_line_is_continued_as_alone(tmp_path, batch_size):
    run, file = make_run(), tmp_path / 'prompts.txt'
    file.write_text('\n\n'.join(PROMPTS) + '\n')
    found = answers(run, file, batch_size)
    assert [where for where, _ in found] == [f'{file}:{2 * i + 1}' for i in range(6)]
    for prompt, (_, answer) in zip(PROMPTS, found, strict=True):
        assert answer == {
            'text': generate_text(run.task, run.params, [prompt], 9, GREEDY, seed=0)[0]
        }


def test_json_lines_and_what_ends_a_text(tmp_path):
    run, file = make_run(), tmp_path / 'prompts.jsonl'
    file.write_text(''.join(json.dumps({'prompt': prompt, 'id': 3}) + '\n' for prompt in PROMPTS))
    whole = [answer['text'] for _, answer in answers(run, file)]
    vocabulary = run.task.vocabulary
    end = next(iter(vocabulary.encode(whole[0][4])))

    class Ending(type(vocabulary)):
        end_of_text = int(end)

    ended = make_run(vocabulary=Ending(), append_end_of_text=True)
    cut = [answer['text'] for _, answer in answers(ended, file)]
    assert cut == [text.split(whole[0][4])[0] for text in whole]
    assert len(cut[0]) < 9


def test_a_prompt_gets_what_room_there_is(tmp_path):
    run, file = make_run(sample_tokens=300), tmp_path / 'prompts.txt'
    file.write_text('a' * 30)
    [(_, answer)] = answers(run, file)
    assert len(run.task.vocabulary.encode(answer['text'])) == 2
    assert Continuations(run, 1).example({'prompt': ''})['inputs'].shape == (1,)


@pytest.mark.parametrize(
    ('record', 'message'),
    [
        ({'prompt': 'a' * 32}, r'record 1: A prompt of 32 tokens leaves no room .* of 32'),
        ({'prompt': 5}, r"record 1: The field 'prompt' is int64, wanted str"),
        ({'text': 'a'}, r"record 1 lacks 'prompt'"),
    ],
)
def test_what_cannot_be_continued_is_named(tmp_path, record, message):
    file = tmp_path / 'prompts.jsonl'
    file.write_text(json.dumps({'prompt': 'a'}) + '\n' + json.dumps(record) + '\n')
    with pytest.raises(errors.UserError, match=message):
        answers(make_run(), file)


def test_an_answer_of_no_tokens_is_refused():
    with pytest.raises(errors.UserError, match=r'sample_tokens = 0 .* at least 1'):
        Continuations(make_run(sample_tokens=0), 1)
