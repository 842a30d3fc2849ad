"""Losses with a teacher against their definition; what of a run does not depend on where it is."""

import dataclasses
import functools
import shutil

import jax
import numpy as np
import pytest

from bigmodels import checkpoint, compress, config, errors, metrics, rundir, runs, trees
from bigmodels import train as train_lib
from bigmodels.compress import __main__ as command
from bigmodels.compress import distill
from bigmodels.data import tokenizers
from bigmodels.interpret import activations
from bigmodels.models import MODELS
from bigmodels.tasks import TASKS
from tests import commands, test_sharding

QUICK = ['eval_every=0', 'xla.xla_backend_optimization_level=0']
STUDENT = dict(num_layers=2, scan_layers=True, embed_dim=16)


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    """A run of a byte-level Transformer in 4 steps, with a moving average."""
    directory = tmp_path_factory.mktemp('text')
    changes = ['total_steps=4', 'ema_decay=0.5', 'model.scan_layers=True', *QUICK]
    changes += ['task.sample_tokens=0']
    train_lib.train(commands.tiny_text_config(directory, changes), directory / 'run')
    return directory / 'run'


def settings_of(workdir, **changes):
    """config.distill as a run resolves it."""
    step = checkpoint.steps(workdir / rundir.CHECKPOINTS)[-1]
    return distill.Settings(teacher=str(workdir), step=step, **changes)


def log_probabilities(logits, temperature):
    """In float64."""
    scaled = np.float64(logits) / temperature
    scaled -= scaled.max(-1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))


@pytest.mark.parametrize(('chunk', 'weight'), [(0, 0.25), (7, 1.0)])
def test_the_loss_is_its_definition(text, chunk, weight):
    task, batches = test_sharding.language_model(**STUDENT)
    task = dataclasses.replace(task, loss_chunk=chunk)
    settings = settings_of(text, weight=weight, temperature=3.0)
    made = test_sharding.make_program(task, batches[0], num_devices=1, distill=settings)
    state, run = made.init_state(0), runs.open_run(text)
    loss, (pairs, _) = jax.jit(functools.partial(made.teacher.loss_fn(task), train=True))(
        state.params, {}, batches[0], jax.random.key(0), made.teacher.read()
    )
    own, theirs = (
        log_probabilities(jax.jit(each.predict)(params, {}, batches[0]), 3.0)
        for each, params in ((task, state.params), (run.task, run.params))
    )
    weights = batches[0]['weights']
    divergence = ((np.exp(theirs) * (theirs - own)).sum(-1) * weights).sum() / weights.sum()
    loss_fn = jax.jit(functools.partial(task.loss_fn, train=True))
    alone, _ = loss_fn(state.params, {}, batches[0], jax.random.key(0))
    np.testing.assert_allclose(metrics.mean(pairs['teacher_loss']), 9 * divergence, rtol=1e-4)
    np.testing.assert_allclose(metrics.mean(pairs['task_loss']), alone, rtol=1e-5)
    np.testing.assert_allclose(loss, (1 - weight) * alone + weight * 9 * divergence, rtol=1e-4)


def test_features_are_compared_by_their_definition(text):
    task, batches = test_sharding.language_model(**STUDENT)
    layers = (('layers', 'final_norm'), ('final_norm', 'layers/mlp'))  # 32 and 32, 16 and 64 wide
    settings = settings_of(text, kind='features', layers=layers)
    made = test_sharding.make_program(task, batches[0], num_devices=1, distill=settings)
    state, run = made.init_state(0), runs.open_run(text)
    _, (pairs, _) = jax.jit(functools.partial(made.teacher.loss_fn(task), train=True))(
        state.params, {}, batches[0], jax.random.key(0), made.teacher.read()
    )

    def found(task, params, paths):
        captured = activations.capture(task, params, {}, batches[0], paths)[1]
        several = (np.float64(captured[path]) for path in paths)
        return [np.concatenate([*x], -1) if x.ndim == 4 else x for x in several]

    own, theirs = zip(*layers, strict=True)
    own, theirs = found(task, state.params, own), found(run.task, run.params, theirs)
    cosines = []
    for each in (own[1], theirs[1]):
        unit = each / np.linalg.norm(each, axis=-1, keepdims=True)
        cosines.append(unit @ unit.swapaxes(1, 2))
    apart = [np.square(own[0] - theirs[0]).mean(-1), np.square(cosines[0] - cosines[1]).mean(-1)]
    expected = np.average(np.mean(apart, 0), weights=batches[0]['weights'])
    np.testing.assert_allclose(metrics.mean(pairs['teacher_loss']), expected, rtol=1e-4)


