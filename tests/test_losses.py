"""Losses against optax and NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigmodels import losses, metrics, sharding

rng = np.random.default_rng(0)
LOGITS, TARGETS = 3 * rng.normal(size=(2, 5, 11)), rng.integers(0, 11, (2, 5))


def reference(logits, targets, smoothing=0.0, z=0.0):
    log_z = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    probabilities = np.eye(logits.shape[-1])[targets] * (1 - smoothing)
    probabilities += smoothing / logits.shape[-1]
    return -(probabilities * (logits - log_z[..., None])).sum(-1) + z * log_z**2


@pytest.mark.parametrize(('smoothing', 'z'), [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-2), (0.2, 1e-3)])
def test_cross_entropy(smoothing, z):
    given = losses.softmax_cross_entropy(
        jnp.float32(LOGITS), jnp.asarray(TARGETS), label_smoothing=smoothing, z_loss=z
    )
    assert given.dtype == jnp.float32
    np.testing.assert_allclose(given, reference(LOGITS, TARGETS, smoothing, z), rtol=1e-5)


def test_cross_entropy_is_that_of_optax_with_its_gradient():
    for smoothing in (0.0, 0.1):
        labels = optax.smooth_labels(jax.nn.one_hot(TARGETS, 11), smoothing)
        theirs = lambda x, labels=labels: optax.softmax_cross_entropy(x, labels).sum()
        ours = lambda x, s=smoothing: losses.softmax_cross_entropy(
            x, TARGETS, label_smoothing=s
        ).sum()
        x = jnp.float32(LOGITS)
        np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-6)
        np.testing.assert_allclose(jax.grad(ours)(x), jax.grad(theirs)(x), atol=1e-6)


def test_divergence_is_its_definition_and_leaves_out_classes_that_are_not_there():
    other = 3 * rng.normal(size=LOGITS.shape)
    targets = [np.full((2, 5), c) for c in range(11)]
    own, others = (
        np.exp(-np.stack([reference(x / 2.5, target) for target in targets], -1))
        for x in (LOGITS, other)
    )
    expected = (others * np.log(others / own)).sum(-1)
    padded = [jnp.pad(jnp.float32(x), ((0, 0), (0, 0), (0, 2)), constant_values=-jnp.inf)
              for x in (LOGITS, other)]  # fmt: skip
    divergence = lambda x: losses.divergence(x, padded[1], 2.5)
    np.testing.assert_allclose(divergence(padded[0]), expected, rtol=1e-4)
    gradient = jax.grad(lambda x: divergence(x).sum())(padded[0])
    np.testing.assert_allclose(gradient[..., :11], (own - others) / 2.5, atol=1e-6)
    assert (gradient[..., 11:] == 0).all()


def test_large_and_low_precision_logits():
    given = losses.softmax_cross_entropy(jnp.array([[1e4, 0.0, -1e4]]), jnp.array([1]))
    np.testing.assert_allclose(given, [1e4])
    narrow = jnp.asarray(LOGITS, jnp.bfloat16)
    given = losses.softmax_cross_entropy(narrow, TARGETS)
    assert given.dtype == jnp.float32
    np.testing.assert_allclose(given, reference(np.asarray(narrow, np.float64), TARGETS), rtol=1e-5)


@pytest.mark.parametrize('gamma', [0.5, 2.0])
def test_focal_loss_is_its_definition_with_its_gradient(gamma):
    def ours(logits):
        return losses.focal(losses.softmax_cross_entropy(logits, TARGETS), gamma)

    def definition(logits):
        probability = jax.nn.softmax(logits)
        probability = jnp.take_along_axis(probability, TARGETS[..., None], -1)[..., 0]
        return -((1 - probability) ** gamma) * jnp.log(probability)

    x = jnp.float32(LOGITS)
    np.testing.assert_allclose(ours(x), definition(x), rtol=1e-4)
    gradients = [jax.grad(lambda x, f=f: f(x).sum())(x) for f in (ours, definition)]
    np.testing.assert_allclose(*gradients, rtol=1e-3, atol=1e-5)
    # Optax's, of two classes.
    two = jnp.stack([jnp.zeros(5), x[0, :5, 0]], -1)
    binary = optax.losses.sigmoid_focal_loss(two[:, 1], jnp.ones(5), gamma=gamma)
    of_two = losses.focal(losses.softmax_cross_entropy(two, jnp.ones(5, int)), gamma)
    np.testing.assert_allclose(of_two, binary, rtol=1e-4)
    # What is certain has neither loss nor gradient, and none that is not a number.
    certain = jnp.array([100.0, 0.0])
    of_certain = lambda x: losses.focal(losses.softmax_cross_entropy(x, jnp.array(0)), gamma)
    assert jax.value_and_grad(of_certain)(certain)[0] == 0
    np.testing.assert_array_equal(jax.grad(of_certain)(certain), 0)


def test_masked_means():
    values, weights = (
        rng.normal(size=(4, 3)),
        np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 0, 1]]),
    )
    pair = metrics.pair(jnp.float32(values), jnp.asarray(weights))
    assert [x.dtype for x in pair] == [jnp.float32] * 2
    np.testing.assert_allclose(metrics.mean(pair), values[weights == 1].mean(), rtol=1e-6)
    halves = [metrics.pair(jnp.float32(v), w) for v, w in zip(values, weights, strict=True)]
    total = {'x': halves[0]}
    for half in halves[1:]:
        total = metrics.add(total, {'x': half})
    np.testing.assert_allclose(total['x'], pair, rtol=1e-6)
    assert metrics.mean(metrics.pair(jnp.ones(3), jnp.zeros(3))) == 0
    correct = metrics.pair(jnp.array([True, False, True]), jnp.ones(3))
    assert correct[0].dtype == jnp.float32
    np.testing.assert_allclose(metrics.mean(correct), 2 / 3)


@pytest.mark.parametrize('chunk', [1, 3, 5, 10, 64])
def test_chunked_is_unchunked(chunk):
    hidden, kernel = jnp.float32(rng.normal(size=(2, 5, 4))), jnp.float32(rng.normal(size=(4, 11)))

    def loss(hidden, kernel, chunked):
        of_hidden = lambda h, t: losses.softmax_cross_entropy(h @ kernel, t, z_loss=1e-3)
        if chunked:
            values = losses.chunked_over_tokens(of_hidden, hidden, jnp.asarray(TARGETS), chunk)
        else:
            values = of_hidden(hidden, TARGETS)
        return (values * jnp.arange(10.0).reshape(2, 5)).sum(), values

    both = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (_, one), one_grads = both(hidden, kernel, True)
    (_, other), other_grads = both(hidden, kernel, False)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    for a, b in zip(one_grads, other_grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('chunk', [1, 32, 1000])
def test_chunked_within_split_sequences(chunk):
    """Three positions of each device do not divide into chunks of two."""
    hidden, targets = jnp.float32(rng.normal(size=(4, 12, 5))), jnp.arange(48).reshape(4, 12)

    def figures(hidden):
        values = {'a': lambda h, t: jnp.sin(h).sum(-1) * t / 48, 'b': lambda h, t: t}
        return losses.chunked_over_tokens(
            lambda h, t: {name: value(h, t) for name, value in values.items()},
            hidden,
            targets,
            chunk,
        )

    gradient = jax.grad(lambda hidden: jnp.sin(figures(hidden)['a']).sum())
    expected, expected_gradient = figures(hidden), gradient(hidden)
    with jax.set_mesh(sharding.make_mesh(sharding.MeshShape(data=2, sequence=4))):
        given, given_gradient = jax.jit(lambda h: (figures(h), gradient(h)))(hidden)
    np.testing.assert_allclose(given['a'], expected['a'], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(given['b'], targets)
    np.testing.assert_allclose(given_gradient, expected_gradient, rtol=1e-5, atol=1e-5)


def test_chunked_takes_several_figures():
    hidden = jnp.arange(12.0).reshape(2, 3, 2)
    figures = losses.chunked_over_tokens(
        lambda h, t: {'a': h[:, 0], 'b': (h[:, 1], t)}, hidden, jnp.asarray(TARGETS[:, :3]), 4
    )
    np.testing.assert_array_equal(figures['a'], hidden[..., 0])
    np.testing.assert_array_equal(figures['b'][0], hidden[..., 1])
    np.testing.assert_array_equal(figures['b'][1], TARGETS[:, :3])


def test_chunked_needs_less_memory():
    def loss(hidden, kernel, chunk):
        of_hidden = lambda h, t: losses.softmax_cross_entropy(h @ kernel, t)
        targets = jnp.zeros(512, jnp.int32)
        if chunk:
            return losses.chunked_over_tokens(of_hidden, hidden, targets, chunk).sum()
        return of_hidden(hidden, targets).sum()

    def peak(chunk):
        step = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
        lowered = step.lower(jnp.zeros((512, 8)), jnp.zeros((8, 4096)), chunk)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert 4 * peak(32) < peak(0)


def test_in_batch_softmax_by_hand():
    """A query's own item counts once, the items of padding do not."""
    scores = rng.normal(size=(5, 5))
    items, weights = np.array([3, 1, 3, 2, 7]), np.array([1, 1, 1, 1, 0])
    frequency = np.array([0.5, 0.2, 0.5, 0.1, 0.9])
    given = losses.in_batch_softmax(
        jnp.float32(scores), jnp.asarray(items), jnp.log(frequency), jnp.asarray(weights)
    )
    for i in range(4):
        others = [j for j in range(4) if items[j] != items[i]]
        total = np.exp(scores[i, i]) + (np.exp(scores[i]) / (3 * frequency))[others].sum()
        np.testing.assert_allclose(given[i], np.log(total) - scores[i, i], rtol=1e-5)


