"""The command that converts published models to runs and back; needs no accelerator.

python -m bigmodels.interop.convert --from=DIRECTORY --to=runs/x
python -m bigmodels.interop.convert --from=hf://OWNER/NAME --to=runs/x --config.model.dtype=bfloat16
python -m bigmodels.interop.convert --from=runs/x --to=DIRECTORY [--step=best] [--dtype=bfloat16]
"""

import argparse
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

from bigmodels import compress, errors, experiment, rundir, runs, sharding, trees
from bigmodels import config as config_lib
from bigmodels.data import subwords, tokenizers
from bigmodels.interop import (
    classifiers,
    contrastive,
    directories,
    families,
    pictures,
    sections,
    sounds,
    weights,
)
from bigmodels.models.parts.layers import Dtype
from bigmodels.state import TrainState
from bigmodels.tasks.speech_to_text import SpeechToText

TOKEN_IDS = ('bos_token_id', 'eos_token_id', 'pad_token_id', 'decoder_start_token_id')
KEPT = ('id2label', 'label2id')


def to_run(source: str, out: pathlib.Path, overrides: Sequence[str] = ()) -> None:
    """Makes the run `out` of a published model; evaluation, generation and `init_from` open it.

    Args:
      source: a directory, or hf://OWNER/NAME.
      overrides: fields of the run's config, each as 'model.dtype=bfloat16'.

    Raises:
      UserError: for a family that is not known, tensors that are not those of the model, a
        tokenizer that is missing, and if `out` is in use.
    """
    rundir.check_unused(out, '--to')
    directory = directories.resolve(source)
    published = directories.read_json(directory / directories.CONFIG)
    config = _run_config(directory, published, overrides)
    kept, settings = experiment.resolved(config), experiment.from_config(config)
    task = experiment.make_task(settings).fit(())
    shapes = batch_shapes(task, published)
    mesh = sharding.make_mesh(sharding.MeshShape(), jax.devices()[:1])
    variables = read_variables(directory, task, mesh)
    params = variables.pop('params')
    state = TrainState(jax.numpy.zeros((), 'int32'), params, variables, opt_state=())

    def fill(out: pathlib.Path) -> None:
        rundir.record_data(out, (), shapes)
        (out / rundir.PREPROCESSING).mkdir()
        task.save(out / rundir.PREPROCESSING)

    made_of = {'from': source, 'config': published}
    rundir.make_untrained(out, rundir.CONVERTED, made_of, kept, state, fill)


def read_variables(directory: pathlib.Path, task: Any, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """A published model's variables where the mesh and the model's rules say, float32.

    Args:
      task: with the model that its config.json describes.

    Raises:
      UserError: as `weights.load`.
    """
    published = directories.read_json(directory / directories.CONFIG)
    shapes = dict(jax.eval_shape(task.init, jax.random.key(0), batch_shapes(task, published)))
    params = shapes.pop('params')
    placed = TrainState(jax.ShapeDtypeStruct((), 'int32'), params, shapes, ())
    shardings, _ = sharding.state_shardings(placed, sharding.rules_of(task.model), mesh)
    loaded = weights.load(
        families.of_config(published).table,
        directories.tensors(directory),
        sharding.with_shardings(
            {**params, **shapes}, {**shardings.params, **shardings.model_state}
        ),
        getattr(task.model, 'vocab_size', None),
    )
    return {name: loaded.pop(name) for name in shapes} | {'params': loaded}


def batch_shapes(task: Any, published: Mapping) -> dict[str, jax.ShapeDtypeStruct]:
    """Of a batch of one example of a model's task."""
    if hasattr(task, 'example_shapes'):
        shapes = {key: (shape.shape, shape.dtype) for key, shape in task.example_shapes().items()}
    else:
        image = (task.image_size, task.image_size, pictures.channels(published))
        shapes = {'inputs': (image, 'float32'), 'weights': ((), 'float32')}
        if hasattr(task, 'vocabulary'):
            text = ((task.sequence_length,), 'int32')
            shapes |= {'tokens': text, 'segment_ids': text}
        else:
            shapes['targets'] = ((), 'int32')
    return {key: jax.ShapeDtypeStruct((1, *shape), kind) for key, (shape, kind) in shapes.items()}


def _run_config(
    directory: pathlib.Path, published: Mapping, overrides: Sequence[str]
) -> ml_collections.ConfigDict:
    """The config of a run of this model."""
    family = families.of_config(published)
    fields = family.fields(published)
    config = ml_collections.ConfigDict()
    config.total_steps, config.batch_size = 1, 8
    config.optimizer = {
        'learning_rate': 1e-5,
        'algorithm': {'name': 'adamw', 'b1': 0.9, 'b2': 0.95},
        'schedule': {'name': 'constant', 'warmup_steps': 0},
    }
    for name, section in sections.of_run(directory, published, family, fields).items():
        config[name] = section
    dtype = published.get('dtype', published.get('torch_dtype'))
    if dtype in directories.WRITTEN:
        whole = hasattr(family.model, 'dtype')
        for section in [config.model] if whole else [config.model.image, config.model.text]:
            section.dtype = dtype
    config_lib.set_fields(config, overrides)
    if 'tokenizer' in config.task and not config.task.tokenizer:
        raise errors.UserError(
            f'{directory} has neither {directories.TOKENIZER} nor {directories.SENTENCEPIECE}: add '
            f'one, or say which tokenizer it is, as --config.task.tokenizer.name=bytes.'
        )
    return config


def to_directory(
    workdir: pathlib.Path,
    out: pathlib.Path,
    step: int | str = 'last',
    dtype: Dtype = 'float32',
    trust: Sequence[str] = (),
) -> str:
    """Writes a run's model and tokenizer as transformers opens them; returns the family.

    The directory gets its name when it is whole.

    Args:
      step: a saved step, 'last' or 'best'.
      dtype: of the tensors; parameters are float32, which loses nothing.
      trust: see `runs.open_run`.

    Raises:
      UserError: if no family of published models has such a model, or `out` is in use.
    """
    rundir.check_unused(out, '--to')
    run = runs.open_run(workdir, step, trust=trust)
    family = families.of_model(run.model)
    params = compress.plain(run.params)
    images, texts = (hasattr(run.task, name) for name in ('image_size', 'vocabulary'))
    speech = isinstance(run.task, SpeechToText)
    if speech:
        sounds.check_rate(run.task)
    entries = family.config(run.model) | {'torch_dtype': dtype} | _as_published(run, KEPT)
    if images:
        entries = pictures.config(entries, run.model, params)
        entries |= classifiers.names(getattr(run.task, 'classes', ()), run.model)
    if texts:
        of_texts = entries.get('text_config', entries)
        told = sounds.token_ids(run.task) if speech else _token_ids(run.task)
        of_texts |= told | _as_published(run, TOKEN_IDS)
        contrastive.check_end(entries, run.task.vocabulary)
    variables = {**params, **run.model_state}
    vocab_size = getattr(run.model, 'vocab_size', None)
    tensors = weights.unload(family.table, variables, dtype, vocab_size)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'.{out.name}.') as scratch:
            made = pathlib.Path(scratch, out.name)
            made.mkdir()
            directories.write_tensors(made, tensors)
            if images:
                pictures.write(made, run.task, rundir.batch_shapes(workdir, 1)['inputs'].shape[-3:])
            if speech:
                sounds.write(made, run.task)
            if texts:
                _write_tokenizer(made, run.task.vocabulary, family.model_type)
            directories.write_json(made / directories.CONFIG, entries)
            if out.exists():
                out.rmdir()  # empty, as `check_unused` has seen
            made.rename(out)
    except OSError as error:
        raise errors.UserError(f'{out} cannot be written: {error}.') from error
    return family.model_type


