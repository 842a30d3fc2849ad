"""A source of images, sound or texts without records that are broken or there twice."""

import os
import pathlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from bigmodels import config, errors
from bigmodels.data import pipeline, sources
from bigmodels.data.sources import (
    audio_sources,
    box_sources,
    caption_sources,
    image_sources,
    mask_sources,
    speech_sources,
    table_sources,
    tfds_source,
)

# Sources that read a record when it is asked for, by the name in the section `source`.
SOURCES: dict[str, type] = {
    'image_folder': image_sources.ImageFolder,
    'jpeg_npz': image_sources.JpegNpz,
    'mask_folder': mask_sources.MaskFolder,
    'pascal_voc': box_sources.PascalVoc,
    'coco': box_sources.Coco,
    'image_text_folder': caption_sources.ImageTextFolder,
    'wav_folder': audio_sources.WavFolder,
    'audio_npz': audio_sources.AudioNpz,
    'transcribed': speech_sources.Transcribed,
    'librispeech': speech_sources.LibriSpeech,
    'npz': table_sources.Npz,
    'jsonl': sources.JsonLines,
    'tfds': tfds_source.Tfds,
}
_BROKEN = -1  # in the place of the first record that is the same
_FORMAT = 2  # part of every cache key: raise it when what is compared, or the file, changes


class Cleaned:
    """The records of another source that can be read and do not repeat an earlier one.

    All are read once before the first is used; what was found is kept in the cache of data, for as
    long as the source stays the same and what is broken stays so. `describe` counts what is left
    out and names the first.

    Args:
      source: the section of a source of SOURCES.
      broken: whether a record that cannot be read is refused or left out.
      duplicates: whether one with the same `fields` as an earlier one is kept, left out or refused.
      fields: what is compared; all but 'path' where none are named.

    Raises:
      UserError: for what is to be refused, a field that a record lacks, where nothing is left, and
        where a package is missing that reads the records.
    """

    wraps: ClassVar = {'source': SOURCES}

    def __init__(
        self,
        source: Mapping[str, Any],
        broken: Literal['refuse', 'drop'] = 'drop',
        duplicates: Literal['keep', 'drop', 'refuse'] = 'drop',
        fields: Sequence[str] = (),
    ):
        self._source = config.choose(SOURCES, source, 'data (cleaned).source')
        self._fields, self._settings = tuple(fields), (broken, duplicates, tuple(fields))
        self.classes = getattr(self._source, 'classes', None)  # of a source that has names of them
        first = self._first_equals()
        own = np.arange(len(first))
        self._broken, self._repeated = (
            np.flatnonzero(found) for found in (first == _BROKEN, (first >= 0) & (first < own))
        )
        if broken == 'refuse' and len(self._broken):
            self._source[int(self._broken[0])]  # says what is wrong with it
        if duplicates == 'refuse' and len(self._repeated):
            i = self._repeated[0]
            raise errors.UserError(
                f'Record {i} of {self._source.describe()} repeats record {first[i]}. Leave it out, '
                'or set duplicates to "keep" or "drop".'
            )
        self._duplicates = duplicates
        left = first >= 0 if duplicates == 'keep' else first == own
        self._kept = np.flatnonzero(left)
        if not len(self._kept):
            raise errors.UserError(f'Every record of {self._source.describe()} is broken.')

    def _first_equals(self) -> np.ndarray:
        """int64 [n]: the first record that is as each one, or _BROKEN."""
        settings = repr((_FORMAT, self._fields))
        key = sources.digest('cleaned', self._source.fingerprint(), settings)
        path = pipeline.cache_dir() / f'cleaned-{key[:24]}.npy'
        known = _known(path)
        broken = [] if known is None else np.flatnonzero(known == _BROKEN).tolist()
        if known is not None and all(self._readable(i) is None for i in broken):
            return known
        places, seen = np.full(len(self._source), _BROKEN, np.int64), {}
        for i in range(len(self._source)):
            record = self._readable(i)
            if record is not None:
                places[i] = seen.setdefault(self._content(record, i), i)
        with pipeline.writing_cache(path.parent):
            scratch = path.with_name(f'.writing-{uuid.uuid4().hex}.npy')
            np.save(scratch, places)
            os.replace(scratch, path)  # another process may have written the same
        return places

    def _readable(self, index: int) -> Mapping[str, Any] | None:
        """A record of the source, or None where it is broken."""
        try:
            return self._source[index]
        except errors.UserError as error:
            cause = error.__cause__
            while cause is not None:
                if isinstance(cause, ImportError):  # nothing is wrong with the record
                    raise
                cause = cause.__cause__
            return None

    def _content(self, record: Mapping[str, Any], index: int) -> str:
        """A hash of what is compared."""
        parts = []
        for name in self._fields or sorted(record.keys() - {'path'}):
            if name not in record:
                where = f'{self._source.describe()}, record {index}'
                raise errors.unknown(f'field of {where}:', name, record)
            parts += [name, _hash(record[name])]
        return sources.digest(*parts)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[int(self._kept[sources.checked_index(index, len(self))])]

    def fingerprint(self) -> str:
        settings = repr(self._settings)
        return sources.digest('cleaned', self._source.fingerprint(), settings, self._kept.tobytes())

    def describe(self) -> str:
        done = 'kept' if self._duplicates == 'keep' else 'left out'
        found = [
            f'{len(places):,} {what} (the first is record {places[0]})'
            for what, places in (
                ('broken left out', self._broken),
                (f'duplicates {done}', self._repeated),
            )
            if len(places)
        ]
        return f'{self._source.describe()}, cleaned: {", ".join(found) or "nothing found"}'


def _known(path: pathlib.Path) -> np.ndarray | None:
    """What a file of the cache has; None where there is none, or it is cut short."""
    if not path.is_file():
        return None
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError):
        return None


def _hash(value: Any) -> str:
    """A hash of a value and of all that is in it, of which `repr` would abbreviate large arrays."""
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return sources.digest('array', str(value.dtype), str(value.shape), value.tobytes())
    plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    if isinstance(plain, Mapping):
        parts = [_hash(part) for key in sorted(plain) for part in (key, plain[key])]
    elif isinstance(plain, list | tuple):
        parts = map(_hash, plain)
    else:
        parts = [repr(plain)]
    return sources.digest(type(plain).__name__, *parts)
