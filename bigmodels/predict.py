"""The command that answers raw input, as JSON lines.

python -m bigmodels.predict --workdir=runs/digits_mlp --input=pictures
"""

import argparse
import contextlib
import functools
import io
import itertools
import json
import pathlib
import sys
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.errors
import jax
import numpy as np
from PIL import Image

from bigmodels import config, errors, rundir, runs
from bigmodels.data import audio, images, inputs, pipeline
from bigmodels.deploy.continuations import Continuations
from bigmodels.tasks.language_modeling import LanguageModeling

MOST_CONTINUED = 8  # texts at once, unless more are asked for: each has a cache of the context
MOST_PROGRAMS = 32  # that are kept of one function


class Program:
    """A task's function of batches, compiled for each shape and size that comes, on the host after.

    The latest `MOST_PROGRAMS` are kept, so that inputs of ever new shapes fill no memory.

    Args:
      function: (params, model_state, batch) -> arrays [B, ...], such as a task's `predict`.
    """

    def __init__(self, function: Callable, params: Any, model_state: Any):
        self._variables = params, model_state
        # Of one function all of JAX's programs would be kept.
        self._compiled = functools.lru_cache(MOST_PROGRAMS)(
            lambda shapes, size: jax.jit(lambda *given: function(*given))
        )

    def __call__(self, examples: Sequence[Mapping[str, np.ndarray]], size: int) -> list:
        """What it gives of each of at most `size` examples of equal shapes.

        Raises:
          UserError: if the model cannot take them.
        """
        rows = [*examples, *examples[-1:] * (size - len(examples))]  # one program for all
        shapes = shapes_of(rows[0])
        try:
            found = self._compiled(shapes, size)(*self._variables, pipeline.stacked(rows))
        except flax.errors.FlaxError as error:
            described = ', '.join(f'{key} {shape}' for key, shape in shapes)
            raise errors.UserError(f'It does not fit the model: {described}. {error}') from error
        found = jax.device_get(found)
        return [jax.tree.map(lambda value, i=i: value[i], found) for i in range(len(examples))]


