"""Direct preference optimisation by its published formula, and a run that raises the margin."""

import json
import types

import jax
import numpy as np
import pytest

from bigmodels import adapters, errors, privacy, steps, trees
from bigmodels import train as train_lib
from bigmodels.data import pipeline, tokenizers
from bigmodels.data.sources.chat_sources import Preferences
from bigmodels.models.transformer import Transformer
from bigmodels.privacy import dp_sgd
from bigmodels.tasks.preference import Preference
from tests import test_sharding
from tests.tasks import test_chat

LORA = adapters.Settings(rank=2, alpha=8.0)


def write(directory, count=24):
    """Sums whose right answer is preferred to a wrong one."""
    rng = np.random.default_rng(0)
    for name in ('train', 'test'):
        lines = [
            json.dumps({'prompt': f'{a}+{b}?', 'chosen': f'It is {a + b}.', 'rejected': f'no {a}'})
            for a, b in rng.integers(0, 9, (count, 2)).tolist()
        ]
        (directory / f'{name}.jsonl').write_text('\n'.join(lines) + '\n')
    return directory


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return write(tmp_path_factory.mktemp('preferences'))


@pytest.fixture(scope='module')
def task():
    model = Transformer(vocab_size=256, num_layers=1, embed_dim=16, num_heads=2, max_length=64)
    return Preference(model, {'name': 'bytes'}, 64, vocabulary=tokenizers.Bytes(), beta=0.3)


def test_the_loss_is_the_published_one(task, files):
    source = Preferences(str(files / 'test.jsonl'))
    batch = pipeline.take(task.examples(source, None, train=True), np.arange(3))
    assert {name: array.shape[1:] for name, array in batch.items()} == {
        name: shape.shape for name, shape in task.example_shapes().items()
    }
    params = jax.jit(task.init)(jax.random.key(0), batch)['params']
    trained, frozen = adapters.split(LORA, params, jax.random.key(1))
    moved = trees.map_named(
        lambda name, leaf: leaf + jax.random.normal(jax.random.key(len(name)), leaf.shape), trained
    )
    joined = adapters.joined(LORA, moved, frozen)

    answers = [source[i][name] for i in range(3) for name in ('chosen', 'rejected')]
    merged = adapters.merged(joined)
    ours, base = (
        np.array([logp for logp, _ in test_chat.log_probabilities(task, of, answers)])
        for of in (merged, params)
    )
    rewards = 0.3 * (ours - base)
    margins = (rewards[0::2] - rewards[1::2])[:2]
    batch['weights'][2] = 0  # a padding of the batch
    assert np.abs(margins).max() > 0.1
    loss_fn = jax.jit(task.loss_fn, static_argnames='train')
    _, (pairs, _) = loss_fn(joined, {}, batch, jax.random.key(0), train=True)
    expected = np.log1p(np.exp(-margins)).sum()
    np.testing.assert_allclose(pairs['loss'], (expected, 2), rtol=1e-4)
    np.testing.assert_allclose(pairs['margin'], (margins.sum(), 2), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(pairs['accuracy'], ((margins > 0).sum(), 2))
    with pytest.raises(errors.UserError, match='have no adapters'):
        task.loss_fn(merged, {}, batch, jax.random.key(0), train=False)


def test_without_noise_and_clipping_the_private_gradient_is_the_plain_one(task, files):
    """So the bound is of a pair's gradient, not of a share of it."""
    source = Preferences(str(files / 'test.jsonl'))
    batch = pipeline.take(task.examples(source, None, train=True), np.arange(3))
    batch['weights'][2] = 0
    params = jax.jit(task.init)(jax.random.key(0), batch)['params']
    trained, frozen = adapters.split(LORA, params, jax.random.key(1))

    def loss_fn(trained, *rest, **options):
        return task.loss_fn(adapters.joined(LORA, trained, frozen), *rest, **options)

    settings = privacy.Settings(8.0, 1e-5, clip=1e6, examples=24)
    budget = types.SimpleNamespace(settings=settings, noise_multiplier=0.0, expected=2)
    given = trained, {}, batch, jax.random.key(0), loss_fn, 1
    private, _, _ = dp_sgd.private_gradients(*given, budget=budget, most_counts=task.most_counts)
    plain, _, _ = steps.accumulated_gradients(*given)
    assert max(abs(x).max() for x in jax.tree.leaves(plain)) > 1e-3
    test_sharding.assert_close(private, plain, 1e-5)


def test_a_run_raises_the_margin(files, tmp_path):
    overrides = ['optimizer.learning_rate=0.05', 'total_steps=12', 'ema_decay=0.0']
    loaded = test_chat.tiny(files, *overrides, name='preference')
    figures = train_lib.train(loaded, tmp_path / 'run')
    assert figures['test/margin'] > 0.1
    assert figures['test/loss'] < np.log(2)
    assert figures['test/accuracy'] > 0.9


@pytest.mark.parametrize('change', ['adapter.rank=0', "adapter.trained=('norm',)"])
def test_a_base_that_is_not_frozen_is_refused(files, tmp_path, change):
    loaded = test_chat.tiny(files, change, name='preference')
    with pytest.raises(errors.UserError, match='compares the model with its frozen base'):
        train_lib.train(loaded, tmp_path / 'run')


def test_an_answer_that_is_cut_off_is_told(task):
    long = [{'role': 'user', 'content': 'x' * 60}, {'role': 'assistant', 'content': 'y'}]
    with pytest.raises(errors.UserError, match='has 86 tokens'):
        task.preprocess({'chosen': long, 'rejected': long})
