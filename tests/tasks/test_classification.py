"""Records to examples and what cannot be; losses, figures of batches and of whole sets."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigmodels import errors, evaluate, metrics, sharding, steps
from bigmodels.data import pipeline
from bigmodels.data.sources import table_sources
from bigmodels.interpret import activations
from bigmodels.models.mlp import MLP
from bigmodels.tasks import classification
from bigmodels.tasks.classification import Classification


class Nine(table_sources.Columns):
    def describe(self):
        return 'nine images'


@pytest.fixture
def source():
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 4), np.uint8)
    return Nine({'image': images, 'label': np.arange(9) % 3})


@pytest.mark.parametrize('stacked', [True, False])
def test_examples_taken_together_are_those_taken_alone(source, stacked, tmp_path):
    task = Classification(MLP(num_classes=3), mean=4.9, std=6.1)
    records = source if stacked else [source[i] for i in range(9)]
    examples = task.examples(records, tmp_path, train=True)
    indices = np.array([4, 8, 0, 4])
    batch = examples.take(indices)
    assert {key: value.dtype.name for key, value in batch.items()} == {
        'inputs': 'float32', 'targets': 'int32',
    }  # fmt: skip
    for row, i in enumerate(indices):
        expected = (source[i]['image'].astype(np.float32) - np.float32(4.9)) / np.float32(6.1)
        np.testing.assert_array_equal(batch['inputs'][row], expected)
        np.testing.assert_array_equal(examples[i]['inputs'], expected)
        assert batch['targets'][row] == examples[i]['targets'] == i % 3


def test_a_label_out_of_range_is_named(source, tmp_path):
    examples = Classification(MLP(num_classes=2)).examples(source, tmp_path, train=True)
    for call in (lambda: examples.take(np.array([0, 5, 1])), lambda: examples[5]):
        message = 'nine images, record 5: Label 2 is out of range: model.num_classes is 2'
        with pytest.raises(errors.UserError, match=message):
            call()


@pytest.mark.parametrize('image_size', [0, 3])
@pytest.mark.parametrize('stacked', [True, False])
def test_a_record_without_its_label_is_no_example(source, stacked, image_size, tmp_path):
    task = Classification(MLP(num_classes=3), label_key='lable', image_size=image_size)
    examples = task.examples(
        source if stacked else [source[i] for i in range(9)], tmp_path, train=False
    )
    message = r"record 5: .*task.label_key = 'lable'. Did you mean 'label'"
    for call in (lambda: examples.take(np.array([5, 1])), lambda: examples[5]):
        with pytest.raises(errors.UserError, match=message):
            call()
    assert task.preprocess(source[5]).keys() == {'inputs'}  # to be answered


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        ([0.5, None], 'not finite'),
        ([1e39, 0.0], 'not finite'),
        (['a', 'b'], 'not an array of numbers'),
        ({'a': 1}, 'not an array of numbers'),
        ([[1, 2], [3]], "'image' is not an array of numbers"),
        (5, 'a single number'),
    ],
)
def test_what_is_no_array_of_numbers_is_named(image, message):
    with pytest.raises(errors.UserError, match=message):
        Classification(MLP(num_classes=3)).preprocess({'image': image})


@pytest.mark.parametrize('image', [None, 5, 'a', [[1, 2], [3]]])
def test_what_is_no_image_is_named(image):
    with pytest.raises(errors.UserError, match='An image is uint8|not an array of numbers'):
        Classification(MLP(num_classes=3), image_size=4).preprocess({'image': image})


@pytest.mark.parametrize('label', [1.5, 'cat'])
def test_a_label_that_is_no_integer_is_refused(label):
    with pytest.raises(errors.UserError, match=r"task.label_key = 'label' is of .*integers"):
        Classification(MLP(num_classes=3)).preprocess({'image': np.zeros((4, 4)), 'label': label})


def test_an_input_that_is_not_finite_is_named(tmp_path):
    examples = Classification(MLP(num_classes=3)).examples(
        [{'image': np.full((4, 4), value), 'label': 0} for value in (0.0, np.nan)],
        tmp_path,
        train=False,
    )
    with pytest.raises(errors.UserError, match=r'record 1: The input has a value that is not'):
        examples[1]


@pytest.mark.parametrize(('height', 'width'), [(40, 60), (33, 20), (16, 16)])
def test_images_are_scaled_and_cut_to_the_size_asked_for(height, width):
    """A ramp along each side keeps its middle and its slope."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([2 * rows, 2 * columns, 0 * rows], -1).astype(np.uint8)
    task = Classification(MLP(num_classes=3), image_size=16)
    inputs = task.preprocess({'image': image})['inputs']
    assert inputs.shape == (16, 16, 3)
    scale = min(height, width) / 16
    for axis, side in enumerate((height, width)):
        values = inputs[..., axis].mean(1 - axis)
        assert values.mean() == pytest.approx(side - 1, abs=scale + 1)
        assert np.diff(values).mean() == pytest.approx(2 * scale, rel=0.1)
    several = task.preprocess({'image': np.stack([image, image]), 'label': np.array([1, 2])})
    np.testing.assert_array_equal(several['inputs'], [inputs, inputs])


