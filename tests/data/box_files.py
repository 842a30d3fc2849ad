"""Images of bright rectangles on dark ground, and their boxes as Pascal VOC and COCO have them."""

import json
import pathlib
import zipfile

import numpy as np
from PIL import Image

NAMES = ('RBC', 'WBC', 'Platelets')


def scenes(count: int, height: int = 60, width: int = 80, seed: int = 0) -> list[dict]:
    """'image' uint8 [height, width, 3], 'boxes' [n, 4] and 'names' of one to three rectangles, each
    in the colour of its class.
    """
    rng = np.random.default_rng(seed)
    written = []
    for _ in range(count):
        image = rng.integers(0, 40, (height, width, 3))
        boxes, names = [], []
        for _ in range(rng.integers(1, 4)):
            left, top = rng.integers(0, width - 24), rng.integers(0, height - 24)
            wide, tall = rng.integers(12, 24, 2)
            label = rng.integers(len(NAMES))
            image[top : top + tall, left : left + wide, label] = 220
            boxes.append([int(left), int(top), int(left + wide), int(top + tall)])
            names.append(NAMES[label])
        written.append({'image': image.astype(np.uint8), 'boxes': boxes, 'names': names})
    return written


def voc_xml(scene: dict) -> str:
    """The first and last pixels of boxes, counted from 1."""
    height, width, _ = scene['image'].shape
    objects = ''.join(
        f'<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{a + 1}</xmin>'
        f'<ymin>{b + 1}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>'
        for name, (a, b, c, d) in zip(scene['names'], scene['boxes'], strict=True)
    )
    size = f'<size><width>{width}</width><height>{height}</height></size>'
    return f'<annotation>{size}{objects}</annotation>'


def write_voc(folder: pathlib.Path, splits: dict[str, list[dict]]) -> None:
    """Pascal VOC's layout; the images are losslessly PNG, under the names of JPEG files."""
    for name in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for split, parts in splits.items():
        stems = [f'{split}_{i}' for i in range(len(parts))]
        (folder / 'ImageSets' / 'Main' / f'{split}.txt').write_text('\n'.join(stems) + '\n')
        for stem, scene in zip(stems, parts, strict=True):
            file = folder / 'JPEGImages' / f'{stem}.jpg'
            Image.fromarray(scene['image']).save(file, 'PNG')
            (folder / 'Annotations' / f'{stem}.xml').write_text(voc_xml(scene))


def write_zip(path: pathlib.Path, folder: pathlib.Path) -> None:
    """All files below a folder, in an archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, 'w') as archive:
        for file in sorted(folder.rglob('*')):
            if file.is_file():
                archive.write(file, str(file.relative_to(folder)))


def write_coco(folder: pathlib.Path, scenes: list[dict]) -> pathlib.Path:
    """Images below the folder, and the JSON file, whose path is returned."""
    folder.mkdir(parents=True)
    images, annotations = [], []
    for i, scene in enumerate(scenes):
        Image.fromarray(scene['image']).save(folder / f'{i}.png')
        height, width, _ = scene['image'].shape
        images.append({'id': 7 + i, 'file_name': f'{i}.png', 'width': width, 'height': height})
        for name, (a, b, c, d) in zip(scene['names'], scene['boxes'], strict=True):
            annotations.append(
                {
                    'image_id': 7 + i,
                    'category_id': 10 + NAMES.index(name),
                    'bbox': [a, b, c - a, d - b],
                    'iscrowd': 0,
                }
            )
    categories = [{'id': 10 + i, 'name': name} for i, name in enumerate(NAMES)]
    file = folder.with_suffix('.json')
    content = {'images': images, 'annotations': annotations, 'categories': categories}
    file.write_text(json.dumps(content))
    return file
