"""Random-access sources of images with boxes around their objects: Pascal VOC's layout, COCO's.

Record: {'image': uint8 [H, W, 3], 'boxes': float32 [n, 4], 'names': str [n], 'ignored': bool [n],
'path': str}. A box is (left, top, right, bottom), the edges in pixels; its name says of which class
its object is. To find an ignored one is neither right nor wrong.
"""

import abc
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np

from bigmodels import errors
from bigmodels.data import images
from bigmodels.data.sources import checked_index, digest, one_file, read_below, read_bytes


@dataclasses.dataclass(frozen=True)
class Annotated:
    """What is known of an image before it is read: its file, (width, height), and its boxes."""

    path: str
    size: tuple[int, int]
    boxes: np.ndarray
    names: np.ndarray
    ignored: np.ndarray


class BoxSource(abc.ABC):
    """Images of which a subclass reads the annotations, all at construction, and the files.

    Args:
      path: a folder, or a `.zip` of one.
      drop_empty: leave out boxes at most a pixel wide or high, such as slips of annotators make,
        which are else an error; `describe` counts them.
    """

    def __init__(self, path: str, drop_empty: bool = False):
        self._path, self._drop_empty, self._dropped = path, drop_empty, 0
        self._records = tuple(self._annotations())
        if not self._records:
            raise errors.UserError(f'{path} names no image.')
        sample = np.linspace(0, len(self) - 1, min(64, len(self))).astype(int)
        self._fingerprint = digest(
            type(self).__name__,
            *(
                f'{r.path} {r.size} {list(r.names)} {r.boxes.tolist()} {r.ignored.tolist()}'
                for r in self._records
            ),
            *(self._read(self._records[i].path) for i in sample),
        )

    @abc.abstractmethod
    def _annotations(self) -> Sequence[Annotated]:
        """The records in their order."""

    def _read(self, name: str) -> bytes:
        """A file of the folder, by its path below it."""
        return read_below(self._path, name)

    def _annotated(
        self,
        path: str,
        size: tuple[int, int],
        boxes: Sequence,
        names: Sequence[str],
        ignored: Sequence[bool],
        where: str,
    ) -> Annotated:
        """A record whose boxes are larger than a pixel and lie in the image; else a UserError."""
        edges = np.asarray(boxes, np.float32).reshape(-1, 4)
        if not np.isfinite(edges).all() or min(size) < 1:
            raise errors.UserError(f'{where}: sizes and boxes must be numbers, got {boxes}.')
        full = (edges[:, 2:] - edges[:, :2] > 1).all(1)
        inside = (edges[:, :2] >= 0).all(1) & (edges[:, 2:] <= size).all(1)
        turned = (edges[:, 2:] < edges[:, :2]).any(1)
        for i in np.flatnonzero(turned):
            raise errors.UserError(
                f'{where}, box {i} ({names[i]}): {edges[i].tolist()} must be left, top, right, '
                'bottom, and right or bottom comes first. Mend it.'
            )
        for i in np.flatnonzero(~inside | (~full & (not self._drop_empty))):
            outside = f'is not inside the {size[0]} x {size[1]} image'
            wrong = 'is at most a pixel wide or high' if inside[i] else outside
            hint = ', or set drop_empty to leave such boxes out' if inside[i] else ''
            raise errors.UserError(
                f'{where}, box {i} ({names[i]}): {edges[i].tolist()} (left, top, right, bottom) '
                f'{wrong}. Mend it{hint}.'
            )
        self._dropped += int((~full).sum())
        named, passed = np.array(names, str).reshape(-1), np.array(ignored, bool).reshape(-1)
        return Annotated(path, size, edges[full], named[full], passed[full])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        i = checked_index(index, len(self))
        record = self._records[i]
        where = f'{self._path}: {record.path} (record {i})'
        image = images.decode(self._read(record.path), where)
        if image.shape[1::-1] != record.size:
            raise errors.UserError(
                f'{where} has {image.shape[1]} x {image.shape[0]} pixels, and its annotation says '
                f'{record.size[0]} x {record.size[1]}.'
            )
        return {
            'image': image,
            'boxes': record.boxes,
            'names': record.names,
            'ignored': record.ignored,
            'path': record.path,
        }

    def fingerprint(self) -> str:
        """Over all annotations, and the content of 64 images, evenly spaced.

        Not over all content: there may be very many files.
        """
        return self._fingerprint

    def describe(self) -> str:
        count = sum(len(record.boxes) for record in self._records)
        dropped = f', {self._dropped:,} of a pixel left out' if self._dropped else ''
        return f'boxes {self._described()}: {len(self):,} images, {count:,} boxes{dropped}'

    def _described(self) -> str:
        return self._path


