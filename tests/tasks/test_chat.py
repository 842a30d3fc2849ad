"""Supervised fine-tuning: the loss of answers alone, what is answered, runs with adapters."""

import argparse
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import (
    adapters,
    checkpoint,
    config,
    errors,
    evaluate,
    experiment,
    rundir,
    runs,
    trees,
)
from bigmodels import train as train_lib
from bigmodels.adapters import __main__ as command
from bigmodels.adapters import peft
from bigmodels.checkpoint import values
from bigmodels.data import chat, pipeline, tokenizers
from bigmodels.data.sources.chat_sources import Chats
from bigmodels.deploy import multiple_choice
from bigmodels.deploy.sampling import Sampling
from bigmodels.deploy.text import generate_text
from bigmodels.models.transformer import Transformer
from bigmodels.tasks.chat import Chat
from tests import commands, serving
from tests.data import test_conversations

L = 80
MARKED = (
    "{% for m in messages %}{{ m.role }} {% if m.role == 'assistant' %}{% generation %}"
    '{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}'
)


def write(directory, count=24):
    """Sums, as questions and answers; the folder's train.jsonl and test.jsonl."""
    rng = np.random.default_rng(0)
    for name in ('train', 'test'):
        pairs = rng.integers(0, 9, (count, 2)).tolist()
        lines = [json.dumps({'question': f'{a}+{b}?', 'answer': f'#### {a + b}'}) for a, b in pairs]
        (directory / f'{name}.jsonl').write_text('\n'.join(lines) + '\n')
    return directory


def make(**settings):
    model = Transformer(vocab_size=256, num_layers=1, embed_dim=16, num_heads=2, max_length=96)
    settings = dict(sequence_length=L) | settings
    return Chat(model, {'name': 'bytes'}, vocabulary=tokenizers.Bytes(), **settings)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    path = write(tmp_path_factory.mktemp('sums')) / 'test.jsonl'
    return Chats(str(path), columns=('question', 'answer'))


@pytest.fixture(scope='module')
def params():
    params = jax.jit(make().init)(jax.random.key(0), {'inputs': jnp.zeros((1, L), jnp.int32)})[
        'params'
    ]
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params)


def log_probabilities(task, params, conversations):
    """What each conversation's learnt tokens have, summed by hand in float64, and their number."""
    encoded = [task.encoded(messages) for messages in conversations]
    rows = np.stack([np.pad(ids, (0, L - len(ids))) for ids, _ in encoded])
    logits = jax.jit(task.model.apply)({'params': params}, rows)
    every = np.asarray(jax.nn.log_softmax(logits), np.float64)
    return [
        (sum(logp[i - 1, ids[i]] for i in np.flatnonzero(learnt)), learnt.sum())
        for (ids, learnt), logp in zip(encoded, every, strict=True)
    ]


def test_packed_rows_have_the_loss_of_single_conversations(source, params, tmp_path):
    task = make(sequence_length=L)
    conversations = [source[i]['messages'] for i in range(len(source))]
    found = log_probabilities(task, params, conversations)
    for (_, count), (_, answer) in zip(found, conversations, strict=True):
        assert count == len(answer['content']) + 1
    total, count = -sum(logp for logp, _ in found), sum(count for _, count in found)
    loss_fn = jax.jit(task.loss_fn, static_argnames='train')
    for train in (True, False):
        examples = task.examples(source, tmp_path, train)
        assert (len(examples) < len(source)) == train
        batch = pipeline.take(examples, np.arange(len(examples)))
        _, (pairs, _) = loss_fn(params, {}, batch, jax.random.key(0), train=train)
        np.testing.assert_allclose(pairs['loss'], (total, count), rtol=1e-5)
    assert task.example_shapes().keys() == task.examples(source, tmp_path, True)[0].keys()


def test_scores_are_of_greedy_answers_to_the_first_questions(source, params):
    task = make(score_names=('final_number',), scored=3, answer_tokens=8)
    examples = task.examples(source, None, train=False)
    batch = pipeline.take(examples, np.arange(5))
    outcomes = jax.jit(task.outcomes)(params, {}, batch)
    asked = [source[i]['messages'][0]['content'] for i in range(3)]
    prompts = [task.prompt(question) for question in asked]
    greedy = Sampling(temperature=0.0)
    expected = generate_text(task, params, prompts, 8, greedy, seed=0)
    kept = jax.tree.map(np.asarray, outcomes)
    answers = [task._text(kept['answers'][i, : kept['counts'][i]]) for i in range(3)]
    assert answers == expected
    # The right answers in the place of the model's.
    right = np.stack([np.frombuffer(source[i]['messages'][1]['content'].ljust(8, '\0').encode(),
                                    np.uint8) for i in range(5)]).astype(np.int32)  # fmt: skip
    assert task.scores(kept | {'answers': right, 'counts': np.full(5, 8)}) == {'final_number': 100}
    right[1] = 0
    scores = task.scores(kept | {'answers': right, 'counts': np.full(5, 8)})
    assert scores['final_number'] == pytest.approx(200 / 3)
    later = pipeline.take(examples, np.arange(8, 12))
    assert not np.asarray(jax.jit(task.outcomes)(params, {}, later)['answers']).any()


