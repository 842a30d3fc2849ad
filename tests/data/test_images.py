"""Decoding, resizing and cropping against Pillow's own files and plain numpy."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from bigmodels import errors
from bigmodels.data import images
from tests.data import image_files
from tests.data.image_files import encoded, smooth


def test_png_is_decoded_exactly_and_jpeg_closely():
    image = smooth(0, 33, 20)
    np.testing.assert_array_equal(images.decode(encoded(image), 'a'), image)
    decoded = images.decode(encoded(image, 'JPEG', quality=95, subsampling=0), 'a')
    assert np.abs(decoded.astype(int) - image).max() <= 4
    grey = image[..., 0]
    np.testing.assert_array_equal(images.decode(encoded(grey), 'a', channels=1)[..., 0], grey)
    np.testing.assert_array_equal(images.decode(encoded(grey), 'a'), np.stack([grey] * 3, -1))
    with_alpha = np.dstack([image, np.full(image.shape[:2], 7, np.uint8)])
    np.testing.assert_array_equal(images.decode(encoded(with_alpha), 'a'), image)


def test_a_large_jpeg_is_decoded_small():
    """At a half, a quarter or an eighth of its size, but not below what is wanted."""
    image = smooth(1, 200, 320) // 4 + 90
    data = encoded(image, 'JPEG', quality=95)
    for wanted, shape in (((100, 160), (100, 160)), ((90, 60), (100, 160)), ((1, 1), (25, 40)),
                          ((101, 10), (200, 320))):  # fmt: skip
        decoded = images.decode(data, 'a', at_least=wanted)
        assert decoded.shape == (*shape, 3)
        resized = images.resize(image, *shape).astype(int)
        assert np.abs(decoded - resized).mean() < 3
    assert images.decode(encoded(image), 'a', at_least=(10, 10)).shape == image.shape


def test_damaged_files_are_named():
    image = smooth(2, 40, 40)
    for data, message in (
        (encoded(image, 'JPEG')[:-200], r'^x\.jpg \(record 3\) is not a whole .*[Tt]runcated'),
        (encoded(image)[:-60], r'^x\.jpg \(record 3\) is not a whole'),
        (b'', r'^x\.jpg \(record 3\) is no JPEG or PNG image'),
        (b'GIF89a and more', 'is no JPEG'),
        (encoded(image.astype(np.uint16)[..., 0] * 200), 'has 16 bits per channel'),
        (png_of_16_bits(), 'has 16 bits per channel'),
    ):
        with pytest.raises(errors.UserError, match=message):
            images.decode(data, 'x.jpg (record 3)')


def png_of_16_bits():
    """A file with one pixel of three channels, which Pillow reads but does not write."""

    def chunk(kind, data):
        checksum = struct.pack('>I', zlib.crc32(kind + data))
        return struct.pack('>I', len(data)) + kind + data + checksum

    header = chunk(b'IHDR', struct.pack('>IIBBBBB', 1, 1, 16, 2, 0, 0, 0))
    pixels = chunk(b'IDAT', zlib.compress(bytes(7)))
    return b'\x89PNG\r\n\x1a\n' + header + pixels + chunk(b'IEND', b'')


@pytest.mark.parametrize('bits', [1, 2, 4, 8])
def test_grey_masks_are_the_numbers_stored(bits):
    numbers = np.arange(4).reshape(2, 2) % 2**bits
    picture = Image.fromarray(numbers.astype(np.uint8) * (255 // (2**bits - 1)))
    file = io.BytesIO()
    picture.convert('1' if bits == 1 else 'L').save(file, 'PNG', bits=bits)
    assert file.getvalue()[24] == bits
    np.testing.assert_array_equal(images.decode_mask(file.getvalue(), 'a'), numbers)


def test_what_would_be_large_is_refused_before_it_is_decoded():
    """By its header: there is nothing else in these files."""
    for size, message in (((30, 20), '30 x 20 pixels: 599 at most'), ((2, 201), '100 short ones')):
        cut = encoded(smooth(0, *size))[:60]
        with pytest.raises(errors.UserError, match=message):
            images.decode(cut, 'x.png', max_pixels=599)
    decoded = images.decode(encoded(smooth(0, 30, 20)), 'x.png', max_pixels=600)
    assert decoded.shape == (30, 20, 3)
    video = image_files.gif(grey_video(3))
    assert images.decode_gif(video, 'a.gif', max_pixels=3 * 63).shape == (3, 9, 7, 3)
    with pytest.raises(errors.UserError, match='9 x 7 pixels: 62 at most'):
        images.decode_gif(video, 'a.gif', max_pixels=3 * 63 - 1)


def grey_video(count=12):
    """Frames of noise, all different."""
    return np.random.default_rng(0).integers(0, 256, (count, 9, 7), np.uint8)


def test_gif_files_have_their_frames():
    video = grey_video()
    decoded = images.decode_gif(image_files.gif(video), 'a.gif')
    np.testing.assert_array_equal(decoded, np.stack([video] * 3, -1))
    # Frames that tell only what changes are shown as a viewer would.
    moving = np.zeros((5, 16, 16), np.uint8)
    for i in range(5):
        moving[i, 3 * i : 3 * i + 3, 2:6] = 200
    decoded = images.decode_gif(image_files.gif(moving), 'a.gif')
    np.testing.assert_array_equal(decoded, np.stack([moving] * 3, -1))


def test_a_gif_cut_anywhere_is_named():
    data = image_files.gif(grey_video(3))
    for size in range(len(data)):
        with pytest.raises(errors.UserError, match=r'^a\.gif is (no GIF|not a whole GIF) image'):
            images.decode_gif(data[:size], 'a.gif')
    with pytest.raises(errors.UserError, match='is no GIF image'):
        images.decode_gif(encoded(smooth(0)), 'a.gif')


@pytest.mark.parametrize(
    ('frames', 'count', 'kept'),
    [
        (4, 4, [0, 1, 2, 3]),
        (8, 4, [1, 3, 5, 7]),
        (10, 3, [1, 5, 8]),
        (3, 1, [1]),
        (5, 4, [0, 1, 3, 4]),
    ],
)
def test_frames_are_kept_evenly(frames, count, kept):
    video = np.broadcast_to(np.arange(frames)[:, None, None, None], (frames, 2, 2, 1))
    assert images.evenly_spaced(video, count)[:, 0, 0, 0].tolist() == kept
    several = images.evenly_spaced(np.stack([video, video]), count)
    assert several[1, :, 0, 0, 0].tolist() == kept


def test_what_has_too_few_frames_or_none_is_refused():
    with pytest.raises(errors.UserError, match='has 3 frames, fewer than the 4 wanted'):
        images.evenly_spaced(np.zeros((3, 2, 2, 1)), 4)
    with pytest.raises(errors.UserError, match=r'A video is \[T, H, W, C\], got \[2, 2, 3\]'):
        images.evenly_spaced(np.zeros((2, 2, 3)), 2)


def triangle_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Separable resampling in float64: weights 1 - |distance|, in units of the larger pixel."""

    def matrix(size, new):
        scale = size / new
        centres = (np.arange(new)[:, None] + 0.5) * scale
        distance = np.abs(centres - (np.arange(size) + 0.5)) / max(scale, 1)
        weights = np.maximum(0, 1 - distance)
        return weights / weights.sum(1, keepdims=True)

    rows, columns = matrix(image.shape[0], height), matrix(image.shape[1], width)
    return np.einsum('ih,jw,hwc->ijc', rows, columns, image.astype(np.float64))


