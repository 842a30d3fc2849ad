"""Records to examples and what cannot be; what is found, in pixels of the original images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import boxes as boxes_lib
from bigmodels import errors, sharding
from bigmodels.models.detector import Detector
from bigmodels.tasks import Detection
from tests.data import box_files

pytest.importorskip('pycocotools')
BACKBONE = dict(stage_sizes=(1, 1), stage_widths=(8, 8), block='basic')
MODEL = Detector(num_classes=3, width=8, backbone=BACKBONE)


def make_task(**fields):
    settings = dict(classes=box_files.NAMES, image_size=(60, 80), max_boxes=4, mean=30.0, std=60.0)
    return Detection(MODEL, **settings | fields)


@pytest.fixture(scope='module')
def batch():
    task, scenes = make_task(), box_files.scenes(4)
    examples = [task.preprocess(scene) for scene in scenes]
    stacked = {k: np.stack([e[k] for e in examples]) for k in examples[0]}
    return stacked | {'weights': np.ones(4, np.float32)}


@pytest.fixture(scope='module')
def variables(batch):
    made = dict(jax.jit(make_task().init)(jax.random.key(0), batch))
    return made.pop('params'), made


@pytest.mark.parametrize('size', [(120, 160), (30, 40), (60, 30), (17, 80)])
def test_images_fit_and_boxes_come_back_in_their_pixels(size):
    task = make_task()
    height, width = size
    image = np.full((*size, 3), 255, np.uint8)
    raw = {'image': image, 'boxes': [[width / 2, height / 4, width, height]], 'names': ['WBC']}
    example = task.preprocess(raw)
    shapes = {name: (v.shape, str(v.dtype)) for name, v in example.items()}
    assert shapes == {k: (v.shape, str(v.dtype)) for k, v in task.example_shapes().items()}
    real = example['inputs'][..., 0] > 0
    extent = [real.any(0).sum(), real.any(1).sum()]
    assert example['extent'].tolist() == extent
    assert extent[0] == 80 or extent[1] == 60
    w, h = extent
    np.testing.assert_allclose(example['boxes'][0], [w / 2, h / 4, w, h], rtol=1e-6)
    assert example['labels'].tolist() == [1, -1, -1, -1]
    bare = task.preprocess({'image': image})
    assert set(bare) == {'inputs', 'extent', 'original'}


def test_encoded_truth_is_found_exactly_and_scores_one(batch):
    task = make_task(max_overlap=1.0)
    batch = batch | {'original': 2 * batch['extent']}  # boxes are told in its pixels

    def answer(one_boxes, labels, extent):
        heat, owned, _ = boxes_lib.targets(one_boxes, labels, 3, (15, 20), 4)
        codes = boxes_lib.encode(owned, boxes_lib.centres(15, 20, 4), 4)
        return task._found(jnp.log(heat / (1 - heat)), jnp.nan_to_num(codes), extent)

    found = jax.vmap(answer)(*(batch[k] for k in ('boxes', 'labels', 'extent')))
    found = jax.device_get(found)
    for i, labels in enumerate(batch['labels']):
        sure = found['scores'][i] > 0.999
        assert sure.sum() == (labels >= 0).sum()
        order = np.lexsort(found['boxes'][i][sure].T)
        true = batch['boxes'][i][labels >= 0]
        expected = true[np.lexsort(true.T)]
        np.testing.assert_allclose(found['boxes'][i][sure][order], expected, atol=1e-3)
    outcomes = {k: v * (found['scores'] > 0.999) if k == 'scores' else v for k, v in found.items()}
    true = {f'true_{name}': batch[name] for name in ('boxes', 'labels', 'ignored')}
    assert task.scores(outcomes | true) == pytest.approx(dict(map=1, map50=1, map75=1))


def test_outcomes_and_answers_are_in_original_pixels(batch, variables):
    task = make_task(overlays=True, min_score=0.0)
    batch = batch | {'original': 2 * batch['extent']}
    outcomes = jax.device_get(jax.jit(task.outcomes)(*variables, batch))
    np.testing.assert_allclose(outcomes['true_boxes'], 2 * batch['boxes'])
    assert outcomes['boxes'].shape == (4, 100, 4)
    assert (np.diff(outcomes['scores']) <= 0).all()
    assert outcomes['boxes'][..., 2].max() <= 160
    assert outcomes['boxes'].min() >= 0
    plain = jax.device_get(jax.jit(make_task().predict)(*variables, batch))
    np.testing.assert_allclose(plain['boxes'], outcomes['boxes'], rtol=1e-5)
    answer = task.postprocess({name: value[0] for name, value in outcomes.items()})
    assert answer['picture'].shape == (120, 160, 3)
    assert len(answer['boxes']) == len(answer['labels']) == (outcomes['scores'][0] > 0).sum()
    assert set(answer['labels']) <= set(box_files.NAMES)
    [figure] = task.pictures(outcomes).values()
    assert len(figure.axes[0].texts) == 4
    assert make_task().pictures(outcomes) == {}


def test_of_a_set_objects_in_cells_side_by_side_are_found():
    heat = np.full((15, 20, 3), -9.0, np.float32)
    heat[7, 10, 1], heat[7, 11, 1] = 4.0, 3.0
    codes = np.broadcast_to(np.float32([0, 0, 1, 1]), (15, 20, 4))
    for assignment, count in (('centre', 1), ('set', 2)):
        task = make_task(assignment=assignment, max_overlap=1.0)
        found = task._found(heat, codes, jnp.float32([80, 60]))
        assert (found['scores'] > 0.5).sum() == count


@pytest.mark.parametrize('assignment', ['centre', 'set'])
def test_padding_and_images_without_objects_count_as_they_should(batch, variables, assignment):
    task = make_task(assignment=assignment)
    loss_fn = jax.jit(task.loss_fn, static_argnums=4)

    def sums(rows, **changes):
        part = {name: value[rows] for name, value in batch.items()} | changes
        return loss_fn(*variables, part, jax.random.key(0), False)[1][0]

    whole, halves = sums(slice(0, 4)), [sums(slice(0, 2)), sums(slice(2, 4))]
    for name, pair in whole.items():
        np.testing.assert_allclose(pair, np.sum([h[name] for h in halves], 0), rtol=1e-4)
    padded = sums([0, 1, 1, 1], weights=np.float32([1, 1, 0, 0]))
    np.testing.assert_allclose(padded['loss'], halves[0]['loss'], rtol=1e-4)
    mesh = sharding.make_mesh(sharding.MeshShape(data=4), jax.devices()[:4])
    by_rows = sums(slice(0, 4), **jax.device_put(batch, sharding.batch_sharding(mesh)))
    np.testing.assert_allclose(by_rows['loss'], whole['loss'], rtol=1e-5)
    empty = sums(slice(0, 2), labels=np.full((2, 4), -1, np.int32))
    assert np.isfinite(empty['loss'][0])
    assert empty['box_loss'][0] == 0
    ignored = sums(slice(0, 2), ignored=np.ones((2, 4), bool))
    np.testing.assert_array_equal(ignored['loss'], empty['loss'])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(names=['RBC', 'RBX']), r"b\.jpg: box 1, in config.task.classes: 'RBX'.*'RBC'"),
        (dict(boxes=[[0, 0, 5, 5]] * 5, names=['RBC'] * 5), r'b\.jpg: there are 5 boxes.*= 4 has'),
        (dict(names=['RBC']), r'b\.jpg: there are 2 boxes and 1 names'),
        (dict(boxes=[[0, 0, 5, 5], [4, 1, 4, 4]]), r'b\.jpg: box 1, .* has no area'),
        (dict(boxes=[[0, 0, 5, 5], [1, np.nan, 4, 4]]), r'b\.jpg: box 1, .* has no area'),
        (dict(boxes=[[0, 0, 5, 5], [1, 1, 4, 10]]), r'b\.jpg: box 1, .* is not inside the 9 x 9'),
        (dict(boxes=[[-1, 0, 5, 5], [1, 1, 4, 9]]), r'b\.jpg: box 0, .* is not inside the 9 x 9'),
        (dict(image=np.zeros((5, 5, 2), np.uint8)), 'An image is uint8'),
    ],
)
def test_what_is_wrong_with_a_record_is_said(change, message, tmp_path):
    raw = {
        'image': np.zeros((9, 9, 3), np.uint8),
        'boxes': [[0, 0, 5, 5], [1, 1, 4, 4]],
        'names': ['RBC', 'WBC'],
        'path': 'b.jpg',
    }
    with pytest.raises(errors.UserError, match=rf'records, record 0: .*{message}'):
        make_task().examples([raw | change], tmp_path, train=True)[0]


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(image_size=(60, 82)), r'image_size = \(60, 82\) must be .* multiples of the 4'),
        (dict(classes=('a', 'b')), r'classes = .* must be 3 different names'),
        (dict(classes=('a', 'b', 'b')), r'classes = .* must be 3 different names'),
        (dict(max_found=901), r'max_found = 901 must be from 1 to the 900 cells'),
        (dict(max_boxes=301, assignment='set'), r'max_boxes = 301 must be at most the 300 cells'),
        (dict(max_overlap=1.5), r'max_overlap = 1\.5 must be from 0 to 1'),
        (dict(augment=dict(rotate=9.0)), r"Unknown key in config\.task\.augment 'rotate'"),
    ],
)
def test_what_cannot_be_is_said_at_once(fields, message):
    with pytest.raises(errors.UserError, match=message):
        make_task(**fields)