def test_in_batch_softmax_is_in_expectation_the_softmax_over_all_items():
    """Its normaliser is, over many draws of the batch; of one batch the logarithm is biased."""
    draws, of_items = np.random.default_rng(0), rng.normal(size=6)
    frequency = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
    normalizers = []
    for _ in range(20):
        items = np.concatenate([np.arange(6), draws.choice(6, 1000, p=frequency)])
        scores = np.tile(of_items[items], (len(items), 1))
        given = losses.in_batch_softmax(
            jnp.float32(scores), jnp.asarray(items), jnp.log(frequency[items]), jnp.ones(len(items))
        )
        normalizers.append(np.exp(given[:6] + of_items))
    np.testing.assert_allclose(np.mean(normalizers, 0), np.exp(of_items).sum(), rtol=0.03)


def test_bpr_is_the_log_of_a_sigmoid():
    right, wrong = rng.normal(size=(2, 7))
    expected = np.log1p(np.exp(-(right - wrong)))
    np.testing.assert_allclose(
        losses.bpr(jnp.float32(right), jnp.float32(wrong)), expected, rtol=1e-5
    )


def test_dice_is_that_of_optax_and_leaves_out_pixels_without_weight():
    """Optax's numerator and denominator are half of ours, and so is what smooths them."""
    logits, targets = rng.normal(size=(3, 6, 8, 4)), rng.integers(0, 4, (3, 6, 8))
    probabilities = jax.nn.softmax(jnp.float32(logits))
    whole = losses.dice(probabilities, jnp.asarray(targets), jnp.ones((3, 6, 8)))
    theirs = optax.losses.dice_loss(
        jnp.float32(logits), jax.nn.one_hot(targets, 4), smooth=0.5, ignore_background=True
    )
    np.testing.assert_allclose(whole, theirs, rtol=1e-5)
    weights = jnp.zeros((3, 6, 8)).at[:, :4, :5].set(1)
    part = losses.dice(probabilities[:, :4, :5], targets[:, :4, :5], jnp.ones((3, 4, 5)))
    np.testing.assert_allclose(losses.dice(probabilities, targets, weights), part, rtol=1e-6)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_gradients_of_softmax_cross_entropy(dtype):
    """Against p - onehot, smoothed, plus 2 z log(Z) p, in float64; a class of -inf has none."""
    logits = (
        jnp.asarray(np.random.default_rng(0).normal(0, 3, (6, 11)), dtype).at[:, 9].set(-jnp.inf)
    )
    targets, weights = np.arange(6), np.linspace(0.5, 2, 6)
    options = dict(label_smoothing=0.1, z_loss=0.01)

    def total(logits):
        return (losses.softmax_cross_entropy(logits, targets, **options) * weights).sum()

    given = jax.grad(total)(logits)
    wide = np.float64(logits)
    log_z = np.log(np.exp(wide).sum(-1, keepdims=True))
    p = np.exp(wide - log_z)
    aimed_at = 0.9 * np.eye(11)[targets] + 0.1 * (wide > -np.inf) / 10
    expected = weights[:, None] * (p - aimed_at + 0.02 * log_z * p)
    assert given.dtype == dtype
    tolerance = 1e-5 if dtype == 'float32' else 1e-2
    np.testing.assert_allclose(np.float64(given), expected, atol=tolerance)


