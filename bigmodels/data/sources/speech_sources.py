"""Random-access sources of speech with its text: tables of transcripts, and strings of digits."""

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from bigmodels import errors
from bigmodels.data import audio
from bigmodels.data.sources import checked_index, digest, read_below, sizes_below, visible_files
from bigmodels.data.sources.audio_sources import AudioNpz
from bigmodels.data.sources.table_sources import csv_rows


class _Recordings:
    """Files of a folder with what is said in each; see `Transcribed` for their records."""

    def __init__(
        self, path: str, sample_rate: int, texts: Sequence[tuple[str, str]], told: str, keep: bool
    ):
        """texts: (file, text) of each, as `told` has them."""
        audio.check_rate(sample_rate)
        self._path, self._sample_rate, self._keep = path, sample_rate, keep
        self._names, self._texts = zip(*texts, strict=True)
        self._decoded = {}
        sizes = self._sizes(self._names, told)
        listed = [f'{size} {name} {text}' for size, (name, text) in zip(sizes, texts, strict=True)]
        sample = np.linspace(0, len(texts) - 1, min(64, len(texts))).astype(int)
        self._fingerprint = digest(
            'transcribed',
            str(sample_rate),
            *listed,
            *(self._read(self._names[i]) for i in sample),
        )

    def _sizes(self, names: Sequence[str], told: str) -> list[int]:
        """The bytes of every file; raises UserError for the first that is not there."""
        found = sizes_below(self._path, names)
        missing = [name for name in names if name not in found]
        if missing:
            raise errors.UserError(
                f'{self._path} lacks {len(missing):,} of the {len(names):,} files in {told}: '
                f'{errors.some(missing)}.'
            )
        return [found[name] for name in names]

    def _read(self, name: str) -> bytes:
        """The bytes of a file of the folder."""
        return read_below(self._path, name)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        i = checked_index(index, len(self))
        name, samples = self._names[i], self._decoded.get(i)
        if samples is None:
            where = f'{pathlib.Path(self._path, name)} (record {i})'
            samples = audio.read(self._read(name), where, self._sample_rate, self._path)
            if self._keep:
                self._decoded[i] = samples
        return {
            'audio': samples,
            'sample_rate': np.int64(self._sample_rate),
            'text': self._texts[i],
            'path': name,
        }

    def fingerprint(self) -> str:
        """Over the texts, the names and sizes of all files, and the content of 64 of them."""
        return self._fingerprint

    def describe(self) -> str:
        words = sum(len(text.split()) for text in self._texts)
        return (
            f'speech {self._path}: {len(self):,} recordings, {words:,} words, '
            f'{self._sample_rate:,} Hz'
        )


class Transcribed(_Recordings):
    """Files of sound and a table of what is said in them, in a folder or a `.zip` of one.

    Record: {'audio': float32 [T] of `sample_rate` in Hz, 'sample_rate': int64, 'text': str, 'path':
    str, relative to the folder}. Files of another rate are resampled, which a warning says once a
    rate. The table is CSV, or has tabs where its name ends in `.tsv`: Common Voice, as it is
    unpacked, has table='train.tsv', audio_folder='clips', file_column='path' and
    text_column='sentence'.
    """

    def __init__(
        self,
        path: str,
        sample_rate: int,
        table: str = 'transcripts.csv',
        audio_folder: str = 'wav',
        file_column: str = 'file',
        text_column: str = 'text',
        keep: bool = False,
    ):
        """`keep`: what was decoded stays in memory, for sets that fit.

        Raises:
          UserError: naming file and line, for a table that lacks a column or has an empty text,
            and for a file of it that is not there.
        """
        where, tabs = f'{path}: {table}', table.endswith('.tsv')
        header, lines = csv_rows(where, _utf8(read_below(path, table), where), tabs)
        for name in (file_column, text_column):
            if name not in header:
                raise errors.unknown(f'column of {where}', name, header)
        texts = []
        for line, row in lines:
            if len(row) != len(header):
                raise errors.UserError(
                    f'{where}:{line} has {len(row)} values, the header has {len(header)} columns.'
                    + ('' if tabs else ' Quote a text that holds a comma.')
                )
            record = dict(zip(header, row, strict=True))
            file, text = record[file_column], record[text_column].strip()
            if not text:
                raise errors.UserError(
                    f'{where}:{line}: the text of {file} is empty. Write what is said in it, or '
                    'remove the line.'
                )
            texts.append((f'{audio_folder}/{file}' if audio_folder else file, text))
        super().__init__(path, sample_rate, texts, table, keep)


