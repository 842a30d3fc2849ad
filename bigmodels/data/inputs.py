"""Raw input of predictions: files, by their suffix, as records with the fields that a task needs.

A task's `record_fields` says what it needs: the name of each field, and its kind.

    image     a JPEG or PNG file, uint8 [H, W, 3]
    video     a GIF file, or a folder of JPEG or PNG files, its frames; uint8 [T, H, W, 3]
    audio     a WAV, FLAC, MP3 or Ogg file, float32 [T]
    text      a line of a text file, str
    value     a cell of a table
    ids       likewise, of several ids: a list, or a text with commas or blanks between them
    series    a whole column of a table, which is then one record
    array     an array of a graph's `.npz` archive, see `graph_sources.read_graph`

A task of one image, video, recording or text takes files of these. All take tables, CSV or JSON
lines, of the fields by name; images, videos and recordings are named there by their path, relative
to the table's folder. JSON may also hold a recording's samples, with their `sample_rate` beside
them if it is another than the run's. Frames are in the order of their names, numbers in them by
their value.
"""

import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from bigmodels import errors
from bigmodels.data import audio, images
from bigmodels.data.sources import (
    BOM,
    JsonLines,
    graph_sources,
    one_file,
    parse_json_line,
    read_bytes,
    read_text,
    visible_files,
)
from bigmodels.data.sources.table_sources import Csv

SUFFIXES = {
    'image': ('.jpg', '.jpeg', '.png'),
    'video': ('.gif',),
    'audio': audio.SUFFIXES,
    'text': ('.txt',),
    'array': ('.npz',),
}
TABLES = ('.csv', '.jsonl')
Record = tuple[str, dict[str, Any]]  # where it was found, and its fields
# A recording and its rate -> those that the run takes.
AtRate = Callable[[np.ndarray, int], tuple[np.ndarray, int]]


def read_inputs(
    path: str,
    fields: Mapping[str, str],
    sample_rate: int | None = None,
    stdin: BinaryIO | None = None,
) -> Iterator[Record]:
    """The records of a file, of all files of a folder that are of use, or of '-'.

    Those of '-' are lines of standard input: each a text where the task needs one text, else a
    JSON object. A record has the `fields` alone, so no target; one from a file also its 'path',
    and a recording its 'sample_rate'.

    Args:
      fields: name -> kind.
      sample_rate: recordings of other rates are resampled to it, which a warning says once.
      stdin: in the place of standard input.

    Raises:
      UserError: naming file and record, for what cannot be read or lacks a field.
    """
    origin = 'standard input' if path == '-' else path

    def at_rate(samples, rate):
        wanted = sample_rate or rate
        return audio.resampled(samples, rate, wanted, origin), wanted

    if path == '-':
        yield from _lines(stdin or sys.stdin.buffer, fields, at_rate)
    elif os.path.isdir(path):
        found = _videos(path) if only_kind(fields) == 'video' else _files(path, fields)
        for file in found:
            yield from _read(file, fields, at_rate)
    else:
        yield from _read(one_file(path), fields, at_rate)


def is_read(file: str, path: str, fields: Mapping[str, str]) -> bool:
    """Whether `read_inputs(path, fields)` would read a file, which need not be there yet."""
    file, path = (pathlib.Path(name).resolve() for name in (file, path))
    of_use = _suffix(file) in SUFFIXES.get(only_kind(fields), TABLES)
    return file == path or (of_use and file.is_relative_to(path))


def _read(path: str, fields: Mapping[str, str], at_rate: AtRate) -> Iterator[Record]:
    kind, suffix = only_kind(fields), _suffix(path)
    frames = kind == 'video' and os.path.isdir(path)
    if suffix not in (*SUFFIXES.get(kind, ()), *TABLES) and not frames:
        raise errors.UserError(
            f'{path} is of no use here: the run needs {_described(fields)}, from '
            f'{", ".join((*SUFFIXES.get(kind, ()), *TABLES))} files.'
        )
    if suffix in TABLES and not frames:
        yield from _table(path, fields, at_rate)
    elif kind == 'text':
        [name] = fields
        for number, line in enumerate(read_text(path).removeprefix(BOM).split('\n'), 1):
            if line.strip():
                yield f'{path}:{number}', {name: line.rstrip('\r')}
    elif kind == 'array':
        yield path, _filled(graph_sources.read_graph(path), fields, path, '', at_rate)
    else:
        [name] = fields
        yield path, _decoded(path, name, kind, at_rate)


def _table(path: str, fields: Mapping[str, str], at_rate: AtRate) -> Iterator[Record]:
    if _suffix(path) == '.csv':
        texts = [
            name for name, kind in fields.items() if kind in ('text', 'image', 'video', 'audio')
        ]
        source = Csv(path, text=texts)
    else:
        source = JsonLines(path)
    if only_kind(fields) == 'series':
        records = [source[i] for i in range(len(source))]
        _check_fields(records[0], fields, path)
        yield path, {name: [record.get(name) for record in records] for name in fields}
        return
    folder = os.path.dirname(path)
    for i in range(len(source)):
        where = f'{path}, record {i}'
        yield where, _filled(source[i], fields, where, folder, at_rate)


