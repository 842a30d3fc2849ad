"""The policy's loss against its published form, worked out from answers that are made again."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import config, errors, predict, runs, train
from bigmodels.data import pipeline, tokenizers
from bigmodels.data.sources.sum_sources import Sums
from bigmodels.deploy.sampling import Sampling
from bigmodels.models.transformer import Transformer
from bigmodels.tasks import GroupPolicy
from bigmodels.tasks.group_policy import advantages, rewards
from tests import commands

END = tokenizers.Bytes.end_of_text


def make_task(**changes):
    model = Transformer(vocab_size=256, num_layers=2, embed_dim=16, num_heads=2, max_length=16)
    fields = dict(prompt_length=6, answer_length=4, group_size=3, vocabulary=tokenizers.Bytes())
    return GroupPolicy(model, {'name': 'bytes'}, **fields | changes)


@functools.cache
def task_batch_and_params():
    task, source = make_task(temperature=0.7), Sums(1)
    batch = pipeline.stacked([task.preprocess(source[i]) for i in (3, 20, 75)])
    batch['weights'] = np.array([1, 1, 0], np.float32)
    params = task.init(jax.random.key(0), batch)['params']
    return task, batch, jax.tree.map(lambda leaf: 4 * leaf, params)  # far from uniform


@functools.cache
def forward(model):
    return jax.jit(lambda params, inputs: model.apply({'params': params}, inputs))


def logits_of(task, params, ids):
    """Of the whole sequence, without a cache: [L, V]."""
    return forward(task.model)(params, np.pad(ids, (0, 16 - len(ids)))[None])[0, : len(ids)]


def test_an_example_is_a_prompt_and_what_ends_its_answer():
    example = make_task().preprocess({'prompt': '12+3=', 'answer': '15'})
    assert example['inputs'].tolist() == [*b'12+3=', 0]
    assert example['lengths'] == 5
    assert example['targets'].tolist() == [*b'15', END, -1]
    assert make_task().preprocess({'prompt': '1+1='}).keys() == {'inputs', 'lengths'}


@pytest.mark.parametrize(
    'changes', [dict(dropout_rate=0.1), dict(moe=dict(num_experts=2, experts_per_token=1))]
)
def test_what_makes_an_answer_less_probable_than_when_it_was_drawn_is_refused(changes):
    task, batch, params = task_batch_and_params()
    changed = dataclasses.replace(task, model=task.model.clone(**changes))
    with pytest.raises(errors.UserError, match=r'dropout_rate = 0 and model\.moe\.capacity_factor'):
        changed.loss_fn(params, {}, batch, jax.random.key(0), train=True)


def test_a_prompt_begins_as_documents_do():
    class Begun(tokenizers.Bytes):
        begin_of_text = 1

    example = make_task(vocabulary=Begun()).preprocess({'prompt': '12+3=', 'answer': '15'})
    assert example['inputs'].tolist() == [1, *b'12+3=']
    assert example['targets'].tolist() == [*b'15', END, -1]


def test_rewards_are_for_the_whole_answer_and_its_end():
    targets = jnp.array([[49, 53, END, -1]] * 5)
    tokens = jnp.array([[49, 53, END, 0], [49, 53, 48, END], [49, END, 0, 0],
                        [49, 53, 48, 48], [49, 54, END, 0]])  # fmt: skip
    counts = jnp.array([3, 4, 2, 4, 3])
    assert rewards(tokens, counts, targets).tolist() == [1, 0, 0, 0, 0]


def test_advantages_compare_the_answers_of_a_prompt():
    found = advantages(jnp.array([[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]))
    expected = np.array([0.75, -0.25, -0.25, -0.25]) / np.sqrt(0.75 * 0.25)
    np.testing.assert_allclose(found[0], expected, rtol=1e-3)
    assert not found[1:].any()


def test_loss_is_the_advantage_weighted_likelihood_of_what_was_answered(monkeypatch):
    """Against the model called on each answer alone, with rewards that are not all the same."""
    task, batch, params = task_batch_and_params()
    rng = jax.random.key(5)
    repeated = {key: jnp.repeat(value, 3, axis=0) for key, value in batch.items()}
    tokens, counts, _ = task.answers(
        params, repeated, jax.random.split(rng)[0], Sampling(temperature=0.7)
    )
    given = np.random.default_rng(0).integers(0, 2, (3, 3)).astype(np.float32)
    monkeypatch.setattr(
        'bigmodels.tasks.group_policy.rewards', lambda *_: jnp.asarray(given.ravel())
    )
    losses = []
    for prompt in range(3):
        gained = (given[prompt] - given[prompt].mean()) / (given[prompt].std() + 1e-4)
        for answer in range(3):
            row = 3 * prompt + answer
            ids, count = tokens[row], int(counts[row])
            length = int(batch['lengths'][prompt])
            whole = np.concatenate([batch['inputs'][prompt][:length], ids[:count]])
            logits = logits_of(task, params, whole) / 0.7
            log_probs = jax.nn.log_softmax(logits)[
                np.arange(length - 1, len(whole) - 1), ids[:count]
            ]
            losses.append(-gained[answer] * float(log_probs.mean()))
    expected = np.reshape(losses, (3, 3)).mean(1)
    loss_fn = jax.jit(task.loss_fn, static_argnames='train')
    loss, (pairs, _) = loss_fn(params, {}, batch, rng, train=True)
    np.testing.assert_allclose(loss, expected[:2].mean(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(pairs['reward'][0] / pairs['reward'][1], given[:2].mean(), rtol=1e-6)
    assert len(set(counts.tolist())) > 1 or len(np.unique(tokens)) > 3


def test_evaluation_takes_the_likeliest_answers():
    task, batch, params = task_batch_and_params()
    answers = np.asarray(task.predict(params, {}, batch))
    for row, answer in enumerate(answers):
        ids = batch['inputs'][row][: batch['lengths'][row]].tolist()
        for token in answer:
            best = int(logits_of(task, params, np.array(ids))[-1].argmax())
            assert best == (END if token == -1 else token)
            if token == -1:
                break
            ids.append(best)
    right = dict(batch, targets=np.where(answers == -1, END, answers))
    right['targets'] = np.stack(
        [np.where(np.cumsum(row == END) > 1, -1, row) for row in right['targets']]
    )
    _, (pairs, _) = task.loss_fn(params, {}, right, jax.random.key(0), train=False)
    assert pairs['reward'] == (2, 2)


def test_mistakes_are_told():
    with pytest.raises(errors.UserError, match='together exceed model.max_length = 16'):
        make_task(prompt_length=13)
    with pytest.raises(errors.UserError, match='task.group_size = 1 must be at least 2'):
        make_task(group_size=1)
    with pytest.raises(errors.UserError, match='task.temperature = 0'):
        make_task(temperature=0.0)
    with pytest.raises(errors.UserError, match='has 7 tokens, wanted 1 to task.prompt_length = 6'):
        make_task().preprocess({'prompt': '123+45='})
    with pytest.raises(errors.UserError, match='The answer is empty'):
        make_task().preprocess({'prompt': '1+1=', 'answer': ''})


def test_the_tiny_variant_goes_on_from_the_examples(tmp_path):
    spec = f'{commands.ROOT}/configs/arithmetic.py:'
    train.train(config.load(spec + 'tiny', ['total_steps=3']), tmp_path / 'examples')
    changes = [f'init_from.workdir={tmp_path / "examples"}', 'total_steps=3']
    train.train(config.load(spec + 'tiny_policy', changes), tmp_path / 'policy')
    run = runs.open_run(tmp_path / 'policy')
    [(_, answer)] = predict.predict(run, [('one', {'prompt': '3+4='})])
    assert isinstance(answer, str)
    final = json.loads((tmp_path / 'policy' / 'summary.json').read_text())['final']
    assert 0 <= final['valid/reward'] <= 1