def test_a_base_with_a_chat_template_is_tuned_in_its_own_words(tmp_path):
    vocabulary = test_conversations.published()
    task = dataclasses.replace(make(), vocabulary=vocabulary)
    messages = test_conversations.PLAIN
    example = task.preprocess({'messages': messages})
    before = chat.prompt(vocabulary, messages[:-1])
    assert example['inputs'][: example['prompt_length']].tolist() == before.tolist()
    learnt = example['targets'][example['weights'] > 0]
    assert test_conversations.spelt(vocabulary, learnt) == '1.<|im_end|>2.<|im_end|>'
    assert task.end == learnt[-1]
    assert task._text(learnt) == '1.2.'
    # What was cut into rows by another template is not taken for this one's.
    path = test_conversations.write(tmp_path / 'a.jsonl', {'messages': messages})
    other = dataclasses.replace(task, vocabulary=test_conversations.published(MARKED))
    rows = [t.examples(Chats(path), tmp_path, True)[0]['weights'].sum() for t in (task, other)]
    assert rows == [len(learnt), len(learnt) - 2]


def test_what_does_not_fit_is_told(source, tmp_path):
    with pytest.raises(errors.UserError, match=r'Record 0 .*has 3\d tokens, more than .* = 16'):
        make(sequence_length=16).examples(source, tmp_path, train=True)
    assert make(sequence_length=16, cut_conversations=True).examples(source, tmp_path, True)
    with pytest.raises(errors.UserError, match='exceed model.max_length = 96'):
        make(score_names=('final_number',), answer_tokens=17)
    with pytest.raises(errors.UserError, match='must be at least 1'):
        make(score_names=('final_number',), scored=0)


OVERRIDES = [
    'model.embed_dim=16',
    'model.num_layers=1',
    'task.sequence_length=64',
    'task.sample_tokens=4',
    'task.sample_prompt=1+1?',
    'model.max_length=80',
    'adapter.rank=2',
    'ema_decay=0.5',
    'total_steps=8',
    'checkpoint.every=4',
    'xla.xla_backend_optimization_level=0',
]


def tiny(directory, *overrides, name='chat'):
    paths = [f'data.train.path={directory}/train.jsonl']
    paths += [f'data.evals.test.path={directory}/test.jsonl']
    paths += ['task.answer_tokens=4'] if name == 'chat' else []
    return config.load(f'{commands.ROOT}/configs/{name}.py:tiny', [*paths, *OVERRIDES, *overrides])


@pytest.fixture(scope='module')
def sums(tmp_path_factory):
    return write(tmp_path_factory.mktemp('files'))


@pytest.fixture(scope='module')
def tuned(sums, tmp_path_factory):
    """(workdir, figures) of a run with adapters of a base in eight bits, and its copy."""
    directory = tmp_path_factory.mktemp('tuned')
    overrides = ['adapter.weights=int8', f'checkpoint.copy_to={directory}/copy']
    return directory, train_lib.train(tiny(sums, *overrides), directory / 'run')


