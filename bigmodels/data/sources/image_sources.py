"""Random-access sources of labelled images: folders, JPEG files in one archive, MNIST's files."""

import os
import struct
from concurrent import futures
from typing import Any, Literal

import numpy as np

from bigmodels import errors
from bigmodels.data import images
from bigmodels.data.sources import checked_index, read_bytes
from bigmodels.data.sources.class_folders import ClassFolders
from bigmodels.data.sources.table_sources import (
    Columns,
    arrays_digest,
    checked_offsets,
    read_npz,
)


class ImageFolder(ClassFolders):
    """JPEG and PNG files in one folder for each class, as ImageNet has them.

    Record: {'image': uint8 [H, W, 3], 'label': int64, 'path': str}, see `ClassFolders`.
    """

    suffixes = ('.jpg', '.jpeg', '.png')

    def _decode(self, data: bytes, where: str) -> dict[str, np.ndarray]:
        return {'image': images.decode(data, where)}


class JpegNpz:
    """JPEG or PNG files one after another in an `.npz` archive, held in memory as they are.

    Record: {'image': uint8 [H, W, 3], 'label': int64}. The archive's arrays, whose names begin
    with the split and '_' if a split is given: `jpeg` uint8 [bytes], `offsets` int [n + 1], image
    i is jpeg[offsets[i]:offsets[i + 1]], and `label` int [n].
    """

    def __init__(self, path: str, split: str = ''):
        self._name = f'{path} {split}'.rstrip()
        prefix = f'{split}_' if split else ''
        names = [prefix + name for name in ('jpeg', 'offsets', 'label')]
        arrays = read_npz(path, names)
        self._jpeg, offsets, self._labels = arrays.values()
        self._offsets = checked_offsets(offsets, f'{path}: {names[1]}')
        count, ends = len(self._labels), (0, len(self._jpeg))
        if (
            len(self._offsets) != count + 1
            or (self._offsets[1:] < self._offsets[:-1]).any()
            or (self._offsets[0], self._offsets[-1]) != ends
        ):
            raise errors.UserError(
                f'{path}: {names[1]} must ascend from 0 to the {ends[1]:,} bytes of {names[0]} in '
                f'{count + 1:,} entries, one more than {names[2]} has.'
            )
        self._fingerprint = arrays_digest('jpeg_npz', arrays)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        i = checked_index(index, len(self))
        data = self._jpeg[self._offsets[i] : self._offsets[i + 1]].tobytes()
        image = images.decode(data, f'{self._name}, record {i}')
        return {'image': image, 'label': np.int64(self._labels[i])}

    def fingerprint(self) -> str:
        return self._fingerprint

    def describe(self) -> str:
        return f'images {self._name}: {len(self):,}, {len(self._jpeg) / 1e6:.1f} MB'


class DecodedJpegNpz(Columns):
    """The images of a `JpegNpz`, all of one size, decoded once and held in memory as pixels.

    For small ones that are read many times: training on few cores would wait for the decoder.
    """

    def __init__(self, path: str, split: str = ''):
        source = JpegNpz(path, split)
        self._fingerprint, self._described = source.fingerprint(), source.describe()
        with futures.ThreadPoolExecutor() as threads:  # decoding leaves other threads free
            records = list(threads.map(source.__getitem__, range(len(source))))
        shapes = [record['image'].shape for record in records]
        for i, shape in enumerate(shapes):
            if shape != shapes[0]:
                raise errors.UserError(
                    f'{path} {split}: images are of several sizes, record 0 of {shapes[0]} and '
                    f'record {i} of {shape}: use the source jpeg_npz.'
                )
        super().__init__(
            {key: np.stack([record[key] for record in records]) for key in ('image', 'label')}
        )

    def fingerprint(self) -> str:
        return self._fingerprint

    def describe(self) -> str:
        return f'{self._described}, decoded to {self._columns["image"].nbytes / 1e6:.1f} MB'


class Mnist(Columns):
    """MNIST, or another set in its four files, such as Fashion-MNIST; in memory.

    Record: {'image': uint8 [28, 28], 'label': int64}. `path` is the folder of
    `train-images-idx3-ubyte` and the others, each as it is or as `.gz`.
    """

    def __init__(self, path: str, split: Literal['train', 'test'] = 'train'):
        self._path, self._split = path, split
        stem = 'train' if split == 'train' else 't10k'
        image = read_idx(_plain_or_gz(path, f'{stem}-images-idx3-ubyte'))
        label = read_idx(_plain_or_gz(path, f'{stem}-labels-idx1-ubyte'))
        if image.ndim != 3 or label.shape != image.shape[:1]:
            raise errors.UserError(
                f'The {split} files in {path} do not belong together: images {image.shape}, '
                f'labels {label.shape}.'
            )
        super().__init__({'image': image, 'label': label.astype(np.int64)})

    def fingerprint(self) -> str:
        return arrays_digest('mnist', self._columns)

    def describe(self) -> str:
        return f'mnist {self._path} {self._split}: {len(self):,} images'


def read_idx(path: str) -> np.ndarray:
    """The array of an idx file of unsigned bytes, plain or `.gz`.

    The format, as MNIST's own page has it: two zero bytes, the type (8: unsigned byte), the number
    of dimensions, each dimension as a big-endian 32-bit integer, and the values in row-major order.

    Raises:
      UserError: if it is no such file, or has not as many values as it says.
    """
    data = read_bytes(path)
    if len(data) < 4 or data[:3] != b'\0\0\x08' or len(data) < 4 + 4 * data[3]:
        raise errors.UserError(f'{path} is not an idx file of unsigned bytes.')
    shape = struct.unpack_from(f'>{data[3]}I', data, 4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape))
    if len(values) != np.prod(shape, dtype=np.int64):
        raise errors.UserError(
            f'{path} is cut short or too long: it has {len(values):,} values and says {shape}.'
        )
    return values.reshape(shape)


def _plain_or_gz(folder: str, name: str) -> str:
    path = os.path.join(folder, name)
    for candidate in (path, f'{path}.gz'):
        if os.path.isfile(candidate):
            return candidate
    raise errors.UserError(f'There is no file {path!r}, plain or .gz, seen from {os.getcwd()}.')
