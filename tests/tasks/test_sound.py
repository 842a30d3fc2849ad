"""Tasks of sound: records to batches, what padding must not do, and whole runs."""

import itertools
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import config, errors, experiment, explain, sharding, train
from bigmodels.data import audio, pipeline
from bigmodels.data.sources.audio_sources import AudioNpz
from bigmodels.data.sources.speech_sources import Transcribed
from bigmodels.models.conformer import Conformer
from bigmodels.tasks.sound import FrontEnd, Waveforms, normalize
from bigmodels.tasks.sound_classification import SoundClassification
from bigmodels.tasks.transcription import Transcription
from tests import commands, sound_files

ROOT = commands.ROOT
SMALL = dict(num_layers=1, embed_dim=8, num_heads=2, taps=5, subsampling_channels=4)


@pytest.fixture(scope='module')
def tones(tmp_path_factory):
    return sound_files.tones(tmp_path_factory.mktemp('tones') / 'tones.npz')


def classification(max_seconds=0.3, **fields):
    model = Conformer(num_classes=10, pool='mean', **SMALL)
    return SoundClassification(
        model, sound=dict(sample_rate=8000, max_seconds=max_seconds, num_mels=16), **fields
    )


def transcription(**fields):
    model = Conformer(num_classes=13, pool='none', **SMALL)
    settings = dict(
        tokenizer=dict(name='characters', characters=' 0123456789'),
        sound=dict(sample_rate=8000, max_seconds=1.0, num_mels=16),
        max_tokens=6,
    )
    return Transcription(model, **(settings | fields)).fit(())


def batch_of(task, records):
    batch = pipeline.stacked([task.preprocess(record) for record in records])
    return batch | {'weights': np.ones(len(records), np.float32)}


def test_the_length_of_the_batch_does_not_matter(tones):
    """The same recordings filled up to 0.3 and to 0.5 s: the same probabilities and loss."""
    recordings = AudioNpz(tones, 'test')
    results = []
    for seconds in (0.3, 0.5):
        task = classification(seconds)
        batch = batch_of(task, [recordings[i] for i in range(6)])
        params = jax.jit(task.init)(jax.random.key(0), batch)['params']
        loss_fn = jax.jit(task.loss_fn, static_argnames='train')
        loss, (pairs, _) = loss_fn(params, {}, batch, jax.random.key(0), train=False)
        results.append((jax.jit(task.predict)(params, {}, batch), loss))
        assert float(pairs['accuracy'][1]) == 6
    assert batch['inputs'].shape == (6, 4000)
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_front_end_is_normalised_over_what_is_real_and_has_a_gradient():
    front_end = FrontEnd(sample_rate=8000, max_seconds=0.5, num_mels=12)
    lengths = jnp.array([4000, 1500])
    waveforms = 0.1 * jax.random.normal(jax.random.key(0), (2, 4000))
    features, frames = front_end.features(waveforms, lengths)
    assert frames.tolist() == [48, 17]
    for row, count in enumerate(frames):
        np.testing.assert_allclose(features[row, :count].mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(features[row, :count].std(0), 1, atol=1e-3)
        assert not features[row, count:].any()

    weights = jax.random.normal(jax.random.key(1), features.shape)
    direction = jax.random.normal(jax.random.key(2), waveforms.shape)
    total = lambda x: (front_end.features(x, lengths)[0] * weights).sum()
    gradient = jax.grad(total)(waveforms)
    assert not gradient[1, 16 * 80 + 200 :].any()  # behind the last frame
    step = 1e-3
    slope = (total(waveforms + step * direction) - total(waveforms - step * direction)) / (2 * step)
    np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=0.02)


def test_silence_is_normalised_to_nothing():
    assert not normalize(jnp.full((1, 5, 3), -13.8), jnp.array([4])).any()


