"""Texts of recordings by an encoder-decoder: records, the loss, and whole runs."""

import functools
import re

import jax
import numpy as np
import pytest

from bigmodels import config, errors, experiment, explain, sharding
from bigmodels.data import inspect, pipeline
from bigmodels.models.encoder_decoder import EncoderDecoder
from bigmodels.tasks.speech_to_text import SpeechToText
from tests.commands import ROOT, printed

# Compiles in half the time, and computes the same.
jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
MODEL = EncoderDecoder(
    vocab_size=12, num_layers=1, embed_dim=8, num_heads=2, num_mels=4, positions='learned',
    max_length=8, max_source_length=6,
)  # fmt: skip
FIELDS = dict(
    tokenizer=dict(name='characters', characters=' 0123456789'),
    sound=dict(max_seconds=0.12, num_mels=4),
    max_tokens=6,
)
GOOD = {'audio': np.ones(1000, np.float32), 'text': '31', 'path': 'a.wav'}


def make_task(**fields) -> SpeechToText:
    return SpeechToText(**{'model': MODEL} | FIELDS | fields).fit(())


def make_params(task):
    return jit(task.init)(jax.random.key(0), make_batch(task, ['1']))['params']


def make_batch(task, texts):
    rng = np.random.default_rng(0)
    sounds = [0.1 * rng.normal(size=600 + 400 * i) for i in range(len(texts))]
    records = [GOOD | {'audio': x, 'text': text} for x, text in zip(sounds, texts, strict=True)]
    return pipeline.stacked([task.preprocess(record) for record in records])


def loss_of(task: SpeechToText, train: bool):
    """A compiled function (params, batch) -> (loss, metrics), augmented by the same key."""
    key = jax.random.key(1)
    return jit(lambda params, batch: task.loss_fn(params, {}, batch, key, train)[:2])


def test_the_loss_is_of_the_tokens_of_each_text():
    """Of what the model says once the texts, one token later, follow the first token."""
    task = make_task()
    batch, params = make_batch(task, ['31', '4', '1 5 9']), make_params(task)
    loss, (pairs, _) = loss_of(task, False)(params, batch)
    # Characters by their places among those of the vocabulary; 0 is the end.
    texts = [[5, 3, 0], [6, 0], [3, 1, 7, 1, 11, 0]]
    assert [task.vocabulary.encode(text)[0] for text in ('3', '4', '9', ' ')] == [5, 6, 11, 1]
    before = np.zeros((3, 6), np.int32)
    for row, ids in zip(before, texts, strict=True):
        row[1 : len(ids)] = ids[:-1]
    features, _ = jit(task.front_end.features)(batch['inputs'], batch['lengths'])
    logits = jit(MODEL.apply)({'params': params}, features, before)
    told = np.asarray(jax.nn.log_softmax(logits))
    each = [(told[r, i], id) for r, ids in enumerate(texts) for i, id in enumerate(ids)]
    np.testing.assert_allclose(loss, -np.mean([row[id] for row, id in each]), rtol=1e-5)
    right = sum(row.argmax() == id for row, id in each)
    assert [float(x) for x in pairs['accuracy']] == [right, 11]


def test_augmentation_is_for_training_only():
    plain, augmented = make_task(), make_task(augment=dict(mel_masks=2, mel_width=4))
    batch, params = make_batch(plain, ['31', '4', '1 5 9']), make_params(plain)
    told = loss_of(plain, False)(params, batch)[0]
    np.testing.assert_allclose(loss_of(plain, True)(params, batch)[0], told, rtol=1e-6)
    assert abs(loss_of(augmented, True)(params, batch)[0] - told) > 1e-6


def test_scores_are_of_what_is_written():
    task = make_task(score_names=('wer', 'cer'))
    texts = {'targets': ['3 1', '4 2'], 'transcripts': ['3 1', '4']}
    rows = {
        name: np.stack([task.preprocess(GOOD | {'text': text})['targets'] for text in several])
        for name, several in texts.items()
    }
    assert task.scores(rows) == {'wer': pytest.approx(1 / 4), 'cer': pytest.approx(2 / 6)}
    assert make_task().outcomes({}, {}, {}) == {}
    batch = make_batch(task, ['31', '4'])
    params = jax.eval_shape(task.init, jax.random.key(0), batch)['params']
    shapes = jax.eval_shape(task.outcomes, params, {}, batch)
    assert {name: x.shape for name, x in shapes.items()} == dict.fromkeys(rows, (2, 6))


def test_mistakes():
    task = make_task()
    for record, message in (
        (
            GOOD | {'text': '123456'},
            r'a\.wav has a text of 7 tokens, more than .* = 6',
        ),
        (GOOD | {'text': ' '}, r'a\.wav has an empty text'),
        (GOOD | {'audio': np.ones(2000)}, r'a\.wav has 0\.1. s, more than task\.sound\.max_sec'),
        (GOOD | {'sample_rate': 8000}, r'a\.wav has 8,000 Hz'),
    ):
        with pytest.raises(errors.UserError, match=message):
            task.preprocess(record)
    for fields, message in (
        (dict(sound=dict(max_seconds=0.12)), r'num_mels = 80 must be model\.num_mels = 4'),
        (dict(sound=dict(max_seconds=0.14, num_mels=4)), '7 states, more than .* = 6'),
        (dict(max_tokens=9), r'max_tokens = 9 must .* model\.max_length = 8'),
        (dict(beam_size=0), 'beam_size = 0 must be at least 1'),
        (dict(score_names=('wre',)), "Did you mean 'wer'"),
        (dict(prompt=('<|en|>',)), r"token '<\|en\|>' is looked up in a tokenizer\.json"),
        (dict(model=MODEL.clone(num_mels=0, max_source_length=None)), 'model.num_mels = 0'),
    ):
        with pytest.raises(errors.UserError, match=message):
            make_task(**fields)


def test_what_the_config_would_do_is_explained_without_data():
    settings = experiment.from_config(config.load(str(ROOT / 'configs/speech_to_text.py:tiny')))
    mesh = sharding.make_mesh(settings.mesh, jax.devices()[:1])
    task, made = explain.abstract_program(settings, mesh)
    _, metrics = jax.eval_shape(made.train_step, made.state_shapes, made.batch_shapes)
    assert metrics['loss'][0].shape == ()
    params = dict(made.state_shapes.params)
    rows = made.batch_shapes
    flops = task.flops_per_step(params, rows)
    params['frame_embed'] = {'conv1': {}, 'conv2': {}}
    # For each of 250 states, the first convolution twice.
    of_convolutions = 6 * 250 * (2 * (3 * 80 * 16 + 16) + 3 * 16 * 16 + 16)
    assert flops - task.flops_per_step(params, rows) == settings.batch_size * of_convolutions


@pytest.mark.shared_data
def test_batches_of_spoken_digits(shared_data, tmp_path, capsys):
    options = {
        'config': ROOT / 'configs/speech_to_text.py:tiny',
        'config.data.train.path': shared_data / 'fsdd' / 'fsdd_8khz.npz',
        'steps': '1:2',
        'out': tmp_path,
    }
    shown = printed(inspect, capsys, **options)
    assert re.search(r'targets:\n    \d( \d)+\n', shown), shown
