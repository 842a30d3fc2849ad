"""Attributions add up, are exact where a reference is, and are of what the network has learnt."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import datasets

from bigmodels import errors
from bigmodels.interpret import activations, attribution
from bigmodels.models.conformer import Conformer
from bigmodels.models.convnet import ConvNet
from bigmodels.models.recurrent import Recurrent
from bigmodels.models.tabular import TabularMLP
from bigmodels.models.transformer import Transformer
from bigmodels.models.vit import ViT
from bigmodels.tasks.classification import Classification
from bigmodels.tasks.language_modeling import LanguageModeling
from bigmodels.tasks.sound_classification import SoundClassification
from bigmodels.tasks.tables import TableClassification
from bigmodels.tasks.text_classification import TextClassification

RNG = jax.random.key(0)
IDS = jax.random.randint(RNG, (2, 6), 0, 11)
SIZES = dict(num_layers=1, embed_dim=8, num_heads=2)


def image():
    batch = {'inputs': jax.random.normal(RNG, (2, 8, 8, 1))}
    return Classification(ViT(3, patch_size=4, **SIZES)), batch, {'': (2, 8, 8, 1)}


def text():
    batch = {'inputs': IDS, 'segment_ids': jnp.array([[1] * 6, [1] * 4 + [0] * 2])}
    model = Recurrent(3, vocab_size=11, embed_dim=4, hidden_dim=3)
    return TextClassification(model, {}, 6, 'abc'), batch, {'embed': (2, 6, 4)}


def sound():
    waves = 0.3 * jax.random.normal(RNG, (2, 1600))
    front = dict(sample_rate=8000, max_seconds=0.2, num_mels=8)
    task = SoundClassification(Conformer(3, taps=3, subsampling_channels=2, **SIZES), front)
    return task, {'inputs': waves, 'lengths': jnp.array([1600, 900])}, {'': (2, 18, 8)}


def table():
    columns = dict(label_key='y', numeric=('a', 'b'), categorical=('c',))
    fields = dict(num_outputs=3, num_categories=5, embed_dim=4, numeric='linear')
    fields |= dict(hidden_dims=(4,))
    batch = {'inputs': jax.random.normal(RNG, (2, 2)), 'categories': jnp.array([[1], [4]])}
    return (
        TableClassification(TabularMLP(**fields), **columns),
        batch,
        {'': (2, 2), 'embed': (2, 1, 4)},
    )


def language():
    task = LanguageModeling(Transformer(vocab_size=11, max_length=8, **SIZES), {}, 6)
    return task, {'inputs': IDS}, {'embed': (2, 6, 8)}


@functools.cache
def made(kind):
    """(task, variables, batch, shapes) with parameters at which nothing is flat."""
    task, batch, shapes = kind()
    variables = dict(jax.jit(task.init)(RNG, batch))
    rng = np.random.default_rng(2)
    params = jax.tree.map(
        lambda leaf: leaf + np.float32(0.2 * rng.normal(size=leaf.shape)), variables.pop('params')
    )
    return task, (params, variables), batch, shapes


def answered(kind):
    """The answer of a kind as a function, and its values."""
    task, variables, batch, shapes = made(kind)
    score = attribution.class_score(jnp.array([1, 2]))
    if kind is language:
        score = attribution.token_score(jnp.array([1, 2]), jnp.array([5, 3]))
    inputs = jax.jit(lambda *variables: attribution.inputs_of(task, *variables, batch))
    values = inputs(*variables)
    assert {path: x.shape for path, x in values.items()} == shapes
    function = jax.jit(attribution.answer(task, *variables, batch, score))
    whole = jax.jit(lambda *variables: score(task.predict(*variables, batch)))(*variables)
    np.testing.assert_allclose(function(values), whole, rtol=1e-5, atol=1e-6)
    return function, values


@pytest.mark.parametrize(
    'kind', [text, pytest.param(sound, marks=pytest.mark.slow), table, language]
)
def test_attributions_of_every_input_add_up(kind):
    function, values = answered(kind)
    start = {path: 0.1 * jnp.ones_like(x) for path, x in values.items()}
    if kind in (text, language):
        real = jnp.arange(6) < jnp.array([[6], [4]])
        start = attribution.mean_embeddings(values, real)
        mean = values['embed'][1, :4].mean(0)
        np.testing.assert_allclose(start['embed'][1, 5], mean, rtol=1e-5, atol=1e-6)
    found = jax.jit(
        lambda values: attribution.integrated_gradients(function, values, start, steps=32)
    )(values)
    difference = function(values) - function(start)
    total = sum(x.reshape(2, -1).sum(1) for x in attribution.by_place(found).values())
    np.testing.assert_allclose(total, difference, rtol=0.01, atol=0.01)
    # Nothing of it is padding's, and in a causal model nothing is of later tokens.
    if kind in (text, language):
        after = attribution.by_place(found)['embed'][1, 4:]
        np.testing.assert_array_equal(after, 0)


def test_of_a_linear_model_all_methods_say_the_same():
    weights = jax.random.normal(RNG, (4, 4))
    function = lambda values: jnp.einsum('bhw,hw->b', values[''], weights)
    values = {'': jax.random.normal(jax.random.key(1), (2, 4, 4))}
    slope = jnp.broadcast_to(weights, (2, 4, 4))
    for found, wanted in [
        (attribution.gradient(function, values), slope),
        (attribution.smooth_grad(function, values, RNG), slope),
        (attribution.input_x_gradient(function, values), values[''] * weights),
        (attribution.integrated_gradients(function, values, steps=2), values[''] * weights),
        (attribution.occlusion(function, values, {'': (1, 1)}), values[''] * weights),
    ]:
        np.testing.assert_allclose(found[''], wanted, rtol=1e-5, atol=1e-5)
    covered = attribution.occlusion(function, values, {'': (2, 3)})['']
    wanted = (values[''] * weights)[:, :2, :3].sum((1, 2))
    np.testing.assert_allclose(covered[:, 1, 2], wanted, rtol=1e-5)
    np.testing.assert_allclose(attribution.by_place({'embed': slope}, norm=True)['embed'],
                               np.linalg.norm(slope, axis=-1), rtol=1e-5)  # fmt: skip


def test_occluded_tokens_are_as_without_their_embedding():
    function, values = answered(text)
    fall = attribution.occlusion(function, values, {'embed': (1,)})['embed']
    assert fall.shape == (2, 6)
    without = {'embed': values['embed'].at[:, 2].set(0)}
    np.testing.assert_allclose(fall[:, 2], function(values) - function(without), atol=1e-6)


def test_rollout_against_numpy():
    task, variables, batch, _ = made(image)
    attended = jax.jit(lambda *variables: activations.attention_maps(task, *variables, batch))
    maps = activations.stacked(attended(*variables))
    maps = jnp.concatenate([maps, maps[..., ::-1]])  # as if there were a second layer
    found = attribution.attention_rollout(maps)
    wanted = np.stack([np.eye(5)] * 2)
    for layer in np.float64(maps):
        mixed = layer.mean(1) + np.eye(5)
        wanted = mixed / mixed.sum(-1, keepdims=True) @ wanted
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize(('model', 'path', 'shape'), [
    (ConvNet(3, stages=((4,), (5,))), 'conv_1', (2, 4, 4)),
    (ViT(3, patch_size=4, **SIZES), 'layers_0/attention_norm', (2, 5)),
    (ViT(3, patch_size=4, scan_layers=True, **SIZES), 'layers/attention_norm', (2, 5)),
])  # fmt: skip
def test_grad_cam_of_a_layer(model, path, shape):
    task, batch = Classification(model), {'inputs': jax.random.normal(RNG, (2, 8, 8, 1))}
    params = jax.jit(task.init)(RNG, batch)['params']
    params['head']['kernel'] += jax.random.normal(RNG, params['head']['kernel'].shape)
    capture = jax.jit(lambda params: activations.capture(task, params, {}, batch, [path])[1])
    values = capture(params)
    score = attribution.class_score(jnp.array([0, 2]))
    function = jax.jit(attribution.answer(task, params, {}, batch, score))
    found = attribution.grad_cam(function, values)
    assert found.shape == shape
    assert (found >= 0).all()
    assert found.max() > 0
    if path == 'conv_1':  # behind it are a ReLU, maxima and the head: the slope is the head's
        x = values[path]
        pooled = jnp.max(x.reshape(2, 2, 2, 2, 2, 5), axis=(2, 4), keepdims=True)
        first = (x.reshape((*pooled.shape[:2], 2, 2, 2, 5)) == pooled) & (pooled > 0)
        kernel = params['head']['kernel'].reshape(1, 2, 1, 2, 1, 5, 3)
        kernel = kernel - kernel.mean(-1, keepdims=True)
        own = jnp.stack([kernel[0, ..., 0], kernel[0, ..., 2]])
        slope = jnp.where(first, own, 0).reshape(2, 4, 4, 5)
        wanted = np.maximum((slope.mean((1, 2), keepdims=True) * x).sum(-1), 0)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(errors.UserError, match='of one layer, and 2'):
        attribution.grad_cam(function, {'a': 1, 'b': 2})


def test_a_model_that_cannot_be_differentiated_is_named():
    class Counts(nn.Module):
        num_classes: int

        def __call__(self, inputs, train=False):
            return jax.nn.one_hot(inputs, self.num_classes).sum(1)

    task = Classification(Counts(11))
    with pytest.raises(errors.UserError, match='Counts takes ids'):
        attribution.inputs_of(task, {}, {}, {'inputs': IDS})


@functools.cache
def of_digits():
    """A network that tells scikit-learn's digits apart, trained here, and some of them."""
    images, labels = datasets.load_digits(return_X_y=True)
    images = np.float32(images.reshape(-1, 8, 8) - 5) / 6
    task = Classification(ConvNet(10, stages=((8,), (16,))))
    batch = {'inputs': images, 'targets': labels, 'weights': np.ones(len(labels), np.float32)}
    params = task.init(RNG, {'inputs': images[:1]})['params']
    tx = optax.adam(3e-3)
    loss = lambda params, some: task.loss_fn(params, {}, some, RNG, train=False)[0]

    def step(state, indices):
        params, opt_state = state
        some = jax.tree.map(lambda x: jnp.asarray(x)[indices], batch)
        updates, opt_state = tx.update(jax.grad(loss)(params, some), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    order = jax.random.randint(RNG, (150, 64), 0, 1500)
    (params, _), _ = jax.jit(lambda state: jax.lax.scan(step, state, order))(
        (params, tx.init(params))
    )
    return task, params, {'inputs': jnp.asarray(images[1500:1540])}


METHODS = {
    'integrated_gradients': lambda f, v: attribution.integrated_gradients(f, v, steps=8),
    'occlusion': lambda f, v: attribution.occlusion(f, v, {'': (1, 1)}),
}


@pytest.mark.parametrize('method', METHODS)
def test_maps_are_of_what_was_learnt(method):
    """The sanity check of Adebayo et al. 2018, and that covering what counts most costs most."""
    task, params, batch = of_digits()
    classes = jax.jit(lambda params: task.predict(params, {}, batch))(params).argmax(-1)
    score = attribution.class_score(classes)
    fresh = task.init(jax.random.key(7), batch)['params']

    @jax.jit
    def maps(params):
        function = attribution.answer(task, params, {}, batch, score)
        return METHODS[method](function, {'': batch['inputs']})['']

    found, random = maps(params), maps(fresh)
    head_only = maps(params | {'head': fresh['head']})
    for other in (random, head_only):
        alike = [
            np.corrcoef(np.ravel(a), np.ravel(b))[0, 1] for a, b in zip(found, other, strict=True)
        ]
        assert abs(np.mean(alike)) < 0.5
    function = jax.jit(attribution.answer(task, params, {}, batch, score))
    order = np.argsort(np.asarray(found).reshape(40, -1), axis=1)

    def without(indices):
        covered = np.array(batch['inputs']).reshape(40, -1)
        np.put_along_axis(covered, indices, 0, axis=1)
        return function({'': jnp.asarray(covered.reshape(40, 8, 8))}).mean()

    anywhere = np.random.default_rng(0).permuted(order, axis=1)
    assert without(order[:, -12:]) < without(anywhere[:, -12:]) - 1
