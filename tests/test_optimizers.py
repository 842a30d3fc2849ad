"""Optimisers against recurrences written out in NumPy, schedules against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors, optimizers, trees

STEPS = 5
rng = np.random.default_rng(0)
PARAMS = {
    'mlp': {'kernel': rng.normal(size=(4, 3)), 'bias': rng.normal(size=3)},
    'embed': {'embedding': rng.normal(size=(5, 4))},
}
GRADS = [jax.tree.map(lambda p: rng.normal(size=p.shape), PARAMS) for _ in range(STEPS)]
KERNEL = {'mlp': {'kernel': 1, 'bias': 0}, 'embed': {'embedding': 0}}


def wide(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def narrow(tree):
    return jax.tree.map(jnp.float32, tree)


def make(algorithm, params=PARAMS, schedule=('constant', {}), total_steps=STEPS, **settings):
    name, arguments = (algorithm, {}) if isinstance(algorithm, str) else algorithm
    settings = {'learning_rate': 0.1} | settings
    return optimizers.make_optimizer(
        narrow(params),
        total_steps,
        algorithm={'name': name, **arguments},
        schedule={'name': schedule[0], **schedule[1]},
        **settings,
    )


def run(tx, params=PARAMS, grads=GRADS):
    params, update = narrow(params), jax.jit(tx.update)
    state = tx.init(params)
    for g in grads:
        updates, state = update(narrow(g), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params, state


def check(tx, rule, state, grads=GRADS, tolerance=2e-5):
    """`rule(p, g, t, state, is_kernel) -> p`, in float64, leaf by leaf."""
    expected = wide(PARAMS)
    states = jax.tree.map(lambda p: {k: np.zeros_like(p) for k in state}, expected)
    for t, g in enumerate(grads, 1):
        expected = jax.tree.map(
            lambda p, g, k, s, t=t: rule(p, g, t, s, k), expected, g, KERNEL, states,
            is_leaf=lambda x: isinstance(x, np.ndarray),
        )  # fmt: skip
    given, _ = run(tx, grads=grads)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        given,
        expected,
    )


def adam_rule(b1=0.9, b2=0.999, eps=1e-8, decay=0.0, rate=0.1, kept=lambda moment: moment):
    def rule(p, g, t, s, kernel):
        m = b1 * s['m'] + (1 - b1) * g
        v = b2 * s['v'] + (1 - b2) * g**2
        s['m'], s['v'] = kept(m), kept(v)
        direction = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        return p - rate * (direction + decay * kernel * p)

    return rule


def sgd_rule(momentum, nesterov=False):
    def rule(p, g, t, s, kernel):
        s['m'] = momentum * s['m'] + g
        return p - 0.1 * (g + momentum * s['m'] if nesterov else s['m'])

    return rule


def test_adam():
    tx, _ = make(('adam', {'b1': 0.8, 'b2': 0.9, 'eps': 1e-3}))
    check(tx, adam_rule(0.8, 0.9, 1e-3), 'mv')


def test_moments_in_bfloat16_are_rounded_between_updates_only():
    arguments = {'b1': 0.8, 'b2': 0.9, 'eps': 1e-3}
    tx, _ = make(('adam', arguments | {'moment_dtype': 'bfloat16'}))
    rounded = lambda moment: np.float64(np.asarray(moment, jnp.bfloat16))
    check(tx, adam_rule(0.8, 0.9, 1e-3, kept=rounded), 'mv')
    state = tx.init(narrow(PARAMS))
    float32 = make(('adam', arguments))[0].init(narrow(PARAMS))
    moments = 2 * trees.count(PARAMS)
    assert trees.size_bytes(float32) - trees.size_bytes(state) == 2 * moments


def test_a_second_moment_in_bfloat16_falls():
    """With b2 = 0.999 it would stay where it is: hence the bound."""
    grads = [{'x': np.ones(3)}] + [{'x': np.zeros(3)}] * 40
    tx = optimizers.adam(b2=0.99, moment_dtype='bfloat16')
    _, state = run(tx, grads[0], grads)
    np.testing.assert_allclose(np.float64(state.nu['x']), 0.01 * 0.99**40, rtol=0.3)
    with pytest.raises(errors.UserError, match=r'b2 = 0\.999 would be lost in rounding'):
        make(('adamw', {'moment_dtype': 'bfloat16'}))


def test_adamw_decays_kernels_only_and_not_through_the_moments():
    check(make('adamw', weight_decay=0.3)[0], adam_rule(decay=0.3), 'mv')


def check_sgd(momentum, nesterov):
    tx, _ = make(('sgd', {'momentum': momentum, 'nesterov': nesterov}))
    check(tx, sgd_rule(momentum, nesterov), 'm')


def test_sgd():
    check_sgd(0.9, False)
    check_sgd(0.9, True)
    check_sgd(0.0, False)


def test_lion():
    def rule(p, g, t, s, kernel):
        step = np.sign(0.9 * s['m'] + 0.1 * g)
        s['m'] = 0.99 * s['m'] + 0.01 * g
        return p - 0.1 * (step + 0.2 * kernel * p)

    check(make('lion', weight_decay=0.2)[0], rule, 'm')


def test_penalties_are_gradients_of_the_penalised_loss():
    def penalised(params, l1, l2):
        kernel = params['mlp']['kernel']
        return l1 * jnp.abs(kernel).sum() + l2 / 2 * jnp.square(kernel).sum()

    for l1, l2 in ((0.3, 0.0), (0.0, 0.2), (0.3, 0.2)):
        tx, _ = make(('sgd', {'momentum': 0.9}), l1=l1, l2=l2)
        given, _ = run(tx)
        bare, _ = make(('sgd', {'momentum': 0.9}))
        params, state = narrow(PARAMS), bare.init(narrow(PARAMS))
        for g in GRADS:
            full = jax.tree.map(jnp.add, narrow(g), jax.grad(penalised)(params, l1, l2))
            updates, state = bare.update(full, state, params)
            params = jax.tree.map(jnp.add, params, updates)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), given, params)


def test_clipping_bounds_the_global_norm():
    for bound in (0.0, -1.0):
        with pytest.raises(errors.UserError, match=f'clip_norm = {bound} must be over 0'):
            make(('sgd', {'momentum': 0.0}), clip_norm=bound)
    tx, _ = make(('sgd', {'momentum': 0.0}), clip_norm=0.5)
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(GRADS[0])))
    given, _ = run(tx, grads=GRADS[:1])
    expected = jax.tree.map(lambda p, g: p - 0.1 * g * 0.5 / norm, PARAMS, GRADS[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), given, expected)
    small = jax.tree.map(lambda g: g * 0.4 / norm, GRADS[0])
    given, _ = run(tx, grads=[small])
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, PARAMS, small)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), given, expected)


def test_the_penalty_counts_towards_the_clipped_norm():
    tx, _ = make(('sgd', {'momentum': 0.0}), l2=10.0, clip_norm=0.5, penalty_rules=[('.*', True)])
    given, _ = run(tx, grads=GRADS[:1])
    moved = jax.tree.map(lambda a, b: np.asarray(a) - b, given, PARAMS)
    norm = np.sqrt(sum((m**2).sum() for m in jax.tree.leaves(moved)))
    np.testing.assert_allclose(norm, 0.1 * 0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ('settings', 'section'),
    [
        (dict(weight_decay=0.1, weight_decay_rules=[('kernel', True)]), 'weight_decay_rules'),
        (dict(l2=0.1, penalty_rules=[('kernel', True)]), 'penalty_rules'),
        (dict(learning_rate_rules=[('kernel', 0.5)]), 'learning_rate_rules'),
    ],
)
def test_rules_must_cover(settings, section):
    with pytest.raises(errors.UserError, match=f'{section} covers no rule for: embed/embedding'):
        make('adamw', **settings)


def test_mistakes():
    for build, message in (
        (lambda: make('adamm'), "'adam'|'adamw'"),
        (lambda: make(('adamw', {'beta1': 0.9})), "key in config.optimizer.algorithm 'beta1'"),
        (lambda: make('adamw', schedule=('cosin', {})), "'cosine'"),
        (lambda: make('adamw', schedule=('cosine', {'warmup_steps': 5})), 'warmup_steps = 5'),
        (lambda: make('adamw', schedule=('cosine', {'warmup_steps': -1})), 'warmup_steps = -1'),
        (lambda: make('adamw', schedule=('cosine', {'warmup_steps': 1.5})), 'warmup_steps = 1.5'),
        (lambda: make('adam', weight_decay=0.1), 'use "adamw"'),
        (lambda: make('adam', freeze=['nothing']), "no parameter matches 'nothing'"),
    ):
        with pytest.raises(errors.UserError, match=message):
            build()


def test_learning_rate_rules():
    tx, _ = make(
        ('sgd', {'momentum': 0.0}), learning_rate_rules=[('embed', 0.0), ('bias', 3), ('.*', 0.5)]
    )
    given, _ = run(tx, grads=GRADS[:1])
    for leaf, factor in (('kernel', 0.5), ('bias', 3)):
        expected = PARAMS['mlp'][leaf] - 0.1 * factor * GRADS[0]['mlp'][leaf]
        np.testing.assert_allclose(given['mlp'][leaf], expected, atol=1e-6)
    assert (given['embed']['embedding'] == jnp.float32(PARAMS['embed']['embedding'])).all()


def test_adapters_are_decayed_as_their_kernels_are():
    params = {
        'mlp': {'kernel': {'down': jnp.ones((2, 1)), 'up': jnp.ones((1, 2))}, 'bias': jnp.ones(2)}
    }
    for settings in (dict(weight_decay=0.5), dict(l2=0.5), dict(l1=0.5)):
        tx, _ = optimizers.make_optimizer(
            params, 10, learning_rate=0.1, algorithm={'name': 'sgd', 'momentum': 0.0},
            schedule={'name': 'constant'}, **settings,
        )  # fmt: skip
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        moved = {name: float(leaf.max()) for name, leaf in trees.flatten_named(updates).items()}
        assert moved['mlp/bias'] == 0
        assert moved['mlp/kernel/down'] == moved['mlp/kernel/up'] == pytest.approx(-0.05)


@pytest.mark.parametrize('algorithm', ['adamw', 'sgd', 'lion', 'muon', 'adafactor'])
def test_frozen_parameters_stay_and_have_no_state(algorithm):
    tx, _ = make(
        algorithm,
        freeze=['^embed'],
        weight_decay=0.1,
        weight_decay_rules=[('.*', True)],
        l1=0.1,
        penalty_rules=[('.*', True)],
        clip_norm=1.0,
        learning_rate_rules=[('bias', 0.5), ('.*', 1.0)],
    )
    given, state = run(tx)
    frozen = jnp.float32(PARAMS['embed']['embedding'])
    assert (given['embed']['embedding'] == frozen).all()
    assert (given['mlp']['kernel'] != jnp.float32(PARAMS['mlp']['kernel'])).all()
    assert not any('embed' in name for name in trees.flatten_named(state))


def test_the_norm_that_is_clipped_leaves_frozen_parameters_out():
    tx, _ = make(('sgd', {'momentum': 0.0}), freeze=['embed'], clip_norm=0.5)
    given, _ = run(tx, grads=GRADS[:1])
    moved = [np.asarray(given['mlp'][k]) - PARAMS['mlp'][k] for k in ('kernel', 'bias')]
    np.testing.assert_allclose(np.sqrt(sum((m**2).sum() for m in moved)), 0.05, rtol=1e-5)


LAYERS = {
    'embed': {'embedding': rng.normal(size=(6, 8))},
    'layers_0': {'mlp': {'kernel': rng.normal(size=(8, 16)), 'bias': rng.normal(size=16)}},
    'layers_1': {'mlp': {'kernel': rng.normal(size=(8, 16)), 'bias': rng.normal(size=16)}},
    'head': {'kernel': rng.normal(size=(8, 3))},
}
LAYER_GRADS = [jax.tree.map(lambda p: rng.normal(size=p.shape), LAYERS) for _ in range(3)]


def stack(tree):
    rest = {k: v for k, v in tree.items() if not k.startswith('layers_')}
    both = tree['layers_0'], tree['layers_1']
    return rest | {'layers': jax.tree.map(lambda a, b: np.stack([a, b]), *both)}


@pytest.mark.parametrize('algorithm', ['muon', 'adamw', 'lion'])
def test_scanned_layers_are_updated_as_unrolled_ones(algorithm):
    one, _ = run(make(algorithm, LAYERS)[0], LAYERS, LAYER_GRADS)
    other, _ = run(make(algorithm, stack(LAYERS))[0], stack(LAYERS), [*map(stack, LAYER_GRADS)])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), stack(wide(one)), other)


def test_muon_orthogonalises_hidden_matrices_and_leaves_the_rest_to_adam():
    tx, _ = make(('muon', {'b1': 0.9, 'b2': 0.95}), LAYERS, learning_rate=1.0)
    _, state = run(tx, LAYERS, LAYER_GRADS[:2])
    updates, _ = tx.update(narrow(LAYER_GRADS[2]), state, narrow(LAYERS))
    for layer in ('layers_0', 'layers_1'):
        orthogonal = -wide(updates)[layer]['mlp']['kernel'] / (0.2 * np.sqrt(16))
        singular = np.linalg.svd(orthogonal, compute_uv=False)
        assert (singular > 0.6).all()
        assert (singular < 1.3).all()
        # Of the same directions as the momentum, in closed form: U V^T of its SVD.
        b = 0.95
        g = [grads[layer]['mlp']['kernel'] for grads in LAYER_GRADS]
        momentum = (1 - b) * (b**2 * g[0] + b * g[1] + g[2])
        lookahead = b * momentum / (1 - b**4) + (1 - b) * g[2] / (1 - b**3)
        u, _, vt = np.linalg.svd(lookahead, full_matrices=False)
        cosine = (orthogonal * (u @ vt)).sum() / np.linalg.norm(orthogonal) / np.sqrt(8)
        assert cosine > 0.95
    for part in (('embed', 'embedding'), ('head', 'kernel')):
        rule, s = adam_rule(0.9, 0.95, rate=1.0), {'m': 0.0, 'v': 0.0}
        for t in range(1, 4):
            moved = rule(0.0, LAYER_GRADS[t - 1][part[0]][part[1]], t, s, 0)
        np.testing.assert_allclose(updates[part[0]][part[1]], moved, atol=1e-4)


@pytest.mark.parametrize('layers', [(), (2,)], ids=['unrolled', 'scanned'])
def test_muon_orthogonalises_each_expert(layers):
    kernels, grads = rng.normal(size=(2, *layers, 3, 8, 16))
    scope = 'layers' if layers else 'layers_0'
    stacked = lambda tree: {scope: {'experts': {'up': {'kernel': tree}}}}
    given, _ = run(make('muon', stacked(kernels))[0], stacked(kernels), [stacked(grads)])
    alone = lambda tree: {f'{i}/kernel': one for i, one in enumerate(tree.reshape(-1, 8, 16))}
    expected, _ = run(make('muon', alone(kernels))[0], alone(kernels), [alone(grads)])
    given = given[scope]['experts']['up']['kernel'].reshape(-1, 8, 16)
    for one, name in zip(given, expected, strict=True):
        np.testing.assert_allclose(one, expected[name], atol=1e-5)


def test_muon_moves_about_as_far_as_adam():
    params = {'layers_0': {'kernel': rng.normal(size=(32, 64))}}
    grads = [{'layers_0': {'kernel': rng.normal(size=(32, 64))}}]
    given, _ = run(make('muon', params, learning_rate=1.0)[0], params, grads)
    moved = np.asarray(given['layers_0']['kernel']) - params['layers_0']['kernel']
    # 0.2 of Adam's first step at full rank; a wide matrix has half as many directions.
    assert 0.1 < np.sqrt((moved**2).mean()) < 0.3


def test_adafactor_on_stacked_params():
    params = {'layers': {'kernel': rng.normal(size=(2, 8, 16)), 'bias': rng.normal(size=(2, 16))}}
    grads = [jax.tree.map(lambda p: rng.normal(size=p.shape), params) for _ in range(3)]
    tx, _ = make(('adafactor', {'min_dim_size_to_factor': 4}), params)
    given, state = run(tx, params, grads)
    jax.tree.map(lambda a, b: np.testing.assert_array_less(0, abs(a - b)), wide(given), params)
    # The second moments of a factored kernel are a row and a column for each layer.
    sizes = {leaf.size for name, leaf in trees.flatten_named(state).items() if 'kernel' in name}
    assert sizes == {2 * 8, 2 * 16, 1}


PEAK, TOTAL, WARMUP = 0.3, 20, 4


@pytest.mark.parametrize(
    ('name', 'arguments', 'share'),
    [
        ('constant', {}, lambda p, s: 1),
        ('linear', {'final': 0.2}, lambda p, s: 1 - 0.8 * p),
        ('cosine', {'final': 0.1}, lambda p, s: 0.1 + 0.9 * (1 + np.cos(np.pi * p)) / 2),
        (
            'warmup_stable_decay',
            {'decay': 0.25, 'final': 0.1},
            lambda p, s: 1 if p <= 0.75 else 0.1 + 0.9 * (1 - p) / 0.25,
        ),
        ('inverse_sqrt', {'timescale': 3}, lambda p, s: 1 / np.sqrt(1 + s / 3)),
    ],
)
@pytest.mark.parametrize('warmup', [0, WARMUP])
def test_schedules(name, arguments, share, warmup):
    schedule = optimizers.make_schedule(
        PEAK, TOTAL, {'name': name, 'warmup_steps': warmup, **arguments}
    )
    for step in range(TOTAL + 3):
        if step < warmup:
            expected = PEAK * (step + 1) / warmup
        else:
            after = step - warmup
            expected = PEAK * share(min(after / (TOTAL - warmup), 1), after)
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5)
        np.testing.assert_allclose(schedule(jnp.int32(step)), expected, rtol=1e-5)
    assert jnp.asarray(jax.jit(schedule)(jnp.int32(3))).dtype == jnp.float32


def test_the_schedule_drives_the_updates():
    tx, rate = make(
        ('sgd', {'momentum': 0.0}), schedule=('linear', {'warmup_steps': 2}), total_steps=STEPS
    )
    given, _ = run(tx)
    moved = sum(float(rate(t)) * g['mlp']['bias'] for t, g in enumerate(GRADS))
    np.testing.assert_allclose(given['mlp']['bias'], PARAMS['mlp']['bias'] - moved, atol=1e-5)
