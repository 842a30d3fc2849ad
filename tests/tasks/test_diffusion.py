"""Flow matching: its loss and samples against a flow that is known, and what cannot be."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors, metrics
from bigmodels.data.sources.table_sources import Columns
from bigmodels.tasks import Diffusion

CLASSES, SHAPE = 3, (2, 2)


class Known(nn.Module):
    """The best velocity to one image of each class, whose pixels are all the label + 1.

    For images at a point m the flow is (m - x_t) / (1 - t). Without a class m is 0.
    """

    num_classes: int = CLASSES

    @nn.compact
    def __call__(self, inputs, times, labels, *, train=False):
        scale = self.param('scale', nn.initializers.ones, ())
        point = jnp.where(labels == self.num_classes, 0.0, labels + 1.0)[:, None, None]
        return scale * (point - inputs) / jnp.maximum(1 - times, 1e-3)[:, None, None]


def make_task(**fields):
    return Diffusion(Known(), **(dict(image_shape=SHAPE, mean=100.0, std=50.0) | fields))


def batch(rows=64):
    labels = jnp.arange(rows) % CLASSES
    inputs = jnp.broadcast_to(labels[:, None, None] + 1.0, (rows, *SHAPE))
    seeds = jnp.arange(rows, dtype=jnp.uint32)
    return {'inputs': inputs, 'targets': labels, 'seeds': seeds, 'weights': jnp.ones(rows)}


def test_the_loss_of_the_true_flow_is_zero_and_of_none_that_of_the_velocities():
    task, given = make_task(), batch()
    for train in (False, True):
        loss, _ = task.loss_fn({'scale': jnp.ones(())}, {}, given, jax.random.key(0), train)
        # In training a tenth of the labels are dropped, and only then is the flow a wrong one.
        assert (loss > 0.01) if train else (loss < 1e-6)
        nothing = make_task(label_dropout=0.0, guidance=1.0)
        loss, _ = nothing.loss_fn({'scale': jnp.ones(())}, {}, given, jax.random.key(0), train)
        assert loss < 1e-6
    loss, (pairs, _) = task.loss_fn({'scale': jnp.zeros(())}, {}, given, jax.random.key(0), False)
    noise_square = 1.0  # E (image - noise)^2 = image^2 + 1
    expected = float(jnp.square(given['inputs']).mean()) + noise_square
    assert loss == pytest.approx(expected, rel=0.2)
    assert pairs['loss'][1] == 64
    half = {**given, 'weights': given['weights'].at[32:].set(0)}
    loss, (pairs, _) = task.loss_fn({'scale': jnp.zeros(())}, {}, half, jax.random.key(0), False)
    np.testing.assert_allclose(metrics.mean(pairs['loss']), loss)
    assert pairs['loss'][1] == 32


def test_evaluation_does_not_depend_on_the_batch():
    task, given, params = make_task(), batch(), {'scale': jnp.zeros(())}
    _, (pairs, _) = task.loss_fn(params, {}, given, jax.random.key(0), False)
    total = 0.0
    for first in range(0, 64, 16):
        part = {key: x[first : first + 16] for key, x in given.items()}
        _, (part_pairs, _) = task.loss_fn(params, {}, part, jax.random.key(1), False)
        total += float(part_pairs['loss'][0])
    np.testing.assert_allclose(total, pairs['loss'][0], rtol=1e-5)


@pytest.mark.parametrize('guidance', [0.0, 1.0, 2.5])
def test_samples_follow_the_flow_to_the_class_as_far_as_guided(guidance):
    task = make_task(guidance=guidance, sampling_steps=40)
    params = {'scale': jnp.ones(())}
    records = [{'label': np.int64(i % CLASSES), 'seed': np.int64(i)} for i in range(6)]
    examples = [task.preprocess(record) for record in records]
    given = {key: np.stack([e[key] for e in examples]) for key in examples[0]}
    found = jax.jit(task.predict)(params, {}, given)
    # Both flows are linear in where they lead to, and so is what guidance makes of them.
    expected = guidance * (given['targets'] + 1.0)
    np.testing.assert_allclose(found.mean((1, 2)), expected, atol=0.1)
    alone = task.predict(params, {}, {key: x[4:5] for key, x in given.items()})
    np.testing.assert_allclose(alone[0], found[4], atol=1e-4)


def test_seeds_tell_the_noise():
    task = make_task(sampling_steps=1)
    given = {'targets': np.zeros(3, np.int32), 'seeds': np.array([5, 5, 6], np.uint32)}
    found = task.predict({'scale': jnp.zeros(())}, {}, given)
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).all()


def test_records_and_answers(tmp_path):
    class Nine(Columns):
        def describe(self):
            return 'nine images'

    pixels = np.random.default_rng(0).integers(0, 256, (9, *SHAPE), np.uint8)
    task = make_task()
    examples = task.examples(Nine({'image': pixels, 'label': np.arange(9) % 3}), tmp_path, True)
    taken = examples.take(np.arange(9))
    shapes = task.example_shapes()
    assert shapes.pop('weights').shape == ()  # the pipeline's
    assert {key: (x.shape[1:], x.dtype) for key, x in taken.items()} == {
        key: (shape.shape, shape.dtype) for key, shape in shapes.items()
    }
    assert examples[4]['seeds'] == taken['seeds'][4] == 4
    np.testing.assert_array_equal(task.postprocess(taken['inputs'][4])['image'], pixels[4])
    assert task.postprocess(np.full((2, 2, 1), 99.0))['image'].tolist() == [[255, 255], [255, 255]]
    bad = task.examples(Nine({'image': pixels, 'label': np.arange(9) % 4}), tmp_path, True)
    with pytest.raises(errors.UserError, match='nine images, record 3: Label 3 is out of range'):
        bad.take(np.arange(9))


@pytest.mark.parametrize(
    ('record', 'message'),
    [
        ({'seed': 1}, r"Unknown record field task.label_key = 'label'"),
        ({'label': 'three', 'seed': 1}, r'labels are integers'),
        ({'label': 1, 'seed': -1}, r'seed -1 must be an integer from 0'),
        ({'label': 1, 'seed': 0.5}, r'seed 0.5 must be an integer'),
        ({'label': 1, 'image': [[0, 1], [2, np.nan]]}, 'not finite'),
        ({'label': 1, 'image': np.zeros((2, 3))}, r'image is \[2, 3\], .*image_shape \[2, 2\]'),
        ({'label': 1, 'image': np.zeros((5, 2, 2))}, r'image is \[5, 2, 2\]'),
    ],
)
def test_bad_records(record, message):
    with pytest.raises(errors.UserError, match=message):
        make_task().preprocess(record)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(label_dropout=1.5), r'label_dropout = 1.5 must be from 0 to 1'),
        (dict(label_dropout=0.0), r'guidance = 2\.0 needs task\.label_dropout'),
        (dict(sampling_steps=0), r'sampling_steps = 0 must be at least 1'),
        (dict(image_shape=(2,)), r'image_shape = \(2,\) must be'),
    ],
)
def test_what_cannot_be_is_said_at_once(fields, message):
    with pytest.raises(errors.UserError, match=message):
        make_task(**fields)