def test_records_that_cannot_be_are_named():
    good = {'audio': np.ones(800, np.float32), 'label': 3, 'path': 'a.wav'}
    task = classification()
    for record, message in (
        (good | {'sample_rate': 16_000}, r'a\.wav has 16,000 Hz, task\.sound\.sample_rate is 8,00'),
        (good | {'audio': np.ones(100, np.float32)}, r'a\.wav .* at least 200 samples'),
        (good | {'audio': np.ones((800, 2), np.float32)}, r'a\.wav has the shape \(800, 2\)'),
        (good | {'audio': np.full(800, np.nan)}, r'a\.wav has samples that are not finite'),
        (good | {'label': 10}, r'a\.wav: Label 10 is out of range: model\.num_classes is 10'),
        (good | {'label': 1.5}, r"a\.wav: task\.label_key = 'label' is of float64"),
        ({'label': 1}, "record field task.input_key = 'audio'"),
    ):
        with pytest.raises(errors.UserError, match=message):
            task.preprocess(record)
    with pytest.warns(UserWarning, match=r'Recordings of over 0\.3 s are cut there'):
        cut = task.preprocess(good | {'audio': np.ones(5000, np.float32)})
    assert (cut['inputs'].shape, cut['lengths']) == ((2400,), 2400)


def test_a_record_without_its_target_is_no_example(tones, tmp_path):
    """It may be asked about all the same."""
    for task, key, name in (
        (classification(label_key='digit'), 'label_key', 'digit'),
        (transcription(text_key='words'), 'text_key', 'words'),
    ):
        examples = task.examples(AudioNpz(tones, 'test'), tmp_path, train=False)
        for read in (examples.__getitem__, lambda i, rows=examples: rows.take(np.array([i]))):
            with pytest.raises(errors.UserError, match=rf"record 1: .*task\.{key} = '{name}'"):
                read(1)
        assert 'targets' not in task.preprocess(AudioNpz(tones, 'test')[1])


def test_texts_that_cannot_be_are_named():
    good = {'audio': np.ones(4000, np.float32), 'text': '3 1', 'path': 'a.wav'}
    task = transcription()
    for record, message in (
        (good | {'text': ' '}, r'a\.wav has an empty text'),
        (good | {'text': '3 1 4 1'}, r'a\.wav has a text of 7 tokens, more than .* = 6'),
        # 0.065 s are 5 frames and 2 states, of which the blank between the digits takes one.
        (good | {'text': '11', 'audio': np.ones(520)}, r'a\.wav has too much text: its 2 tokens'),
        (good | {'audio': np.ones(9000)}, r'a\.wav has 1\.1. s, more than task\.sound\.max_sec'),
    ):
        with pytest.raises(errors.UserError, match=message):
            task.preprocess(record)
    example = task.preprocess(good | {'text': '12', 'audio': np.ones(520)})
    assert example['target_lengths'] == 2
    assert task.vocabulary.decode(example['targets'][:2]) == '12'
    assert 'targets' not in task.preprocess({'audio': np.ones(4000)})
    with pytest.raises(errors.UserError, match=r'model\.num_classes = 12 must be 13'):
        Transcription(
            Conformer(num_classes=12, pool='none', **SMALL),
            tokenizer=dict(name='characters', characters=' 0123456789'),
            sound=dict(sample_rate=8000, max_seconds=1.0),
            max_tokens=6,
        ).fit(())


def test_recordings_that_just_fit_are_held_out_as_they_are_and_not_trained_on():
    """Training plays some of them faster, so that they have fewer states."""

    class Recordings(list):
        describe = lambda self: 'the recordings'

    task = transcription(augment=dict(speed=(0.9, 1.1)))
    recordings = Recordings([{'audio': np.ones(840, np.float32), 'text': '123'}])
    [example] = task.examples(recordings, None, train=False)
    assert example['target_lengths'] == 3
    with pytest.raises(errors.UserError, match='take 3 states of the model, and its sound gives 2'):
        task.examples(recordings, None, train=True)[0]


@pytest.mark.parametrize('seconds', [0.29, 1.13, 2.01])
def test_a_recording_may_be_exactly_as_long_as_is_said(seconds):
    """Though its samples are no product of floats: 0.29 * 24,000 is 6,959.999..."""
    rate = 24_000
    sounds = Waveforms(sample_rate=rate, max_seconds=seconds)
    count = round(seconds * 100) * rate // 100
    assert sounds.filled_up({'audio': np.ones(count)}, 'audio', cut=False)['lengths'] == count