class LibriSpeech(_Recordings):
    """FLAC files and the `.trans.txt` beside them, as LibriSpeech is unpacked, in a folder.

    Record: see `Transcribed`. Each line of a `.trans.txt` is the name of a file without its suffix,
    and what is said in it.
    """

    def __init__(self, path: str, sample_rate: int = 16_000, keep: bool = False):
        """path: a folder with any of them below, such as `LibriSpeech/train-clean-100`.

        Raises:
          UserError: for a folder without transcripts; naming file and line, for a name without a
            text; and for a recording that is not there.
        """
        if not os.path.isdir(path):
            raise errors.UserError(f'There is no folder {path!r}, seen from {os.getcwd()}.')
        texts = []
        for table in visible_files(path):
            if table.endswith('.trans.txt'):
                folder = pathlib.PurePosixPath(table).parent
                texts += [
                    ((folder / f'{name}.flac').as_posix(), text)
                    for name, text in _named_texts(path, table)
                ]
        if not texts:
            raise errors.UserError(f'{path} has no .trans.txt file with a line in it.')
        super().__init__(path, sample_rate, texts, 'its .trans.txt files', keep)


def _named_texts(path: str, table: str) -> Iterator[tuple[str, str]]:
    """The words before the first blank of a file's lines, and what follows."""
    where = f'{path}/{table}'
    for line, row in enumerate(_utf8(read_below(path, table), where).split('\n'), 1):
        name, _, text = row.strip().partition(' ')
        if name and not text:
            raise errors.UserError(f'{where}:{line} has no text after {name!r}.')
        if name:
            yield name, text


def _utf8(data: bytes, where: str) -> str:
    try:
        return data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise errors.UserError(f'{where} is not UTF-8 at byte {error.start:,}.') from error


class DigitStrings:
    """Strings of spoken digits, put together as they are read from an `AudioNpz` archive.

    String i is a function of the seed and i: digits of one speaker, drawn uniformly, with up to
    `max_pause` seconds of silence before each one and at the end. Digits that would end after
    `max_seconds` are left out. The archive has `label`, the digits, and `speaker`. Record:
    {'audio': float32 [T], 'sample_rate': int64, 'text': such as '3 1 4', 'path': str}.
    """

    def __init__(
        self,
        path: str,
        count: int,
        max_seconds: float,
        split: Literal['train', 'test'] = 'train',
        min_digits: int = 2,
        max_digits: int = 7,
        max_pause: float = 0.1,
        sample_rate: int = 0,
        seed: int = 0,
    ):
        if not 1 <= min_digits <= max_digits:
            raise errors.UserError(
                f'min_digits = {min_digits} and max_digits = {max_digits} must be at least 1, the '
                'former not above the latter.'
            )
        self._recordings = AudioNpz(path, split, sample_rate)
        if not len(self._recordings):
            raise errors.UserError(f'{path} has no recording in the split {split!r}.')
        self._labels = self._recordings.column('label')
        speakers = self._recordings.column('speaker')
        self._of_speaker = tuple(np.flatnonzero(speakers == s) for s in np.unique(speakers))
        self._rate = self._recordings[0]['sample_rate']
        self._count, self._seed, self._range = count, seed, (min_digits, max_digits)
        self._max_pause, self._most = round(max_pause * self._rate), int(max_seconds * self._rate)
        longest = int(self._recordings.num_samples().max()) + 2 * self._max_pause
        if min_digits * longest > self._most:
            raise errors.UserError(
                f'max_seconds = {max_seconds} may not hold min_digits = {min_digits}: the longest '
                f'recording has {longest / self._rate:.2f} s with its pauses.'
            )
        settings = split, count, seed, min_digits, max_digits, max_pause, max_seconds
        self._fingerprint = digest(
            'digit_strings', self._recordings.fingerprint(), *map(str, settings)
        )

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        i = checked_index(index, len(self))
        rng = np.random.default_rng([self._seed, i])
        recordings = self._of_speaker[rng.integers(len(self._of_speaker))]
        low, high = self._range
        chosen = rng.choice(recordings, rng.integers(low, high + 1))
        pauses = [np.zeros(n, np.float32) for n in rng.integers(0, self._max_pause + 1, high + 1)]
        parts, digits, length = [], [], len(pauses[-1])
        for recording, pause in zip(chosen.tolist(), pauses, strict=False):
            samples = self._recordings[recording]['audio']
            length += len(pause) + len(samples)
            if length > self._most:
                break
            parts += [pause, samples]
            digits.append(str(self._labels[recording]))
        return {
            'audio': np.concatenate([*parts, pauses[-1]]),
            'sample_rate': np.int64(self._rate),
            'text': ' '.join(digits),
            'path': f'string {i}',
        }

    def fingerprint(self) -> str:
        return self._fingerprint

    def describe(self) -> str:
        low, high = self._range
        described = self._recordings.describe()
        return f'{self._count:,} strings of {low} to {high} digits from {described}'
