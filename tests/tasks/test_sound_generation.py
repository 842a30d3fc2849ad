"""Making sound: what counts of a recording, whole and in stretches, and records that cannot be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors, losses
from bigmodels.data import pipeline
from bigmodels.data.sources.audio_sources import AudioNpz
from bigmodels.models.parts import mu_law
from bigmodels.models.wavenet import WaveNet
from bigmodels.tasks import SoundGeneration
from tests import sound_files

MODEL = WaveNet(
    num_classes=10, num_speakers=2, num_layers=4, cycle=4, embed_dim=4, skip_dim=4, num_levels=16
)
FIELD = 16  # what it sees


def make_task(max_seconds=0.21, **fields):
    sound = dict(sample_rate=8000, max_seconds=max_seconds)
    return SoundGeneration(MODEL, sound, **dict(crop_samples=1000, seconds=0.01) | fields)


@pytest.fixture(scope='module')
def recordings(tmp_path_factory):
    return AudioNpz(sound_files.tones(tmp_path_factory.mktemp('tones') / 'tones.npz'), 'test')


@pytest.fixture(scope='module')
def whole(recordings):
    """Six examples, parameters, and the losses [6, T] of every sample given its recording."""
    task = make_task()
    batch = task.examples(recordings, None, train=True).take(np.arange(6))
    batch = {key: jnp.asarray(x) for key, x in batch.items()} | {'weights': jnp.ones(6)}
    params = task.init(jax.random.key(0), batch)['params']
    codes = mu_law.encode(batch['inputs'], 16)
    before = jnp.concatenate([jnp.full((6, 1), 8), codes[:, :-1]], axis=1)
    progress = jnp.arange(codes.shape[1]) / batch['lengths'][:, None]
    of_whom = batch['targets'], batch['speakers']
    logits = MODEL.apply({'params': params}, before, *of_whom, progress)
    return batch, params, np.asarray(losses.softmax_cross_entropy(logits, codes))


def test_evaluation_is_of_whole_recordings_and_of_nothing_behind_them(recordings, whole):
    batch, params, of_samples = whole
    lengths = np.asarray(batch['lengths'])
    assert lengths.tolist() == [len(recordings[i]['audio']) for i in range(6)]
    weights = jnp.array([1, 1, 0, 1, 1, 1.0])
    _, (pairs, _) = make_task().loss_fn(
        params, {}, batch | {'weights': weights}, jax.random.key(0), train=False
    )
    expected = sum(of_samples[i, : lengths[i]].sum() for i in (0, 1, 3, 4, 5))
    np.testing.assert_allclose(pairs['loss'][0], expected, rtol=1e-5)
    assert pairs['loss'][1] == lengths.sum() - lengths[2]
    assert make_task().summary({'loss': np.log(4.0)})['bits'] == pytest.approx(2)


@pytest.mark.parametrize('size', [700, 1450])
def test_a_stretch_has_the_losses_that_the_whole_recording_has_there(whole, size):
    """So no sample counts whose past is cut off; the beginnings count, and so do the ends."""
    batch, params, of_samples = whole
    task = make_task(crop_samples=size)
    lengths = np.asarray(batch['lengths'])
    assert (lengths < 1450).any()
    assert (lengths > 1450).any()
    loss_fn = jax.jit(lambda rng: task.loss_fn(params, {}, batch, rng, train=True)[1][0]['loss'])
    stretches = jax.jit(
        lambda rng: task._stretches(jax.random.split(rng)[0], batch['inputs'], batch['lengths'])
    )
    seen = np.zeros_like(of_samples, bool)
    for seed in range(12):
        rng = jax.random.key(seed)
        _, starts, counts = jax.device_get(stretches(rng))
        expected = 0.0
        for row in range(6):
            places = starts[row] + np.flatnonzero(counts[row])
            first = 0 if starts[row] == 0 else starts[row] + FIELD
            last = min(starts[row] + size, lengths[row])
            np.testing.assert_array_equal(places, np.arange(first, last))
            expected += of_samples[row, places].sum()
            seen[row, places] = True
        total, count = loss_fn(rng)
        np.testing.assert_allclose(total, expected, rtol=1e-4)
        assert count == counts.sum()
        assert counts.sum(1).max() <= task.most_counts(batch['weights'])
    assert len({float(loss_fn(jax.random.key(seed))[0]) for seed in (0, 1, 0)}) == 2
    if size == 1450:  # nearly whole ones
        assert seen.sum() > 0.99 * lengths.sum()


def test_the_last_samples_count_as_often_as_the_first(whole):
    batch, _, _ = whole
    size, num_draws = 700, 4000
    lengths = np.asarray(batch['lengths'])
    draw = jax.vmap(make_task(crop_samples=size)._stretches, (0, None, None))
    rngs = jax.random.split(jax.random.key(0), num_draws)
    _, starts, counts = jax.device_get(jax.jit(draw)(rngs, batch['inputs'], batch['lengths']))
    longer = np.flatnonzero(lengths > size + FIELD)
    assert longer.size > 1
    for row in longer:
        latest = lengths[row] - size
        share = (FIELD + 1) / (latest + 2 * FIELD + 1)
        for end, place in ((0, 0), (latest, -1)):
            at_end = starts[:, row] == end
            assert counts[at_end, row, place].all()
            assert at_end.mean() == pytest.approx(share, abs=4 * (share / num_draws) ** 0.5)


def test_a_class_that_is_not_told_is_that_of_none(whole):
    batch, params, _ = whole
    rng = jax.random.key(0)
    losses_of = [
        make_task(label_dropout=share).loss_fn(params, {}, given, rng, train=train)[0]
        for share, given, train in (
            (1.0, batch, True),
            (0.0, batch | {'targets': jnp.full(6, 10)}, True),
            (0.0, batch, True),
            (1.0, batch, False),
            (0.0, batch, False),
        )
    ]
    assert losses_of[0] == losses_of[1] != losses_of[2]
    assert losses_of[3] == losses_of[4]  # held-out classes are told


def test_records_that_cannot_be_are_named():
    good = {'label': 3, 'speaker': 1, 'seed': 0}
    task = make_task()
    assert task.preprocess(good).keys() == {'targets', 'speakers', 'seeds'}
    sound = good | {'audio': np.zeros(9, np.float32), 'path': 'a.wav'}
    assert pipeline.stacked([task.preprocess(sound)])['inputs'].shape == (1, 1680)
    for change, message in (
        (dict(label=10), r'a\.wav: Label 10 is out of range: model\.num_classes is 10'),
        (dict(speaker=2), r'a\.wav: Label 2 is out of range: model\.num_speakers is 2'),
        (dict(speaker='me'), r"a\.wav: task\.speaker_key = 'speaker' is of <U2"),
        (dict(seed=-1), r'a\.wav: The seed -1 must be an integer from 0'),
        (dict(sample_rate=16_000), r'a\.wav has 16,000 Hz'),
        (dict(audio=np.zeros(0)), r'a\.wav has the shape \(0,\): .* at least 1 samples'),
    ):
        with pytest.raises(errors.UserError, match=message):
            task.preprocess(sound | change)
    with pytest.raises(errors.UserError, match=r"task\.speaker_key = 'speaker'.*Allowed: label"):
        task.preprocess({'label': 3, 'seed': 0})


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(crop_samples=16), r'crop_samples = 16 must be over 16, what the model sees'),
        (dict(crop_samples=2000), r'at most the 1680 of task\.sound\.max_seconds'),
        (dict(seconds=1e-5), r'seconds = 1e-05 has no sample'),
        (dict(temperature=-1.0), r'temperature = -1\.0 must be 0 or more'),
        (dict(label_dropout=1.5), r'label_dropout = 1\.5 must be from 0 to 1'),
        (dict(guidance=2.0), r'guidance = 2\.0 needs task\.label_dropout'),
        (dict(max_seconds=0.0), r'max_seconds = 0\.0 .* no sample'),
    ],
)
def test_what_cannot_be_is_said_at_once(fields, message):
    with pytest.raises(errors.UserError, match=message):
        make_task(**fields)