def _as_published(run: runs.Run, keys: Sequence[str]) -> dict[str, Any]:
    """What config.json said of some keys, of a run that was made of one."""
    path = run.workdir / rundir.CONVERTED
    published = directories.read_json(path)['config'] if path.is_file() else {}
    published = {**published, **published.get('text_config', {})}
    return {key: published[key] for key in keys if key in published}


def _token_ids(task: Any) -> dict[str, Any]:
    vocabulary, start = task.vocabulary, getattr(task, 'start', None)
    ids = {'bos_token_id': vocabulary.begin_of_text, 'eos_token_id': vocabulary.end_of_text}
    return ids if start is None else ids | {'decoder_start_token_id': start}


def _write_tokenizer(
    directory: pathlib.Path, vocabulary: tokenizers.Tokenizer, model_type: str
) -> None:
    """Its files, of the kinds that such directories hold; others have no such form."""
    if isinstance(vocabulary, subwords.HuggingFace):
        entries = {'tokenizer_class': 'PreTrainedTokenizerFast', **vocabulary.special_tokens}
        (directory / directories.TOKENIZER).write_text(vocabulary.content, encoding='utf-8')
        directories.write_json(directory / directories.TOKENIZER_CONFIG, entries)
        if vocabulary.chat_template is not None:
            path = directory / directories.CHAT_TEMPLATE
            path.write_text(vocabulary.chat_template.source, encoding='utf-8')
    elif isinstance(vocabulary, subwords.SentencePiece):
        name = directories.SPIECE if model_type == 't5' else directories.SENTENCEPIECE
        (directory / name).write_bytes(vocabulary.content)
        entries = {'add_bos_token': vocabulary.begin_of_text is not None}
        directories.write_json(directory / directories.TOKENIZER_CONFIG, entries)


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The options, and overrides of the run's config."""
    parser = argparse.ArgumentParser(
        prog='python -m bigmodels.interop.convert',
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
    )
    parser.add_argument(
        '--from', dest='source', required=True, help='a directory, hf://OWNER/NAME, or a run'
    )
    parser.add_argument('--to', type=pathlib.Path, required=True, help='what is made')
    runs.add_step(parser)
    runs.add_trust(parser)
    parser.add_argument(
        '--dtype',
        choices=directories.WRITTEN,
        default='float32',
        help='of the tensors that are written; default: float32, which loses nothing',
    )
    return config_lib.parse_arguments(parser, arguments)


def main() -> None:
    """The command."""
    options, overrides = parse()
    if 'JAX_PLATFORMS' not in os.environ:  # read when jax was imported, with this package
        jax.config.update('jax_platforms', 'cpu')
    runs.configure_process()
    workdir = pathlib.Path(options.source)
    if (workdir / rundir.DATA).is_file():
        if overrides:
            raise errors.UserError(f'{workdir} is a run: its config is what it is.')
        family = to_directory(workdir, options.to, options.step, options.dtype, options.trust)
        print(f'{options.to} holds the {family} of {workdir}.')
        return
    to_run(options.source, options.to, overrides)
    run = runs.open_run(options.to)
    answers = hasattr(run.task, 'record_fields')
    command = 'predict --input=...' if answers else 'deploy.generate --prompt=...'
    print(
        f'{options.to} holds {options.source}, {trees.count(run.params):,} parameters. '
        f'Try: python -m bigmodels.{command} --workdir={options.to}'
    )


if __name__ == '__main__':
    errors.exit_on_user_error(main)
