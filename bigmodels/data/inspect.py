"""The command that shows what updates see: the ids of each batch's examples, and the examples.

python -m bigmodels.data.inspect --config=configs/shakespeare.py --steps=100:105
"""

import argparse
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from bigmodels import config as config_lib
from bigmodels import errors, experiment, runs, tables, writers
from bigmodels.data import pictures, pipeline

# The fields that hold token ids, where a task has a vocabulary and no `token_fields`.
TOKENS = ('inputs', 'targets')
WAVEFORM = 256  # samples; shorter vectors are features of a table


def show_as(
    name: str, value: np.ndarray, has_vocabulary: bool, token_fields: Sequence[str] = TOKENS
) -> Literal['text', 'image', 'waveform', 'column']:
    """How to show a field [B, ...] of a batch: the one place that decides."""
    shape = value.shape[1:]
    if has_vocabulary and name in token_fields and value.dtype.kind in 'iu' and len(shape) == 1:
        return 'text'
    if name == 'weights' or value.dtype.kind != 'f':
        return 'column'
    if len(shape) == 1 and shape[0] >= WAVEFORM:
        return 'waveform'
    if len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4)):
        return 'image'
    return 'column'


def show(
    batch: Mapping[str, np.ndarray],
    ids: Sequence[str],
    vocabulary: Any,
    stem: pathlib.Path,
    token_fields: Sequence[str] = TOKENS,
) -> str:
    """A batch as text; its pictures are written as `<stem>_<field>.png`, which the text names.

    Args:
      batch: arrays [B, ...].
      ids: [B], names of the examples.
      vocabulary: a tokenizer, or None.
      token_fields: the names of the fields that it decodes.
    """
    kinds = {
        name: show_as(name, value, vocabulary is not None, token_fields)
        for name, value in batch.items()
    }
    columns = {
        name: [summary(item) for item in batch[name]]
        for name, kind in kinds.items()
        if kind == 'column'
    }
    rows = [('example', *columns), *zip(ids, *columns.values(), strict=True)]
    shown = [tables.aligned(rows, '<' * len(rows[0]))]
    captions = list(ids)
    if 'targets' in columns:
        captions = [f'{id}: {target}' for id, target in zip(ids, columns['targets'], strict=True)]
    for name, kind in kinds.items():
        if kind in ('image', 'waveform'):
            draw = pictures.image_grid if kind == 'image' else pictures.waveforms
            path = stem.with_name(f'{stem.name}_{name}.png')
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(batch[name], captions).savefig(path, dpi=120)
            shown.append(f'{name}: {path}')
    for i, example in enumerate(ids):
        for name, kind in kinds.items():
            if kind == 'text':
                text = textwrap.indent(vocabulary.decode(batch[name][i]), '    ')
                shown.append(f'{example} {name}:\n{text}')
    return writers.printable('\n'.join(shown))


def summary(value: np.ndarray) -> str:
    """A number or a few as they are, of more their shape and range."""
    number = (lambda item: f'{item:.6g}') if value.dtype.kind == 'f' else str
    if value.size <= 8:
        return ' '.join(map(number, np.ravel(value)))
    return f'{list(value.shape)} {number(value.min())} to {number(value.max())}'


def _steps(text: str) -> range:
    first, colon, stop = text.partition(':')
    if not (colon and first.isdigit() and stop.isdigit() and 1 <= int(first) < int(stop)):
        raise argparse.ArgumentTypeError(
            f'{text!r} is not FIRST:STOP with 1 <= FIRST < STOP, such as 100:105'
        )
    return range(int(first), int(stop))


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the overrides as 'model.num_layers=2'."""
    parser = argparse.ArgumentParser(
        prog='python -m bigmodels.data.inspect',
        description='Shows the examples that updates see, by their ids, texts and pictures.',
        epilog='With --config any field is set by --config.SECTION.FIELD=VALUE.',
        allow_abbrev=False,
    )
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument('--config', metavar='FILE.py[:VARIANT]', help='as training takes it')
    origin.add_argument('--workdir', type=pathlib.Path, help='a run made by bigmodels.main')
    parser.add_argument(
        '--steps',
        required=True,
        type=_steps,
        metavar='FIRST:STOP',
        help='updates FIRST to STOP - 1, in the numbering of metrics.jsonl: 100:105 shows updates '
        '100 to 104, and update s uses batches[s - 1]',
    )
    parser.add_argument(
        '--out', type=pathlib.Path, default=pathlib.Path('inspection'),
        help='the folder for pictures, by default inspection',
    )  # fmt: skip
    runs.add_trust(parser)
    options, overrides = config_lib.parse_arguments(parser, arguments)
    if options.workdir and overrides:
        parser.error('a run is shown as its config is: --workdir takes no --config.KEY=VALUE')
    return options, overrides


def main() -> None:
    """The command: prints each update's batch and writes its pictures."""
    options, overrides = parse()
    runs.configure_process()
    if options.workdir:
        _, settings, task = runs.open_task(options.workdir, options.trust)
        sources = experiment.training_sources(settings)
    else:
        settings = experiment.from_config(config_lib.load(options.config, overrides))
        sources = experiment.training_sources(settings)
        task = experiment.make_task(settings)
        task = task.fit(pipeline.concatenated([source for source, _ in sources]))
    parts = experiment.training_parts(task, sources)
    batches, _ = experiment.training_batches(settings, task, sources)
    for step in options.steps:
        ids = experiment.batch_ids(settings, parts, step - 1)
        print(f'step {step} (batch {step - 1}), {len(ids)} examples')
        vocabulary = getattr(task, 'vocabulary', None)
        token_fields = getattr(task, 'token_fields', TOKENS)
        stem = options.out / f'step_{step}'
        print(show(batches[step - 1], ids, vocabulary, stem, token_fields), end='\n\n')


if __name__ == '__main__':
    errors.exit_on_user_error(main)