@pytest.mark.parametrize('stacked', [True, False])
def test_grey_images_without_channels_are_scaled_as_those_with_one(source, stacked, tmp_path):
    task = Classification(MLP(num_classes=3), image_size=3)
    records = source if stacked else [source[i] for i in range(9)]
    batch = task.examples(records, tmp_path, train=True).take(np.arange(9))
    assert batch['inputs'].shape == (9, 3, 3)
    for i in range(9):
        with_channel = {'image': source[i]['image'][..., None]}
        expected = task.preprocess(with_channel)['inputs']
        assert expected.shape == (3, 3, 1)
        np.testing.assert_array_equal(batch['inputs'][i], expected[..., 0])
        alone = task.preprocess({'image': source[i]['image']})['inputs']
        np.testing.assert_array_equal(batch['inputs'][i], alone)


def test_videos_have_as_many_frames_and_pixels_as_asked_for():
    video = np.broadcast_to(10 * np.arange(9, dtype=np.uint8)[:, None, None, None], (9, 8, 12, 1))
    task = Classification(MLP(num_classes=3), num_frames=3, image_size=4, mean=10.0, std=20.0)
    assert task.record_fields == {'image': 'video'}
    assert Classification(MLP(num_classes=3)).record_fields == {'image': 'image'}
    example = task.preprocess({'image': video, 'label': 2})
    assert example['inputs'].shape == (3, 4, 4, 1)
    np.testing.assert_array_equal(example['inputs'][:, 0, 0, 0], np.float32([0.0, 1.5, 3.0]))
    several = task.preprocess({'image': np.stack([video, video]), 'label': np.array([1, 2])})
    np.testing.assert_array_equal(several['inputs'], np.stack([example['inputs']] * 2))
    with pytest.raises(errors.UserError, match='has 2 frames, fewer than the 3 wanted'):
        task.preprocess({'image': video[:2]})
    with pytest.raises(errors.UserError, match=r'A video is \[T, H, W, C\]'):
        task.preprocess({'image': video[..., 0]})


@pytest.mark.parametrize(
    ('shape', 'kind'),
    [((4, 4, 4), np.uint8), ((4,), np.uint8), ((2, 4, 4, 2), np.uint8), ((4, 4, 3), np.float32)],
)
def test_what_is_no_image_is_not_scaled(shape, kind):
    task = Classification(MLP(num_classes=3), image_size=3)
    with pytest.raises(errors.UserError, match=r'An image is uint8 \[H, W\], .*, got '):
        task.preprocess({'image': np.zeros(shape, kind)})


CLASSES, ROWS = 6, 20
MODEL = MLP(num_classes=CLASSES, hidden_dims=(8,))


def batch():
    rng = np.random.default_rng(1)
    return {
        'inputs': rng.normal(size=(ROWS, 4, 4)).astype(np.float32),
        'targets': rng.integers(0, CLASSES, ROWS).astype(np.int32),
        'weights': (rng.random(ROWS) < 0.8).astype(np.float32),
    }


def pairs_and_logits(task, given, train=True):
    params = task.init(jax.random.key(0), given)['params']
    loss, (pairs, _) = task.loss_fn(params, {}, given, jax.random.key(1), train)
    np.testing.assert_allclose(metrics.mean(pairs['loss']), loss)
    return pairs, np.asarray(MODEL.apply({'params': params}, given['inputs']))


def test_class_weights_make_the_training_loss_a_weighted_mean():
    class_weights = (1.0, 0.0, 2.0, 0.5, 1.0, 3.0)
    task, given = Classification(MODEL, class_weights=class_weights), batch()
    pairs, logits = pairs_and_logits(task, given)
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, given['targets'])
    weights = given['weights'] * np.array(class_weights)[given['targets']]
    expected = np.average(losses, weights=weights)
    np.testing.assert_allclose(metrics.mean(pairs['loss']), expected, rtol=1e-5)
    pairs, _ = pairs_and_logits(task, given, train=False)
    expected = np.average(losses, weights=given['weights'])
    np.testing.assert_allclose(metrics.mean(pairs['loss']), expected, rtol=1e-5)


