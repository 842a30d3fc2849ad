"""Choices by their likelihood, against probabilities multiplied one by one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors
from bigmodels.data import subwords, tokenizers
from bigmodels.deploy import multiple_choice, scoring, text
from bigmodels.models.transformer import Transformer
from bigmodels.tasks.chat import Chat
from bigmodels.tasks.language_modeling import LanguageModeling

QUESTIONS = [
    {'question': 'Two and two?', 'choices': ['four', 'five', 'sixty'], 'answer': 0},
    {'question': 'One?', 'choices': ['1', 'two'], 'answer': 1},
    {'question': 'More?', 'choices': ['yes', 'no'], 'answer': 1},
]


@pytest.fixture(scope='module')
def model():
    return Transformer(vocab_size=256, num_layers=1, embed_dim=16, num_heads=2, max_length=48)


@pytest.fixture(scope='module')
def params(model):
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))['params']
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), params)


@pytest.mark.parametrize('kind', [LanguageModeling, Chat])
def test_the_likeliest_is_chosen(kind, model, params):
    task = kind(model, {'name': 'bytes'}, 48, vocabulary=tokenizers.Bytes())
    right, right_by_length, nats, tokens = 0, 0, 0.0, 0
    apply = jax.jit(model.apply)
    for question in QUESTIONS:
        found = []
        for choice in question['choices']:
            before = question['question'] + ' '
            if kind is Chat:
                before = f'<|user|>\n{question["question"]}\n<|assistant|>\n'
            ids = np.frombuffer((before + choice).encode(), np.uint8).astype(int)
            logits = apply({'params': params}, np.pad(ids, (0, 48 - len(ids)))[None])
            logp = np.asarray(jax.nn.log_softmax(logits[0]), np.float64)
            start = (
                len(ids) - len(choice) - (kind is LanguageModeling)
            )  # the space is of the choice
            found.append(sum(logp[i - 1, ids[i]] for i in range(start, len(ids))))
        lengths = [len(choice) for choice in question['choices']]
        right += np.argmax(found) == question['answer']
        right_by_length += np.argmax(np.divide(found, lengths)) == question['answer']
        nats -= found[question['answer']]
        tokens += lengths[question['answer']] + (kind is LanguageModeling)
    figures = multiple_choice.evaluate(task, params, QUESTIONS, batch_size=4)
    assert figures['accuracy'] == right / 3
    assert figures['accuracy_by_length'] == right_by_length / 3
    assert figures['perplexity'] == pytest.approx(np.exp(nats / tokens), rel=1e-4)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'answer': 3}, 'record 1: the answer .*3.* must be an integer from 0 to 2'),
        ({'answer': 'four'}, "the answer 'four' must be an integer"),
        ({'choices': ['four']}, 'at least two choices must be texts'),
        ({'choices': 'four'}, 'at least two choices must be texts'),
        ({'question': ''}, 'not empty'),
    ],
)
def test_bad_questions_are_named(changes, message, tmp_path):
    path = tmp_path / 'a.jsonl'
    lines = [QUESTIONS[0], QUESTIONS[0] | changes]
    path.write_text('\n'.join(map(json.dumps, lines)))
    with pytest.raises(errors.UserError, match=message):
        multiple_choice.read(str(path))


def test_a_field_that_is_not_there_and_a_question_that_is_too_long(tmp_path, model, params):
    path = tmp_path / 'a.jsonl'
    path.write_text('{"question": "One?", "choice": ["1", "2"], "answer": 0}')
    with pytest.raises(errors.UserError, match="lacks 'choices'. Did you mean 'choice'"):
        multiple_choice.read(str(path))
    task = LanguageModeling(model, {'name': 'bytes'}, 48, vocabulary=tokenizers.Bytes())
    with pytest.raises(errors.UserError, match='has 50 tokens, more than the context of 48'):
        multiple_choice.encoded(task, 'x' * 48, 'y')


def test_a_batch_of_nothing_is_refused_before_anything_is_read(monkeypatch):
    arguments = ['multiple_choice', '--workdir=none', '--input=none', '--batch_size=0']
    monkeypatch.setattr('sys.argv', arguments)
    with pytest.raises(errors.UserError, match='--batch_size=0 must be at least 1'):
        multiple_choice.main()


def test_the_likelihood_of_experts_with_a_capacity_is_of_the_text_alone(model):
    """Whatever it is padded to, and as one token after the other gives it."""
    experts = dict(num_experts=4, experts_per_token=2, mlp_dim=8, capacity_factor=0.5)
    model = model.clone(moe=experts, max_length=128)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))['params']
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), params)
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(1, 256, n), rng.integers(1, 256, 20)) for n in (9, 70)]
    together, _ = scoring.log_likelihoods(model, params, pairs, 2)
    alone = [scoring.log_likelihoods(model, params, [pair], 1)[0][0] for pair in pairs]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    for (before, after), nats in zip(pairs, together, strict=True):
        ids = np.concatenate([before, after])
        cache = model.init_cache(1, len(ids))
        positions = np.arange(len(ids))[None]
        logits, _ = model.apply({'params': params}, ids[None], positions=positions, cache=cache)
        given = jax.nn.log_softmax(logits[0, len(before) - 1 : -1].astype(jnp.float32))
        wanted = float(given[jnp.arange(len(after)), after].sum())
        assert nats == pytest.approx(wanted, rel=1e-4)


def test_a_choice_has_the_tokens_that_it_has_in_its_text(model):
    """Of a tokenizer that puts a space before every text, none is doubled."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    marked = Tokenizer(models.BPE({'▁': 0, 'a': 1, 'b': 2, '</s>': 3}, []))
    marked.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first', split=False)
    marked.decoder = decoders.Metaspace(prepend_scheme='first')
    vocabulary = subwords.HuggingFace(marked.to_str(), '</s>')
    task = LanguageModeling(model, {'name': 'bytes'}, 48, vocabulary=vocabulary)
    before, after = multiple_choice.encoded(task, 'ab', 'ba')
    assert before.tolist() == [0, 1, 2]
    assert after.tolist() == [0, 2, 1]
    assert text.spelt_text(tokenizers.spelling(vocabulary, 8), after) == ' ba'
    assert text.spelt_text(tokenizers.spelling(vocabulary, 8), [1, 7, 3], 3) == 'a'