class Predictor:
    """What a run's task answers to records: `example` of each, then `answers` of equal shapes."""

    def __init__(self, run: runs.Run):
        self._task = run.task
        self._program = Program(run.task.predict, run.params, run.model_state)
        self._trained = rundir.batch_shapes(run.workdir, 1)

    def example(self, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """That of a record; images and frames are as large as those of training, or of any size.

        Raises:
          UserError: for a record that the task cannot take.
        """
        task = self._task
        example = task.preprocess(record)
        kind = inputs.only_kind(task.record_fields)
        if kind not in ('image', 'video') or getattr(task, 'any_size', False):
            return example
        trained = self._trained['inputs'].shape[1:]
        if example['inputs'].shape == trained:
            return example
        [name] = task.record_fields
        if kind == 'image':
            fitting = _as_trained(np.asarray(record[name]), trained)
        else:
            frames = images.evenly_spaced(np.asarray(record[name]), trained[0])
            fitting = np.stack([_as_trained(frame, trained[1:]) for frame in frames])
        return task.preprocess({**record, name: fitting})

    def kind(self, example: Mapping[str, np.ndarray]) -> Hashable:
        """Examples of the same go together."""
        return shapes_of(example)

    def answers(self, examples: Sequence[Mapping[str, np.ndarray]], size: int) -> list:
        """Those to at most `size` examples of equal shapes, see `Program`."""
        return [self._task.postprocess(found) for found in self._program(examples, size)]


def record_fields(run: runs.Run) -> Mapping[str, str]:
    """What a run needs of a record, see `data.inputs`: a prompt where it continues texts.

    Raises:
      UserError: for a run that answers no records.
    """
    if hasattr(run.task, 'record_fields'):
        return run.task.record_fields
    if isinstance(run.task, LanguageModeling):
        return Continuations.record_fields
    raise errors.UserError(
        f'{run.workdir} holds a {type(run.task).__name__}, which answers no records.'
    )


def predict(
    run: runs.Run, records: Iterable[inputs.Record], batch_size: int = 0
) -> Iterator[tuple[str, Any]]:
    """The answer of a run's task to each record, in their order; see `inputs.read_inputs`.

    Args:
      batch_size: records that are answered at once; 0 for as many as in training, or
        MOST_CONTINUED where texts are continued.

    Raises:
      UserError: naming the record, for one that the task or the model cannot take.
    """
    if hasattr(run.task, 'record_fields'):
        size = batch_size or run.experiment.batch_size
        predictor = Predictor(run)
    else:
        size = batch_size or MOST_CONTINUED
        predictor = Continuations(run, size)

    def named(where: str, record: dict) -> tuple[str, dict[str, np.ndarray]]:
        with errors.told_of(where):
            return where, predictor.example(record)

    examples = (named(where, record) for where, record in records)
    for batch in _batches(examples, lambda pair: predictor.kind(pair[1]), size):
        names, rows = zip(*batch, strict=True)
        with errors.told_of(names[0]):
            answers = predictor.answers(rows, size)
        yield from zip(names, answers, strict=True)


def _batches(examples: Iterable, kind: Callable[[Any], Hashable], size: int) -> Iterator[list]:
    """Up to `size` successive examples of one kind; what comes before a bad one is not lost."""
    batch = []
    try:
        for example in examples:
            if batch and kind(example) != kind(batch[0]):
                yield batch
                batch = []
            batch.append(example)
            if len(batch) == size:  # not when the next one comes, for which a line may be waited
                yield batch
                batch = []
    except errors.UserError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _as_trained(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An image uint8 [H, W, 3] in the shape of training's: scaled and cropped, grey if they are."""
    if len(shape) not in (2, 3) or image.dtype != np.uint8 or image.ndim != 3:
        raise errors.UserError(f'It is of {image.dtype} {image.shape}; the model takes {shape}.')
    height, width = shape[:2]
    if len(shape) == 2 or shape[2] == 1:
        image = images.with_channels(image, 1)
    if image.shape[:2] != (height, width):
        # Python shows a warning of the same text from the same place once.
        warnings.warn(
            f'Images are scaled and cropped to the {height} x {width} pixels of training.',
            stacklevel=1,
        )
        scale = max(height / image.shape[0], width / image.shape[1])
        rows, columns = (max(round(scale * n), least) for n, least in
                         zip(image.shape[:2], (height, width), strict=True))  # fmt: skip
        image = images.centre_crop(images.resize(image, rows, columns), height, width)
    return image.reshape(shape)


def shapes_of(example: Mapping[str, np.ndarray]) -> tuple:
    """The names and shapes of an example's arrays, which are those of its programs."""
    return tuple((name, np.shape(value)) for name, value in sorted(example.items()))


def as_plain(answer: Any, keep: Callable[[str, str, bytes], str]) -> dict[str, Any]:
    """An answer as plain data.

    Args:
      keep: (its name, suffix, file) -> what stands for a picture, uint8 [H, W] or [H, W, 3], as a
        PNG file, or for sound, as a WAV file.
    """
    plain = {}
    for name, value in (answer if isinstance(answer, Mapping) else {'answer': answer}).items():
        if isinstance(value, audio.Sound):
            value = keep(name, 'wav', audio.encode_wav(value))
        elif isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim >= 2:
            file = io.BytesIO()
            Image.fromarray(value).save(file, 'PNG')
            value = keep(name, 'png', file.getvalue())
        plain[name] = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    return plain


def as_json(where: str, answer: Any, pictures: pathlib.Path, number: int) -> dict[str, Any]:
    """An answer as plain data; a picture, uint8 [H, W] or [H, W, 3], or sound is written and named.

    Args:
      pictures: the folder for them, made when there is one.
      number: of the answer, for the names of its files.
    """

    def write(name: str, suffix: str, file: bytes) -> str:
        path = pictures / f'{number:06d}_{name}.{suffix}'
        with errors.unwritten(path):
            pictures.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file)
        return str(path)

    return {'input': where, **as_plain(answer, write)}


def _json_line(answer: Mapping[str, Any]) -> str:
    """That of `as_json`; UserError for a number that JSON has none of."""
    try:
        return json.dumps(answer, allow_nan=False)
    except ValueError as error:
        where = answer['input']
        raise errors.UserError(f'{where}: the answer has a number that is not finite.') from error


def main() -> None:
    """The command: one JSON line for each record."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog='Where a task has fields for its answers, such as the names of classes that images '
        'are compared with, --config.task.FIELD=VALUE gives others.',
        allow_abbrev=False,
    )
    runs.add_run(parser)
    parser.add_argument('--input', required=True, help='a file, a folder, or - for standard input')
    parser.add_argument('--output', help='a file for the answers; default standard output')
    parser.add_argument(
        '--pictures',
        type=pathlib.Path,
        default=pathlib.Path('predictions'),
        help='the folder for answers that are pictures or sound; default predictions',
    )
    parser.add_argument(
        '--batch_size',
        type=int,
        default=0,
        help=f"default: the training's; of texts that are continued, {MOST_CONTINUED}",
    )
    a, overrides = config.parse_arguments(parser, None)
    if a.batch_size < 0:
        raise errors.UserError(f'--batch_size = {a.batch_size} must be at least 0.')
    if a.output and not pathlib.Path(a.output).parent.is_dir():
        raise errors.UserError(f'--output = {a.output}: there is no folder for it. Make it first.')
    runs.configure_process()
    run = runs.open_run(a.workdir, a.step, trust=a.trust, overrides=overrides)
    rate = getattr(run.task, 'sample_rate', None)
    fields = record_fields(run)
    if a.output and inputs.is_read(a.output, a.input, fields):
        raise errors.UserError(f'--output = {a.output} is among what is read: name another file.')
    answers = predict(run, inputs.read_inputs(a.input, fields, rate), a.batch_size)
    lines = (
        _json_line(as_json(where, answer, a.pictures, number))
        for number, (where, answer) in enumerate(answers)
    )
    first = list(itertools.islice(lines, 1))  # what is there is kept while there is no answer
    name = a.output or 'standard output'
    with contextlib.ExitStack() as stack:
        with errors.unwritten(name):
            out = stack.enter_context(open(a.output, 'w')) if a.output else sys.stdout
        for line in itertools.chain(first, lines):
            with errors.unwritten(name):
                print(line, file=out, flush=True)


if __name__ == '__main__':
    errors.exit_on_user_error(main)
