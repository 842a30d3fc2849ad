"""Any number of classes for an input: losses by PyTorch's definition, figures by scikit-learn's."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import config as config_lib
from bigmodels import errors, predict, train
from bigmodels.models.mlp import MLP
from bigmodels.scores import classification as scores
from bigmodels.tasks.multi_label import MultiLabel
from tests import commands

CLASSES = 4
MODEL = MLP(num_classes=CLASSES, hidden_dims=(8,))
rng = np.random.default_rng(0)


def batch():
    return {
        'inputs': rng.normal(size=(6, 5)).astype(np.float32),
        'targets': rng.integers(0, 2, (6, CLASSES)).astype(np.float32),
        'weights': np.float32([1, 1, 1, 1, 0.5, 0]),
    }


def pairs_of(task, given, train):
    params = task.init(jax.random.key(0), given)['params']
    _, (pairs, _) = task.loss_fn(params, {}, given, jax.random.key(1), train)
    logits = np.float64(MODEL.apply({'params': params}, given['inputs']))
    return pairs, logits


@pytest.mark.parametrize(
    ('fields', 'weights', 'gamma', 'smoothing'),
    [
        ({}, np.ones(CLASSES), 0, 0),
        (dict(class_weights=(1.0, 2.0, 0.5, 3.0)), np.array([1, 2, 0.5, 3]), 0, 0),
        (dict(focal_gamma=2.0), np.ones(CLASSES), 2, 0),
        (dict(label_smoothing=0.2), np.ones(CLASSES), 0, 0.2),
    ],
)
def test_the_training_loss_is_that_of_its_definition(fields, weights, gamma, smoothing):
    """Of BCEWithLogitsLoss with pos_weight, and of Lin et al. 2017, in float64."""
    given = batch()
    pairs, logits = pairs_of(MultiLabel(MODEL, **fields), given, train=True)
    p, t = 1 / (1 + np.exp(-logits)), given['targets']
    towards = t * (1 - smoothing) + smoothing / 2
    loss = -(towards * np.log(p) + (1 - towards) * np.log(1 - p))
    if gamma:
        loss *= (1 - np.where(t, p, 1 - p)) ** gamma
    loss = (loss * np.where(t, weights, 1)).mean(1)
    expected = (loss * given['weights']).sum(), given['weights'].sum()
    np.testing.assert_allclose(pairs['loss'], expected, rtol=1e-5)
    plain, _ = pairs_of(MultiLabel(MODEL, **fields), given, train=False)
    unweighted, _ = pairs_of(MultiLabel(MODEL), given, train=True)
    np.testing.assert_allclose(plain['loss'], unweighted['loss'], rtol=1e-6)


def test_accuracies_are_of_classes_and_of_all_of_an_example():
    given = batch()
    pairs, logits = pairs_of(MultiLabel(MODEL), given, train=False)
    right = (logits > 0) == given['targets']
    total = given['weights'].sum()
    for name, value in (('accuracy', right.mean(1)), ('exact', right.all(1))):
        np.testing.assert_allclose(pairs[name], ((value * given['weights']).sum(), total))


def test_labels_of_another_shape_are_named():
    given = batch()
    wrong = given | {'targets': given['targets'][:, None]}
    with pytest.raises(errors.UserError, match=r'A label is \[1, \d\], .*task.label_key'):
        pairs_of(MultiLabel(MODEL), wrong, train=False)


def test_classes_with_names_are_told_by_them():
    task = MultiLabel(MODEL, classes=tuple('abcd'))
    assert task.postprocess(np.float32([0.9, 0.1, 0.2, 0.5]))['labels'] == ['a', 'd']


def test_figures_are_scikit_learns():
    sklearn_metrics = pytest.importorskip('sklearn.metrics')
    targets = rng.integers(0, 2, (200, CLASSES))
    probabilities = np.round(np.clip(0.4 * targets + rng.random((200, CLASSES)) * 0.6, 0, 1), 2)
    told = probabilities >= 0.5
    found = scores.figures(probabilities, targets, tuple(scores.OF_LABELS), scores.OF_LABELS)
    averages = {'': 'macro', '_micro': 'micro', '_of_class': None}
    for name, (suffix, average) in itertools.product(
        ('precision', 'recall', 'f1'), averages.items()
    ):
        expected = getattr(sklearn_metrics, f'{name}_score')(targets, told, average=average)
        keys = scores.figure_names([name + suffix], CLASSES)
        np.testing.assert_allclose([found[key] for key in keys], np.atleast_1d(expected))
    for name in ('roc_auc', 'average_precision'):  # with many equal scores
        expected = getattr(sklearn_metrics, f'{name}_score')(targets, probabilities)
        assert found[name] == pytest.approx(expected)
    assert np.isnan(scores.average_precision(np.zeros(3, bool), np.ones(3)))


@pytest.mark.parametrize(
    ('label', 'message'),
    [
        ([0, 1, 1], r"label_key = 'label' must be 4 numbers, 0 or 1"),
        ([0, 1, 2, 0], r'must be 4 numbers, 0 or 1.* got \[0, 1, 2, 0\]'),
        (3, 'must be 4 numbers'),
    ],
)
def test_bad_labels_are_named(label, message):
    with pytest.raises(errors.UserError, match=message):
        MultiLabel(MODEL).preprocess({'image': np.zeros(5), 'label': label})
    for fields, told in (
        (dict(top_k=1), 'top_k is not for multi_label'),
        (dict(report=('calibration_error',)), "'calibration_error'.*average_precision"),
    ):
        with pytest.raises(errors.UserError, match=told):
            MultiLabel(MODEL, **fields)


def test_a_run_tells_which_classes_images_have(tmp_path, capsys):
    """Of images with bright corners: which corners are bright."""
    corners = rng.integers(0, 2, (400, CLASSES))
    images = rng.integers(0, 60, (400, 8, 8))
    for i, (row, column) in enumerate(((0, 0), (0, 4), (4, 0), (4, 4))):
        images[:, row : row + 4, column : column + 4] += 150 * corners[:, i, None, None]
    arrays = dict(image=images.astype(np.uint8), label=corners)
    for name, part in (('train', slice(0, 300)), ('test', slice(300, 400))):
        np.savez(tmp_path / f'{name}.npz', **{key: array[part] for key, array in arrays.items()})
    config = config_lib.load(
        str(commands.ROOT / 'configs' / 'digits_mlp.py'),
        [
            'total_steps=60',
            'task.mean=100.0',
            'task.std=80.0',
            'model.num_classes=4',
            'optimizer.schedule.warmup_steps=5',
        ],
    )
    with config.unlocked():
        config.task.name = 'multi_label'
        config.task.report = ('f1', 'average_precision')
        config.data.train = dict(name='npz', path=str(tmp_path / 'train.npz'))
        config.checkpoint.best_metric = ''
        config.data.evals = dict(test=dict(name='npz', path=str(tmp_path / 'test.npz')))
    figures = train.train(config, tmp_path / 'run')
    assert figures['test/exact'] > 0.95
    assert figures['test/f1'] > 0.95
    assert figures['test/average_precision'] > 0.95
    record = {'image': images[300].tolist()}
    (tmp_path / 'a.jsonl').write_text(json.dumps(record) + '\n')
    said = commands.printed(predict, capsys, workdir=tmp_path / 'run', input=tmp_path / 'a.jsonl')
    assert json.loads(said)['labels'] == np.flatnonzero(corners[300]).tolist()


def test_labels_mix_with_images():
    task = MultiLabel(MODEL)
    logits, one, other = jnp.ones((1, CLASSES)), jnp.zeros((1, CLASSES)), jnp.ones((1, CLASSES))
    share = jnp.array([0.3])
    mixed = (
        task.training_loss(logits, one, share)[0] + task.training_loss(logits, other, 1 - share)[0]
    )
    expected = task.training_loss(logits, 0.3 * one + 0.7 * other, jnp.ones(1))[0]
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)