def test_a_run_with_adapters_saves_its_base_once(tuned):
    directory, figures = tuned
    assert set(figures) >= {'test/loss', 'test/perplexity', 'test/final_number'}
    for place in ('run', 'copy'):
        saved = directory / place / rundir.CHECKPOINTS
        assert checkpoint.newest_good(saved) == (8, {})
        for step in checkpoint.steps(saved):
            names = trees.flatten_named(values.shapes(saved, step, 'params'))
            assert {name.rpartition('/')[2] for name in names} == {'down', 'up'}
        run = runs.open_run(directory / place)
        step = jax.jit(run.program().eval_step)
        sets = experiment.evaluation_sets(run.experiment, run.task)
        again = evaluate.evaluate(step, run.task, run.params, run.model_state, sets, run.mesh)
        assert again == pytest.approx(figures, rel=1e-5)
    base = next((directory / 'copy' / rundir.CHECKPOINTS / 'frozen').rglob('d/*'))
    data = bytearray(base.read_bytes())
    data[len(data) // 2] ^= 1
    base.write_bytes(data)
    with pytest.raises(errors.UserError, match='frozen: the checksum of .* does not agree'):
        runs.open_run(directory / 'copy')


@pytest.mark.slow
def test_runs_of_one_base_are_served_together_by_the_command(tuned, tmp_path):
    """Here one run twice, by two names."""
    directory, _ = tuned
    run = runs.open_run(directory / 'run')
    greedy = Sampling(temperature=0.0)
    [alone] = generate_text(run.task, run.params, [run.task.prompt('1+1?')], 6, greedy, seed=0)
    twin = f'--adapter=twin={run.workdir}'
    with serving.served(run.workdir, tmp_path / 'log', twin, '--name=one') as server:
        for name in ('one', 'twin'):
            asked = {'model': name, 'messages': [{'role': 'user', 'content': '1+1?'}]}
            status, answer = server.post(
                '/v1/chat/completions', asked | {'temperature': 0, 'max_tokens': 6}
            )
            assert status == 200, answer
            assert answer['choices'][0]['message']['content'] == alone


def test_a_resumed_run_with_adapters_is_the_same(tuned, sums, tmp_path):
    directory, figures = tuned
    config = tiny(sums, 'adapter.weights=int8', 'checkpoint.copy_to=')
    assert commands.resumed(directory / 'run', tmp_path / 'run', config) == figures


@pytest.mark.slow
def test_a_merged_run_is_opened_by_everything(tuned, sums, tmp_path, monkeypatch, capsys):
    directory, figures = tuned
    merged = tmp_path / 'merged'
    options = [f'--workdir={directory}/run', f'--out={merged}']
    status, out, err = commands.called(capsys, 'bigmodels.adapters', 'merge', *options)
    assert status == 0, err
    status, out, err = commands.called(capsys, 'bigmodels.evaluate', f'--workdir={merged}')
    assert status == 0, err
    assert json.loads(out)['test/loss'] == pytest.approx(figures['test/loss'], rel=1e-4)
    one, other = runs.open_run(directory / 'run'), runs.open_run(merged)
    assert trees.first_difference(adapters.merged(one.params), other.params) is None
    texts = [
        generate_text(run.task, run.params, [run.task.prompt('1+1?')], 6, Sampling(0.0), seed=0)
        for run in (one, other)
    ]
    assert texts[0] == texts[1]
    file = tmp_path / 'choices.jsonl'
    file.write_text(json.dumps({'question': '1+1?', 'choices': ['#### 2', 'x'], 'answer': 0}))
    monkeypatch.setattr('sys.argv', ['', f'--workdir={merged}', f'--input={file}'])
    multiple_choice.main()
    chosen = json.loads(capsys.readouterr().out)
    assert chosen['questions'] == 1
    assert chosen['perplexity'] < 256
    # It is what another run begins with; a run with adapters is not, nor is a merged one gone on.
    begun = train_lib.train(tiny(sums, f'init_from.workdir={merged}'), tmp_path / 'next')
    assert begun['test/loss'] < figures['test/loss']
    with pytest.raises(errors.UserError, match='holds adapters of a frozen base. Merge them'):
        train_lib.train(tiny(sums, f'init_from.workdir={directory}/run'), tmp_path / 'other')
    with pytest.raises(errors.UserError, match='holds merged adapters'):
        train_lib.train(tiny(sums), merged)
    command.export(one, argparse.Namespace(out=tmp_path / 'peft', base=''))
    read, settings = peft.read(tmp_path / 'peft', one.model)
    assert settings.scale == one.experiment.adapter.scale
    assert trees.first_difference(read, adapters.trained(settings, one.params)) is None


def test_conversations_that_are_cut_are_not_scored(tmp_path):
    path = tmp_path / 'sums.jsonl'
    whole, cut = {'question': '1+1?', 'answer': '#### 2'}, {'question': '2+2?' * 9, 'answer': '8'}
    path.write_text(json.dumps(whole) + '\n' + json.dumps(cut) + '\n')
    source = Chats(str(path), columns=('question', 'answer'))
    task = make(sequence_length=40, cut_conversations=True, scored=2)
    examples = task.examples(source, tmp_path, train=False)
    assert [example['scored'] for example in (examples[0], examples[1])] == [True, False]
    none = dataclasses.replace(task, score_names=('bleu', 'exact_match'), answer_tokens=8)
    found = none.scores({'scored': np.zeros(2, bool)})
    assert found.keys() == {'bleu', 'exact_match'}
    assert np.isnan([*found.values()]).all()


def test_the_real_questions_and_answers(shared_data, tmp_path):
    source = Chats(str(shared_data / 'gsm8k' / 'test.jsonl.gz'), columns=('question', 'answer'))
    assert len(source) == 1319
    task = make(sequence_length=L, cut_conversations=True)
    batch = pipeline.take(task.examples(source, tmp_path, train=False), np.arange(4))
    assert batch['inputs'].shape == (4, L)


def test_the_base_may_be_any_run(tmp_path):
    """The config takes the model, the tokenizer and the parameters of the directory it is given."""
    fields = dict(vocab_size=300, num_layers=1, embed_dim=8, num_heads=1, max_length=512)
    kept = {
        'model': {'name': 'transformer', **fields},
        'task': {'tokenizer': {'name': 'hugging_face', 'path': 'anywhere'}},
    }
    (tmp_path / 'config.json').write_text(json.dumps(kept))
    loaded = config.load(f'{commands.ROOT}/configs/chat.py:{tmp_path}')
    settings = experiment.from_config(loaded)
    assert experiment.make_task(settings).model == Transformer(**fields)
    assert settings.init_from.workdir == str(tmp_path)
    assert loaded.task.tokenizer.to_dict() == {'name': 'saved', 'path': f'{tmp_path}/preprocessing'}
    assert loaded.task.sequence_length + loaded.task.answer_tokens == fields['max_length']
    assert settings.adapter.rank > 0
