"""How published models of images want them: preprocessor_config.json as fields of a task."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

from bigmodels import errors
from bigmodels.interop import directories
from bigmodels.models.vit import ViT

FILE = 'preprocessor_config.json'
HALF = [0.5, 0.5, 0.5]


def read(directory: pathlib.Path, published: Mapping) -> dict[str, Any]:
    """Fields of `tasks.Classification`: side, mean and deviation in grey levels of 0 to 255.

    Images are scaled to their shorter side and cut about the middle here, while transformers may
    squeeze them to a square, as the file says: what is not square is seen a little differently.

    Raises:
      UserError: if channels differ in mean or deviation, which the task has alike for all.
    """
    path = directory / FILE
    entries = directories.read_json(path) if path.is_file() else {}
    found = {'image_size': _side(published.get('image_size', 224))}
    for key, field in (('image_mean', 'mean'), ('image_std', 'std')):
        values = entries.get(key, HALF)
        if len(set(values)) > 1:
            raise errors.UserError(
                f'{path} has another {key} for each channel, {values}; the task `classification` '
                f'has one for all.'
            )
        found[field] = 255 * values[0]
    return found


def _side(size: Any) -> int:
    sides = set(size) if isinstance(size, list) else {size}
    if len(sides) > 1:
        raise errors.UserError(f'config.json has image_size = {size}; images here are square.')
    return sides.pop()


def config(model: ViT, params: Mapping) -> dict[str, Any]:
    """The entries of config.json that follow from the parameters' shapes."""
    patches = len(params['position_embed']) - 1
    rows = params['patch_embed']['kernel'].shape[0]
    return {
        'image_size': math.isqrt(patches) * model.patch_size,
        'num_channels': rows // model.patch_size**2,
    }


def write(directory: pathlib.Path, task: Any, image_size: int) -> None:
    """Writes the file for a task's images."""
    entries = {
        'image_processor_type': 'ViTImageProcessor',
        'image_mean': [task.mean / 255] * 3,
        'image_std': [task.std / 255] * 3,
        'size': {'height': image_size, 'width': image_size},
    }
    directories.write_json(directory / FILE, entries)
