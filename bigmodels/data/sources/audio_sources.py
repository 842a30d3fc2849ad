"""Random-access sources of recordings: files in folders, and one `.npz` archive of many."""

from typing import Any, Literal

import numpy as np

from bigmodels import errors
from bigmodels.data import audio
from bigmodels.data.sources import checked_index, digest
from bigmodels.data.sources.class_folders import ClassFolders
from bigmodels.data.sources.table_sources import arrays_digest, checked_offsets, read_npz


class WavFolder(ClassFolders):
    """WAV files, or others of sound, in one folder for each class, as Speech Commands has them.

    Record: {'audio': float32 [T], 'sample_rate': int64, 'label': int64, 'path': str}, see
    `ClassFolders`; of `sample_rate` in Hz. Files of another rate are resampled, which a warning
    says once a rate.
    """

    suffixes = audio.SUFFIXES

    def __init__(self, path: str, sample_rate: int, classes: tuple[str, ...] = ()):
        super().__init__(path, classes)
        audio.check_rate(sample_rate)
        self._sample_rate = sample_rate

    def _decode(self, data: bytes, where: str) -> dict[str, Any]:
        samples = audio.read(data, where, self._sample_rate, self._path)
        return {'audio': samples, 'sample_rate': np.int64(self._sample_rate)}

    def fingerprint(self) -> str:
        """See `ClassFolders.fingerprint`."""
        return digest('wav_folder', super().fingerprint(), str(self._sample_rate))

    def describe(self) -> str:
        return f'{super().describe()}, {self._sample_rate:,} Hz'


class AudioNpz:
    """Recordings one after another in an `.npz` archive, held in memory as 16-bit samples.

    The archive's arrays: `audio` int16 [samples], `offsets` int [n + 1], recording i is
    audio[offsets[i]:offsets[i + 1]], `sample_rate` [1] in Hz, `is_test` bool [n], and others of
    length n, such as `label`. Record: {'audio': float32 [T] from -1 to 1, resampled to
    `sample_rate` if one is given, 'sample_rate': int64, 'path': str, which names the file and the
    place in it, and those others}.
    """

    def __init__(self, path: str, split: Literal['train', 'test'] = 'train', sample_rate: int = 0):
        self._path, self._split = path, split
        columns = read_npz(path)
        for name in ('audio', 'offsets', 'sample_rate', 'is_test'):
            if name not in columns:
                raise errors.unknown(f'array in {path}', name, columns)
        self._fingerprint = digest(arrays_digest('audio_npz', columns), split, str(sample_rate))
        self._audio, offsets = columns.pop('audio'), columns.pop('offsets')
        if self._audio.dtype != np.int16:
            raise errors.UserError(f'{path}: audio is {self._audio.dtype}, and must be int16.')
        offsets = checked_offsets(offsets, f'{path}: offsets')
        self._rate = int(columns.pop('sample_rate').item())
        self._wanted_rate = sample_rate or self._rate
        audio.check_rate(self._wanted_rate)
        count, ends = len(columns['is_test']), (0, len(self._audio))
        if (
            len(offsets) != count + 1
            or (offsets[1:] <= offsets[:-1]).any()
            or (offsets[0], offsets[-1]) != ends
        ):
            raise errors.UserError(
                f'{path}: offsets must ascend from 0 to the {ends[1]:,} samples of audio in '
                f'{count + 1:,} entries, one more than is_test has.'
            )
        kept = columns.pop('is_test') == (split == 'test')
        self._places = np.flatnonzero(kept)
        self._starts, self._stops = offsets[:-1][kept], offsets[1:][kept]
        self._columns = {
            name: array[kept] for name, array in columns.items() if array.shape[:1] == (count,)
        }

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        i = checked_index(index, len(self))
        samples = audio.pcm_to_float(self._audio[self._starts[i] : self._stops[i]].tobytes(), 2)
        return {
            'audio': audio.resample(samples, self._rate, self._wanted_rate),
            'sample_rate': np.int64(self._wanted_rate),
            'path': f'{self._path} (recording {self._places[i]})',
            **{name: column[i] for name, column in self._columns.items()},
        }

    def column(self, name: str) -> np.ndarray:
        """One of the other arrays, of all records [len(self), ...]."""
        if name not in self._columns:
            raise errors.unknown(f'array in {self._path}', name, self._columns)
        return self._columns[name]

    def num_samples(self) -> np.ndarray:
        """The length of every recording at the rate of the records, int64 [len(self)]."""
        lengths = self._stops - self._starts
        return -(-lengths * self._wanted_rate // self._rate)

    def fingerprint(self) -> str:
        return self._fingerprint

    def describe(self) -> str:
        seconds = (self._stops - self._starts).sum() / self._rate
        resampled = f' from {self._rate:,} Hz' if self._wanted_rate != self._rate else ''
        return (
            f'audio {self._path} {self._split}: {len(self):,} recordings, {seconds:,.0f} s, '
            f'{self._wanted_rate:,} Hz{resampled}'
        )
