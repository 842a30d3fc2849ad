"""Towers whose vectors are units, a scale that is bounded, and texts without their padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors
from bigmodels.models.clip import CLIP, clipped_above
from bigmodels.models.parts import pooling

IMAGE = dict(num_layers=1, embed_dim=8, num_heads=2, patch_size=4)
TEXT = dict(vocab_size=16, num_layers=1, embed_dim=8, num_heads=2, max_length=12)


def make(**fields):
    return CLIP(**dict(image=IMAGE, text=TEXT, embed_dim=6) | fields)


@pytest.fixture(scope='module')
def seen():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 16, (3, 7))
    segment_ids = (np.arange(7) < np.array([[7], [4], [1]])).astype(np.int32)
    return jnp.float32(rng.normal(size=(3, 8, 8, 3))), tokens * segment_ids, segment_ids


@pytest.mark.parametrize('bias', [None, -10.0])
def test_scores_are_scaled_cosines(seen, bias):
    model = make(init_scale=20.0, init_bias=bias)
    variables = model.init(jax.random.key(0), *seen)
    images = model.apply(variables, seen[0], method=model.images)
    texts = model.apply(variables, *seen[1:], method=model.texts)
    for vectors in (images, texts):
        np.testing.assert_allclose(jnp.linalg.norm(vectors, axis=-1), 1, rtol=1e-5)
    cosines = np.float64(images) @ np.float64(texts).T
    scores = model.apply(variables, *seen)
    np.testing.assert_allclose(scores, 20 * cosines + (bias or 0), rtol=1e-4, atol=1e-4)


def test_a_text_is_the_same_however_it_is_padded(seen):
    model = make()
    variables = model.init(jax.random.key(0), *seen)
    texts = model.apply(variables, *seen[1:], method=model.texts)
    padded = (np.pad(x, ((0, 0), (0, 5))) for x in seen[1:])
    np.testing.assert_allclose(
        model.apply(variables, *padded, method=model.texts), texts, rtol=1e-5, atol=1e-6
    )
    alone = model.apply(variables, *(x[1:2, :4] for x in seen[1:]), method=model.texts)
    np.testing.assert_allclose(alone[0], texts[1], rtol=1e-4, atol=1e-6)


def test_the_last_real_position_is_pooled():
    x = jnp.arange(12.0).reshape(2, 3, 2)
    real = jnp.array([[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(pooling.last(x, real), [[2, 3], [6, 7]])


def test_the_scale_is_bounded_and_can_fall_back():
    model = make(max_scale=100.0)
    over = {'params': {'log_scale': jnp.log(150.0)}}
    assert model.apply(over, method=model.scale) == pytest.approx(100)
    free = make(max_scale=None)
    assert free.apply(over, method=free.scale) == pytest.approx(150)
    for x, falls, expected in ((1.0, True, 2), (3.0, True, 2), (3.0, False, 0), (1.0, False, -2)):
        sign = 2 if falls else -2  # a positive gradient is a parameter that descent lowers
        assert jax.grad(lambda x, s=sign: s * clipped_above(x, 2.0))(x) == expected


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(text=TEXT | dict(tie_embeddings=False)), 'text.tie_embeddings must be True'),
        (dict(text=TEXT | dict(moe=dict(num_experts=2))), 'text.moe must be None'),
        (dict(text=TEXT | dict(layers=3)), r"config\.model\.text 'layers'"),
        (dict(image=IMAGE | dict(num_classes=3)), r"config\.model\.image 'num_classes'"),
        (dict(project_images=False), 'embed_dim = 6 must be model.image.embed_dim = 8'),
        (dict(init_scale=200.0), 'init_scale = 200.0 must be over 0 and at most max_scale = 100'),
        (dict(init_scale=-1.0, max_scale=None), 'init_scale = -1.0 must be over 0'),
    ],
)
def test_what_cannot_be_is_said_at_once(fields, message):
    with pytest.raises(errors.UserError, match=message):
        make(**fields)


def test_texts_beyond_the_towers_length_are_refused(seen):
    tokens = jnp.ones((1, 13), int)
    with pytest.raises(errors.UserError, match=r'13 tokens .*max_length = 12'):
        make().init(jax.random.key(0), seen[0], tokens, tokens)