@pytest.mark.parametrize('beams', [1, 4])
def test_scores_are_of_what_is_decoded(tmp_path, beams):
    """Counted by hand from the predictions, on records of different lengths."""
    texts = ['4', '3 1', '1 5 9', '2 6']
    source = Transcribed(sound_files.transcribed(tmp_path, texts), 8000)
    task = transcription(beams=beams)
    batch = batch_of(task, [source[i] for i in range(4)])
    params = task.init(jax.random.key(0), batch)['params']
    params['head']['bias'] = params['head']['bias'].at[5].set(0.2)  # so that something is said
    outcomes = jax.tree.map(np.asarray, task.outcomes(params, {}, batch))
    scores = task.scores(outcomes)
    assert tuple(scores) == task.score_names
    assert [task.postprocess(row) for row in outcomes['targets']] == texts
    said = [task.postprocess(row) for row in np.asarray(task.predict(params, {}, batch))]
    np.testing.assert_array_equal(
        task.predict(params, {}, batch), outcomes['greedy' if beams == 1 else 'beams']
    )
    assert any(said)
    perfect = outcomes | dict.fromkeys(outcomes, outcomes['targets'])
    assert set(task.scores(perfect).values()) == {0.0}
    worse = perfect | {'greedy': np.where(outcomes['targets'] == 4, 5, outcomes['targets'])}
    prefix = '' if beams == 1 else 'greedy_'
    assert task.vocabulary.decode([4]) == '2'
    assert task.scores(worse)[f'{prefix}wer'] == pytest.approx(1 / 8)


def test_the_loss_is_that_of_each_text_alone(tmp_path):
    """Padding of sound and text, and examples of weight 0, add nothing."""
    source = Transcribed(sound_files.transcribed(tmp_path, ['3', '4 1', '1 5 9']), 8000)
    task = transcription()
    batch = batch_of(task, [source[i] for i in range(3)])
    params = task.init(jax.random.key(0), batch)['params']
    loss_of = jax.jit(lambda b: task.loss_fn(params, {}, b, jax.random.key(0), train=False)[0])
    alone = []
    for i, tokens in enumerate((1, 3, 5)):
        weights = np.eye(3, dtype=np.float32)[i]
        alone.append((tokens, float(loss_of(batch | {'weights': weights}))))
        one = jax.tree.map(lambda x, i=i: x[i : i + 1], batch)
        np.testing.assert_allclose(loss_of(one), alone[-1][1], rtol=1e-4)
    expected = sum(tokens * loss for tokens, loss in alone) / 9
    np.testing.assert_allclose(loss_of(batch), expected, rtol=1e-5)


def test_the_loss_is_of_all_paths_that_stand_for_the_text():
    task = transcription()
    samples = np.random.default_rng(0).normal(size=840).astype(np.float32)
    batch = batch_of(task, [{'audio': samples, 'text': '31'}])
    params = task.init(jax.random.key(0), batch)['params']
    logits, frames, _ = task.logits(params, {}, batch)
    length = int(task.model.output_lengths(frames)[0])
    assert length == 3
    log_probs = np.asarray(jax.nn.log_softmax(logits[0, :length]), np.float64)
    total, wanted = 0.0, task.vocabulary.encode('31').tolist()
    for path in itertools.product(range(13), repeat=length):
        collapsed = [label for label, _ in itertools.groupby(path) if label != 12]  # the blank
        if collapsed == wanted:
            total += np.exp(log_probs[range(length), path].sum())
    loss, _ = task.loss_fn(params, {}, batch, jax.random.key(0), train=False)
    assert float(loss) == pytest.approx(-np.log(total) / 2, rel=1e-4)


def test_augmentation_is_for_training_only(tones):
    recordings = AudioNpz(tones, 'test')
    plain, augmented = (
        classification(augment=section)
        for section in (None, dict(noise_decibels=(0.0, 10.0), time_masks=1, time_share=0.5))
    )
    batch = batch_of(plain, [recordings[i] for i in range(4)])
    params = plain.init(jax.random.key(0), batch)['params']
    losses = {
        (name, train): float(task.loss_fn(params, {}, batch, jax.random.key(0), train)[0])
        for name, task in (('plain', plain), ('augmented', augmented))
        for train in (False, True)
    }
    assert losses['plain', False] == losses['augmented', False]
    assert abs(losses['plain', True] - losses['augmented', True]) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize('name', ['speech_digits', 'speaker', 'speech_ctc'])
