"""Images and texts to examples; losses of batches, classes by their prompts, retrieval of sets."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors, evaluate, metrics, sharding, steps
from bigmodels.data import pipeline, tokenizers
from bigmodels.data.sources.caption_sources import Captioned
from bigmodels.models.clip import CLIP
from bigmodels.scores import retrieval
from bigmodels.tasks import ImageText
from tests.data import image_files
from tests.test_losses import contrastive_sigmoid_reference, contrastive_softmax_reference

CLASSES = ('cat', 'dog', 'emu')
TEMPLATES = ('a {}.', 'the {} is here')
MODEL = CLIP(
    embed_dim=6,
    image=dict(num_layers=1, embed_dim=8, num_heads=2, patch_size=4, pool='mean'),
    text=dict(vocab_size=256, num_layers=1, embed_dim=8, num_heads=2, max_length=16),
)
REFERENCES = {'softmax': contrastive_softmax_reference, 'sigmoid': contrastive_sigmoid_reference}


def make_task(**fields):
    given = dict(
        sequence_length=16, classes=CLASSES, templates=TEMPLATES, mean=120.0, std=60.0,
        tokenizer=dict(name='bytes'), vocabulary=tokenizers.Bytes(),
    )  # fmt: skip
    return ImageText(MODEL, **given | fields)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp('images') / 'x.npz'
    image_files.write_npz(path, [image_files.smooth(i, 8, 8) for i in range(12)])
    return Captioned(dict(name='jpeg_npz', path=str(path)), CLASSES, TEMPLATES)


@pytest.fixture(scope='module')
def whole(source):
    examples = make_task().examples(source, None, train=False)
    batch = {key: jnp.asarray(x) for key, x in examples.take(np.arange(12)).items()}
    params = jax.jit(make_task().init)(jax.random.key(0), batch)['params']
    return batch | {'weights': jnp.ones(12)}, params


def test_an_example_is_an_image_its_text_with_an_end_and_its_label(source, whole):
    batch, _ = whole
    for i in (0, 5):
        record = source[i]
        np.testing.assert_allclose(batch['inputs'][i], (record['image'] - 120.0) / 60, rtol=1e-5)
        text = record['caption'].encode()[:15]
        np.testing.assert_array_equal(batch['tokens'][i, : len(text) + 1], [*text, 0])
        np.testing.assert_array_equal(batch['segment_ids'][i], np.arange(16) <= len(text))
        assert batch['labels'][i] == record['label']
    answered = make_task().preprocess({'image': source[0]['image']})
    assert answered.keys() == {'inputs'}
    scaled = make_task(image_size=4).preprocess({'image': source[0]['image'][:, :6]})
    assert scaled['inputs'].shape == (4, 4, 3)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(caption=' '), "The field 'caption' is empty"),
        (dict(caption=7), "The field 'caption' is int"),
        (dict(label=np.int64(3)), 'Label 3 is out of range: the number of task.classes is 3'),
        (dict(label=0.5), 'is of float64: labels are integers'),
        (dict(image=np.zeros((8, 8))), r'An image is uint8'),
    ],
)
def test_a_bad_record_is_named(source, change, message, monkeypatch):
    record = source[4] | change
    monkeypatch.setattr(Captioned, '__getitem__', lambda self, index: record)
    examples = make_task(image_size=8).examples(source, None, train=True)
    for read in (lambda: examples[4], lambda: examples.take(np.array([4]))):
        with pytest.raises(errors.UserError, match=rf'x\.npz.*, record 4: .*{message}'):
            read()
    del record['caption']
    with pytest.raises(errors.UserError, match=r"record 4: .*task\.text_field = 'caption'"):
        examples[4]


@pytest.mark.parametrize('loss', ['softmax', 'sigmoid'])
@pytest.mark.parametrize('equal_texts', ['positive', 'negative'])
def test_equal_texts_are_positives_or_as_published(whole, loss, equal_texts, source):
    batch, params = whole
    batch = batch | {'weights': jnp.ones(12).at[7].set(0)}
    task = make_task(loss=loss, equal_texts=equal_texts)
    found, (pairs, _) = jax.jit(task.loss_fn, static_argnums=4)(
        params, {}, batch, jax.random.key(0), False
    )
    scores = jax.jit(MODEL.apply)({'params': params}, *list(batch.values())[:3])
    captions = np.array([source[i]['caption'] for i in range(12)])
    same = captions[:, None] == captions if equal_texts == 'positive' else np.eye(12, dtype=bool)
    assert captions.size > np.unique(captions).size
    expected = REFERENCES[loss](np.float64(scores), same, np.asarray(batch['weights']))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert pairs['zero_shot_accuracy'][1] == 11


@pytest.mark.slow
def test_a_class_is_the_mean_of_its_prompts_and_an_image_of_the_nearest(whole):
    batch, params = whole
    task, variables = make_task(), {'params': params}
    texts = jax.jit(functools.partial(MODEL.apply, method=MODEL.texts))
    images = jax.jit(functools.partial(MODEL.apply, method=MODEL.images))
    vectors = []
    for name in CLASSES:
        each = []
        for prompt in (f'a {name}.', f'the {name} is here'):
            tokens = np.array([[*prompt.encode()[:15], 0]])
            [vector] = texts(variables, tokens, np.ones_like(tokens))
            each.append(np.float64(vector))
        mean = sum(each) / 2
        vectors.append(mean / np.sqrt((mean**2).sum()))
    np.testing.assert_allclose(task.class_vectors(params), vectors, rtol=1e-4, atol=1e-5)
    example = task.text_example(np.frombuffer(b'a cat.', np.uint8))
    [alone] = task.embed_texts(params, {}, {name: ids[None] for name, ids in example.items()})
    tokens = np.array([[*b'a cat.', 0]])
    [vector] = texts(variables, tokens, np.ones_like(tokens))
    np.testing.assert_allclose(alone, vector, rtol=1e-4, atol=1e-5)
    logits = np.float64(images(variables, batch['inputs'])) @ np.stack(vectors).T / 0.07
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    predicted = jax.jit(task.predict)(params, {}, {'inputs': batch['inputs']})
    np.testing.assert_allclose(predicted, probabilities, rtol=1e-3, atol=1e-5)
    loss_fn = jax.jit(task.loss_fn, static_argnums=4)
    _, (pairs, _) = loss_fn(params, {}, batch, jax.random.key(0), False)
    right = (logits.argmax(1) == batch['labels']).mean()
    assert metrics.mean(pairs['zero_shot_accuracy']) == pytest.approx(right)
    with pytest.raises(errors.UserError, match=r'A label is \[1\], and the model answers \[\]'):
        task.loss_fn(
            params, {}, batch | {'labels': batch['labels'][:, None]}, jax.random.key(0), False
        )
    answer = task.postprocess(np.asarray(predicted[0]))
    assert answer['label'] == CLASSES[logits[0].argmax()]
    assert list(answer['probabilities']) == list(CLASSES)
    others = dataclasses.replace(task, classes=('car', 'pig'))
    assert jax.jit(others.predict)(params, {}, batch).shape == (12, 2)
    with pytest.raises(errors.UserError, match=r"The prompt 'a hippopotamuses\.' is longer"):
        dataclasses.replace(task, classes=('hippopotamuses',)).class_vectors(params)


@pytest.mark.parametrize('devices', [1, 8])
def test_figures_of_a_set_are_the_same_on_any_devices(source, whole, devices):
    batch, params = whole
    task = make_task()

    def step(params, model_state, batch):
        return steps.eval_step(
            params, model_state, batch, loss_fn=task.loss_fn, outcomes=task.outcomes
        )

    sets = {'test': pipeline.evaluation_batches(task.examples(source, None, train=False), 8)}
    mesh = sharding.make_mesh(sharding.MeshShape(), jax.devices()[:devices])
    found = evaluate.evaluate(jax.jit(step), task, params, {}, sets, mesh)
    outcomes = {key: np.asarray(x) for key, x in task.outcomes(params, {}, batch).items()}
    for name, value in retrieval.recalls(**outcomes, ks=(1, 5, 10)).items():
        assert found[f'test/{name}'] == pytest.approx(value)
    _, (pairs, _) = task.loss_fn(params, {}, batch, jax.random.key(0), False)
    assert found['test/zero_shot_accuracy'] == pytest.approx(
        float(metrics.mean(pairs['zero_shot_accuracy']))
    )
    assert {f'test/{name}' for name in task.score_names} < set(found)


@pytest.mark.parametrize('loss', ['softmax', 'sigmoid'])
@pytest.mark.slow
def test_a_batch_split_over_devices_has_the_gradient_of_the_whole(whole, loss):
    batch, params = whole
    batch = {key: x[:8] for key, x in batch.items()} | {'weights': jnp.ones(8).at[3].set(0)}
    task = make_task(loss=loss)

    def gradient(devices):
        mesh = sharding.make_mesh(sharding.MeshShape(), jax.devices()[:devices])
        with jax.set_mesh(mesh):
            placed = sharding.put_batch({k: np.asarray(x) for k, x in batch.items()}, mesh)
            loss_of = lambda params, batch: task.loss_fn(params, {}, batch, jax.random.key(0), True)
            return jax.jit(jax.grad(loss_of, has_aux=True))(params, placed)[0]

    for one, parts in zip(*(jax.tree.leaves(gradient(n)) for n in (1, 8)), strict=True):
        np.testing.assert_allclose(one, parts, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_padding_in_a_batch_changes_no_gradient(whole):
    batch, params = whole
    loss_of = lambda params, batch: make_task().loss_fn(params, {}, batch, jax.random.key(0), True)
    gradient = jax.jit(jax.grad(loss_of, has_aux=True))
    padded = gradient(params, batch | {'weights': jnp.float32(np.arange(12) < 8)})[0]
    alone = gradient(params, {key: x[:8] for key, x in batch.items()})[0]
    for a, b in zip(jax.tree.leaves(padded), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_without_labels_figures_are_of_the_pairs_themselves(whole):
    batch, params = whole
    batch = {key: x for key, x in batch.items() if key != 'labels'}
    task = make_task()
    _, (pairs, _) = task.loss_fn(params, {}, batch, jax.random.key(0), False)
    assert pairs.keys() == {'loss', 'scale'}
    scores = task.scores(jax.device_get(task.outcomes(params, {}, batch)))
    assert set(scores) == set(task.score_names)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(classes=()), 'must name at least one'),
        (dict(classes=('cat', 'cat')), r"config\.task\.classes\[1\] is 'cat'"),
        (dict(templates=('{} and {}',)), r'config\.task\.templates\[0\]'),
        (dict(sequence_length=17), r'sequence_length = 17 must be from 2.*max_length = 16'),
        (dict(augment=dict(mixup=0.2)), 'mixes images'),
        (dict(augment=dict(flop=1.0)), "'flop'. Did you mean 'flip'"),
    ],
)
def test_what_cannot_be_is_said_at_once(fields, message):
    with pytest.raises(errors.UserError, match=message):
        make_task(**fields)
