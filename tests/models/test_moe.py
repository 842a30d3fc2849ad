"""Mixtures of experts against a NumPy layer, in their other forms, and on meshes."""

import collections
import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import config, errors, metrics, sharding, steps, trees
from bigmodels.models import transformer
from bigmodels.models.parts import blocks, dispatch, moe
from bigmodels.models.parts.settings import Settings
from tests import programs
from tests.test_sharding import assert_close, language_model, make_program, shard_fraction, train

B, L, D, E, F = 3, 10, 8, 4, 6
# Compiles in half the time, and computes the same.
jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
rng = np.random.default_rng(0)
X = jnp.float32(rng.normal(size=(B, L, D)))
SMALL = dict(num_experts=4, experts_per_token=2, mlp_dim=16, capacity_factor=1.0)


def make_layer(activation='gelu', use_bias=True, **settings):
    settings = moe.Settings(**{'num_experts': E, 'mlp_dim': F} | settings)
    initializer = lambda fan_in: nn.initializers.normal(fan_in**-0.5)
    return moe.MixtureOfExperts(settings, None, activation, use_bias, initializer)


def randomized(shapes, seed=1):
    """Params in which no bias is 0, so that each of them counts."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.float32(0.5 * draw.normal(size=leaf.shape)), shapes)


def params_of(layer):
    return randomized(jax.eval_shape(layer.init, jax.random.key(0), X)['params'])


def apply(layer, params, x=X, **options):
    """(output, {'losses/load_balance': [B], ...})."""
    run = jit(lambda p, x: layer.apply({'params': p}, x, mutable=['losses', 'metrics'], **options))
    out, sown = run(params, x)
    return out, {name.removesuffix('/0'): v for name, v in trees.flatten_named(sown).items()}


def wide(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def numpy_layer(layer, p, x):
    """The layer on one sequence x [L, D], token by token: (output, what is sown)."""
    c = layer.settings

    def linear(w, x):
        return x @ w['kernel'] + w.get('bias', 0)

    def feed_forward(w, x):
        up = linear(w['up'], x)
        if layer.activation == 'swiglu':
            gate = linear(w['gate'], x)
            return linear(w['down'], gate / (1 + np.exp(-gate)) * up)
        hidden = 0.5 * up * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
        return linear(w['down'], hidden)

    room = len(x)
    if c.capacity_factor is not None:
        room = math.ceil(c.experts_per_token * len(x) * c.capacity_factor / c.num_experts)
    out, taken, dropped = np.zeros_like(x), np.zeros(c.num_experts), 0
    probability, z = np.zeros(c.num_experts), 0.0
    for t, token in enumerate(x):
        logits = token @ p['router']['kernel']
        share = np.exp(logits) / np.exp(logits).sum()
        z += np.log(np.exp(logits).sum()) ** 2 / len(x)
        probability += share / len(x)
        best = sorted(range(c.num_experts), key=lambda e: -share[e])[: c.experts_per_token]
        for e in best:
            weight = share[e] / (share[best].sum() if c.normalize_top_k else 1)
            if taken[e] < room:
                one = jax.tree.map(lambda leaf, e=e: leaf[e], p['experts'])
                out[t] += weight * feed_forward(one, token)
            else:
                dropped += 1
            taken[e] += 1
        if c.num_shared_experts:
            out[t] += feed_forward(p['shared'], token)
    choices = c.experts_per_token * len(x)
    balance = c.num_experts * (taken / choices * probability).sum()
    sown = {
        'metrics/load_balance': balance,
        'losses/load_balance': c.load_balance_weight * balance,
        'losses/router_z': c.router_z_weight * z,
    }
    if c.capacity_factor is not None:
        sown['metrics/dropped_share'] = dropped / choices
    return out, sown


LAYERS = {
    'capacity': make_layer(capacity_factor=0.7, load_balance_weight=0.3, router_z_weight=0.2),
    'dropless': make_layer(capacity_factor=None, load_balance_weight=0.3, router_z_weight=0.2),
    'gated-shared': make_layer(
        'swiglu', use_bias=False, experts_per_token=3, num_shared_experts=2, normalize_top_k=False
    ),
}


@pytest.mark.parametrize('kind', LAYERS)
def test_the_layer_is_the_one_written_out(kind):
    layer = LAYERS[kind]
    params = params_of(layer)
    out, sown = apply(layer, params)
    for row in range(B):
        expected, figures = numpy_layer(layer, wide(params), wide(X[row]))
        np.testing.assert_allclose(out[row], expected, rtol=1e-5, atol=1e-5)
        assert figures.keys() == sown.keys()
        for name, value in figures.items():
            np.testing.assert_allclose(sown[name][row], value, rtol=1e-5, err_msg=name)
    if kind == 'capacity':
        assert (sown['metrics/dropped_share'] > 0.1).any()  # or else it would test nothing


def test_choices_are_not_rounded():
    layer = make_layer()
    params = params_of(layer)
    text = str(jax.make_jaxpr(lambda x: layer.apply({'params': params}, x))(X))
    assert text.count('precision=(Precision.HIGHEST, Precision.HIGHEST)') == 1


@pytest.mark.parametrize('kind', LAYERS)
def test_gradients_are_differences(kind):
    """Along random directions, of the layer written out in float64."""
    layer = LAYERS[kind]
    params = params_of(layer)

    def loss(arguments):
        out, sown = layer.apply({'params': arguments[0]}, arguments[1], mutable=['losses'])
        return jnp.sin(out).sum() + sum(leaf.sum() for leaf in jax.tree.leaves(sown))

    def numpy_loss(arguments):
        total = 0.0
        for row in arguments[1]:
            out, sown = numpy_layer(layer, arguments[0], row)
            total += np.sin(out).sum() + sum(v for k, v in sown.items() if 'losses' in k)
        return total

    grads = jit(jax.grad(loss))((params, X))
    point = wide((params, X))
    for name in trees.flatten_named(point):
        direction = trees.map_named(
            lambda n, leaf, name=name: rng.normal(size=leaf.shape) * (n == name), point
        )
        ahead, behind = (
            numpy_loss(jax.tree.map(lambda p, d, step=step: p + step * d, point, direction))
            for step in (1e-6, -1e-6)
        )
        along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), grads, direction)))
        np.testing.assert_allclose(along, (ahead - behind) / 2e-6, rtol=1e-3, atol=1e-3)


def test_of_equally_probable_experts_the_first_are_chosen():
    experts, weights = moe.route(jnp.zeros((2, 5)), 3, normalize=True)
    np.testing.assert_array_equal(experts, [[0, 1, 2]] * 2)
    np.testing.assert_allclose(weights, 1 / 3, rtol=1e-6)
    experts, weights = moe.route(jnp.log(jnp.float32([[0.1, 0.4, 0.1, 0.4]])), 3, normalize=False)
    np.testing.assert_array_equal(experts, [[1, 3, 0]])
    np.testing.assert_allclose(weights, [[0.4, 0.4, 0.1]], rtol=1e-6)


def test_balance_is_1_where_all_experts_are_used_alike_and_more_elsewhere():
    even = jnp.asarray([[[0, 1], [2, 3]]])
    np.testing.assert_allclose(moe.load_balance(jnp.zeros((1, 2, 4)), even), 1)
    logits = jnp.float32([[[50, 50, 0, 0]] * 2])
    chosen, _ = moe.route(logits, 2, normalize=True)
    np.testing.assert_allclose(moe.load_balance(logits, chosen), 4 / 2)


@pytest.mark.parametrize('capacity_factor', [None, 1.0])
@pytest.mark.parametrize(('activation', 'use_bias'), [('gelu', True), ('swiglu', False)])
def test_one_expert_is_the_dense_layer(activation, use_bias, capacity_factor):
    layer = make_layer(
        activation, use_bias, num_experts=1, experts_per_token=1, capacity_factor=capacity_factor
    )
    params = params_of(layer)
    settings = Settings(
        vocab_size=1, num_layers=1, embed_dim=D, num_heads=1, mlp_dim=F, activation=activation,
        use_bias=use_bias,
    )  # fmt: skip
    dense = jax.tree.map(lambda leaf: leaf[0], params['experts'])
    expected = blocks.FeedForward(settings).apply({'params': dense}, X)
    np.testing.assert_allclose(apply(layer, params)[0], expected, rtol=1e-5, atol=1e-5)


def test_capacity_for_all_is_dropless_also_in_low_precision():
    ample, free = make_layer(capacity_factor=2.0), make_layer(capacity_factor=None)
    params = params_of(free)
    out, sown = apply(ample, params)
    assert (sown['metrics/dropped_share'] == 0).all()
    np.testing.assert_allclose(out, apply(free, params)[0], rtol=1e-5, atol=1e-5)
    tight = make_layer(capacity_factor=0.5)
    assert (apply(tight, params)[1]['metrics/dropped_share'] > 0).any()
    np.testing.assert_array_equal(
        apply(tight, params, dropless=True)[0], apply(free, params, dropless=True)[0]
    )

    def gradient(layer, dtype):
        loss = lambda p: jnp.sin(layer.apply({'params': p}, X.astype(dtype))).sum(dtype=jnp.float32)
        return jit(jax.grad(loss))(params)['experts']

    exact = gradient(free, jnp.float32)
    for layer in (ample, free):
        narrow = gradient(layer, jnp.bfloat16)
        for name, leaf in trees.flatten_named(narrow).items():
            assert leaf.dtype == jnp.float32
            reference = trees.flatten_named(exact)[name]
            error = jnp.linalg.norm(leaf - reference) / jnp.linalg.norm(reference)
            assert error < 0.03, name


def test_grouped_matmul_leaves_out_what_is_in_no_group():
    x, kernel = jnp.float32(rng.normal(size=(7, D))), jnp.float32(rng.normal(size=(3, D, F)))
    sizes = jnp.asarray([2, 0, 3])
    product, pull = jax.vjp(lambda x, w: dispatch.grouped_matmul(x, w, sizes), x, kernel)
    np.testing.assert_allclose(product[:2], x[:2] @ kernel[0], rtol=1e-5)
    np.testing.assert_allclose(product[2:5], x[2:5] @ kernel[2], rtol=1e-5)
    _, d_kernel = pull(jnp.ones((7, F)))
    np.testing.assert_allclose(d_kernel[0], x[:2].T @ jnp.ones((2, F)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(d_kernel[1], 0)


def test_the_earliest_tokens_are_taken():
    """All tokens choose expert 2, then 0: places for 3 of 10 each."""
    layer = make_layer(capacity_factor=0.6)
    params = params_of(layer)
    params['router']['kernel'] = jnp.zeros((D, E)).at[0, 2].set(9).at[0, 0].set(8)
    x = X.at[:, :, 0].set(1)
    out, sown = apply(layer, params, x)
    np.testing.assert_array_equal(out[:, 3:], 0)
    assert (abs(out[:, :3]).max(-1) > 0).all()
    np.testing.assert_allclose(sown['metrics/dropped_share'], 0.7)


def test_neither_later_tokens_nor_other_rows_matter():
    layer = LAYERS['capacity']
    params = params_of(layer)
    before, sown = apply(layer, params)
    after, _ = apply(layer, params, X.at[:, 6:].set(-X[:, 6:]))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    alone, sown_alone = apply(layer, params, X[1:2])
    np.testing.assert_allclose(alone[0], before[1], rtol=1e-6, atol=1e-6)
    for name, values in sown.items():
        np.testing.assert_allclose(sown_alone[name][0], values[1], rtol=1e-6)


def make_model(**changes):
    settings = dict(vocab_size=32, num_layers=2, embed_dim=16, num_heads=2, max_length=16)
    return transformer.Transformer(**settings | {'moe': SMALL} | changes)


TOKENS = jnp.asarray(rng.integers(0, 32, (2, 12)))


def model_params(model):
    return randomized(jax.eval_shape(model.init, jax.random.key(0), TOKENS)['params'])


def test_scanned_and_rematerialised_is_unrolled():
    plain = make_model(activation='swiglu', use_bias=False)
    scanned = plain.clone(scan_layers=True, remat='full')
    params = model_params(plain)

    def loss(params, model):
        out, sown = model.apply({'params': params}, TOKENS, mutable=['losses', 'metrics'])
        return jnp.sin(out).mean() + sum(map(jnp.sum, jax.tree.leaves(sown['losses']))), sown

    run = jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (value, sown), grads = run(params, plain)
    (same, stacked), same_grads = run(transformer.stack_layers(params), scanned)
    np.testing.assert_allclose(same, value, rtol=1e-5)
    assert_close(transformer.unstack_layers(same_grads), grads)
    [balance] = stacked['metrics']['layers']['mlp']['load_balance']
    for i in range(2):
        [layer] = sown['metrics'][f'layers_{i}']['mlp']['load_balance']
        np.testing.assert_allclose(balance[i], layer, rtol=1e-5)
    remat = plain.clone(remat='dots')
    assert_close(run(params, remat)[1], grads)


@pytest.mark.parametrize('capacity_factor', [None, 2.0])
def test_cached_decoding_is_uncached(capacity_factor):
    """Two tokens at once, then one by one; at a factor of E / k nothing is dropped."""
    model = make_model(moe=SMALL | {'capacity_factor': capacity_factor})
    params = model_params(model)
    whole = jit(lambda x: model.apply({'params': params}, x))(TOKENS)
    step = jit(lambda x, at, cache: model.apply({'params': params}, x, positions=at, cache=cache))
    cache = model.init_cache(2, 12)
    for start, end in ((0, 2), (2, 3), (3, 4), (4, 5)):
        at = jnp.tile(jnp.arange(start, end), (2, 1))
        logits, cache = step(TOKENS[:, start:end], at, cache)
        np.testing.assert_allclose(logits, whole[:, start:end], rtol=1e-4, atol=2e-4)


def test_the_training_loss_is_what_its_parts_say():
    weights = dict(load_balance_weight=0.3, router_z_weight=0.2)
    task, [batch, *_] = language_model(num_layers=2, scan_layers=True, moe=SMALL | weights)
    variables = jit(task.init)(jax.random.key(0), batch)
    assert variables.keys() == {'params'}  # what is sown is no state
    params = variables['params']
    loss_fn = jit(task.loss_fn, static_argnames='train')
    loss, (pairs, state) = loss_fn(params, {}, batch, jax.random.key(0), train=True)
    assert state == {}
    forward = jit(lambda p, x: task.model.apply({'params': p}, x, mutable=['losses', 'metrics']))
    _, sown = forward(params, batch['inputs'])
    [balance], [z] = (sown['losses']['layers']['mlp'][n] for n in ('load_balance', 'router_z'))
    share = batch['weights'].sum(1) / batch['weights'].sum()
    expected = metrics.mean(pairs['cross_entropy']) + ((balance + z).sum(0) * share).sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(loss, metrics.mean(pairs['loss']), rtol=1e-6)
    assert loss > 1.02 * metrics.mean(pairs['cross_entropy'])
    np.testing.assert_allclose(
        metrics.mean(pairs['load_balance']), (balance / 0.3).mean(0) @ share, rtol=1e-5
    )
    assert 0 < metrics.mean(pairs['dropped_share']) < 1

    loss, (evaluated, _) = loss_fn(params, {}, batch, jax.random.key(0), train=False)
    np.testing.assert_allclose(loss, metrics.mean(pairs['cross_entropy']), rtol=1e-6)
    bits = evaluated['bits_per_byte'][0] / evaluated['loss'][0]
    np.testing.assert_allclose(bits, 1 / math.log(2), rtol=1e-6)
    assert evaluated.keys() == {'loss', 'bits_per_byte', 'load_balance', 'dropped_share'}
    dense, _ = language_model(num_layers=1)
    params = jax.eval_shape(dense.init, jax.random.key(0), batch)['params']
    train_loss = functools.partial(dense.loss_fn, train=True)
    shapes = jax.eval_shape(train_loss, params, {}, batch, jax.random.key(0))
    assert shapes[1][0].keys() == {'loss'}


def test_accumulated_is_the_full_batch():
    task, [batch, *_] = language_model(num_layers=1, moe=SMALL)
    params = jit(task.init)(jax.random.key(0), batch)['params']
    gradients = jit(steps.accumulated_gradients, static_argnums=(4, 5))
    arguments = params, {}, batch, jax.random.key(0), task.loss_fn
    whole, parted = gradients(*arguments, 1), gradients(*arguments, 4)
    assert_close(parted[:2], whole[:2], 1e-5)


@functools.cache
def on_one_device(capacity_factor):
    task, batches = language_model(
        num_layers=1, activation='swiglu', moe=SMALL | dict(num_experts=8) | {
            'capacity_factor': capacity_factor, 'num_shared_experts': 1,
        },
    )  # fmt: skip
    return task, batches, *train(task, batches, num_devices=1)[:2]


@pytest.mark.parametrize(
    ('capacity_factor', 'mesh'),
    [
        (1.0, dict(expert=8)),
        (1.0, dict(expert=2, fsdp=2, tensor=2)),
        (1.0, dict(expert=2, sequence=2, data=2)),
        (None, dict(expert=4, data=2)),
        (None, dict(expert=2, fsdp=2, tensor=2)),
    ],
    ids=str,
)
def test_every_mesh_computes_the_same(capacity_factor, mesh):
    task, batches, figures, state = on_one_device(capacity_factor)
    mesh_figures, mesh_state, run = train(task, batches, **mesh)
    np.testing.assert_allclose(mesh_figures, figures, rtol=2e-5)
    assert_close(mesh_state.params, state.params)
    assert run.notes == []
    split = mesh['expert'] * mesh.get('fsdp', 1) * mesh.get('tensor', 1)
    placed = trees.flatten_named((mesh_state.params, mesh_state.opt_state))
    kernels = {n: leaf for n, leaf in placed.items() if re.search('/experts/.*kernel', n)}
    assert len(kernels) == 3 * 3  # parameters and two moments
    for name, leaf in kernels.items():
        assert shard_fraction(leaf) == 1 / split, name


def test_tokens_travel_and_experts_stay():
    """Each of forward and backward: to the experts and back."""
    mesh = dict(expert=4, data=2)

    def moved(capacity_factor):
        task, [batch, *_] = on_one_device(capacity_factor)[:2]
        compiled = make_program(task, batch, **mesh).compile_train_step('jit')
        shapes = collections.defaultdict(list)
        for kind, shape in programs.collective_shapes(compiled):
            shapes[kind].append(shape)
        return shapes

    with_capacity, dropless = moved(1.0), moved(None)
    assert len(with_capacity['all-to-all']) == 4
    assert with_capacity['all-gather'] == []
    # Inputs forward, gradients backward; and forward the choices and their weights.
    assert sorted(dropless['all-gather']) == ['8,16,2', '8,16,2', '8,16,32', '8,16,32']
    assert dropless['reduce-scatter'].count('2,16,32') == 2


def on_mesh(layer, params, **shape):
    """The sum of sines of the output and its gradient, on one and on eight devices."""
    x = jnp.float32(np.random.default_rng(2).normal(size=(8, L, D)))
    loss = lambda params, x: jnp.sin(layer.apply({'params': params}, x)).sum()
    expected = jit(jax.value_and_grad(loss))(params, x)
    mesh = sharding.make_mesh(sharding.MeshShape(**{'data': 1} | shape))
    with jax.set_mesh(mesh):
        return expected, jit(jax.value_and_grad(loss))(params, x)


@pytest.mark.parametrize('capacity_factor', [None, 1.0])
def test_experts_that_do_not_divide_stay_whole(capacity_factor):
    layer = make_layer(num_experts=3, capacity_factor=capacity_factor)
    assert_close(*on_mesh(layer, params_of(layer), expert=2, data=4))
    task, batches = language_model(num_layers=1, moe=SMALL | dict(num_experts=3))
    notes = make_program(task, batches[0], expert=2, data=4).notes
    assert any('experts/up/kernel: 3 does not divide by expert 2' in note for note in notes)


def test_flops_are_of_the_experts_in_use():
    chosen = make_model(moe=dict(num_experts=8, experts_per_token=2, mlp_dim=24), use_bias=False)
    dense = make_model(moe=None, mlp_dim=2 * 24, use_bias=False)
    flops = [
        m.flops_per_token(jax.eval_shape(m.init, jax.random.key(0), TOKENS)['params'], 12)
        for m in (chosen, dense)
    ]
    assert flops[0] == flops[1] + 6 * 2 * 16 * 8  # and of the routers


@pytest.mark.parametrize(
    ('section', 'message'),
    [
        (dict(num_experts=4, top_k=2), r'key in config.model.moe.*top_k'),
        (dict(num_experts='4'), r'config.model.moe.num_experts = .4. has the wrong type'),
        (dict(experts_per_token=1), 'config.model.moe lacks: num_experts'),
        (dict(num_experts=4, experts_per_token=5), 'at most num_experts = 4'),
        (dict(num_experts=0), 'num_experts = 0 must be at least 1'),
        (dict(num_experts=4, capacity_factor=0.0), 'must be positive, or None'),
        (dict(num_experts=4, router_z_weight=-1.0), 'must not be negative'),
    ],
    ids=str,
)
def test_mistakes(section, message):
    with pytest.raises(errors.UserError, match=message):
        make_model(moe=section)


def test_the_section_in_a_config():
    hash(make_model())
    resolved = config.with_defaults(
        transformer.Transformer,
        dict(vocab_size=8, num_layers=1, embed_dim=8, num_heads=2, moe=dict(num_experts=4)),
    )
    expected = {f: getattr(moe.Settings(num_experts=4), f) for f in resolved['moe']}
    assert resolved['moe'] == expected
    assert resolved['moe'].keys() == moe.Settings.__dataclass_fields__.keys()
    assert transformer.Transformer(**resolved).experts == moe.Settings(num_experts=4)
    task, _ = language_model(moe=SMALL | dict(num_shared_experts=1))
    assert task.facts()['experts'] == '2 of 4 a token, 1 shared, capacity x 1'
    assert 'experts' not in language_model()[0].facts()
