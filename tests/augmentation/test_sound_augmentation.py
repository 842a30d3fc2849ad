"""Augmentation of sound: what may change, by how much, and that nothing else does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors, sharding
from bigmodels.augmentation import sound as augmentation

RATE = 8000


def keys(count: int) -> jax.Array:
    return jax.random.split(jax.random.key(0), count)


def spans(flags: np.ndarray) -> list[int]:
    """The lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return (edges[1::2] - edges[::2]).tolist()


def test_masks_never_exceed_their_bounds():
    """Single spans, so that their widths can be read off; every width and every place comes."""
    lengths = jnp.array([40, 25, 8, 3])
    features = jnp.ones((4, 40, 10))
    mask = lambda key: augmentation.mask_spectrogram(
        key, features, lengths, time_masks=1, time_share=0.3, mel_masks=1, mel_width=4
    )
    masked = np.asarray(jax.jit(jax.vmap(mask))(keys(500))) == 0  # [keys, B, L, M]
    in_time, in_bands = masked.all(3), masked.all(2)
    np.testing.assert_array_equal(masked, in_time[..., None] | in_bands[:, :, None])
    for row, (length, widest) in enumerate(zip([40, 25, 8, 3], [12, 7, 2, 0], strict=True)):
        assert not in_time[:, row, length:].any()
        widths = [spans(flags) for flags in in_time[:, row]]
        assert {sum(width) for width in widths} == set(range(widest + 1))
        assert max(map(len, widths)) <= 1
        if widest:
            assert in_time[:, row, :length].any(0).all()
    widths = [spans(flags) for flags in in_bands[:, 0]]
    assert {sum(width) for width in widths} == set(range(5))
    assert in_bands.any((0, 1)).all()


def test_several_masks_and_none():
    features, lengths = jnp.ones((2, 50, 12)), jnp.array([50, 30])

    def masked(time_masks, mel_masks):
        mask = lambda key: augmentation.mask_spectrogram(
            key, features, lengths, time_masks=time_masks, time_share=0.1, mel_masks=mel_masks,
            mel_width=3,
        )  # fmt: skip
        return np.asarray(jax.jit(jax.vmap(mask))(keys(100))) == 0

    assert not masked(0, 0).any()
    some = masked(3, 2)
    assert some.all(3)[:, 0].sum(1).max() <= 3 * 5
    assert some.all(3)[:, 1].sum(1).max() <= 3 * 3
    assert 3 < some.all(2)[:, 0].sum(1).max() <= 2 * 3


def test_speed_stretches_time_and_pitch():
    time = np.arange(RATE) / RATE
    tone = np.sin(2 * np.pi * 200 * time)[None].repeat(20, 0)
    lengths = np.full(20, 4000)
    waveforms = np.where(np.arange(RATE) < 4000, tone, 0).astype(np.float32)
    played, new_lengths = map(
        np.asarray, augmentation.change_speed(keys(1)[0], waveforms, lengths, 0.8, 1.25)
    )
    factors = 4000 / new_lengths
    assert factors.min() < 0.9
    assert factors.max() > 1.1
    assert ((factors > 0.799) & (factors < 1.251)).all()
    for row, length, factor in zip(played, new_lengths, factors, strict=True):
        assert not row[length:].any()
        expected = np.sin(2 * np.pi * 200 * factor * np.arange(length) / RATE)
        # The length, a whole number, says the factor to a few parts in ten thousand.
        np.testing.assert_allclose(row[:500], expected[:500], atol=0.05)


def test_speed_keeps_what_has_no_room_and_the_same_speed_is_nothing():
    waveforms = jax.random.normal(keys(1)[0], (6, 100))
    lengths = jnp.array([100, 95, 90, 60, 30, 10])
    slow, slow_lengths = augmentation.change_speed(keys(1)[0], waveforms, lengths, 0.5, 0.6)
    assert slow_lengths.tolist()[:3] == [100, 100, 100]
    np.testing.assert_allclose(slow[0], waveforms[0], atol=1e-6)
    same, same_lengths = augmentation.change_speed(keys(1)[0], waveforms, lengths, 1.0, 1.0)
    np.testing.assert_array_equal(same_lengths, lengths)
    np.testing.assert_allclose(same, jnp.where(jnp.arange(100) < lengths[:, None], waveforms, 0))