def test_a_tiny_run_is_complete_answers_and_resumes(name, tones, tmp_path, capsys):
    spec = str(ROOT / 'configs' / f'{name}.py:tiny')
    loaded = config.load(spec, [
        f'data.train.path={tones}', f'data.evals.test.path={tones}', 'total_steps=60',
        'optimizer.learning_rate=0.01',
    ])  # fmt: skip
    figures = train.train(loaded, tmp_path / 'run')
    again = train.train(loaded, tmp_path / 'run')  # complete: its figures are read
    assert again == figures
    assert np.isfinite(list(figures.values())).all()
    assert ('test/wer' if name == 'speech_ctc' else 'test/accuracy') in figures
    losses = commands.losses(tmp_path / 'run')
    assert losses[-1] < losses[0]
    (tmp_path / 'wav').mkdir()
    for i, rate in enumerate((8000, 16_000)):
        samples = np.float32(0.3) * np.sin(np.arange(0, 700 * (i + 1)) / 5).astype(np.float32)
        file = audio.encode_wav(audio.Sound(samples, rate))
        (tmp_path / 'wav' / f'{i}.wav').write_bytes(file)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that one is resampled
        answers = commands.answered(capsys, tmp_path / 'run', tmp_path / 'wav')
    said = [answer['answer' if name == 'speech_ctc' else 'label'] for answer in answers]
    assert len(said) == 2
    assert set(''.join(map(str, said))) <= set('0123456789 ')
    if name != 'speaker':  # whose model is that of speech_digits
        assert commands.resumed(tmp_path / 'run', tmp_path / 'resumed') == figures


@pytest.mark.slow
def test_a_tiny_run_on_texts_of_files(tmp_path):
    """Of another rate than the config's, with the characters that occur in them."""
    texts = ['one', 'two three', 'four', 'five six', 'seven']
    folder = sound_files.transcribed(tmp_path / 'set', texts, rate=16_000)
    overrides = [
        f'data.{split}.{key}={value}'
        for split in ('train', 'evals.test')
        for key, value in (('name', 'transcribed'), ('path', folder), ('sample_rate', 8000))
    ]
    spec = str(ROOT / 'configs/speech_ctc.py:tiny')
    loaded = config.load(spec, [
        *overrides, 'task.tokenizer.characters=', 'task.max_tokens=12', 'model.subsampling=1',
        'model.num_classes=16', 'task.sound.max_seconds=1.0',
    ])  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that the files are resampled
        figures = train.train(loaded, tmp_path / 'run')
    assert {'test/cer', 'test/wer', 'test/greedy_wer', 'test/loss'} <= figures.keys()
    kept = json.loads((tmp_path / 'run/config.json').read_text())
    assert kept['task']['sound']['hop_seconds'] == 0.01
    assert kept['task']['augment']['shift_seconds'] == 0.0


@pytest.mark.slow
@pytest.mark.shared_data
def test_a_tiny_run_on_real_sentences_resumes(shared_data, tmp_path):
    """Of 1.5 to 11.7 s at two rates, resampled, whole texts in characters."""
    path = shared_data / 'speech_sentences' / 'speech_sentences.zip'
    loaded = config.load(str(ROOT / 'configs/speech_sentences.py:tiny'), [
        f'data.train.path={path}', f'data.evals.learnt.path={path}', 'total_steps=15',
    ])  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that the files are resampled
        figures = train.train(loaded, tmp_path / 'run')
        assert commands.resumed(tmp_path / 'run', tmp_path / 'resumed') == figures
    assert {'learnt/cer', 'learnt/wer', 'learnt/loss'} <= figures.keys()
    losses = commands.losses(tmp_path / 'run')
    assert losses[-1] < losses[0]


def test_what_it_would_do_is_explained_without_data():
    settings = experiment.from_config(config.load(str(ROOT / 'configs/speech_ctc.py:tiny')))
    mesh = sharding.make_mesh(settings.mesh, jax.devices()[:1])
    _, made = explain.abstract_program(settings, mesh)
    _, metrics = jax.eval_shape(made.train_step, made.state_shapes, made.batch_shapes)
    assert metrics['loss'][0].shape == ()