class PascalVoc(BoxSource):
    """The layout of Pascal VOC (Everingham et al. 2010): `JPEGImages/NAME.jpg`,
    `Annotations/NAME.xml`, and the names of a split in `ImageSets/Main/SPLIT.txt`.

    Files there number pixels from 1, and say the first and the last within a box. Boxes that are
    marked difficult are ignored.

    Args:
      first_pixel: 0 for files that number pixels from 0.
    """

    def __init__(
        self, path: str, split: str, drop_empty: bool = False, first_pixel: Literal[0, 1] = 1
    ):
        self._split, self._first_pixel = split, first_pixel
        super().__init__(path, drop_empty)

    def _annotations(self) -> Sequence[Annotated]:
        file = f'ImageSets/Main/{self._split}.txt'
        listed = [line.strip() for line in self._read(file).decode('utf8', 'replace').splitlines()]
        return [self._parsed(name) for name in listed if name]

    def _parsed(self, name: str) -> Annotated:
        file = f'Annotations/{name}.xml'
        where = f'{self._path}: {file}'
        try:
            root = ElementTree.fromstring(self._read(file))
            width, height = (int(root.findtext(f'size/{side}')) for side in ('width', 'height'))
            objects = list(root.iter('object'))
            difficult = [o.findtext('difficult') == '1' for o in objects]
            boxes = [
                [float(o.findtext(f'bndbox/{edge}')) for edge in ('xmin', 'ymin', 'xmax', 'ymax')]
                for o in objects
            ]
            names = [o.find('name').text for o in objects]
            first = self._first_pixel
            boxes = [(a - first, b - first, c - first + 1, d - first + 1) for a, b, c, d in boxes]
        except (ElementTree.ParseError, TypeError, ValueError, AttributeError) as error:
            raise errors.UserError(
                f'{where} is no annotation of Pascal VOC, with a size and for each object a name '
                f'and the four edges of its bndbox: {error}.'
            ) from error
        image, size = f'JPEGImages/{name}.jpg', (width, height)
        return self._annotated(image, size, boxes, names, difficult, where)

    def _described(self) -> str:
        return f'{self._path} {self._split}'


class Coco(BoxSource):
    """The layout of COCO (Lin et al. 2014): a folder of images, and a JSON file of instances.

    Boxes of crowds (`iscrowd`) are ignored.

    Args:
      path: the folder, or a `.zip` of it, with the images below.
      annotations: the JSON file, in no archive; 'images', 'annotations' and 'categories' of it are
        read, and of an annotation 'image_id', 'category_id' and 'bbox' (left, top, width, height).
    """

    def __init__(self, path: str, annotations: str, drop_empty: bool = False):
        self._file = annotations
        super().__init__(path, drop_empty)

    def _annotations(self) -> Sequence[Annotated]:
        try:
            content = json.loads(read_bytes(one_file(self._file)))
            categories = {c['id']: c['name'] for c in content['categories']}
            known = {image['id']: [] for image in content['images']}
            if len(known) < len(content['images']):
                raise errors.UserError(f'{self._file}: several images have the same id.')
            for i, one in enumerate(content['annotations']):
                where = f'{self._file}, annotation {i}'
                image, category = one.get('image_id'), one.get('category_id')
                if image not in known or category not in categories:
                    raise errors.UserError(
                        f'{where}: there is no image {image} or no category {category}.'
                    )
                box = one.get('bbox', ())
                if len(box) != 4 or not all(isinstance(side, int | float) for side in box):
                    raise errors.UserError(f'{where}: its bbox must be four numbers.')
                known[one['image_id']].append(one)
            return [self._of_image(image, known, categories) for image in content['images']]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise errors.UserError(
                f'{self._file} is not a JSON file of instances in the format of COCO: {error!r}.'
            ) from error

    def _of_image(self, image: Mapping, known: Mapping, categories: Mapping) -> Annotated:
        size = int(image['width']), int(image['height'])
        given = known[image['id']]
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (one['bbox'] for one in given)]
        names = [categories[one['category_id']] for one in given]
        where = f'{self._file}, image {image["id"]} ({image["file_name"]})'
        crowds = [bool(one.get('iscrowd')) for one in given]
        return self._annotated(image['file_name'], size, boxes, names, crowds, where)

    def _described(self) -> str:
        return f'{self._path} by {self._file}'