def test_shift_moves_the_whole_recording():
    lengths = jnp.array([20, 45, 50])
    real = jnp.arange(50) < lengths[:, None]
    waveforms = jnp.where(real, jax.random.normal(keys(1)[0], (3, 50)), 0)
    shifts = [set(), set(), set()]
    shift_all = jax.jit(lambda key: augmentation.shift_in_time(key, waveforms, lengths, 8))
    for key in keys(60):
        shifted, new_lengths = shift_all(key)
        for row, shift in enumerate((new_lengths - lengths).tolist()):
            length = int(lengths[row])
            expected = np.pad(waveforms[row, :length], (shift, 50 - shift - length))
            np.testing.assert_array_equal(shifted[row], expected)
            shifts[row].add(shift)
    assert shifts == [set(range(9)), set(range(6)), {0}]


def test_noise_has_the_power_asked_for():
    time = np.arange(20_000) / RATE
    waveforms = (0.1 * np.sin(2 * np.pi * 300 * time))[None].repeat(4, 0).astype(np.float32)
    lengths = np.array([20_000, 15_000, 10_000, 10_000])
    waveforms *= np.arange(20_000) < lengths[:, None]
    noise = (
        np.asarray(augmentation.add_noise(keys(1)[0], waveforms, lengths, 20.0, 20.0)) - waveforms
    )
    for row, length in enumerate(lengths):
        assert not noise[row, length:].any()
        ratio = 0.005 / np.square(noise[row, :length]).mean()
        np.testing.assert_allclose(10 * np.log10(ratio), 20, atol=0.2)
    assert np.abs(noise[2] - noise[3]).max() > 0.01


def test_eight_devices_do_as_one():
    change = augmentation.SoundAugmentation(
        speed=(0.8, 1.2), shift_seconds=0.1, noise_decibels=(5.0, 20.0), time_masks=2,
        time_share=0.3, mel_masks=2, mel_width=3,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    batch = {
        'waveforms': rng.normal(size=(16, 4000)).astype(np.float32),
        'lengths': rng.integers(2000, 4000, 16).astype(np.int32),
        'features': rng.normal(size=(16, 30, 8)).astype(np.float32),
    }

    def augmented(key, batch):
        first, second = jax.random.split(key)
        frames = jnp.full(16, 30)
        return (
            *change.of_waveforms(first, batch['waveforms'], batch['lengths'], RATE),
            change.of_features(second, batch['features'], frames),
        )

    key = jax.random.key(5)
    expected = jax.jit(augmented)(key, batch)
    mesh = sharding.make_mesh(sharding.MeshShape(data=4, fsdp=2))
    found = jax.jit(augmented)(key, sharding.put_batch(batch, mesh))
    assert (np.asarray(expected[0]) != batch['waveforms']).any(1).all()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)  # of places up to 4,000


def test_by_default_nothing_is_altered_and_padding_stays_silent():
    waveforms = jax.random.normal(keys(1)[0], (3, 400))
    lengths = jnp.array([400, 300, 200])
    nothing = augmentation.SoundAugmentation()
    same, same_lengths = nothing.of_waveforms(keys(1)[0], waveforms, lengths, RATE)
    assert same is waveforms
    assert same_lengths is lengths
    features = waveforms.reshape(3, 20, 20)
    np.testing.assert_array_equal(
        nothing.of_features(keys(1)[0], features, lengths // 20), features
    )
    all_of_it = augmentation.SoundAugmentation(
        speed=(0.9, 1.1), shift_seconds=0.01, noise_decibels=(10.0, 20.0)
    )
    altered, new_lengths = all_of_it.of_waveforms(keys(1)[0], waveforms, lengths, RATE)
    again, _ = all_of_it.of_waveforms(keys(1)[0], waveforms, lengths, RATE)
    np.testing.assert_array_equal(altered, again)
    assert not jnp.where(jnp.arange(400) < new_lengths[:, None], 0, altered).any()
    assert (altered != waveforms).any()


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(speed=(1.1, 0.9)), r'speed = \(1\.1, 0\.9\) must be two factors'),
        (dict(noise_decibels=(40, 10)), r'noise_decibels = \(40, 10\) must be two ratios'),
        (dict(time_share=1.5), r'time_share = 1\.5 must be from 0 to 1'),
    ],
)
def test_mistakes(fields, message):
    with pytest.raises(errors.UserError, match=message):
        augmentation.SoundAugmentation(**fields)