@functools.cache
def on_one_device(text):
    task, batches = test_sharding.language_model(**STUDENT)
    settings = settings_of(text)
    return task, batches, *test_sharding.train(task, batches, num_devices=1, distill=settings)


@pytest.mark.parametrize(
    'placed',
    [
        dict(data=2, fsdp=2, tensor=2, accumulate=2),
        pytest.param(dict(stage=2, sequence=2, data=2), marks=pytest.mark.slow),
        pytest.param(dict(data=8, parallel='pmap'), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_placement_learns_the_same(text, placed):
    task, batches, expected, final, _ = on_one_device(text)
    figures, state, run = test_sharding.train(task, batches, distill=settings_of(text), **placed)
    np.testing.assert_allclose(figures, expected, rtol=2e-5)
    test_sharding.assert_close(state.params, final.params)
    assert state.frozen is None  # the teacher is no part of what is saved
    if 'tensor' in placed:
        there = run.teacher.state.ema_params['layers']['mlp']['up']['kernel'].sharding
        assert there.shard_shape((2, 32, 128)) == (2, 16, 64)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """A classifier of 8 x 8 images with averages of its batches; the data and config of others."""
    directory = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    np.savez(
        directory / 'images.npz',
        image=rng.integers(0, 255, (64, 8, 8, 3), dtype=np.uint8),
        label=rng.integers(0, 4, 64).astype(np.int32),
    )
    source = dict(name='npz', path=str(directory / 'images.npz'))

    def config_of(overrides=(), **fields):
        model = dict(name='convnet', num_classes=4, stages=((8,),), norm='batch_norm')
        given = config.load(f'{commands.ROOT}/configs/cifar10_cnn.py:tiny', QUICK)
        given = given.copy_and_resolve_references()
        given.unlock()
        given.model = model
        given.data.train, given.data.evals = source, dict(test=source)
        given.task.augment, given.task.classes = dict(flip=0.5), tuple('abcd')
        given.total_steps, given.checkpoint.every = 6, 3
        for key, value in fields.items():
            given[key] = value
        config.set_fields(given, overrides)
        return given

    train_lib.train(config_of(), directory / 'teacher')
    return directory, config_of


def pupil(images, *overrides, **changes):
    """The config of a perceptron that learns from it."""
    directory, config_of = images
    given = dict(teacher=str(directory / 'teacher'), weight=0.7, **changes)
    model = dict(name='mlp', num_classes=4, hidden_dims=(8,))
    return config_of(overrides, model=model, distill=given)


def test_a_resumed_run_is_the_same_and_goes_on_with_no_other_teacher(images, tmp_path):
    directory, _ = images
    whole, halves = tmp_path / 'whole', tmp_path / 'halves'
    train_lib.train(pupil(images), whole)
    shutil.copytree(whole, halves)
    shutil.rmtree(halves / rundir.CHECKPOINTS / '6')
    (halves / rundir.SUMMARY).unlink()
    moved = tmp_path / 'moved'
    shutil.copytree(directory / 'teacher', moved)
    train_lib.train(pupil(images, f'distill.teacher={moved}'), halves)
    one, other = (commands.arrays(each, 6) for each in (whole, halves))
    assert trees.first_difference(one, other) is None
    kept = rundir.read_config(whole).distill
    assert (kept.step, len(kept.fingerprint)) == (6, 64)
    run = runs.open_run(whole)  # without its teacher
    assert trees.count(run.params) == trees.count(one['params'])
    with pytest.raises(errors.UserError, match='another config:\n  distill.fingerprint'):
        train_lib.train(pupil(images, 'distill.step=3'), whole)
    with pytest.raises(errors.UserError, match='it is another one'):
        train_lib.train(pupil(images, 'distill.fingerprint=abc'), whole)


def test_a_pruned_model_learns_back_from_the_whole_and_is_rounded(images, tmp_path):
    directory, config_of = images
    pruned, taught, small = (tmp_path / name for name in ('pruned', 'taught', 'small'))
    command.compressed(runs.open_run(directory / 'teacher'), 'prune50', pruned)
    given = config_of(
        init_from=dict(workdir=str(pruned)),
        prune=dict(sparsity=0.5),  # from the first step on: what is 0 stays 0
        distill=dict(teacher=str(directory / 'teacher')),
    )
    train_lib.train(given, taught)
    command.check(taught, 'int8')
    command.compressed(runs.open_run(taught), 'int8', small)
    zeros = [
        jax.device_get(jax.tree.map(lambda x: x == 0, compress.plain(runs.open_run(each).params)))
        for each in (pruned, taught, small)
    ]
    for name in ('conv_0', 'head'):
        before, between, after = (each[name]['kernel'] for each in zeros)
        assert before.mean() == between.mean() == 0.5
        assert (after | ~before).all()


def text_classifier(**changes):
    """(a task of texts, its batches)."""
    model = MODELS['recurrent'](num_classes=2, vocab_size=256, embed_dim=8, hidden_dim=8)
    given = dict(sequence_length=16, classes=('a', 'b'), vocabulary=tokenizers.Bytes()) | changes
    task = TASKS['text_classification'](model, {}, **given)
    shapes = dict(inputs=np.int32, segment_ids=np.int32)
    batch = {key: np.ones((16, 16), dtype) for key, dtype in shapes.items()}
    return task, [batch | dict(targets=np.zeros(16, np.int32), weights=np.ones(16, np.float32))]


def classifier_of(size=8, **changes):
    """(a task of 4 classes of images, its batches)."""
    model = MODELS['mlp'](num_classes=4, hidden_dims=(8,))
    task = TASKS['classification'](model, **dict(mean=120.7, std=64.1) | changes)
    batch = dict(inputs=np.zeros((16, size, size, 3), np.float32), targets=np.zeros(16, np.int32))
    return task, [batch | dict(weights=np.ones(16, np.float32))]


def test_a_teacher_that_does_not_fit_is_refused_before_anything_is_compiled(text, images):
    classes = settings_of(images[0] / 'teacher')
    tokens = settings_of(text)
    language = functools.partial(test_sharding.language_model, num_layers=1)
    features = lambda path: settings_of(
        images[0] / 'teacher', kind='features', layers=(('Linear_0', path),)
    )
    other = MODELS['mlp'](num_classes=5, hidden_dims=(8,))
    characters = dataclasses.replace(language()[0], vocabulary=tokenizers.Characters('abc'))
    seeing = language(causal=False, vocab_size=257)[0].model
    masked = TASKS['masked_language_modeling'](seeing, {}, 16, vocabulary=tokenizers.Bytes())
    wrong = [
        (tokens, text_classifier(), 'is of the task LanguageModeling'),
        (classes, classifier_of(mean=1.0), 'config.task.mean is 1.0, and that of the teacher'),
        (classes, classifier_of(classes=tuple('abdc')), 'has the classes a, b, c, d, and'),
        (classes, classifier_of(size=9), r'takes inputs of \[8, 8, 3\]'),
        (classes, classifier_of(class_weights=(1.0, 1.0, 2.0, 1.0)), 'class_weights weighs'),
        (classes, (dataclasses.replace(classifier_of()[0], model=other), classifier_of()[1]),
         r'answers with \[4\] numbers, and the model of this config with \[5\]'),
        (tokens, (characters, language()[1]), 'another tokenizer: the 256 tokens'),
        (tokens, language(vocab_size=300), r'with \[16, 256\] numbers.*\[16, 300\]'),
        (features('conv_1'), classifier_of(), "No module of ConvNet has the path 'conv_1'"),
        (features('conv_0'), classifier_of(), r'of \[8\] and .* \[8, 8, 8\] have different posi'),
        (features('head'), classifier_of(), 'of 8 and .* 4 numbers have no positions to compare'),
        (tokens, (masked, language()[1]), 'a MaskedLanguageModeling has no teacher. Tasks that'),
    ]  # fmt: skip
    for settings, (task, batches), message in wrong:
        with pytest.raises(errors.UserError, match=message):
            test_sharding.make_program(task, batches[0], num_devices=1, distill=settings)
    for changes, message in (
        (['distill.weight=1.5'], 'weight = 1.5 must be from 0 to 1'),
        (['distill.temperature=0'], 'temperature = 0.0 must be above 0'),
        (['distill.teacher=nowhere'], 'nowhere holds no run'),
        (['distill.step=5'], 'has no such checkpoint'),
        (['distill.kind=features'], 'layers = .. does not go with kind'),
    ):
        with pytest.raises(errors.UserError, match=message):
            train_lib.train(pupil(images, *changes), images[0] / 'never')
    assert not (images[0] / 'never').exists()
