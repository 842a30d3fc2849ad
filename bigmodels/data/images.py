"""Images on the host, as pure functions: from a file's bytes to arrays of one size.

An image is uint8 [H, W, C], with C 3 or 1, and a video [T, H, W, C].
"""

import contextlib
import io
import struct
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageSequence, UnidentifiedImageError

from bigmodels import errors

_MODES = {1: 'L', 3: 'RGB'}
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)  # of Pillow
NARROWEST = 100  # how many times its short side the long one may be where pixels are limited
# Of boxes, by class: those of Okabe and Ito that are apart from each other for every eye.
_COLOURS = ((213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (240, 228, 66))


def decode(
    data: bytes,
    where: str,
    channels: Literal[1, 3] = 3,
    at_least: tuple[int, int] | None = None,
    max_pixels: int | None = None,
) -> np.ndarray:
    """The image in the bytes of a JPEG or PNG file, uint8 [H, W, channels].

    As stored: an orientation that a camera has noted is not applied, and transparency is dropped.
    A damaged JPEG of full length may decode to other pixels; nothing in the format tells.

    Args:
      where: file and record, for errors.
      channels: 3 for colour, 1 for grey.
      at_least: (height, width); a JPEG at least twice as large is decoded at a half, quarter or
        eighth of its size, not below this one, which takes a fraction of the time.
      max_pixels: a larger image is refused before it is decoded, and one that is so narrow that to
        scale its short side would make it large.

    Raises:
      UserError: if it is no such file, is cut short, too large, or has over 8 bits per channel.
    """
    with _opened(data, where, ('JPEG', 'PNG')) as image:
        if max_pixels is not None:
            _check_extent(image, where, max_pixels)
        if image.format == 'PNG' and _png_bits(data) > 8:
            raise errors.UserError(
                f'{where} has {_png_bits(data)} bits per channel (mode {image.mode}): convert it '
                f'to 8.'
            )
        if at_least is not None:
            image.draft(None, at_least[::-1])
        pixels = np.asarray(image.convert(_MODES[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


def decode_mask(data: bytes, where: str) -> np.ndarray:
    """The numbers in the bytes of a grey or palette PNG file, int32 [H, W], as stored.

    Args:
      where: file and record, for errors.

    Raises:
      UserError: if it is no such file, is cut short, or has colours.
    """
    with _opened(data, where, ('JPEG', 'PNG')) as image:
        if image.format != 'PNG' or image.mode not in ('1', 'L', 'P', 'I', 'I;16'):
            raise errors.UserError(
                f'{where} is a {image.format} image of mode {image.mode}: a mask is a PNG image '
                f'with one number a pixel, grey or of a palette.'
            )
        numbers = np.asarray(image).astype(np.int32)
        # Grey of 2 and 4 bits is spread over 0 to 255 by Pillow.
        return numbers // (255 // (2 ** _png_bits(data) - 1)) if image.mode == 'L' else numbers


def decode_gif(data: bytes, where: str, max_pixels: int | None = None) -> np.ndarray:
    """The frames in the bytes of a GIF file, uint8 [T, H, W, 3].

    All are of the size of the first, as a viewer would show them; how long is not looked at.

    Args:
      where: file and record, for errors.
      max_pixels: of all frames; see `decode`.

    Raises:
      UserError: if it is no such file, is cut short or too large.
    """
    with _opened(data, where, ('GIF',)) as image:
        if not data.rstrip(b'\0').endswith(b';'):  # Pillow takes it that no frame follows
            raise EOFError('its end is missing')
        if max_pixels is not None:
            _check_extent(image, where, max_pixels // image.n_frames)
        return np.stack(
            [np.asarray(frame.convert('RGB')) for frame in ImageSequence.Iterator(image)]
        )


def _png_bits(data: bytes) -> int:
    """Bits per channel, or of a palette's number, by the header of a PNG file (section 11.2.1)."""
    return data[24]


def _check_extent(image: Image.Image, where: str, max_pixels: int) -> None:
    """Raises UserError for an image, of which only the header is read, beyond `max_pixels`."""
    short, long = sorted(image.size)
    if short * long > max_pixels or long > NARROWEST * short:
        raise errors.UserError(
            f'{where} has {image.height:,} x {image.width:,} pixels: {max_pixels:,} at most are '
            f'taken, and a long side of at most {NARROWEST} short ones.'
        )


@contextlib.contextmanager
def _opened(data: bytes, where: str, formats: Sequence[str]) -> Iterator[Image.Image]:
    """The image in a file's bytes; what goes wrong with it there is a UserError."""
    wanted = ' or '.join(formats)
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            yield image
    except UnidentifiedImageError as error:
        raise errors.UserError(f'{where} is no {wanted} image.') from error
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise errors.UserError(f'{where} is not a whole {wanted} image: {error}.') from error


def normalized(
    inputs: np.ndarray, mean: float | Sequence[float], std: float | Sequence[float]
) -> np.ndarray:
    """(inputs - mean) / std in float32; one of all values, or one for each of the last axis.

    Raises:
      UserError: where they are not as many as there are channels, and for inputs that are no
        numbers, or not finite.
    """
    whole = inputs.dtype.kind in 'iub'
    if not whole and inputs.dtype.kind not in 'fO':
        raise errors.UserError(f'The input is not an array of numbers: it is {inputs.dtype}.')
    try:
        with np.errstate(over='ignore'):  # what is not finite then is refused
            inputs = inputs.astype(np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise errors.UserError(f'The input is not an array of numbers: {error}.') from error
    if not whole and not np.isfinite(inputs).all():
        raise errors.UserError('The input has a value that is not finite.')
    if not inputs.ndim:
        raise errors.UserError('The input is a single number, not an array of them.')
    for name, values in (('mean', mean), ('std', std)):
        if np.size(values) not in (1, inputs.shape[-1]):
            raise errors.UserError(
                f'config.task.{name} = {tuple(values)} must be a number, or one for each of '
                f'{inputs.shape[-1]} channels.'
            )
    return ((inputs - mean) / std).astype(np.float32)


def evenly_spaced(video: np.ndarray, count: int) -> np.ndarray:
    """[..., T, H, W, C] -> [..., count, H, W, C]: frame i is that at (i + 1/2) T / count, cut.

    Raises:
      UserError: for another shape, or fewer frames.
    """
    if video.ndim < 4:
        raise errors.UserError(f'A video is [T, H, W, C], got {list(video.shape)}.')
    frames = video.shape[-4]
    if frames < count:
        raise errors.UserError(f'A video has {frames} frames, fewer than the {count} wanted.')
    if frames == count:
        return video
    return video[..., (2 * np.arange(count) + 1) * frames // (2 * count), :, :, :]


def with_channels(image: np.ndarray, channels: Literal[1, 3]) -> np.ndarray:
    """uint8 [H, W] or [H, W, 1 or 3] -> [H, W, channels]: grey is luminance, colours of grey equal.

    Raises:
      UserError: for another shape or type.
    """
    grey = image[..., None] if image.ndim == 2 else image
    if image.dtype != np.uint8 or grey.ndim != 3 or grey.shape[2] not in _MODES:
        raise errors.UserError(
            f'An image is uint8 [H, W], [H, W, 1] or [H, W, 3], got {image.dtype} '
            f'{list(image.shape)}.'
        )
    if channels == 1 and grey.shape[2] == 3:
        return np.asarray(Image.fromarray(image).convert('L'))[..., None]
    return np.broadcast_to(grey, (*grey.shape[:2], channels))


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H, W, C] -> [height, width, C], bilinear, over all pixels that a smaller one covers."""
    channels = image.shape[2]
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    scaled = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(scaled).reshape(height, width, channels)


def resize_shorter_side(image: np.ndarray, size: int) -> np.ndarray:
    """[H, W, C] scaled so that the shorter of H and W becomes `size`."""
    height, width, _ = image.shape
    scale = size / min(height, width)
    return resize(image, max(size, round(height * scale)), max(size, round(width * scale)))


def centre_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle [height, width, C] of an image.

    Raises:
      UserError: if the image is smaller.
    """
    rows, columns = image.shape[0] - height, image.shape[1] - width
    if rows < 0 or columns < 0:
        raise errors.UserError(
            f'No {height} x {width} pixels can be cut out of an image of {image.shape[0]} x '
            f'{image.shape[1]}: resize it first.'
        )
    top, left = rows // 2, columns // 2
    return image[top : top + height, left : left + width]


def with_boxes(image: np.ndarray, boxes: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """The image uint8 [H, W, 3] with boxes [n, 4] (left, top, right, bottom) drawn, in colours by
    label.
    """
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    width = max(1, round(min(image.shape[:2]) / 160))
    for box, label in zip(boxes, labels, strict=True):
        left, top, right, bottom = (float(edge) for edge in box)
        edges = (left, top, max(left, right - 1), max(top, bottom - 1))  # the last pixels inside
        draw.rectangle(edges, outline=_COLOURS[int(label) % len(_COLOURS)], width=width)
    return np.asarray(picture)
