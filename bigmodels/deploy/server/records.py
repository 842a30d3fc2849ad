"""Records that clients send, as JSON or as an upload, as what a task's `preprocess` takes.

Images, videos and recordings come as bytes, never as a path: of the server's files none is read.
Whatever these bytes claim to be, what they become is limited before it is made.
"""

import base64
import binascii
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pydantic
from starlette.datastructures import FormData, UploadFile

from bigmodels import errors
from bigmodels.data import audio, images, inputs
from bigmodels.deploy.server import failures, forms

FILES = ('image', 'video', 'audio')  # the kinds of fields that are files
TYPES = {'png': 'image/png', 'wav': 'audio/wav'}  # of files that are answers
# Hz of recordings: each other rate would take a filter of its own to resample, of any size.
RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 192000)
LONGEST = 600.0  # seconds of a recording
MOST_VALUES = int(LONGEST) * 2 * 48_000  # of one that is compressed
_DATA_URL = re.compile(r'data:[\w.+/-]*(;[\w-]+=[\w.+-]*)*;base64,', re.ASCII)


class Files:
    """Decodes the files of one request, whose pixels are limited all together.

    Args:
      sample_rate: of recordings; None for that which each has.
    """

    def __init__(self, max_pixels: int, sample_rate: int | None):
        self._left, self._sample_rate = max_pixels, sample_rate

    def decode(self, data: bytes, kind: str, where: str) -> np.ndarray:
        """An array as `data.inputs` has it of such files.

        Raises:
          UserError: if it is no such file, or too large.
        """
        if kind == 'audio':
            return recording(data, where, self._sample_rate)
        read = images.decode if kind == 'image' else images.decode_gif
        pixels = read(data, where, max_pixels=self._left)
        self._left -= pixels.size // pixels.shape[-1]
        return pixels


class Reader:
    """Reads the records of a task.

    Args:
      max_pixels: of all images, or frames, of a request.

    Fields:
      form: the model of one, see `forms.record_form`.
    """

    def __init__(self, task: Any, max_pixels: int):
        self.fields: Mapping[str, str] = task.record_fields
        self.form = forms.record_form(self.fields)
        self._sample_rate = getattr(task, 'sample_rate', None)
        self._max_pixels = max_pixels

    def files(self) -> Files:
        """For the files of one request."""
        return Files(self._max_pixels, self._sample_rate)

    def of_json(self, record: pydantic.BaseModel, where: str, files: Files) -> dict[str, Any]:
        """A validated record, its files decoded; `where` names it in errors."""
        values = record.model_dump(by_alias=True)
        return {
            name: self._decoded(value, self.fields[name], f'{where}.{name}', files)
            for name, value in values.items()
        }

    def of_files(self, form: FormData, contents: Mapping[UploadFile, bytes]) -> list[dict]:
        """The records of an upload.

        Of a task of one file each part `file` is a record, of all tasks the parts named like fields
        are one.

        Args:
          contents: of the form's files.

        Raises:
          Failure: naming the part, for others than these, or one that is missing or repeated.
        """
        alone, files = inputs.only_kind(self.fields), self.files()
        if alone in FILES and 'file' not in self.fields and 'file' in form:
            [name] = self.fields
            self._check_parts(form, ('file',))
            return [
                {name: self._of_part(part, contents, alone, f'file {i}', files)}
                for i, part in enumerate(form.getlist('file'))
            ]
        self._check_parts(form, self.fields)
        for name in self.fields:
            if len(form.getlist(name)) != 1:
                raise failures.Failure(
                    400, f'The form has {len(form.getlist(name))} parts {name!r}, wanted one.',
                    param=name,
                )  # fmt: skip
        return [
            {
                name: self._of_part(form[name], contents, kind, name, files)
                for name, kind in self.fields.items()
            }
        ]

    def _check_parts(self, form: FormData, allowed: Sequence[str] | Mapping[str, str]) -> None:
        for name in form:
            if name not in allowed:
                raise failures.Failure(
                    400, str(errors.unknown('part', name[:100], allowed)), param=name[:100]
                )

    def _of_part(self, part, contents: Mapping, kind: str, where: str, files: Files) -> Any:
        if kind in FILES:
            if isinstance(part, str):
                return self._decoded(part, kind, where, files)
            return files.decode(contents[part], kind, where)
        if kind not in ('text', 'value', 'ids'):
            raise failures.Failure(400, f'{where} is {kind}: send it as JSON.', param=where)
        if isinstance(part, str):
            return part
        try:
            return contents[part].decode()
        except UnicodeDecodeError as error:
            raise errors.UserError(f'{where} is no text in UTF-8: {error}.') from error

    def _decoded(self, value: Any, kind: str, where: str, files: Files) -> Any:
        """A value of a validated record."""
        if kind in FILES:
            return files.decode(_from_base64(value, where), kind, where)
        if kind == 'array':
            try:
                return np.array(value)
            except ValueError as error:
                raise errors.UserError(f'{where} has rows of different lengths.') from error
        return value


def recording(data: bytes, where: str, sample_rate: int | None) -> np.ndarray:
    """The samples of a file of sound at a sample rate, or its own.

    Raises:
      UserError: if it is no such file, too long, or of a rate that is not customary.
    """
    samples, rate = audio.decode(data, where, most=MOST_VALUES)
    if rate not in (*RATES, sample_rate):
        raise errors.UserError(
            f'{where} has {rate:,} Hz: recordings of {", ".join(map(str, RATES))} Hz are taken.'
        )
    if len(samples) > LONGEST * rate:
        raise errors.UserError(
            f'{where} has {len(samples) / rate:,.0f} s: {LONGEST:g} s at most are taken.'
        )
    return audio.resample(samples, rate, sample_rate or rate)


def _from_base64(text: str, where: str) -> bytes:
    """The bytes of base64 or of a data URL."""
    if text.startswith('data:'):
        head = _DATA_URL.match(text[:200])
        if not head:
            raise errors.UserError(f'{where} is a data URL without base64.')
        text = text[head.end() :]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise errors.UserError(
            f'{where} is no file in base64, nor a data URL: {error}. Paths and links are not read.'
        ) from error


def plain(value: Any) -> Any:
    """An answer's value as JSON can hold it: a number that is not finite is null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def as_data_url(suffix: str, file: bytes) -> str:
    """A file, of one of TYPES by its suffix, as what pages can show and play."""
    return f'data:{TYPES[suffix]};base64,' + base64.b64encode(file).decode()
