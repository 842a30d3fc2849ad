"""How published models of images want them: preprocessor_config.json as fields of a task.

Or the part of processor_config.json in which transformers keeps the same since version 5.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from bigmodels import errors
from bigmodels.interop import directories
from bigmodels.models.clip import CLIP
from bigmodels.models.resnet import ResNet

FILE, PROCESSOR = 'preprocessor_config.json', 'processor_config.json'
HALF = [0.5, 0.5, 0.5]


def read(directory: pathlib.Path, published: Mapping) -> dict[str, Any]:
    """Fields of a task: side, mean and deviation in grey levels of 0 to 255.

    Images are scaled to their shorter side and cut about the middle here, while transformers may
    squeeze them to a square, or scale them to a little more than what is cut, as the file says:
    what is not square, or lies at the edge, is seen a little differently.

    Where nothing says how grey levels are normalised, as beside a model that was saved without its
    processor, they are from -1 to 1, and a warning is printed.

    Raises:
      UserError: if the file says of pixels what such a task does not do.
    """
    path, entries = told(directory, 'image_processor')
    scale = entries.get('rescale_factor', 1 / 255)
    if not math.isclose(scale, 1 / 255, rel_tol=1e-3) or entries.get('do_rescale') is False:
        raise errors.UserError(f'{path} does not divide grey levels by 255, as is done here.')
    size = _of_images(published).get(
        'image_size', entries.get('crop_size', entries.get('size', 224))
    )
    found = {'image_size': _side(size)}
    lacking = [key for key in ('image_mean', 'image_std') if entries.get(key) is None]
    if lacking and entries.get('do_normalize', True):
        print(
            f'WARNING: no {FILE} or {PROCESSOR} in {directory} has {errors.some(lacking)}: 0.5 is '
            f'assumed. If the model was trained otherwise, its answers are wrong: say how, in grey '
            f'levels of 0 to 255, as --config.task.mean=127.5 --config.task.std=127.5.'
        )
    for key, field, plain in (('image_mean', 'mean', 0.0), ('image_std', 'std', 1.0)):
        values = (entries.get(key) or HALF) if entries.get('do_normalize', True) else [plain]
        levels = tuple(255 * value for value in values)
        found[field] = levels if len(set(levels)) > 1 else levels[0]
    return found


def told(directory: pathlib.Path, part: str) -> tuple[pathlib.Path, dict[str, Any]]:
    """What a model's files say of its inputs, and in which: a part of PROCESSOR, or else FILE.

    As transformers prefers them. Without any, the entries are empty.

    Args:
      part: as PROCESSOR names it, 'image_processor' or 'feature_extractor'.
    """
    path = directory / PROCESSOR
    parts = directories.read_json(path) if path.is_file() else {}
    if isinstance(parts.get(part), Mapping):
        return path, parts[part]
    path = directory / FILE
    return path, directories.read_json(path) if path.is_file() else {}


def _side(size: Any) -> int:
    """Of square images, as one number, two of them, or by names such as 'shortest_edge'."""
    given = size.values() if isinstance(size, Mapping) else size
    sides = {given} if isinstance(given, int) else set(given)
    if len(sides) > 1:
        raise errors.UserError(f'The published images are of the size {size}; here all are square.')
    return sides.pop()


def _of_images(published: Mapping) -> Mapping:
    """What a config.json says of images, in a section of its own where it tells of texts too."""
    return published.get('vision_config', published)


def channels(published: Mapping) -> int:
    """Of the images that a config.json tells of."""
    return _of_images(published).get('num_channels', 3)


def config(entries: Mapping, model: nn.Module, params: Mapping) -> dict[str, Any]:
    """The entries of a config.json with those that follow from the parameters' shapes."""
    if isinstance(model, ResNet):
        return {**entries, 'num_channels': params['stem']['kernel'].shape[2]}
    if isinstance(model, CLIP):
        images = config(entries['vision_config'], model.vit(), params['image_tower'])
        return {**entries, 'vision_config': images}
    patches = len(params['position_embed']) - (model.pool == 'token')
    rows = params['patch_embed']['kernel'].shape[0]
    return {
        **entries,
        'image_size': math.isqrt(patches) * model.patch_size,
        'num_channels': rows // model.patch_size**2,
    }


def write(directory: pathlib.Path, task: Any, shape: Sequence[int]) -> None:
    """Writes the file for a task's images, of the shape [H, W, C] that the model was trained on.

    Of other channels than three images are taken as they are: a coloured one is to be made grey
    before.
    """
    height, width, channels = shape
    size = {'height': height, 'width': width}
    entries = {
        'image_processor_type': 'CLIPImageProcessor',  # which scales the shorter side, and cuts
        'image_mean': _shares(task.mean, channels),
        'image_std': _shares(task.std, channels),
        'do_convert_rgb': channels == 3,
        'size': {'shortest_edge': height} if height == width else size,
        'crop_size': size,
        'resample': 2,  # bilinear
    }
    directories.write_json(directory / FILE, entries)


def _shares(levels: float | Sequence[float], channels: int) -> list[float]:
    """Grey levels, one or as many as channels, as shares of the largest for each channel."""
    return [float(level) / 255 for level in np.broadcast_to(levels, channels)]
