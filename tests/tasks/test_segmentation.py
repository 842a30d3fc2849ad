"""Masks to examples and what cannot be; losses and figures over the pixels of whole images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigmodels import errors, evaluate, metrics, sharding, steps
from bigmodels.data import pipeline
from bigmodels.data.sources.mask_sources import MaskFolder
from bigmodels.models.unet import UNet
from bigmodels.tasks import Segmentation
from tests.data import mask_files

MODEL = UNet(num_classes=3, widths=(4, 8))
SIZES = ((10, 14), (16, 9), (13, 13))


def make_task(**fields):
    given = dict(image_size=(16, 14), channels=1, mean=50.0, std=60.0) | fields
    return Segmentation(MODEL, **given)


@pytest.fixture
def source(tmp_path):
    written = [mask_files.scenes(1, *size, seed=i) for i, size in enumerate(SIZES)]
    pixels, masks = zip(*((image[0], mask[0]) for image, mask in written), strict=True)
    mask_files.write_folder(tmp_path / 'set', pixels, masks)
    return MaskFolder(str(tmp_path / 'set'))


def whole(task, source, tmp_path):
    examples = task.examples(source, tmp_path, train=False)
    return {key: jnp.asarray(x) for key, x in examples.take(np.arange(len(source))).items()}


def test_examples_are_images_and_masks_with_padding_of_no_weight(source, tmp_path):
    batch = whole(make_task(), source, tmp_path)
    shapes = make_task().example_shapes()
    assert {key: (x.shape[1:], x.dtype) for key, x in batch.items()} == {
        key: (shape.shape, shape.dtype) for key, shape in shapes.items()
    }
    for i, (height, width) in enumerate(SIZES):
        record = source[i]
        part = {key: x[i, :height, :width] for key, x in batch.items()}
        np.testing.assert_allclose(part['inputs'][..., 0], (record['image'][..., 0] - 50.0) / 60.0)
        np.testing.assert_array_equal(part['targets'], record['mask'])
        assert batch['weights'][i].sum() == part['weights'].sum() == height * width


def test_instances_are_one_class():
    task = Segmentation(UNet(num_classes=2, widths=(4, 8)), (4, 4), instances=True)
    record = {'image': np.zeros((4, 4, 3), np.uint8), 'mask': np.arange(16).reshape(4, 4, 1)}
    np.testing.assert_array_equal(task.preprocess(record)['targets'], record['mask'][..., 0] > 0)


@pytest.mark.parametrize(
    ('mask', 'message'),
    [
        (np.full((13, 13), 3, np.uint8), r'record 2: The mask has the value 3, .*num_classes is 3'),
        (np.full((13, 13), -1), r'the value -1'),
        (np.ones((12, 13), int), r'record 2: The mask is int64 \[12, 13\]: integers \[13, 13\]'),
        (np.ones((13, 13)), r'The mask is float64'),
        (np.ones((13, 13, 3), int), r'The mask is int64 \[13, 13, 3\]'),
    ],
)
def test_bad_masks_name_their_record(source, mask, message, tmp_path, monkeypatch):
    record = source[2] | {'mask': mask}
    monkeypatch.setattr(MaskFolder, '__getitem__', lambda self, index: record)
    examples = make_task().examples(source, tmp_path, train=True)
    for read in (lambda: examples[2], lambda: examples.take(np.array([2]))):
        with pytest.raises(errors.UserError, match=rf'masks .*/set: 3 images, .*{message}'):
            read()


def test_an_image_without_its_mask_is_no_example(source, tmp_path):
    task = make_task(mask_key='masks')
    examples = task.examples(source, tmp_path, train=True)
    for read in (lambda: examples[2], lambda: examples.take(np.array([2]))):
        with pytest.raises(errors.UserError, match="record 2: .*task.mask_key = 'masks'. Did you"):
            read()
    assert 'targets' not in task.preprocess(source[2])


def test_an_image_beyond_the_size_of_examples_is_named(source, tmp_path):
    examples = make_task(image_size=(12, 14)).examples(source, tmp_path, train=True)
    with pytest.raises(errors.UserError, match=r'record 1: .* 16 x 14 pixels.*\(12, 14\)'):
        examples[1]


def test_the_loss_is_cross_entropy_and_dice_of_the_pixels_that_are_real(source, tmp_path):
    task = make_task(dice_weight=0.7)
    batch = whole(task, source, tmp_path)
    batch['weights'] = batch['weights'].at[1].set(0)  # an example that fills up a batch
    variables = jax.jit(task.init)(jax.random.key(0), batch)
    params, state = variables['params'], {'batch_stats': variables['batch_stats']}
    loss_fn = jax.jit(task.loss_fn, static_argnums=4)
    loss, (pairs, _) = loss_fn(params, state, batch, jax.random.key(0), False)
    logits = jax.jit(MODEL.apply)(variables, batch['inputs'])
    expected, right = [], []
    for i in (0, 2):
        height, width = SIZES[i]
        part, targets = logits[i, :height, :width], batch['targets'][i, :height, :width]
        entropy = optax.losses.softmax_cross_entropy_with_integer_labels(part, targets).mean()
        dice = optax.losses.dice_loss(
            part[None], jax.nn.one_hot(targets, 3)[None], smooth=0.5, ignore_background=True
        )
        expected.append(entropy + 0.7 * dice[0])
        right.append((part.argmax(-1) == targets).ravel())
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)
    assert pairs['loss'][1] == 2 * task.most_counts(batch['weights'])
    np.testing.assert_allclose(metrics.mean(pairs['accuracy']), np.concatenate(right).mean())


@pytest.mark.slow
def test_a_batch_in_parts_has_the_gradient_of_the_whole(source, tmp_path):
    """With BatchNorm as in evaluation: in training it is of each part."""
    task = make_task()
    batch = whole(task, source, tmp_path)
    batch = {key: jnp.concatenate([x, x[:1]]) for key, x in batch.items()}
    batch['weights'] = batch['weights'].at[1].set(0)
    variables = jax.jit(task.init)(jax.random.key(0), batch)
    state = {'batch_stats': variables['batch_stats']}

    def loss_fn(params, model_state, batch, rng, train):
        loss, (pairs, _) = task.loss_fn(params, model_state, batch, rng, False)
        return loss, (pairs, model_state)

    gradients = jax.jit(steps.accumulated_gradients, static_argnums=(4, 5))
    one, parts = (
        gradients(variables['params'], state, batch, jax.random.key(0), loss_fn, count)
        for count in (1, 2)
    )
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('devices', [1, 8])
def test_figures_are_of_every_pixel_of_the_set_and_no_padding(source, devices, tmp_path):
    sklearn_metrics = pytest.importorskip('sklearn.metrics')
    task = make_task(overlays=True)
    batch = whole(task, source, tmp_path)
    variables = jax.jit(task.init)(jax.random.key(1), batch)
    params, state = variables['params'], {'batch_stats': variables['batch_stats']}

    def step(params, model_state, batch):
        return steps.eval_step(
            params, model_state, batch, loss_fn=task.loss_fn, outcomes=task.outcomes
        )

    sets = {'test': pipeline.evaluation_batches(task.examples(source, tmp_path, train=False), 8)}
    mesh = sharding.make_mesh(sharding.MeshShape(), jax.devices()[:devices])
    shown = {}
    found = evaluate.evaluate(
        jax.jit(step), task, params, state, sets, mesh, see=lambda _, seen: shown.update(seen)
    )
    classes = np.asarray(jax.jit(task.predict)(params, state, batch)['classes'])
    pairs = [
        (source[i]['mask'].ravel(), classes[i, :height, :width].ravel())
        for i, (height, width) in enumerate(SIZES)
    ]
    targets, predicted = map(np.concatenate, zip(*pairs, strict=True))
    for name, score in (('dice', 'f1_score'), ('iou', 'jaccard_score')):
        score = getattr(sklearn_metrics, score)
        expected = score(targets, predicted, labels=[1, 2], average='macro')
        assert found[f'test/{name}'] == pytest.approx(expected)
    assert {f'test/{name}' for name in task.score_names} < set(found)
    for i, (height, width) in enumerate(SIZES):
        drawn = shown['images'][i, :height, :width, 0]
        np.testing.assert_array_equal(drawn, source[i]['image'][..., 0])
        answer = task.postprocess({'classes': classes[i], 'weights': batch['weights'][i]})
        np.testing.assert_array_equal(answer['mask'], 127 * classes[i, :height, :width])
        assert answer['shares'][1] == pytest.approx((pairs[i][1] == 1).mean())
    [figure] = task.pictures(shown).values()
    assert len(figure.axes[0].texts) == 3


def test_training_sees_parts_and_changes_and_evaluation_whole_images(source, tmp_path):
    task = make_task(crop_size=8, augment=dict(flip=0.5, rotate=90.0))
    batch = whole(task, source, tmp_path)
    seen = []

    class Watched(UNet):
        def __call__(self, inputs, *, train=False):
            seen.append(inputs.shape)
            return super().__call__(inputs, train=train)

    task = dataclasses.replace(task, model=Watched(num_classes=3, widths=(4, 8)))
    variables = jax.jit(MODEL.init)(jax.random.key(0), batch['inputs'])
    state = {'batch_stats': variables['batch_stats']}
    loss_fn = jax.jit(task.loss_fn, static_argnums=4)
    for train in (True, False):
        loss, (pairs, _) = loss_fn(variables['params'], state, batch, jax.random.key(0), train)
        assert np.isfinite(loss)
        assert pairs['loss'][1] == 3
    assert seen == [(3, 8, 8, 1), (3, 16, 14, 1)]


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(image_size=(16, 15)), r'image_size = \(16, 15\) must be .* multiples of the 2'),
        (dict(image_size=(16,)), r'must be a height and a width'),
        (dict(crop_size=16), r'crop_size = 16 must be .* not above'),
        (dict(crop_size=5), r'crop_size = 5 must be a multiple of 2'),
        (dict(instances=True), r'num_classes = 3 must be .* 2 with config.task.instances'),
        (dict(dice_weight=-1.0), r'dice_weight = -1.0'),
        (dict(augment=dict(mixup=0.2)), r'augment.mixup is for images without masks'),
    ],
)
def test_what_cannot_be_is_said_at_once(fields, message):
    with pytest.raises(errors.UserError, match=message):
        make_task(**fields)
