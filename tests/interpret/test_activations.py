"""What is captured is what was computed, and what is put in its place is what is computed on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors
from bigmodels.interpret import activations
from bigmodels.models import transformer
from bigmodels.models.mlp import MLP
from bigmodels.models.vit import ViT
from bigmodels.tasks.classification import Classification
from bigmodels.tasks.language_modeling import LanguageModeling

FIELDS = dict(vocab_size=13, num_layers=2, embed_dim=8, num_heads=2, max_length=16)


def language_model(**fields):
    model = transformer.Transformer(**{**FIELDS, **fields})
    return LanguageModeling(model, tokenizer={}, sequence_length=6)


@functools.cache
def trained(**fields):
    """A task and its params, large enough that layers matter."""
    task = language_model(**fields)
    params = jax.jit(task.init)(jax.random.key(0), tokens())['params']
    rng = np.random.default_rng(1)
    return task, jax.tree.map(
        lambda leaf: leaf + np.float32(0.3 * rng.normal(size=leaf.shape)), params
    )


def tokens(seed=0):
    return {'inputs': np.random.default_rng(seed).integers(0, 13, (2, 6), np.int32)}


@functools.cache
def scanned():
    """The model of `trained` with scanned layers that are computed again."""
    _, params = trained()
    task = language_model(scan_layers=True, remat='full')
    return task, transformer.stack_layers(params)


def compiled(function, task, params, *rest, **given):
    """function(task, params, {}, *rest), as one program."""
    return jax.jit(lambda params, *rest: function(task, params, {}, *rest, **given))(params, *rest)


def capture(task, params, batch, paths):
    """`activations.capture`, as one program."""
    return compiled(activations.capture, task, params, batch, paths=paths)


def predict(task, params, batch):
    """What a task, perhaps an edited one, predicts."""
    return compiled(lambda task, *rest: task.predict(*rest), task, params, batch)


def test_captured_outputs_are_the_same_in_scanned_layers():
    task, params = trained()
    paths = [r'layers_\d+/mlp', 'embed', activations.INPUT]
    logits, found = capture(task, params, tokens(), paths)
    np.testing.assert_array_equal(logits, predict(task, params, tokens()))
    assert sorted(found) == ['', 'embed', *(f'layers_{i}/mlp' for i in range(2))]
    embedding = params['embed']['embedding']
    np.testing.assert_array_equal(found['embed'], embedding[tokens()['inputs']])
    np.testing.assert_array_equal(found[''], tokens()['inputs'])
    mlps = {path: x for path, x in found.items() if path.endswith('mlp')}
    task, params = scanned()
    again, found = capture(task, params, tokens(), ['layers/mlp'])
    np.testing.assert_allclose(again, logits, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(found['layers/mlp'], activations.stacked(mlps), rtol=2e-5, atol=2e-5)


def test_what_is_put_in_is_computed_on():
    for task, params, path, last in [
        (*trained(), 'layers_1', slice(None)), (*scanned(), 'layers', 1),
    ]:  # fmt: skip
        wanted, found = capture(task, params, tokens(1), [path])
        whole = activations.edited(task, activations.replaced(path, found[path]))
        np.testing.assert_allclose(predict(whole, params, tokens()), wanted, atol=2e-5)
        here = jnp.arange(6) == 4
        some = activations.edited(task, activations.replaced(path, found[path], here))
        plain = predict(task, params, tokens())
        logits = predict(some, params, tokens())
        if path == 'layers_1':  # of scanned layers all are put in
            np.testing.assert_allclose(logits[:, 4], wanted[:, 4], atol=2e-5)
            np.testing.assert_array_equal(logits[:, 5], plain[:, 5])
        np.testing.assert_array_equal(logits[:, :4], plain[:, :4])
        assert found[path][last].shape[-1] == 8


def test_ablated_modules_say_nothing_or_their_mean():
    task, params = trained()
    _, found = capture(task, params, tokens(), ['layers_1/mlp'])
    down = params['layers_1']['mlp']['down']
    silent = jax.tree.map(jnp.zeros_like, down)
    without = {**params, 'layers_1': {**params['layers_1'], 'mlp': {
        **params['layers_1']['mlp'], 'down': silent}}}  # fmt: skip
    wanted = task.predict(without, {}, tokens())
    quiet = activations.edited(task, activations.ablated(found))
    np.testing.assert_allclose(predict(quiet, params, tokens()), wanted, atol=2e-5)
    mean = silent | {'bias': found['layers_1/mlp'].mean((0, 1))}
    without['layers_1']['mlp']['down'] = mean
    wanted = task.predict(without, {}, tokens())
    edits = activations.ablated(found, 'mean')
    average = activations.edited(task, edits)
    np.testing.assert_allclose(predict(average, params, tokens()), wanted, atol=2e-5)
    # The loss is edited as predictions are.
    batch = {**tokens(), 'targets': tokens(1)['inputs'], 'weights': jnp.ones((2, 6))}
    key = jax.random.key(0)
    loss = lambda task, params, _, batch: task.token_losses(params, batch, key, False)[0]
    found = compiled(loss, average, params, batch)
    np.testing.assert_allclose(found, compiled(loss, task, without, batch), atol=2e-5)
    task, params = scanned()
    _, found = capture(task, params, tokens(), ['layers/mlp'])
    edits = activations.ablated(found, 'mean')
    only = jnp.arange(2)[:, None, None, None] == 1
    edits = {
        path: activations.Edit(jnp.where(only, e.value, 0), ~only) for path, e in edits.items()
    }
    found = predict(activations.edited(task, edits), params, tokens())
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


def test_paths_that_are_nowhere_are_named():
    task, params = trained()
    run = functools.partial(activations.capture, task, params, {}, tokens())
    with pytest.raises(errors.UserError, match=r"'layers_0/mpl'. Near ones: layers_0/mlp"):
        run(['layers_0/mpl'])
    with pytest.raises(errors.UserError, match=r"path 'layers_9'. Near ones: layers_"):
        run(['embed'], {'layers_9': activations.Edit(jnp.zeros(()))})
    with pytest.raises(errors.UserError, match='is no regular expression'):
        run(['layers_(/mlp'])
    with pytest.raises(errors.UserError, match="ablation 'median'"):
        activations.ablated({}, 'median')


@pytest.mark.parametrize(
    'fields',
    [
        dict(),
        dict(num_kv_heads=1, qk_norm=True, attention_softcap=2.0, sliding_window=3),
        dict(positions='learned', query_scalar=3, use_bias=False),
    ],
)
def test_attention_maps_are_the_weights_of_the_values(fields):
    task, params = trained(**fields)
    batch = tokens() | {'segment_ids': jnp.array([[1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 1]])}
    maps = compiled(activations.attention_maps, task, params, batch)
    assert sorted(maps) == [f'layers_{i}/attention' for i in range(2)]
    paths = [r'layers_1/attention(/value)?']
    _, found = capture(task, params, batch, paths)
    weights = np.float64(maps['layers_1/attention'])
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    assert (weights[:, :, ~np.tri(6, dtype=bool)] == 0).all()
    assert (weights[0, :, 3:, :3] == 0).all()
    values = np.float64(found['layers_1/attention/value']).reshape(2, 6, -1, 4)
    values = np.repeat(values, 2 // values.shape[2], axis=2)
    mixed = np.einsum('bhls,bshk->blhk', weights, values).reshape(2, 6, 8)
    out = params['layers_1']['attention']['out']
    wanted = mixed @ np.float64(out['kernel']) + np.float64(out.get('bias', 0))
    np.testing.assert_allclose(found['layers_1/attention'], wanted, atol=2e-5)


def test_attention_maps_against_numpy_and_in_scanned_layers():
    task, params = trained(positions='none')
    _, found = activations.capture(task, params, {}, tokens(), [r'layers_0/attention/(query|key)'])
    query, key = (
        np.float64(found[f'layers_0/attention/{name}']).reshape(2, 6, 2, 4)
        for name in ('query', 'key')
    )
    raw = np.einsum('blhk,bshk->bhls', query, key) / np.sqrt(4)
    weights = np.exp(raw) * np.tri(6)
    weights /= weights.sum(-1, keepdims=True)
    maps = compiled(activations.attention_maps, task, params, tokens())
    np.testing.assert_allclose(maps['layers_0/attention'], weights, atol=1e-6)
    one_by_one = compiled(activations.attention_maps, *trained(), tokens())
    [(path, together)] = compiled(activations.attention_maps, *scanned(), tokens()).items()
    assert path == 'layers/attention'
    np.testing.assert_allclose(together, activations.stacked(one_by_one), atol=1e-5)


def test_the_lens_reads_each_layer_as_the_head_does():
    task, params = trained()
    lens = compiled(activations.logit_lens, task, params, tokens())
    np.testing.assert_allclose(lens[-1], predict(task, params, tokens()), atol=1e-5)
    _, found = capture(task, params, tokens(), ['layers_0'])
    x = np.float64(found['layers_0'])
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    norm = params['final_norm']
    x = x * np.float64(norm['scale']) + np.float64(norm['bias'])
    wanted = x @ np.float64(params['embed']['embedding']).T
    np.testing.assert_allclose(lens[0], wanted, atol=1e-4)
    np.testing.assert_allclose(
        compiled(activations.logit_lens, *scanned(), tokens()), lens, rtol=1e-4, atol=1e-4
    )


def test_a_classifier_of_images_is_read_too():
    task = Classification(ViT(3, num_layers=2, embed_dim=8, num_heads=2, patch_size=4))
    batch = {'inputs': jax.random.normal(jax.random.key(0), (2, 8, 8, 1))}
    params = jax.jit(task.init)(jax.random.key(1), batch)['params']
    lens = compiled(activations.logit_lens, task, params, batch)
    assert lens.shape == (2, 2, 3)
    np.testing.assert_allclose(lens[-1], predict(task, params, batch), atol=1e-6)
    maps = compiled(activations.attention_maps, task, params, batch)
    assert {x.shape for x in maps.values()} == {(2, 2, 5, 5)}
    task = Classification(MLP(3))
    params = jax.jit(task.init)(jax.random.key(1), batch)['params']
    with pytest.raises(errors.UserError, match='MLP has no attention'):
        compiled(activations.attention_maps, task, params, batch)


def test_tracing_finds_where_the_difference_is():
    clean = {'inputs': tokens()['inputs'][:1]}
    changed = clean['inputs'].copy()
    changed[0, 2] = (changed[0, 2] + 5) % 13
    corrupted = {'inputs': changed}
    score = lambda logits: jax.nn.softmax(logits[0, 4])[7]
    task, params = trained()
    found = compiled(activations.causal_tracing, task, params, clean, corrupted, score=score)
    assert found.effects.shape == (2, 6)
    for batch, value in ((clean, found.clean), (corrupted, found.corrupted)):
        np.testing.assert_allclose(score(predict(task, params, batch)), value, rtol=1e-5)
    gap = float(found.clean - found.corrupted)
    assert abs(gap) > 1e-4
    # All of the answer passes the last layer's state at its position; states before the change are
    # alike in both, and those behind the answer's position are not seen.
    np.testing.assert_allclose(found.effects[1, 4], gap, rtol=1e-4)
    np.testing.assert_allclose(found.effects[:, [0, 1, 5]], 0, atol=1e-6)
    assert abs(found.effects[0, 2]) > 1e-5
    again = compiled(activations.causal_tracing, *scanned(), clean, corrupted, score=score)
    np.testing.assert_allclose(again.effects, found.effects, atol=1e-5)
    # Corrupted by an edit in the place of another token, as by noise.
    vector = params['embed']['embedding'][changed[0, 2]]
    at = (jnp.arange(6) == 2)[None, :, None]
    noise = {'embed': activations.Edit(jnp.where(at, vector, 0), ~at)}
    again = compiled(
        activations.causal_tracing, task, params, clean, clean, score=score, edits=noise
    )
    np.testing.assert_allclose(again.effects, found.effects, atol=1e-5)