@pytest.mark.parametrize('size', [(7, 9), (24, 31), (60, 40), (23, 8)])
@pytest.mark.parametrize('channels', [1, 3])
def test_resize_is_bilinear_over_all_pixels(size, channels):
    image = np.random.default_rng(0).integers(0, 256, (24, 31, channels), np.uint8)
    resized = images.resize(image, *size)
    assert resized.dtype == np.uint8
    assert np.abs(resized - triangle_resize(image, *size)).max() <= 1.01


def test_resize_shorter_side():
    for shape, size, expected in (
        ((300, 400), 150, (150, 200)), ((400, 300), 256, (341, 256)), ((10, 10), 3, (3, 3)),
        ((500, 3), 2, (333, 2)),
    ):  # fmt: skip
        resized = images.resize_shorter_side(np.zeros((*shape, 3), np.uint8), size)
        assert resized.shape == (*expected, 3)


def test_centre_crop():
    image = np.arange(7 * 8 * 3, dtype=np.uint8).reshape(7, 8, 3)
    np.testing.assert_array_equal(images.centre_crop(image, 3, 4), image[2:5, 2:6])
    np.testing.assert_array_equal(images.centre_crop(image, 4, 7), image[1:5, 0:7])
    np.testing.assert_array_equal(images.centre_crop(image, 7, 8), image)
    for height, width in ((8, 8), (7, 9)):
        with pytest.raises(errors.UserError, match='image of 7 x 8: resize it first'):
            images.centre_crop(image, height, width)


def test_one_number_in_a_list_is_of_all_channels():
    """So that a picture in colour is taken by a task that normalises grey ones so."""
    image = smooth(0, 5, 4)
    expected = images.normalized(image, 33.0, 78.0)
    np.testing.assert_array_equal(images.normalized(image, (33.0,), (78.0,)), expected)
    with pytest.raises(errors.UserError, match=r'task\.mean = .*, or one for each of 3 channels'):
        images.normalized(image, (33.0, 34.0), 78.0)
