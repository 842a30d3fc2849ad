"""Small image files for tests: what they hold is known exactly or to a few grey levels."""

import gzip
import io
import struct

import numpy as np
from PIL import Image


def encoded(image: np.ndarray, kind: str = 'PNG', **options) -> bytes:
    """uint8 [H, W] or [H, W, C] as a file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(seed: int, height: int = 12, width: int = 10) -> np.ndarray:
    """An image uint8 [height, width, 3] that JPEG keeps to a few levels."""
    a, b, c = np.random.default_rng(seed).uniform(60, 190, 3)
    y, x = np.mgrid[:height, :width]
    return np.stack([a + 4 * y, b - 3 * x, c + 2 * (x - y)], -1).clip(0, 255).astype(np.uint8)


def write_folder(root, counts: dict[str, int]) -> dict[str, np.ndarray]:
    """Writes `<class>/<i>.png`, and each class's last image as a .JPEG; the images by path."""
    written = {}
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            image = smooth(len(written))
            last = i == count - 1
            path = f'{name}/{i}.JPEG' if last else f'{name}/{i}.png'
            kind, options = ('JPEG', {'quality': 98, 'subsampling': 0}) if last else ('PNG', {})
            (root / path).write_bytes(encoded(image, kind, **options))
            written[path] = image
    return written


def write_npz(path, images: list[np.ndarray], split: str = '') -> None:
    """The images as PNG files in an archive, with labels 0, 1, 2, 0, ..."""
    files = [encoded(image) for image in images]
    prefix = f'{split}_' if split else ''
    arrays = {
        'jpeg': np.frombuffer(b''.join(files), np.uint8),
        'offsets': np.cumsum([0, *map(len, files)]),
        'label': (np.arange(len(files)) % 3).astype(np.uint8),
    }
    np.savez(path, **{prefix + name: array for name, array in arrays.items()})


def write_cifar10(folder, images: list[np.ndarray], labels) -> list[bytes]:
    """The archive that the rows read, the same images in both splits; their PNG files."""
    files = [encoded(image) for image in images]
    arrays = {
        'jpeg': np.frombuffer(b''.join(files), np.uint8),
        'offsets': np.cumsum([0, *map(len, files)]),
        'label': np.asarray(labels, np.uint8),
    }
    folder.mkdir()
    np.savez(
        folder / 'cifar10_jpeg.npz',
        **{f'{split}_{name}': x for split in ('train', 'test') for name, x in arrays.items()},
    )
    return files


def gif(video: np.ndarray, **options) -> bytes:
    """uint8 [T, H, W] or [T, H, W, C] as a GIF file's bytes; grey is kept exactly."""
    first, *rest = (Image.fromarray(frame) for frame in video)
    buffer = io.BytesIO()
    first.save(buffer, 'GIF', save_all=True, append_images=rest, **options)
    return buffer.getvalue()


def idx(array: np.ndarray) -> bytes:
    """An idx file of unsigned bytes."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f'>{array.ndim}I', *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_mnist(root, images: np.ndarray, labels: np.ndarray, stem: str = 'train') -> None:
    """The two files of a split, the labels as .gz."""
    (root / f'{stem}-images-idx3-ubyte').write_bytes(idx(images))
    (root / f'{stem}-labels-idx1-ubyte.gz').write_bytes(gzip.compress(idx(labels)))
