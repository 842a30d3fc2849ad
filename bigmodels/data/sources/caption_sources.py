"""Random-access sources of images with captions: by the names of classes, or of files in pairs."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from bigmodels import config, errors
from bigmodels.data import images as images_lib
from bigmodels.data.sources import (
    checked_index,
    digest,
    digest_of_files,
    image_sources,
    read_bytes,
    tfds_source,
    visible_files,
)

# Sources of labelled images, by the name in the section `images`.
IMAGES: dict[str, type] = {
    'image_folder': image_sources.ImageFolder,
    'jpeg_npz': image_sources.JpegNpz,
    'decoded_jpeg_npz': image_sources.DecodedJpegNpz,
    'mnist': image_sources.Mnist,
    'tfds': tfds_source.Tfds,
}


class Captioned:
    """Labelled images, each with a caption made of the name of its class.

    Record: that of the images, and {'caption': str}. The template of record i is drawn at random:
    a function of (seed, i) alone, the same in every epoch.

    Args:
      images: the section of a source of IMAGES.
      classes: the names, by label.
      templates: texts with one '{}', in whose place the name comes.
      label_key: the field of the images' records.

    Raises:
      UserError: for a template without its place, no templates, an empty name; and for a record
        whose label has no name.
    """

    wraps: ClassVar = {'images': IMAGES}  # sections within this one, and what they choose from

    def __init__(
        self,
        images: Mapping[str, Any],
        classes: Sequence[str],
        templates: Sequence[str] = ('a photo of a {}.',),
        label_key: str = 'label',
        seed: int = 0,
    ):
        check_prompts(classes, templates, 'classes', 'templates')
        self._images = config.choose(IMAGES, images, 'data (captioned).images')
        self._classes, self._templates = tuple(classes), tuple(templates)
        self._label_key, self._seed = label_key, seed

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        i = checked_index(index, len(self))
        record = self._images[i]
        if self._label_key not in record:
            where = f'field: {self.describe()}, record {i} lacks'
            raise errors.unknown(where, self._label_key, record)
        label = int(record[self._label_key])
        if not 0 <= label < len(self._classes):
            raise errors.UserError(
                f'{self.describe()}, record {i} is of class {label}: classes names '
                f'{len(self._classes)}, from 0 on.'
            )
        template = np.random.default_rng([self._seed, i]).integers(len(self._templates))
        name = self._classes[label]
        return {**record, 'caption': self._templates[template].replace('{}', name)}

    def fingerprint(self) -> str:
        settings = (str(self._classes), str(self._templates), self._label_key, str(self._seed))
        return digest('captioned', self._images.fingerprint(), *settings)

    def describe(self) -> str:
        return f'{self._images.describe()}, captioned by {len(self._templates)} templates'


def check_prompts(
    classes: Sequence[str], templates: Sequence[str], classes_key: str, templates_key: str
) -> None:
    """Raises UserError for empty or repeated names of classes, or templates without one '{}'."""
    for number, name in enumerate(classes):
        if not name.strip() or name in classes[:number]:
            raise errors.UserError(
                f'{classes_key}[{number}] is {name!r}: a class has a name of its own, not empty.'
            )
    if not templates:
        raise errors.UserError(f'{templates_key} must have at least one text with a {{}}.')
    for number, template in enumerate(templates):
        if template.count('{}') != 1:
            raise errors.UserError(
                f"{templates_key}[{number}] = {template!r} must have one '{{}}', in whose place "
                'the name of a class comes.'
            )


class ImageTextFolder:
    """JPEG and PNG files at any depth of a folder, and a UTF-8 `.txt` file of the same name each.

    Record: {'image': uint8 [H, W, 3], 'caption': str, 'path': str}, the path relative to the
    folder. The caption is the file's text without white space about it.

    Raises:
      UserError: for an image without a text file, for two images with one, for no image; and for a
        caption that is empty or no UTF-8.
    """

    def __init__(self, path: str):
        self._path = path
        if not os.path.isdir(path):
            raise errors.UserError(f'There is no folder {path!r}, seen from {os.getcwd()}.')
        self._names = tuple(
            name
            for name in visible_files(path)
            if name.lower().endswith(image_sources.ImageFolder.suffixes)
        )
        if not self._names:
            suffixes = ' or '.join(image_sources.ImageFolder.suffixes)
            raise errors.UserError(f'{path} holds no {suffixes} file.')
        texts = [os.path.splitext(name)[0] + '.txt' for name in self._names]
        self._files = tuple(
            (os.path.join(path, name), os.path.join(path, text))
            for name, text in zip(self._names, texts, strict=True)
        )
        owner = {}
        for image, text in self._files:
            if not os.path.isfile(text):
                raise errors.UserError(f'{image} has no caption: there is no file {text!r}.')
            if text in owner:
                raise errors.UserError(f'{text} is the caption of both {owner[text]} and {image}.')
            owner[text] = image

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        i = checked_index(index, len(self))
        image, text = self._files[i]
        try:
            caption = read_bytes(text).decode('utf-8-sig').strip()
        except UnicodeDecodeError as error:
            raise errors.UserError(f'{text} (record {i}) is not UTF-8 text.') from error
        if not caption:
            raise errors.UserError(f'{text} (record {i}) is empty: write a caption.')
        decoded = images_lib.decode(read_bytes(image), f'{image} (record {i})')
        return {'image': decoded, 'caption': caption, 'path': self._names[i]}

    def fingerprint(self) -> str:
        """Over the names of all pairs, their sizes, and the content of 64 of them, evenly spaced.

        Not over all content: there may be very many files.
        """
        return digest_of_files('image_text_folder', self._names, self._files)

    def describe(self) -> str:
        return f'images and texts {self._path}: {len(self):,} pairs'
