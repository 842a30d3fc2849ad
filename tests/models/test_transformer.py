"""The Transformer against a NumPy forward pass, published sizes, and itself in its other forms."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors, losses, trees
from bigmodels.deploy import sampling
from bigmodels.models import transformer
from bigmodels.models.transformer import Transformer

V, L, D = 61, 12, 32
# Compiles in half the time, and computes the same.
jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
LLAMA_STYLE = dict(
    norm='rms_norm', activation='swiglu', use_bias=False, tie_embeddings=False, num_kv_heads=2
)
GPT2 = dict(
    vocab_size=50257, num_layers=12, embed_dim=768, num_heads=12, max_length=1024,
    positions='learned',
)  # fmt: skip
LLAMA3_8B = dict(
    vocab_size=128256, num_layers=32, embed_dim=4096, num_heads=32, mlp_dim=14336, max_length=8192,
    **LLAMA_STYLE | {'num_kv_heads': 8},
)  # fmt: skip
LLAMA2_7B = dict(
    vocab_size=32000, num_layers=32, embed_dim=4096, num_heads=32, mlp_dim=11008, max_length=4096,
    **LLAMA_STYLE | {'num_kv_heads': None},
)  # fmt: skip
QWEN2_05B = dict(
    vocab_size=151936, num_layers=24, embed_dim=896, num_heads=14, mlp_dim=4864, max_length=4096,
    qkv_bias=True, **LLAMA_STYLE | {'tie_embeddings': True},
)  # fmt: skip


def make(**changes) -> Transformer:
    settings = dict(vocab_size=V, num_layers=2, embed_dim=D, num_heads=4, max_length=32)
    return Transformer(**settings | changes)


def tokens(*shape):
    return jnp.asarray(np.random.default_rng(1).integers(0, V, shape or (2, L)))


def randomized(model, seed=0):
    """Params in which no bias is 0 and no scale is 1, so that each of them counts."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens())['params']
    rng = np.random.default_rng(seed)
    return trees.map_named(
        lambda name, leaf: jnp.float32(name.endswith('scale') + 0.2 * rng.normal(size=leaf.shape)),
        shapes,
    )


def run(model, params, inputs, **options):
    return jit(lambda p, x, o: model.apply({'params': p}, x, **o))(params, inputs, options)


