"""Recurrent networks against loops in NumPy, in float64, and padding that changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels.models.parts import pooling
from bigmodels.models.recurrent import CELLS, Recurrent, recur

B, L, H = 3, 7, 5
rng = np.random.default_rng(0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_loop(projected, kernel, bias):
    """[L, 4H] -> [L, H], gate by gate as Hochreiter and Schmidhuber's equations with forgetting."""
    h, c, outputs = np.zeros(H), np.zeros(H), []
    for x in projected:
        gates = x + h @ kernel + bias
        i, f, g, o = (gates[k * H : (k + 1) * H] for k in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.array(outputs)


def gru_loop(projected, kernel, bias):
    h, outputs = np.zeros(H), []
    for x in projected:
        recurrent = h @ kernel + bias
        r = sigmoid(x[:H] + recurrent[:H])
        z = sigmoid(x[H : 2 * H] + recurrent[H : 2 * H])
        n = np.tanh(x[2 * H :] + r * recurrent[2 * H :])
        h = (1 - z) * n + z * h
        outputs.append(h)
    return np.array(outputs)


LOOPS = {'lstm': lstm_loop, 'gru': gru_loop}


@pytest.mark.parametrize('name', CELLS)
@pytest.mark.parametrize('reverse', [False, True])
def test_cells_are_the_published_ones(name, reverse):
    width = CELLS[name].gates * H
    projected = rng.normal(size=(B, L, width))
    kernel, bias = rng.normal(size=(H, width)), rng.normal(size=width)
    lengths = np.array([7, 4, 1])
    real = np.arange(L) < lengths[:, None]
    with jax.enable_x64(True):
        given = jax.jit(recur, static_argnums=(0, 5))(
            CELLS[name], projected, real, kernel, bias, reverse
        )
    assert given.dtype == np.float64
    for row, length in enumerate(lengths):
        alone = projected[row, :length]
        expected = LOOPS[name](alone[::-1] if reverse else alone, kernel, bias)
        np.testing.assert_allclose(
            given[row, :length], expected[::-1] if reverse else expected, rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize('settings', [dict(), dict(cell='gru', num_layers=2, pool='mean')])
def test_padding_on_either_side_changes_nothing(settings):
    model = Recurrent(num_classes=3, vocab_size=20, embed_dim=6, hidden_dim=H, **settings)
    inputs = rng.integers(1, 20, (B, L))
    params = model.init(jax.random.key(0), inputs)
    alone = model.apply(params, inputs)
    padded, segment_ids = np.full((2, B, L + 4), 9), np.zeros((2, B, L + 4), int)
    for side, start in enumerate((0, 4)):
        padded[side, :, start : start + L] = inputs
        segment_ids[side, :, start : start + L] = 1
        given = model.apply(params, padded[side], segment_ids=segment_ids[side])
        np.testing.assert_allclose(given, alone, rtol=1e-5, atol=1e-6)


def test_one_direction_has_half_the_outputs_and_forget_gates_begin_open():
    model = Recurrent(3, 20, embed_dim=6, hidden_dim=H, bidirectional=False)
    params = model.init(jax.random.key(0), jnp.zeros((1, L), int))['params']
    assert set(params) == {'embed', 'layers_0_forward', 'head'}
    assert params['head']['kernel'].shape == (H, 3)
    np.testing.assert_array_equal(params['layers_0_forward']['bias'], np.repeat([0, 1, 0, 0], H))


def test_pools_are_those_of_the_real_positions():
    x = rng.normal(size=(3, 4, 2)).astype(np.float32)
    real = np.array([[1, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]], bool)
    for pool, function in (('mean', np.mean), ('max', np.max)):
        given = pooling.POOLS[pool](jnp.asarray(x), jnp.asarray(real))
        for row in range(2):
            expected = function(x[row][real[row]], axis=0)
            np.testing.assert_allclose(given[row], expected, rtol=1e-6)
        np.testing.assert_array_equal(given[2], 0)
