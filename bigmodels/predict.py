"""The command that answers raw input, as JSON lines.

python -m bigmodels.predict --workdir=runs/digits_mlp --input=pictures
"""

import argparse
import contextlib
import itertools
import json
import pathlib
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import flax.errors
import jax
import numpy as np
from PIL import Image

from bigmodels import config, errors, rundir, runs
from bigmodels.data import audio, images, inputs, pipeline
from bigmodels.tasks.language_modeling import LanguageModeling


def predict(
    run: runs.Run, records: Iterable[inputs.Record], batch_size: int = 0
) -> Iterator[tuple[str, Any]]:
    """The answer of a run's task to each record, in their order; see `inputs.read_inputs`.

    Args:
      batch_size: records that are answered at once; 0 for as many as in training.

    Raises:
      UserError: naming the record, for one that the task or the model cannot take.
    """
    compiled = jax.jit(run.task.predict)
    shapes = rundir.batch_shapes(run.workdir, 1)
    size = batch_size or run.experiment.batch_size
    examples = (
        (where, _preprocessed(run.task, where, record, shapes)) for where, record in records
    )
    for _, alike in itertools.groupby(examples, lambda pair: _shapes(pair[1])):
        while batch := list(itertools.islice(alike, size)):
            names, rows = zip(*batch, strict=True)
            rows += rows[-1:] * (size - len(rows))  # one program for all
            try:
                outputs = compiled(run.params, run.model_state, pipeline.stacked(rows))
            except flax.errors.FlaxError as error:
                described = ', '.join(f'{key} {shape}' for key, shape in _shapes(rows[0]))
                raise errors.UserError(
                    f'{names[0]} does not fit the model: it is {described}. {error}'
                ) from error
            outputs = jax.device_get(outputs)
            for i, name in enumerate(names):
                one = jax.tree.map(lambda value, i=i: value[i], outputs)
                yield name, run.task.postprocess(one)


def _preprocessed(task: Any, where: str, record: dict, shapes: Mapping) -> dict[str, np.ndarray]:
    """The example of a record; images and frames as large as those of training, or of any size."""
    try:
        example = task.preprocess(record)
        kind = inputs.only_kind(task.record_fields)
        if kind not in ('image', 'video') or getattr(task, 'any_size', False):
            return example
        trained = shapes['inputs'].shape[1:]
        if example['inputs'].shape == trained:
            return example
        [name] = task.record_fields
        if kind == 'image':
            fitting = _as_trained(np.asarray(record[name]), trained)
        else:
            frames = images.evenly_spaced(np.asarray(record[name]), trained[0])
            fitting = np.stack([_as_trained(frame, trained[1:]) for frame in frames])
        return task.preprocess({**record, name: fitting})
    except errors.UserError as error:
        raise errors.UserError(f'{where}: {error}') from error


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


def _shapes(example: Mapping[str, np.ndarray]) -> tuple:
    return tuple((name, np.shape(value)) for name, value in sorted(example.items()))


def as_json(where: str, answer: Any, pictures: pathlib.Path, number: int) -> dict[str, Any]:
    """An answer as plain data; a picture, uint8 [H, W] or [H, W, 3], or sound is written and named.

    Args:
      pictures: the folder for them, made when there is one.
      number: of the answer, for the names of its files.
    """
    answer = answer if isinstance(answer, Mapping) else {'answer': answer}
    plain = {'input': where}
    for name, value in answer.items():
        is_picture = isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim >= 2
        if is_picture or isinstance(value, audio.Sound):
            pictures.mkdir(parents=True, exist_ok=True)
            file = pictures / f'{number:06d}_{name}.{"png" if is_picture else "wav"}'
            if is_picture:
                Image.fromarray(value).save(file)
            else:
                file.write_bytes(audio.encode_wav(value))
            value = str(file)
        plain[name] = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    return plain


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
    parser.add_argument('--batch_size', type=int, default=0, help="default: the training's")
    a, overrides = config.parse_arguments(parser, None)
    runs.configure_process()
    run = runs.open_run(a.workdir, a.step, trust=a.trust, overrides=overrides)
    if not hasattr(run.task, 'record_fields'):
        generates = (
            f'; it goes on with a text: python -m bigmodels.deploy.generate --workdir={a.workdir}.'
            if isinstance(run.task, LanguageModeling)
            else '.'
        )
        raise errors.UserError(
            f'{a.workdir} holds a {type(run.task).__name__}, which answers no records{generates}'
        )
    records = inputs.read_inputs(
        a.input, run.task.record_fields, getattr(run.task, 'sample_rate', None)
    )
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(open(a.output, 'w')) if a.output else sys.stdout
        for number, (where, answer) in enumerate(predict(run, records, a.batch_size)):
            print(json.dumps(as_json(where, answer, a.pictures, number)), file=out, flush=True)


if __name__ == '__main__':
    errors.exit_on_user_error(main)
