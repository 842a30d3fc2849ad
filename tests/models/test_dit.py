"""Diffusion Transformers: the published size, what they begin as, and what they depend on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import trees
from bigmodels.models import dit, vit

SMALL = dit.DiT(num_classes=3, num_layers=2, embed_dim=16, num_heads=2, patch_size=2)


def given(rows=4):
    keys = jax.random.split(jax.random.key(0), 2)
    images = jax.random.normal(keys[0], (rows, 6, 8, 3))
    return images, jax.random.uniform(keys[1], (rows,)), jnp.arange(rows)


def test_the_published_size():
    """That of DiT-XL/2, without the outputs for its four channels' variances."""
    model = dit.DiT(1000, num_layers=28, embed_dim=1152, num_heads=16, patch_size=2)
    inputs = jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    shapes = jax.eval_shape(functools.partial(model.init, jax.random.key(0)), *inputs)
    assert trees.count(shapes['params']) == 675_129_632 - 2 * 2 * 4 * (1152 + 1)


def test_patches_are_put_back():
    images = given()[0]
    np.testing.assert_array_equal(dit.from_patches(vit.patches(images, 2), 2, images.shape), images)


def test_it_begins_as_zero_and_depends_on_everything_when_trained():
    inputs = given()
    init, apply = jax.jit(SMALL.init), jax.jit(SMALL.apply)
    variables = init(jax.random.key(0), *inputs)
    assert not apply(variables, *inputs).any()
    trained = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), variables
    )
    out = apply(trained, *inputs)
    assert out.shape == inputs[0].shape
    others = inputs[0].at[:, 5, 7].add(1), (inputs[1] + 0.5) % 1, jnp.flip(inputs[2])
    for i, other in enumerate(others):
        changed = apply(trained, *(other if i == j else x for j, x in enumerate(inputs)))
        assert (jnp.abs(changed - out)[:, 0, 0].max(-1) > 1e-4).all()
    flat = inputs[0][..., 0]
    variables = init(jax.random.key(0), flat, *inputs[1:])
    assert apply(variables, flat, *inputs[1:]).shape == flat.shape


def test_waves_are_of_frequencies_from_one_down():
    found = dit.waves(jnp.array([0.0, 2.0]), 8)
    angles = 2 * 10_000 ** -np.array([0, 0.25, 0.5, 0.75])
    np.testing.assert_allclose(found[0], [1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(found[1], [*np.cos(angles), *np.sin(angles)], rtol=1e-5)
