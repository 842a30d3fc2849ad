"""Random-access sources of images with masks, a number for each pixel: one archive, or folders."""

import os
from typing import Any

import numpy as np

from bigmodels import errors
from bigmodels.data import images
from bigmodels.data.sources import checked_index, digest_of_files, read_bytes
from bigmodels.data.sources.table_sources import Columns, arrays_digest, read_npz

SUFFIXES = ('.jpg', '.jpeg', '.png')


class MaskNpz(Columns):
    """Images of one size and their masks in an `.npz` archive, in memory.

    Record: {'image': uint8 [H, W] or [H, W, C], 'mask': int [H, W]}.

    Args:
      split: the records of the bool array `is_<split>`; without one, 'train' are those in no other.
        All of them if it is empty.
      image, mask: the names of the arrays.
    """

    def __init__(self, path: str, split: str = '', image: str = 'image', mask: str = 'mask'):
        self._described = f'{path} {split}'.rstrip()
        arrays = read_npz(path)
        for name in (image, mask):
            if name not in arrays:
                raise errors.unknown(f'array in {path}', name, arrays)
        pixels, masks = arrays[image], arrays[mask]
        if pixels.ndim not in (3, 4) or masks.shape != pixels.shape[:3] or not len(masks):
            raise errors.UserError(
                f'{path}: {image} must be [n, H, W] or [n, H, W, C] and {mask} [n, H, W], got '
                f'{list(pixels.shape)} and {list(masks.shape)}.'
            )
        kept = _members(arrays, split, len(masks), path)
        super().__init__({'image': pixels[kept], 'mask': masks[kept]})

    def fingerprint(self) -> str:
        return arrays_digest('mask_npz', self._columns)

    def describe(self) -> str:
        height, width = self._columns['mask'].shape[1:]
        return f'masks {self._described}: {len(self):,} images of {height} x {width}'


def _members(arrays: dict[str, np.ndarray], split: str, count: int, path: str) -> np.ndarray:
    """bool [n]: which records are of a split."""
    splits = {
        name.removeprefix('is_'): array.astype(bool)
        for name, array in arrays.items()
        if name.startswith('is_') and array.shape == (count,)
    }
    if splits and 'train' not in splits:
        splits['train'] = ~np.any(list(splits.values()), axis=0)
    if split and split not in splits:
        raise errors.unknown(f'split of {path}', split, splits)
    kept = splits[split] if split else np.ones(count, bool)
    if not kept.any():
        raise errors.UserError(f'{path} has no record of the split {split!r}.')
    return kept


class MaskFolder:
    """JPEG or PNG files in `images/`, and a PNG file of the same name for each in `masks/`.

    Record: {'image': uint8 [H, W, 3], 'mask': int32 [H, W], 'path': str}, see `images.decode_mask`.
    """

    def __init__(self, path: str):
        self._path = path
        folders = [os.path.join(path, name) for name in ('images', 'masks')]
        for folder in folders:
            if not os.path.isdir(folder):
                raise errors.UserError(f'There is no folder {folder!r}, seen from {os.getcwd()}.')
        self._names = tuple(
            name
            for name in sorted(os.listdir(folders[0]))
            if name.lower().endswith(SUFFIXES) and not name.startswith('.')
        )
        if not self._names:
            raise errors.UserError(f'{folders[0]} holds no {" or ".join(SUFFIXES)} file.')
        self._files = [
            (os.path.join(folders[0], name), os.path.join(folders[1], _stem(name) + '.png'))
            for name in self._names
        ]
        for image, mask in self._files:
            if not os.path.isfile(mask):
                raise errors.UserError(f'{image} has no mask: there is no file {mask!r}.')

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        i = checked_index(index, len(self))
        image, mask = (f'{path} (record {i})' for path in self._files[i])
        record = {
            'image': images.decode(read_bytes(self._files[i][0]), image),
            'mask': images.decode_mask(read_bytes(self._files[i][1]), mask),
            'path': self._names[i],
        }
        found, wanted = record['mask'].shape, record['image'].shape[:2]
        if found != wanted:
            raise errors.UserError(
                f'{mask} has {found[0]} x {found[1]} pixels, its image {wanted[0]} x {wanted[1]}.'
            )
        return record

    def fingerprint(self) -> str:
        """Over the names of all pairs, their sizes, and the content of 64 of them, evenly spaced.

        Not over all content: there may be very many files.
        """
        return digest_of_files('mask_folder', self._names, self._files)

    def describe(self) -> str:
        return f'masks {self._path}: {len(self):,} images'


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]