def test_a_weighted_loss_in_parts_is_that_of_the_whole():
    task, given = Classification(MODEL, class_weights=(1.0, 0.0, 2.0, 0.5, 1.0, 3.0)), batch()
    params = task.init(jax.random.key(0), given)['params']
    whole, parts = (
        steps.accumulated_gradients(params, {}, given, jax.random.key(0), task.loss_fn, count)
        for count in (1, 4)
    )
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_mixed_images_have_the_loss_of_both_classes_by_their_share():
    class_weights = np.float32([1, 2, 1, 1, 3, 1])
    task = Classification(MODEL, class_weights=tuple(class_weights.tolist()), label_smoothing=0.1)
    rng = np.random.default_rng(2)
    given = batch() | {
        'share': rng.random(ROWS).astype(np.float32),
        'other_targets': rng.integers(0, CLASSES, ROWS),
    }
    pairs, logits = pairs_and_logits(task, given)
    total = count = 0
    for targets, share in (
        (given['targets'], given['share']),
        (given['other_targets'], 1 - given['share']),
    ):
        labels = optax.smooth_labels(jax.nn.one_hot(targets, CLASSES), 0.1)
        weights = given['weights'] * share * class_weights[targets]
        total += (optax.losses.softmax_cross_entropy(logits, labels) * weights).sum()
        count += weights.sum()
    np.testing.assert_allclose(pairs['loss'], (total, count), rtol=1e-5)


def test_top_k_accuracy():
    given = batch()
    pairs, logits = pairs_and_logits(Classification(MODEL, top_k=3), given, train=False)
    best = np.argsort(-logits, axis=1, kind='stable')[:, :3]
    expected = (best == given['targets'][:, None]).any(1)
    np.testing.assert_allclose(
        pairs['top3_accuracy'], ((expected * given['weights']).sum(), given['weights'].sum())
    )
    pairs, _ = pairs_and_logits(Classification(MODEL, top_k=1), given, train=False)
    np.testing.assert_array_equal(pairs['top1_accuracy'], pairs['accuracy'])
    equal = classification.ranks(jnp.zeros((3, CLASSES)), jnp.array([0, 2, 5]))
    np.testing.assert_array_equal(equal, [0, 2, 5])
    unknown = classification.ranks(jnp.full((3, CLASSES), jnp.nan), jnp.array([0, 2, 5]))
    np.testing.assert_array_equal(unknown, [CLASSES] * 3)  # among no first k


@pytest.mark.parametrize('channels', [(), (3,)])
@pytest.mark.parametrize('views', [dict(mirror=True), dict(shift=2), dict(mirror=True, shift=1)])
def test_answers_averaged_over_views_of_an_image(views, channels):
    model = MLP(num_classes=CLASSES)
    images = np.random.default_rng(0).normal(size=(4, 5, 6, *channels)).astype(np.float32)
    given = {'inputs': images, 'targets': np.arange(4), 'weights': np.ones(4, np.float32)}
    params = model.init(jax.random.key(0), images)['params']
    task = Classification(model, **views)

    def logits(inputs):
        return np.asarray(model.apply({'params': params}, inputs))

    def moved(pixels):
        around = [(0, 0), (2, 2), (2, 2), *[(0, 0)] * len(channels)]
        kept = (slice(2 - pixels, -2 - pixels or None),) * 2
        return np.pad(images, around, mode='reflect')[:, *kept]

    def loss(train):
        _, (pairs, _) = task.loss_fn(params, {}, given, jax.random.key(1), train=train)
        return metrics.mean(pairs['loss'])

    def cross_entropy(values):
        labels = given['targets']
        return optax.losses.softmax_cross_entropy_with_integer_labels(values, labels).mean()

    seen = [moved(pixels) for pixels in {0, -task.shift, task.shift}]
    if task.mirror:
        seen += [np.flip(x, axis=2) for x in seen]
    average = np.mean([logits(x) for x in seen], 0)
    np.testing.assert_allclose(task.predict(params, {}, given), jax.nn.softmax(average), rtol=1e-5)
    np.testing.assert_allclose(loss(train=False), cross_entropy(average), rtol=1e-5)
    np.testing.assert_allclose(loss(train=True), cross_entropy(logits(images)), rtol=1e-5)


@pytest.mark.parametrize('views', [dict(mirror=True), dict(shift=1)])
def test_what_looks_into_a_model_answers_by_one_call_of_it(views):
    images = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    plain = Classification(MLP(num_classes=CLASSES))
    task, given = dataclasses.replace(plain, **views), {'inputs': images}
    params = plain.init(jax.random.key(0), given)['params']
    expected = plain.predict(params, {}, given)
    assert (task.predict(params, {}, given) != expected).any()
    found, _ = activations.capture(task, params, {}, given, [activations.INPUT])
    np.testing.assert_array_equal(found, expected)
    changed = activations.edited(task, {activations.INPUT: activations.Edit(images + 1)})
    expected = plain.predict(params, {}, {'inputs': images + 1})
    np.testing.assert_array_equal(changed.predict(params, {}, given), expected)