def numpy_forward(params, inputs, heads, kv_heads, eps=1e-5):
    """GPT-2, or Llama, as published, for one sequence; float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    llama = 'unembed' in p

    def norm(x, w):
        if llama:
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w['scale']
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w['scale'] + w['bias']

    linear = lambda x, w: x @ w['kernel'] + w.get('bias', 0)

    def rope(x):  # [L, K]
        k = x.shape[-1] // 2
        angle = np.arange(len(x))[:, None] * 10_000.0 ** -(np.arange(k) / k)
        turned = (x[:, :k] + 1j * x[:, k:]) * np.exp(1j * angle)
        return np.concatenate([turned.real, turned.imag], -1)

    x = p['embed']['embedding'][inputs]
    if not llama:
        x = x + p['position_embed']['embedding'][: len(inputs)]
    for i in range(2):
        w = p[f'layers_{i}']
        y, a = norm(x, w['attention_norm']), w['attention']
        q, k, v = (
            np.split(linear(y, a[name]), n, -1)
            for name, n in (('query', heads), ('key', kv_heads), ('value', kv_heads))
        )
        if llama:
            q, k = [rope(one) for one in q], [rope(one) for one in k]
        out = []
        for h in range(heads):
            n = h * kv_heads // heads
            scores = q[h] @ k[n].T / math.sqrt(q[h].shape[-1])
            scores = np.where(np.tri(len(inputs), dtype=bool), scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out.append(weights / weights.sum(-1, keepdims=True) @ v[n])
        x = x + linear(np.concatenate(out, -1), a['out'])
        y, m = norm(x, w['mlp_norm']), w['mlp']
        if llama:
            gate = linear(y, m['gate'])
            hidden = gate / (1 + np.exp(-gate)) * linear(y, m['up'])
        else:
            up = linear(y, m['up'])
            hidden = 0.5 * up * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
        x = x + linear(hidden, m['down'])
    x = norm(x, p['final_norm'])
    return x @ (p['unembed'] if llama else p['embed']['embedding'].T)


@pytest.mark.parametrize(
    'settings', [dict(positions='learned'), LLAMA_STYLE], ids=['gpt2', 'llama']
)
def test_forward_is_the_published_one(settings):
    model = make(**settings)
    params = randomized(model)
    given = run(model, params, tokens())
    assert given.dtype == jnp.float32
    for row, inputs in zip(given, np.asarray(tokens()), strict=True):
        expected = numpy_forward(params, inputs, 4, model.kv_heads)
        np.testing.assert_allclose(row, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ('settings', 'count'),
    [
        (GPT2, 124_439_808),
        (LLAMA3_8B, 8_030_261_248),
        (LLAMA2_7B, 6_738_415_616),
        (QWEN2_05B, 494_032_768),
    ],
    ids=['gpt2', 'llama3-8b', 'llama2-7b', 'qwen2-0.5b'],
)
def test_published_parameter_counts(settings, count):
    model = Transformer(**settings, scan_layers=True)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    assert trees.count(shapes) == count


@pytest.mark.parametrize('tie_embeddings', [True, False])
def test_padding_of_the_vocabulary_changes_no_loss_and_is_never_chosen(tie_embeddings):
    settings = dict(tie_embeddings=tie_embeddings, logit_softcap=5.0)
    plain, padded = make(**settings), make(vocab_multiple=128, **settings)
    params, wide = randomized(plain), randomized(padded, seed=1)
    extra = padded.vocab_rows - V
    assert 0 < extra < 128

    def with_padding(name, leaf, other):
        axis = {'embed/embedding': 0, 'unembed': 1}.get(name)
        if axis is None:
            return leaf
        rest = jax.lax.slice_in_dim(other, V, V + extra, axis=axis)
        return jnp.concatenate([leaf, 9 * rest], axis)  # likely, if they were not left out

    wide = trees.map_named(with_padding, params, wide)
    targets = tokens().at[0, 0].set(V - 1)

    def loss(model, params, **options):
        logits = model.apply({'params': params}, tokens())
        return losses.softmax_cross_entropy(logits, targets, **options).mean()

    for options in ({}, dict(label_smoothing=0.1, z_loss=0.01)):
        one, other = (
            jit(jax.value_and_grad(functools.partial(loss, model, **options)))(values)
            for model, values in ((plain, params), (padded, wide))
        )
        expected = trees.map_named(with_padding, one[1], jax.tree.map(jnp.zeros_like, wide))
        _close(other, (one[0], expected))
    logits = run(padded, wide, tokens())
    rows = logits.reshape(-1, V + extra)
    chosen = sampling.sample(
        jax.random.split(jax.random.key(0), len(rows)),
        rows,
        sampling.Sampling(top_k=V + 1).rows(len(rows)),
    )
    assert chosen.max() < V
    assert padded.flops_per_token(wide, L) == plain.flops_per_token(params, L)


def test_flops_by_hand():
    length = 16
    model = make(**LLAMA_STYLE, mlp_dim=48)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens())['params']
    per_layer = D * 32 + 2 * D * 16 + 32 * D + 3 * D * 48  # query, key and value, out, mlp
    norms = 5 * D
    kernels = 2 * per_layer + norms + D * V
    # Scores and weighted values: 2 products of 2 * K operations for each head and visible key, of
    # which there are half; the backward pass costs twice the forward pass.
    attention = 3 * 2 * 2 * 2 * 32 * length / 2
    assert model.flops_per_token(params, length) == 6 * kernels + attention
    assert make(**LLAMA_STYLE, mlp_dim=48, sliding_window=4).flops_per_token(params, length) == (
        6 * kernels + 3 * 2 * 2 * 2 * 32 * 4
    )
    learned = make(positions='learned')
    params = jax.eval_shape(learned.init, jax.random.key(0), tokens())['params']
    multiplied = trees.count(params) - 32 * D
    assert learned.flops_per_token(params, length) == 6 * multiplied + attention


def _loss(model, params, inputs, **options):
    return jnp.sin(model.apply({'params': params}, inputs, **options)).mean()


def _close(one, other, tolerance=1e-5):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (name, a), b in zip(trees.flatten_named(one).items(), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


def test_scanned_is_unrolled():
    model = make(**LLAMA_STYLE)
    scanned = model.clone(scan_layers=True, remat='dots')
    params = randomized(model)
    stacked = transformer.stack_layers(params)
    shapes = jax.eval_shape(scanned.init, jax.random.key(0), tokens())['params']
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes)
    assert trees.first_difference(transformer.unstack_layers(stacked), params) is None

    gradient = lambda m, p: jit(jax.value_and_grad(functools.partial(_loss, m)))(p, tokens())
    value, grads = gradient(model, params)
    scanned_value, scanned_grads = gradient(scanned, stacked)
    np.testing.assert_allclose(value, scanned_value, rtol=1e-6)
    _close(transformer.unstack_layers(scanned_grads), grads)

    scanned = model.clone(scan_layers=True)
    same_model, same_params = transformer.unscanned(scanned, stacked)
    assert same_model == model
    assert trees.first_difference(same_params, params) is None
    assert transformer.unscanned(model, params)[1] is params


def test_stacking_keeps_the_order_of_more_than_ten_layers():
    params = {f'layers_{i}': {'w': jnp.full(2, i)} for i in range(12)} | {'embed': jnp.ones(1)}
    stacked = transformer.stack_layers(params)
    np.testing.assert_array_equal(stacked['layers']['w'][:, 0], np.arange(12))
    assert trees.first_difference(transformer.unstack_layers(stacked), params) is None


def test_scanned_layers_start_different():
    params = jit(make(scan_layers=True).init)(jax.random.key(0), tokens())['params']['layers']
    first, second = params['mlp']['up']['kernel']
    assert abs(first - second).max() > 1e-3
    np.testing.assert_allclose(first.std(), 1 / math.sqrt(D), rtol=0.1)
    np.testing.assert_allclose(
        params['mlp']['down']['kernel'].std(), 1 / math.sqrt(2 * 2 * 4 * D), rtol=0.1
    )


@pytest.mark.parametrize(('scan_layers', 'policies'), [(False, ['full']), (True, ['attention'])])
def test_remat_changes_nothing(scan_layers, policies):
    """With dropout: the recomputed masks must be the same ones."""
    plain = make(dropout_rate=0.3, scan_layers=scan_layers)
    params = randomized(plain)
    options = dict(train=True, rngs={'dropout': jax.random.key(3, impl='rbg')})
    results = {
        remat: jit(
            jax.value_and_grad(functools.partial(_loss, plain.clone(remat=remat), **options))
        )(params, tokens())
        for remat in ('none', *policies)
    }
    for remat in policies:
        np.testing.assert_allclose(results[remat][0], results['none'][0], rtol=1e-6)
        _close(results[remat][1], results['none'][1])


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_what_the_backward_pass_keeps(dtype):
    """Nothing wider than the computation; with `dots` the projections, in every precision."""
    inputs = jnp.zeros((2, 16), jnp.int32)

    def kept(remat):
        model = make(dtype=dtype, remat=remat, num_layers=1, activation='swiglu', norm='rms_norm')
        params = jax.eval_shape(model.init, jax.random.key(0), inputs)['params']
        run = lambda params: model.apply({'params': params}, inputs, return_hidden=True)
        pull_back = jax.eval_shape(lambda params: jax.vjp(run, params)[1], params)
        return [leaf for leaf in jax.tree.leaves(pull_back) if leaf.shape[:1] == (2,)]

    per_token = {remat: sum(a.size for a in kept(remat)) for remat in ('attention', 'dots', 'none')}
    model = make()
    projected = 2 * 16 * (2 * model.num_heads * model.dim_per_head + 2 * 4 * model.embed_dim)
    assert per_token['attention'] + projected <= per_token['dots'] < per_token['none']
    if dtype == 'bfloat16':  # of float32 only rows' sums and tables of positions
        wide = [a for a in kept('none') if a.dtype == jnp.float32]
        assert max(a.size for a in wide) < 2 * 16 * model.embed_dim


def test_logits_may_be_rounded():
    inputs = jnp.arange(12)[None]
    model = make(dtype='bfloat16')
    params = model.init(jax.random.key(0), inputs)['params']
    exact = model.apply({'params': params}, inputs)
    rounded = model.clone(logits_dtype='bfloat16').apply({'params': params}, inputs)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rounded, exact.astype(jnp.bfloat16))


def test_remat_saves_memory():
    def needed(remat):
        model = make(num_layers=6, remat=remat, scan_layers=True, positions='none')
        shapes = jax.eval_shape(model.init, jax.random.key(0), tokens(1, 128))['params']
        step = jit(jax.grad(functools.partial(_loss, model)))
        inputs = jax.ShapeDtypeStruct((8, 128), jnp.int32)
        return step.lower(shapes, inputs).compile().memory_analysis().temp_size_in_bytes

    assert 2 * needed('full') < needed('none')


def test_unrolled_remat_is_kept_from_the_compiler():
    """Without a barrier its recomputation is merged with the first computation, saving nothing.

    (The CPU backend drops the barrier, so that this cannot be seen in the memory it needs.)
    """
    model = make(remat='full')
    text = jit(jax.grad(functools.partial(_loss, model))).lower(randomized(model), tokens())
    assert text.as_text().count('optimization_barrier') >= model.num_layers


@pytest.mark.parametrize(
    'settings',
    [
        dict(positions='learned'),
        dict(positions='none', norm_placement='post'),
        dict(
            **LLAMA_STYLE,
            sliding_window=4,
            qk_norm=True,
            attention_softcap=5.0,
            logit_softcap=3.0,
            norm_placement='both',
            scale_embeddings=True,
        ),
    ],
    ids=['learned', 'none', 'rotary-grouped-window'],
)
def test_cached_decoding_is_uncached(settings):
    """Prefill of P tokens, then one at a time; each row may be at another position."""
    model = make(**settings)
    params = randomized(model)
    whole = run(model, params, tokens())
    step = jit(lambda x, at, cache: model.apply({'params': params}, x, positions=at, cache=cache))
    for lengths in ((0, 0), (5, 5), (6, 2)):
        cache = model.init_cache(2, L + 3)
        if max(lengths):
            width = max(lengths)
            slots = jnp.tile(jnp.arange(width), (2, 1))
            prefix, cache = step(tokens()[:, :width], slots, cache)
            np.testing.assert_allclose(prefix, whole[:, :width], atol=2e-4)
        for i in range(L - max(lengths)):
            at = jnp.array(lengths)[:, None] + i
            logits, cache = step(jnp.take_along_axis(tokens(), at, 1), at, cache)
            expected = jnp.take_along_axis(whole, at[..., None], 1)
            np.testing.assert_allclose(logits, expected, atol=2e-4)


def test_cache_with_default_positions():
    model = make()
    params = randomized(model)
    logits, _ = run(model, params, tokens(), cache=model.init_cache(2, L))
    np.testing.assert_allclose(logits, run(model, params, tokens()), atol=2e-4)


@pytest.mark.parametrize('positions', ['learned', 'rotary'])
def test_packed_is_separate(positions):
    model = make(positions=positions, **LLAMA_STYLE)
    params = randomized(model)
    packed = tokens(1, L)
    lengths = (5, 4, 3)
    segments = jnp.asarray(np.repeat([1, 2, 3], lengths))[None]
    at = jnp.concatenate([jnp.arange(n) for n in lengths])[None]
    together = run(model, params, packed, positions=at, segment_ids=segments)
    start = 0
    for length in lengths:
        alone = run(model, params, packed[:, start : start + length])
        np.testing.assert_allclose(together[:, start : start + length], alone, atol=2e-4)
        start += length


@pytest.mark.parametrize('attention', ['xla', 'blockwise'])
def test_no_token_sees_a_later_one(attention):
    model = make(attention=attention)
    params = randomized(model)
    forward = jit(lambda x: model.apply({'params': params}, x))
    before = forward(tokens())
    after = forward(tokens().at[:, 7].add(1) % V)
    assert (before[:, :7] == after[:, :7]).all()
    assert (before[:, 7:] != after[:, 7:]).any(axis=(0, 2)).all()


def test_a_window_bounds_how_far_a_token_sees():
    model = make(num_layers=2, sliding_window=3, positions='none')
    params = randomized(model)
    forward = jit(lambda x: model.apply({'params': params}, x))
    changed = (forward(tokens()) != forward(tokens().at[:, 2].add(1) % V)).any(axis=(0, 2))
    assert changed.tolist() == [2 <= i <= 2 + 2 * 2 for i in range(L)]


def test_logits_finish_the_hidden_states():
    for settings in (dict(logit_softcap=4.0), dict(tie_embeddings=False, dtype='bfloat16')):
        model = make(**settings)
        params = randomized(model)
        hidden = run(model, params, tokens())
        states = jit(lambda p, m=model: m.apply({'params': p}, tokens(), return_hidden=True))
        assert states(params).dtype == jnp.dtype(model.dtype)
        np.testing.assert_allclose(
            model.logits(params, states(params)), hidden, rtol=1e-4, atol=1e-4
        )


def test_bfloat16_is_near_float32():
    model = make(**LLAMA_STYLE)
    params = jit(model.init)(jax.random.key(0), tokens())['params']
    wide = run(model, params, tokens())
    narrow = run(model.clone(dtype='bfloat16'), params, tokens())
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, wide, atol=0.03 * float(abs(wide).max()))


def test_initial_loss_is_that_of_a_uniform_guess():
    model = make(scan_layers=True)
    params = jit(model.init)(jax.random.key(0), tokens())['params']
    logits = run(model, params, tokens(4, 32))
    loss = -jax.nn.log_softmax(logits).mean()
    np.testing.assert_allclose(loss, math.log(V), atol=0.1)


def test_dropout_is_for_training_only():
    model = make(dropout_rate=0.5)
    params = randomized(model)
    plain = run(make(), params, tokens())
    np.testing.assert_array_equal(run(model, params, tokens()), plain)
    train = jit(
        lambda key: model.apply({'params': params}, tokens(), train=True, rngs={'dropout': key})
    )
    one, same, other = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    assert (one == same).all()
    assert (one != other).any()
    assert (one != plain).any()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(num_heads=5), 'not divisible by num_heads = 5'),
        (dict(num_kv_heads=3), 'must be a multiple of num_kv_heads = 3'),
        (dict(head_dim=7), 'even head_dim, not 7'),
        (dict(sliding_window=0), 'sliding_window = 0 must be at least 1'),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(errors.UserError, match=message):
        make(**changes)


def test_a_scanned_model_does_not_decode():
    model = make(scan_layers=True)
    with pytest.raises(errors.UserError, match='unscanned'):
        model.init(jax.random.key(0), tokens(), cache=model.init_cache(2, 8))


def test_head_dim_and_rotary_scaling_are_free():
    scaling = {
        'name': 'llama3',
        'factor': 2.0,
        'low_frequency_factor': 1.0,
        'high_frequency_factor': 4.0,
        'original_length': 16,
    }
    model = make(head_dim=6, rotary_scaling=scaling, remat='full', scan_layers=True)
    hash(model)
    params = randomized(model)
    assert params['layers']['attention']['query']['kernel'].shape == (2, D, 24)
    scaled, plain = (
        run(make(head_dim=6, rotary_scaling=s, scan_layers=True), params, tokens())
        for s in (scaling, None)
    )
    assert abs(scaled - plain).max() > 1e-3
    assert jnp.isfinite(run(model, params, tokens())).all()


def test_global_layers_are_those_without_the_window():
    """The last token sees the first one where a layer on its way has no window."""
    seen = {}
    for layers in ((), (0,), (1,)):
        model = make(sliding_window=2, global_layers=layers, tie_embeddings=False)
        params = randomized(model)
        changed = run(model, params, tokens().at[0, 0].add(1)) - run(model, params, tokens())
        seen[layers] = np.abs(changed[0, -1]).max() > 1e-6
    assert seen == {(): False, (0,): True, (1,): True}


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(global_layers=(0,)), 'no window'),
        (dict(global_layers=(2,), sliding_window=4), 'from 0 to 1'),
        (dict(global_layers=(0,), sliding_window=4, scan_layers=True), 'not scanned'),
        (dict(local_rotary_theta=1e4), 'global_layers'),
    ],
)
def test_layers_that_cannot_differ_are_refused(settings, message):
    with pytest.raises(errors.UserError, match=message):
        make(**settings)


def test_token_types_choose_a_row_and_0_is_the_default():
    model = make(token_types=2, embed_norm=True, causal=False)
    params = randomized(model)
    types = jnp.zeros((2, L), jnp.int32)
    swapped = params | {'type_embed': {'embedding': params['type_embed']['embedding'][::-1]}}
    other = run(model, params, tokens(), token_types=types + 1)
    np.testing.assert_array_equal(run(model, swapped, tokens()), other)
    plain = run(model, params, tokens())
    np.testing.assert_array_equal(run(model, params, tokens(), token_types=types), plain)
    assert np.abs(plain - other).max() > 1e-3


def test_transformed_logits_finish_the_hidden_states():
    model = make(logits_transform=True, final_norm=False, norm_placement='post')
    params = randomized(model)
    hidden = jit(lambda p: model.apply({'params': p}, tokens(), return_hidden=True))(params)
    given = jit(model.logits)(params, hidden)
    np.testing.assert_allclose(given, run(model, params, tokens()), atol=1e-5)
