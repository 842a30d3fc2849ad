"""A run asked by the library lm_eval, of local tasks, against our own evaluation."""

import json
import sys
import types

import jax
import numpy as np
import pytest

from bigmodels import errors, runs, train
from bigmodels.deploy import multiple_choice, scoring
from bigmodels.deploy.sampling import Sampling
from bigmodels.deploy.text import generate_text
from bigmodels.interop import lm_eval as command
from bigmodels.tasks.chat import shifted
from tests import commands
from tests.deploy.test_generate import make_params, make_task


def test_the_library_may_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'lm_eval', None)
    monkeypatch.setattr('sys.argv', ['', '--workdir=runs/a', '--tasks=b'])
    with pytest.raises(errors.UserError, match=r"pip install -e '\.\[evaluation\]'"):
        command.main()


@pytest.fixture(scope='module')
def harness():
    pytest.importorskip('lm_eval', reason="needs pip install 'bigmodels[evaluation]'")
    from bigmodels.interop import harness

    return harness


@pytest.fixture(scope='module')
def model(harness):
    task = make_task(tie_embeddings=False)
    run = types.SimpleNamespace(task=task, params=make_params(task), model=task.model)
    return harness.Model(run, batch_size=3)


def instances(*arguments):
    return [types.SimpleNamespace(args=args) for args in arguments]


def test_log_likelihoods_are_those_of_our_evaluation(model):
    """Of texts after others, of whole ones, and of one that is longer than the context."""
    task, params = model._task, model._params

    def evaluated(before, after):
        """As `evaluate` has it: the loss of the tokens that have a weight."""
        ids = np.frombuffer((before + after).encode(), np.uint8).astype(np.int32)
        example = shifted(ids, np.arange(len(ids)) >= len(before), 40)
        batch = {key: value[None, :32] for key, value in example.items()}
        loss = jax.jit(task.loss_fn, static_argnames='train')
        _, (pairs, _) = loss(params, {}, batch, jax.random.key(0), train=False)
        assert pairs['loss'][1] == len(after)
        return -float(pairs['loss'][0])

    pairs = [('abc', ' de'), ('a b', 'c'), ('', 'cab'), ('abcdefgh' * 2, 'ab'), ('a', 'b' * 32)]
    found = model.loglikelihood(instances(*pairs))
    wanted = [evaluated(before or '\0', after) for before, after in pairs]
    np.testing.assert_allclose([nats for nats, _ in found], wanted, rtol=1e-4)
    [likely] = generate_text(task, params, ['abc'], 2, Sampling(0), seed=0)
    assert model.loglikelihood(instances(('abc', likely)))[0][1]
    assert not model.loglikelihood(instances(('abc', likely[:1] + '\x7f')))[0][1]
    text = 'abcdefgh ' * 8
    windows = [('\0', text[:32]), (text[31], text[32:64]), (text[39:64], text[64:])]
    wanted = [sum(evaluated(*window) for window in windows), evaluated('\0', 'ab')]
    whole = model.loglikelihood_rolling(instances((text,), ('ab',)))
    np.testing.assert_allclose(whole, wanted, rtol=1e-4)
    with pytest.raises(errors.UserError, match='33 tokens, more than the context of 32'):
        model.loglikelihood(instances(('a', 'b' * 33)))


def test_generated_texts_are_ours_up_to_a_stop(model):
    prompts = ['abc', 'a', 'hgf', 'b' * 40]
    ours = generate_text(
        model._task, model._params, [prompt[-22:] for prompt in prompts], 10, Sampling(0), seed=0
    )
    greedy = {'max_gen_toks': 10, 'do_sample': False, 'until': []}
    assert model.generate_until(instances(*((p, greedy) for p in prompts))) == ours
    stop = ours[0][3:5]
    asked = {'max_gen_toks': 10, 'until': [stop, '\n\n'], 'temperature': 0.0}
    assert model.generate_until(instances(('abc', asked))) == [ours[0].split(stop)[0]]
    for bad, message in (
        ({'max_gen_toks': 32}, 'from 1 to 31'),
        ({'max_gen_toks': 1, 'top_pp': 1}, "'top_pp'.*top_p"),
    ):
        with pytest.raises(errors.UserError, match=message):
            model.generate_until(instances(('a', bad)))


TASK = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}]
"""


@pytest.mark.slow
def test_the_command_asks_a_task_of_a_file(harness, tmp_path, capsys, monkeypatch):
    for name in ('HF_DATASETS_OFFLINE', 'HF_HUB_OFFLINE'):
        monkeypatch.setenv(name, '1')
    train.train(commands.tiny_text_config(tmp_path), tmp_path / 'run')
    questions = [{'question': 'def f', 'choices': ['(x):', 'zz', '!'], 'answer': 0},
                 {'question': 'import', 'choices': ['qq', ' jax'], 'answer': 1}]  # fmt: skip
    file = tmp_path / 'questions.jsonl'
    file.write_text('\n'.join(map(json.dumps, questions)))
    (tmp_path / 'sums.yaml').write_text(TASK % file)
    options = dict(workdir=tmp_path / 'run', tasks='sums', include_path=tmp_path)
    printed = commands.printed(command, capsys, **options)
    figures = json.loads(printed[printed.index('{') :])
    run = runs.open_run(tmp_path / 'run')
    right = 0
    for question in questions:
        pairs = [
            multiple_choice.encoded(run.task, question['question'], choice)
            for choice in question['choices']
        ]
        nats, _ = scoring.log_likelihoods(run.model, run.params, pairs, 4)
        right += nats.argmax() == question['answer']
    assert figures['sums']['acc,none'] == pytest.approx(right / 2)
    assert figures['step'] == 20
    with pytest.raises(errors.UserError, match="no task 'nothing'"):
        commands.printed(command, capsys, **options | {'tasks': 'nothing'})
