"""Masked tokens: which are scored, against losses computed from whole logits."""

import dataclasses

import jax
import numpy as np
import pytest

from bigmodels import errors
from bigmodels.data import tokenizers
from bigmodels.models.transformer import Transformer
from bigmodels.tasks.masked_language_modeling import MaskedLanguageModeling

L = 20


def make(**settings):
    model = Transformer(
        vocab_size=257, num_layers=1, embed_dim=16, num_heads=2, max_length=L,
        causal=settings.pop('causal', False),
    )  # fmt: skip
    return MaskedLanguageModeling(
        model, {'name': 'bytes'}, L, vocabulary=tokenizers.Bytes(), **settings
    )


@pytest.fixture(scope='module')
def batch():
    inputs = np.random.default_rng(0).integers(1, 256, (4, L)).astype(np.int32)
    weights = np.ones((4, L), np.float32)
    weights[3, 8:] = 0
    return {'inputs': inputs, 'weights': weights}


@pytest.fixture(scope='module')
def params(batch):
    params = make().init(jax.random.key(0), batch)['params']
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params)


def test_evaluation_is_that_of_masks_at_fixed_positions(batch, params):
    task = make(mask_rate=0.25)
    _, (pairs, _) = task.loss_fn(params, {}, batch, jax.random.key(5), train=False)
    [positions] = np.asarray(task._positions(None, (1, L), train=False))
    assert len(set(positions.tolist())) == 5
    seen = batch['inputs'].copy()
    seen[:, positions] = task.mask_id
    segment_ids = batch['weights'].astype(int)
    logits = task.logits(params, {'inputs': seen, 'segment_ids': segment_ids})
    logp = np.asarray(jax.nn.log_softmax(logits))
    told, right, count = 0.0, 0, 0
    for row in range(4):
        for position in positions:
            if batch['weights'][row, position]:
                target = batch['inputs'][row, position]
                told -= logp[row, position, target]
                right += logp[row, position].argmax() == target
                count += 1
    np.testing.assert_allclose(pairs['loss'], (told, count), rtol=1e-5)
    np.testing.assert_allclose(pairs['accuracy'], (right, count))


def test_evaluation_does_not_depend_on_the_batch(batch, params):
    task = make()
    evaluate = lambda rows: task.loss_fn(
        params, {}, {key: value[rows] for key, value in batch.items()}, jax.random.key(0), False
    )[1][0]['loss']
    alone = np.sum([evaluate(slice(row, row + 1)) for row in range(4)], axis=0)
    np.testing.assert_allclose(evaluate(slice(0, 4)), alone, rtol=1e-5)


def test_perplexity_is_that_of_a_uniform_choice():
    values = make().summary({'loss': np.log(50.0), 'accuracy': 0.5})
    assert values == pytest.approx({'loss': np.log(50.0), 'accuracy': 0.5, 'perplexity': 50.0})
    assert make().summary({'loss': 1e4})['perplexity'] > 1e300  # and no error


def test_the_end_of_a_set_is_not_seen(batch, params):
    task = make()
    other = batch['inputs'].copy()
    other[3, 8:] = 7
    figures = [
        task.loss_fn(params, {}, batch | {'inputs': inputs}, jax.random.key(0), False)[1][0]['loss']
        for inputs in (batch['inputs'], other)
    ]
    np.testing.assert_allclose(*figures, rtol=1e-6)


def test_training_masks_anew_by_the_key_alone(batch, params):
    task = make()
    step = jax.jit(lambda rng: task.loss_fn(params, {}, batch, rng, train=True)[0])
    losses = [float(step(jax.random.key(i))) for i in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]
    whole = batch | {'weights': np.ones((4, L), np.float32)}
    _, (pairs, _) = task.loss_fn(params, {}, whole, jax.random.key(0), train=True)
    assert pairs['loss'][1] == 4 * task.most_counts(whole['weights'])