def _lines(stdin: BinaryIO, fields: Mapping[str, str], at_rate: AtRate) -> Iterator[Record]:
    for number, data in enumerate(stdin, 1):
        where = f'standard input:{number}'
        try:
            line = data.decode('utf-8-sig' if number == 1 else 'utf-8')
        except UnicodeDecodeError as error:
            raise errors.UserError(f'{where} is not UTF-8 text: {error}.') from error
        if not line.strip():
            continue
        if tuple(fields.values()) == ('text',):
            [name] = fields
            yield where, {name: line.rstrip('\r\n')}
        else:
            record = parse_json_line(data, where)
            yield where, _filled(record, fields, where, '', at_rate)


def _filled(record, fields: Mapping[str, str], where: str, folder: str, at_rate: AtRate) -> dict:
    """A table's record, with images, videos and recordings that it names by their path."""
    _check_fields(record, fields, where)
    filled = {name: record[name] for name in fields}
    for name, kind in fields.items():
        if kind in ('image', 'video', 'audio') and isinstance(record[name], str):
            if not record[name].strip():
                raise errors.UserError(f'{where}: {name} is empty, and names no file.')
            path = os.path.join(folder, record[name])
            with errors.told_of(where):
                filled |= _decoded(path, name, kind, at_rate)
        elif kind == 'audio' and 'sample_rate' in record:
            try:
                samples, rate = np.asarray(record[name], np.float32), int(record['sample_rate'])
                audio.check_rate(rate)
                if samples.ndim != 1:
                    raise ValueError(f'a recording is a vector, got {samples.shape}')
            except (TypeError, ValueError, OverflowError, errors.UserError) as error:
                raise errors.UserError(f'{where}: {name} or sample_rate: {error}') from error
            samples, rate = at_rate(samples, rate)
            filled |= {name: samples, 'sample_rate': rate}
    return filled


def _decoded(path: str, name: str, kind: str, at_rate: AtRate) -> dict:
    if kind == 'image':
        return {name: images.decode(read_bytes(path), path), 'path': path}
    if kind == 'video':
        if os.path.isdir(path):
            return {name: _frames(path), 'path': path}
        return {name: images.decode_gif(read_bytes(path), path), 'path': path}
    samples, rate = at_rate(*audio.decode(read_bytes(path), path))
    return {name: samples, 'sample_rate': rate, 'path': path}


def _frames(folder: str) -> np.ndarray:
    """The images in a folder as a video uint8 [T, H, W, 3], in the order of their names."""
    files = _images_in(folder)
    if not files:
        raise errors.UserError(f'{folder} has no {" or ".join(SUFFIXES["image"])} file: no frames.')
    frames = [images.decode(read_bytes(file), file) for file in files]
    for file, frame in zip(files, frames, strict=True):
        if frame.shape != frames[0].shape:
            raise errors.UserError(
                f'{file} is of {frame.shape[0]} x {frame.shape[1]} pixels, and {files[0]} of '
                f'{frames[0].shape[0]} x {frames[0].shape[1]}: frames are of one size.'
            )
    return np.stack(frames)


def _videos(folder: str) -> list[str]:
    """The GIF files and the folders of frames, itself perhaps, at any depth below a folder."""
    files = [os.path.join(folder, name) for name in visible_files(folder)]
    frames = {os.path.dirname(file) for file in files if _suffix(file) in SUFFIXES['image']}
    found = sorted([*frames, *(f for f in files if _suffix(f) == '.gif')], key=_by_numbers)
    if not found:
        raise errors.UserError(
            f'{folder} has no .gif file, nor a folder of {" or ".join(SUFFIXES["image"])} files.'
        )
    return found


def _images_in(folder: str) -> list[str]:
    """The images of a folder itself, sorted by name; hidden ones do not count."""
    names = [name for name in os.listdir(folder) if not name.startswith('.')]
    return [
        os.path.join(folder, name)
        for name in sorted(names, key=_by_numbers)
        if _suffix(name) in SUFFIXES['image']
    ]


def _by_numbers(name: str) -> list:
    """A key that sorts names with frame2 before frame10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r'([0-9]+)', name))]


def _check_fields(record: Mapping, fields: Mapping[str, str], where: str) -> None:
    for name in fields:
        if name not in record:
            raise errors.unknown(f'field: {where} lacks', name, record)


def only_kind(fields: Mapping[str, str]) -> str:
    """The kind of a task's only field, or of all of a series' or a graph's; '' for others."""
    kinds = set(fields.values())
    alone = len(fields) == 1 or kinds in ({'series'}, {'array'})
    return kinds.pop() if alone else ''


def _files(folder: str, fields: Mapping[str, str]) -> Iterator[str]:
    """The files at any depth below a folder that are of use, sorted; hidden ones do not count."""
    suffixes = SUFFIXES.get(only_kind(fields), TABLES)
    found = [
        os.path.join(folder, name) for name in visible_files(folder) if _suffix(name) in suffixes
    ]
    if not found:
        raise errors.UserError(
            f'{folder} has no {" or ".join(suffixes)} file: the run needs {_described(fields)}.'
        )
    return iter(found)


def _suffix(path: str | pathlib.Path) -> str:
    """In lower case, without '.gz'."""
    return pathlib.Path(str(path).lower().removesuffix('.gz')).suffix


def _described(fields: Mapping[str, str]) -> str:
    return errors.some([f'{name} ({kind})' for name, kind in fields.items()])