@pytest.mark.parametrize('views', [dict(mirror=True), dict(shift=1)])
def test_only_images_have_views(views):
    task, given = Classification(MODEL, **views), batch()
    params = task.init(jax.random.key(0), given)['params']
    flat = given['inputs'].reshape(ROWS, -1)
    with pytest.raises(errors.UserError, match=r'is for images .* are \[20, 16\]') as told:
        task.predict(params, {}, {'inputs': flat})
    assert f'task.{next(iter(views))} is' in str(told.value)


def test_the_picture_has_a_row_for_each_true_class():
    task = Classification(MLP(num_classes=3), report=('f1',))
    outcomes = {'probabilities': np.eye(3)[[1, 1, 2, 0]], 'targets': np.array([0, 0, 2, 1])}
    [axes] = task.pictures(outcomes)['confusion'].axes
    written = {text.get_position()[::-1]: text.get_text() for text in axes.texts}
    assert {place for place, count in written.items() if count != '0'} == {(0, 1), (1, 0), (2, 2)}
    assert written[0, 1] == '2'
    assert axes.get_ylabel() == 'true class'


@pytest.mark.parametrize('train', [True, False])
def test_labels_of_another_shape_are_named(train):
    given = batch()
    for targets in (given['targets'][:, None], np.eye(CLASSES, dtype=np.int32)[given['targets']]):
        with pytest.raises(errors.UserError, match=r'A label is \[\d\], .*task.label_key'):
            pairs_and_logits(Classification(MODEL), given | {'targets': targets}, train=train)


@pytest.mark.parametrize('devices', [1, 8])
def test_reported_figures_are_of_the_whole_set(source, devices, tmp_path):
    sklearn_metrics = pytest.importorskip('sklearn.metrics')
    report = ('f1', 'f1_of_class', 'roc_auc')
    task = Classification(MLP(num_classes=3), mean=128.0, std=60.0, report=report)
    examples = task.examples(source, tmp_path, train=False)
    sets = {'test': pipeline.evaluation_batches(examples, 8)}
    params = task.init(jax.random.key(0), examples.take(np.arange(9)))['params']

    def step(params, model_state, batch):
        return steps.eval_step(
            params, model_state, batch, loss_fn=task.loss_fn, outcomes=task.outcomes
        )

    mesh = sharding.make_mesh(sharding.MeshShape(), jax.devices()[:devices])
    found = evaluate.evaluate(jax.jit(step), task, params, {}, sets, mesh)
    whole = {key: jnp.asarray(value) for key, value in examples.take(np.arange(9)).items()}
    probabilities = np.asarray(task.predict(params, {}, whole))
    expected = sklearn_metrics.f1_score(
        whole['targets'], probabilities.argmax(1), average=None, labels=[0, 1, 2], zero_division=0
    )
    for c, value in enumerate(expected):
        assert found[f'test/f1_of_class_{c}'] == pytest.approx(value)
    area = np.mean(
        [
            sklearn_metrics.roc_auc_score(whole['targets'] == c, probabilities[:, c])
            for c in range(3)
        ]
    )
    assert found['test/roc_auc'] == pytest.approx(area)
    assert {f'test/{name}' for name in task.score_names} < set(found)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(class_weights=(1.0, 2.0)), 'must be 6 numbers'),
        (dict(class_weights=(1.0,) * 5 + (-1.0,)), 'none negative'),
        (dict(focal_gamma=-1.0), 'must not be negative'),
        (dict(focal_gamma=2.0, label_smoothing=0.1), 'needs label_smoothing = 0'),
        (dict(top_k=7), r'top_k = 7 must be from 0 to 6'),
        (dict(num_frames=-1), 'num_frames = -1 must not be negative'),
        (dict(num_frames=4, augment=dict(flip=0.5)), 'augment is for images: leave it out'),
        (dict(num_frames=4, mirror=True), 'mirror is for images: leave it out'),
        (dict(num_frames=4, shift=1), 'shift is for images: leave it out'),
        (dict(shift=-1), 'shift = -1 must not be negative'),
        (dict(report=('f2',)), r"figure in config.task.report: 'f2'.*f1"),
    ],
)
def test_what_cannot_be_is_said_at_once(fields, message):
    with pytest.raises(errors.UserError, match=message):
        Classification(MODEL, **fields)