def test_masked_tokens_are_not_seen(batch, params, monkeypatch):
    task = make(random_share=0.0, kept_share=0.0)
    rng = jax.random.key(2)
    positions = task._positions(jax.random.split(rng, 3)[0], (4, L), train=True)
    others = batch['inputs'].copy()
    others[np.arange(4)[:, None], positions] += 1
    states = []
    logits = Transformer.logits
    monkeypatch.setattr(
        Transformer,
        'logits',
        lambda self, p, hidden: states.append(hidden) or logits(self, p, hidden),
    )
    figures = [
        task.loss_fn(params, {}, batch | {'inputs': inputs}, rng, train=True)[0]
        for inputs in (batch['inputs'], others)
    ]
    np.testing.assert_array_equal(*states)
    assert figures[0] != figures[1]  # they are the targets


def test_texts_are_filled_in_where_they_say_mask():
    task = make()
    example = task.preprocess({'text': 'a [MASK] b[MASK]'})
    expected = np.zeros(L, np.int32)
    expected[:6] = ord('a'), 256, ord(' '), ord('b'), 256, 0
    np.testing.assert_array_equal(example['inputs'], expected)
    np.testing.assert_array_equal(example['segment_ids'], np.arange(L) < 6)
    for text, count in (('', 1), ('a' * L, L + 1)):
        with pytest.raises(errors.UserError, match=f'has {count} tokens: from 2 to .* = {L}'):
            task.preprocess({'text': text})


def test_masks_of_several_texts_are_told_as_of_one(params):
    task = make()
    rows = [task.preprocess({'text': text}) for text in ('so [MASK][MASK]!', 'a [MASK] longer one')]
    together = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    filled = np.asarray(task.predict(params, {}, together))
    for row, tokens in zip(rows, filled, strict=True):
        length = row['segment_ids'].sum()
        ids = row['inputs'][None, :length]
        own = np.asarray(task.logits(params, {'inputs': ids}))[0, :, :256].argmax(-1)
        expected = np.where(ids[0] == task.mask_id, own, ids[0])
        np.testing.assert_array_equal(tokens[:length], expected)
        assert (tokens[length:] == -1).all()
        assert len(task.postprocess(tokens)['text'].encode('utf-8', 'replace')) >= length - 1


def test_chunks_of_a_corpus_are_filled_in_as_texts_of_that_length_are(params):
    task = make()
    example = task.preprocess({'text': 'abcd[MASK]efghi[MASK]klmnopqr'})
    batch = {name: value[None] for name, value in example.items()}
    assert batch['segment_ids'].all()
    filled = task.predict(params, {}, {'inputs': batch['inputs']})
    np.testing.assert_array_equal(filled, task.predict(params, {}, batch))


def test_a_sample_that_cannot_be_encoded_is_refused_before_training():
    tokenizer = {'name': 'characters', 'characters': 'so !'}
    task = dataclasses.replace(make(), tokenizer=tokenizer, sample_text='so [MASK]!')
    assert task.fit(()).shown()[0].shape == (5,)
    with pytest.raises(errors.UserError, match="'x'"):
        dataclasses.replace(task, sample_text='x [MASK]').fit(())


def test_the_sample_shows_the_likeliest_tokens(params):
    task = make(sample_text='so [MASK]!')
    text = task.demonstrate(params, {})['sample.txt']
    given, filled, _ = text.split('\n')
    assert given == 'so [MASK]!'
    assert (filled[:2], filled[-1]) == ('so', '!')
    assert 'MASK' not in filled


def test_mistakes():
    with pytest.raises(errors.UserError, match='set model.causal to False'):
        make(causal=True)
    with pytest.raises(errors.UserError, match=r'mask_rate = 1\.0'):
        make(mask_rate=1.0)
    with pytest.raises(errors.UserError, match='random_share'):
        make(random_share=0.95)
    model = Transformer(vocab_size=256, num_layers=1, embed_dim=16, num_heads=2, causal=False)
    with pytest.raises(errors.UserError, match='model.vocab_size to at least 257'):
        MaskedLanguageModeling(model, {'name': 'bytes'}, L).fit([])