SAME = np.eye(5, dtype=bool)
SAME[1, 3] = SAME[3, 1] = True
WHOLE = np.array([1.0, 1, 1, 1, 0])  # the last example is padding


def contrastive_softmax_reference(scores, same, weights):
    """The mean, by loops: of each real image over real texts, of each text over images."""
    real = np.flatnonzero(weights)
    total = 0.0
    for matrix in (scores, scores.T):
        for i in real:
            log_z = np.log(sum(np.exp(matrix[i, j]) for j in real))
            right = [j for j in real if same[i, j]]
            total += sum(log_z - matrix[i, j] for j in right) / len(right)
    return total / (2 * len(real))


def contrastive_sigmoid_reference(scores, same, weights):
    """Algorithm 1 of Zhai et al. 2023 on the real examples."""
    real = np.flatnonzero(weights)
    labels = np.where(same, 1.0, -1.0)[np.ix_(real, real)]
    return -np.log(1 / (1 + np.exp(-labels * scores[np.ix_(real, real)]))).sum() / len(real)


@pytest.mark.parametrize('same', [np.eye(5, dtype=bool), SAME], ids=['pairs', 'equal'])
@pytest.mark.parametrize(
    ('loss', 'reference'),
    [
        (losses.contrastive_softmax, contrastive_softmax_reference),
        (losses.contrastive_sigmoid, contrastive_sigmoid_reference),
    ],
)
def test_contrastive_losses_are_their_definition_with_its_gradient(loss, reference, same):
    scores = 2 * np.random.default_rng(1).normal(size=(5, 5))

    def ours(scores):
        return metrics.mean(metrics.pair(loss(scores, same, WHOLE), WHOLE))

    value, gradient = jax.value_and_grad(ours)(jnp.float32(scores))
    np.testing.assert_allclose(value, reference(scores, same, WHOLE), rtol=1e-5)
    expected = np.zeros_like(scores)
    for place in np.ndindex(5, 5):
        step = np.zeros_like(scores)
        step[place] = 1e-6
        either = [reference(scores + sign * step, same, WHOLE) for sign in (1, -1)]
        expected[place] = (either[0] - either[1]) / 2e-6
    np.testing.assert_allclose(gradient, expected, atol=1e-5)
    assert not gradient[4].any()
    assert not gradient[:, 4].any()


def test_contrastive_losses_without_equal_texts_are_those_of_optax():
    scores = jnp.float32(2 * np.random.default_rng(2).normal(size=(6, 6)))
    own, ones = np.eye(6, dtype=bool), np.ones(6)
    theirs = sum(
        optax.softmax_cross_entropy_with_integer_labels(s, jnp.arange(6))
        for s in (scores, scores.T)
    )
    np.testing.assert_allclose(losses.contrastive_softmax(scores, own, ones), theirs / 2, rtol=1e-5)
    theirs = optax.sigmoid_binary_cross_entropy(scores, jnp.float32(own)).sum(1)
    np.testing.assert_allclose(losses.contrastive_sigmoid(scores, own, ones), theirs, rtol=1e-5)
