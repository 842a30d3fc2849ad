"""Sparse features: the model, its task through the loop, and what of a loss they keep."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import config, errors, runs, train
from bigmodels.data import tokenizers
from bigmodels.data.sources import table_sources
from bigmodels.interpret import activations, sparse_features
from bigmodels.models.sparse_autoencoder import SparseAutoencoder
from bigmodels.models.transformer import Transformer
from bigmodels.tasks.language_modeling import LanguageModeling
from bigmodels.tasks.sparse_coding import SparseCoding
from tests import commands

RNG = jax.random.key(0)


def test_few_features_of_unit_directions_are_added():
    model = SparseAutoencoder(num_features=12, top_k=3)
    x = jax.random.normal(RNG, (5, 4))
    params = jax.tree.map(lambda p: p + 0.1, model.init(RNG, x)['params'])
    features, made = model.apply({'params': params}, x)
    p = jax.tree.map(np.float64, params)
    wanted = np.maximum((x - p['bias']) @ p['encoder']['kernel'] + p['encoder']['bias'], 0)
    for row in wanted:
        row[np.argsort(-row)[3:]] = 0
    np.testing.assert_allclose(features, wanted, rtol=1e-4, atol=1e-5)
    directions = p['decoder'] / np.linalg.norm(p['decoder'], axis=1, keepdims=True)
    np.testing.assert_allclose(made, wanted @ directions + p['bias'], rtol=1e-4, atol=1e-5)
    free, _ = SparseAutoencoder(num_features=12, top_k=0).apply({'params': params}, x)
    assert (free > 0).sum() > (features > 0).sum()
    start = model.init(RNG, x)['params']
    unit = start['decoder'] / jnp.linalg.norm(start['decoder'], axis=1, keepdims=True)
    np.testing.assert_allclose(start['encoder']['kernel'], unit.T)
    with pytest.raises(errors.UserError, match='top_k = 13 must be from 0 to num_features = 12'):
        SparseAutoencoder(num_features=12, top_k=13)


def test_figures_of_a_set_by_hand():
    task = SparseCoding(SparseAutoencoder(num_features=2, top_k=0), sparsity=0.5)
    vectors = np.float32([[3, 0], [0, 0], [3, 0], [0, 4]])
    task = task.fit(table_sources.Columns({'activations': vectors}))
    assert task.scale == pytest.approx(np.sqrt(34 / 8))
    params = {
        'decoder': jnp.float32([[1, 0], [-5, 0]]), 'bias': jnp.zeros(2),
        'encoder': {'kernel': jnp.float32([[1, -1], [0, 0]]), 'bias': jnp.zeros(2)},
    }  # fmt: skip
    batch = {'inputs': vectors, 'weights': np.ones(4, np.float32)}
    loss, (pairs, _) = task.loss_fn(params, {}, batch, RNG, train=True)
    error = 16 / task.scale**2 / 2 / 4
    assert pairs['mse'][0] / 4 == pytest.approx(error)
    assert loss == pytest.approx(error + 0.5 * 6 / task.scale / 4)
    assert pairs['active'][0] / 4 == 0.5
    outcomes = {k: np.asarray(v) for k, v in task.outcomes(params, {}, batch).items()}
    variance = np.square(vectors - vectors.mean(0)).sum()
    assert task.scores(outcomes) == pytest.approx(
        {'explained_variance': 1 - 16 / variance, 'dead_features': 0.5}
    )
    bad = table_sources.Columns({'activations': np.full((3, 2), np.nan)})
    with pytest.raises(errors.UserError, match='vector of finite numbers'):
        task.fit(bad)


def test_what_is_made_again_whole_keeps_the_loss_and_nothing_keeps_none():
    model = Transformer(vocab_size=256, num_layers=1, embed_dim=8, num_heads=2, max_length=8)
    task = LanguageModeling(model, {}, 6, vocabulary=tokenizers.Bytes())
    ids = np.random.default_rng(0).integers(0, 256, (2, 6), np.int32)
    batch = {'inputs': ids, 'targets': ids, 'weights': np.ones((2, 6), np.float32)}
    params = jax.jit(task.init)(RNG, batch)['params']
    run = types.SimpleNamespace(task=task, params=params, model_state={})

    def losses(made):
        coder = types.SimpleNamespace(coded=lambda _, vectors: (None, made * vectors))
        coder = types.SimpleNamespace(task=coder, params={})
        return sparse_features.kept(run, coder, 'layers_0', [batch, batch])

    whole, nothing = losses(1.0), losses(0.0)
    alone = jax.jit(lambda params: task.loss_fn(params, {}, batch, RNG, False)[0])(params)
    assert whole.clean == pytest.approx(float(alone), rel=1e-5)
    assert whole.recovered == pytest.approx(1, abs=1e-3)
    assert nothing.coded == pytest.approx(nothing.ablated)
    assert nothing.recovered == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ('split', 'train', 'valid'),
    [
        ('valid', [*range(20)], [100, 101]),
        ('train', [*range(20)], [20, 21]),
    ],
)
def test_what_is_held_out_is_in_a_file_of_its_own(split, train, valid, tmp_path, monkeypatch):
    starts = {'train': 0, 'valid': 100}

    def collect(run, path, split, count):
        return np.arange(starts[split], starts[split] + count)[:, None]

    monkeypatch.setattr(sparse_features, 'collect', collect)
    sparse_features._write(None, 'layers_0', split, 20, tmp_path / 'a')
    for name, wanted in (('train', train), ('valid', valid)):
        assert np.load(tmp_path / f'a/{name}.npz')['activations'][:, 0].tolist() == wanted
    (tmp_path / 'b/valid.npz').mkdir(parents=True)
    with pytest.raises(errors.UserError, match='valid.npz cannot be written: Is a directory'):
        sparse_features._write(None, 'layers_0', split, 20, tmp_path / 'b')


@pytest.mark.slow
def test_from_a_language_model_to_the_loss_that_its_features_keep(tmp_path, capsys, monkeypatch):
    run, path = tmp_path / 'runs' / 'text', 'layers_0'
    train.train(commands.tiny_text_config(tmp_path), run)
    monkeypatch.chdir(tmp_path)
    sets = json.loads((run / 'config.json').read_text())['data']['evals']
    options = dict(path=path, split=next(iter(sets)))

    def command(name, **given):
        with pytest.MonkeyPatch.context() as patch:
            arguments = [f'--{key}={value}' for key, value in (given | options).items()]
            patch.setattr('sys.argv', ['', name, *arguments])
            capsys.readouterr()
            sparse_features.main()
        return capsys.readouterr().out

    said = command('collect', workdir=run, to='runs/activations', tokens=600)
    assert '600 vectors of 32' in said
    found = np.load('runs/activations/train.npz')['activations']
    opened = runs.open_run(run)
    variables = opened.params, opened.model_state, opened.batches[0]
    _, wanted = activations.capture(opened.task, *variables, [path])
    np.testing.assert_allclose(found[:32], wanted[path][0], rtol=1e-4, atol=1e-5)
    overrides = ['model.num_features=64', 'model.top_k=16', 'total_steps=200', 'batch_size=64']
    spec = str(commands.ROOT / 'configs/sparse_autoencoder.py:tiny')
    figures = train.train(config.load(spec, overrides), tmp_path / 'coder')
    assert figures['valid/explained_variance'] > 0.3
    assert 0 <= figures['valid/dead_features'] < 1
    said = command('evaluate', workdir='coder', of=run, batches=2)
    rows = dict(line.split() for line in said.splitlines())
    assert list(rows) == ['loss', 'clean', 'coded', 'ablated', 'recovered']
    assert len({rows[name] for name in ('clean', 'coded', 'ablated')}) == 3
    with pytest.raises(
        errors.UserError, match=r'one module .* is of layers_0 \[8, 32, 32\], layers'
    ):
        sparse_features.collect(opened, r'layers_\d', 'train', 10)
    with pytest.raises(errors.UserError, match="held-out set 'nothing'"):
        sparse_features.collect(opened, path, 'nothing', 10)
