"""What a config file may say: every key, typed, and the parts of a run that it describes."""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import grain

from bigmodels import adapters, errors, optimizers, processes, sharding
from bigmodels import checkpoint as checkpoint_lib
from bigmodels import compress as compress_lib
from bigmodels import config as config_lib
from bigmodels import guard as guard_lib
from bigmodels import privacy as privacy_lib
from bigmodels.compress import distill as distill_lib
from bigmodels.compress import prune as prune_lib
from bigmodels.data import SOURCES, pipeline, tokenizers
from bigmodels.data.sources import class_folders
from bigmodels.models import MODELS
from bigmodels.privacy import federated as federated_lib
from bigmodels.tasks import TASKS
from bigmodels.tasks.classes import NamedClasses

# Keys that change how a run is executed or watched but not what it computes: a run may be
# resumed with other values. A trailing dot covers a whole section.
EXECUTION_KEYS = (
    'mesh.',
    'xla',
    'xla.',
    'log_every',
    'checkpoint.',
    'data.threads',
    'data.buffer',
    'data.workers',
    'model.microbatches',
    'model.pipeline_rounds',
    'distill.teacher',  # its fingerprint says whether it is the same
    'distill.step',
)


@dataclasses.dataclass(frozen=True)
class Data:
    """config.data.

    Fields:
      train: a source, by name; or name 'mixture' with `sources` (name -> source section) and
        `weights` (name -> share of the examples).
      evals: name -> source section of a held-out set.
      threads, buffer: prefetching of batches.
      workers: processes that prepare batches; 0 for threads only.
    """

    train: Mapping
    evals: Mapping
    threads: int = 2
    buffer: int = 8
    workers: int = 0


@dataclasses.dataclass(frozen=True)
class InitFrom:
    """config.init_from: another run, whose parameters and model state a run begins with.

    It is read when the run begins, and never again.

    Fields:
      workdir: of the other run; '' for none.
      step: a saved step of it, or 'last', or 'best' by its config.checkpoint.best_metric.
      prefixes: pairs (here, there): the parameter here/x begins as there/x; '' stands for all. The
        first pair that covers a parameter counts.
      new: regexes of the parameters that begin as without another run, such as a new head's.
    """

    workdir: str = ''
    step: int | Literal['last', 'best'] = 'last'
    prefixes: Sequence[tuple[str, str]] = (('', ''),)
    new: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A whole config, checked.

    Fields:
      seed: of initialisation, batches, dropout and everything else that is random.
      total_steps: updates in the run.
      batch_size: examples per update over all devices and hosts.
      init_from: another run to begin with.
      adapter: what is trained in the place of the parameters, see `adapters.Settings`.
      privacy: what the run may reveal of an example, see `privacy.Settings`.
      federated: clients that learn by themselves, see `privacy.federated.Settings`.
      compress: what is rounded to few bits, see `compress.Settings`.
      prune: which weights become 0 in training, see `prune.Settings`.
      distill: another run that a model learns from, see `distill.Settings`.
      accumulate: parts in which a batch's gradient is taken, to save memory.
      ema_decay: of the parameters' moving average, used in evaluation; 0 for none. It is evaluated
        with the running statistics of the parameters as they are, where a model has BatchNorm.
      model, task, optimizer: sections with a name and its arguments.
      mesh: devices per axis, see `sharding.MeshShape`.
      parallel: 'jit' over the mesh, or 'pmap' over its data axis.
      xla: options of its compiler, changing those of `xla_options`.
      guard: what to do at a step that is not finite or a spike, see `guard.Guard`.
      eval_every: steps between evaluations; 0 for one at the end only.
      log_every: steps between lines of metrics.
    """

    model: Mapping
    task: Mapping
    optimizer: Mapping
    data: Data
    total_steps: int
    batch_size: int
    seed: int = 0
    init_from: InitFrom = dataclasses.field(default_factory=InitFrom)
    adapter: adapters.Settings = adapters.NONE
    privacy: privacy_lib.Settings = privacy_lib.NONE
    federated: federated_lib.Settings = federated_lib.NONE
    compress: compress_lib.Settings = compress_lib.NONE
    prune: prune_lib.Settings = prune_lib.NONE
    distill: distill_lib.Settings = distill_lib.NONE
    accumulate: int = 1
    ema_decay: float = 0.0
    mesh: sharding.MeshShape = dataclasses.field(default_factory=sharding.MeshShape)
    parallel: Literal['jit', 'pmap'] = 'jit'
    xla: Mapping = dataclasses.field(default_factory=dict)
    guard: guard_lib.Guard = dataclasses.field(default_factory=guard_lib.Guard)
    checkpoint: checkpoint_lib.Settings = dataclasses.field(default_factory=checkpoint_lib.Settings)
    eval_every: int = 0
    log_every: int = 10


MINIMUMS = {
    'total_steps': 1,
    'batch_size': 1,
    'accumulate': 1,
    'log_every': 1,
    'eval_every': 0,
    'seed': 0,
    'adapter.rank': 0,
    'adapter.group_size': 0,
    'compress.group_size': 0,
    'guard.max_skips': 1,
    'guard.spike_sigma': 0,
    'guard.spike_window': 2,
    'checkpoint.every': 1,
    'checkpoint.keep_last': 1,
    'checkpoint.timeout': 1,
    'checkpoint.deadline': 0,
    'data.threads': 0,
    'data.workers': 0,
    'data.buffer': 1,
}
SECTIONS = {
    'data': Data,
    'init_from': InitFrom,
    'adapter': adapters.Settings,
    'privacy': privacy_lib.Settings,
    'federated': federated_lib.Settings,
    'compress': compress_lib.Settings,
    'prune': prune_lib.Settings,
    'distill': distill_lib.Settings,
    'mesh': sharding.MeshShape,
    'guard': guard_lib.Guard,
    'checkpoint': checkpoint_lib.Settings,
}


def from_config(config: Mapping) -> Experiment:
    """The checked experiment that a config describes.

    Raises:
      UserError: for an unknown key, a wrong type, a value out of range.
    """
    config = dict(config)
    given = {
        key: config_lib.build(factory, config.pop(key, {}), key)
        for key, factory in SECTIONS.items()
    }
    experiment = config_lib.build(Experiment, config, '', **given)
    for key, least in MINIMUMS.items():
        value = operator.attrgetter(key)(experiment)
        if value < least:
            raise errors.UserError(f'config.{key} = {value} must be at least {least}.')
    if not 0 <= experiment.ema_decay < 1:
        raise errors.UserError(
            f'config.ema_decay = {experiment.ema_decay} must be from 0 to under 1.'
        )
    if experiment.adapter.rank and (experiment.compress.rounds or experiment.prune.sparsity):
        raise errors.UserError(
            'config.compress and config.prune change kernels that are trained, and config.adapter '
            'trains adapters alone: adapter.weights keeps their base in few bits; or set '
            'adapter.rank to 0.'
        )
    if experiment.prune.end > experiment.total_steps:
        raise errors.UserError(
            f'config.prune.end = {experiment.prune.end} is after the last step, '
            f'{experiment.total_steps}.'
        )
    if experiment.seed >= 2**32:
        raise errors.UserError(f'config.seed = {experiment.seed} must be under 2**32.')
    if experiment.batch_size % experiment.accumulate:
        raise errors.UserError(
            f'config.batch_size = {experiment.batch_size} is not divisible by '
            f'config.accumulate = {experiment.accumulate}.'
        )
    if experiment.federated.on:
        experiment.federated.check_batch(experiment.batch_size, experiment.accumulate)
    optimizers.check(experiment.optimizer, experiment.total_steps)
    privacy_lib.budget_of(experiment)  # refuses what no run can keep to
    return experiment


def resolved(config: Mapping) -> dict[str, Any]:
    """The config as plain data with every default written out: what a run keeps.

    A default that changes in a later version then does not change the run.

    Raises:
      UserError: where it lacks what has no default, or names what is not there.
    """
    plain = config_lib.with_defaults(Experiment, config)
    config_lib.check_has(plain, ('model', 'task', 'optimizer', 'data'), '')
    config_lib.check_has(plain['optimizer'], ('algorithm', 'schedule'), 'optimizer')
    config_lib.check_has(plain['data'], ('train', 'evals'), 'data')
    config_lib.check_has(plain['data']['evals'], (), 'data.evals')
    for key, factory in SECTIONS.items():
        config_lib.check_has(plain.setdefault(key, {}), (), key)
        plain[key] = config_lib.with_defaults(factory, plain[key])
    plain['optimizer'] = config_lib.with_defaults(optimizers.make_optimizer, plain['optimizer'])
    named = [
        (plain, 'model', 'model', MODELS),
        (plain, 'task', 'task', TASKS),
        (plain['optimizer'], 'algorithm', 'optimizer.algorithm', optimizers.ALGORITHMS),
        (plain['optimizer'], 'schedule', 'optimizer.schedule', optimizers.SCHEDULES),
        *_named_sources(plain['data'], 'train', 'data.train'),
        *(
            named
            for name in plain['data']['evals']
            for named in _named_sources(plain['data']['evals'], name, f'data.evals.{name}')
        ),
    ]
    for section, key, path, choices in named:
        factory = config_lib.chosen(choices, section[key], path)
        section[key] = config_lib.with_defaults(factory, section[key], path)
    if 'tokenizer' in plain['task']:
        section = plain['task']['tokenizer']
        factory = config_lib.chosen(tokenizers.TOKENIZERS, section, 'task.tokenizer')
        plain['task']['tokenizer'] = config_lib.with_defaults(factory, section)
    return plain


def _named_sources(section: dict, key: str, path: str) -> list[tuple[dict, str, str, Mapping]]:
    """The (parent, key, path, choices) of a source, or of each source of a mixture.

    Before a source come the sections within it that its class variable `wraps` names.
    """
    config_lib.check_has(section[key], (), path)
    if section[key].get('name') == 'mixture':
        config_lib.check_has(section[key], ('sources',), path)
        sources = section[key]['sources']
        config_lib.check_has(sources, (), f'{path}.sources')
        return [
            named
            for name in sources
            for named in _named_sources(sources, name, f'{path}.sources.{name}')
        ]
    wraps = getattr(config_lib.chosen(SOURCES, section[key], path), 'wraps', {})
    within = [
        (section[key], name, f'{path}.{name}', known)
        for name, known in wraps.items()
        if name in section[key]
    ]
    return [*within, (section, key, path, SOURCES)]


def check_batch(experiment: Experiment, num_shards: int) -> None:
    """Raises UserError where the batch does not divide over the devices that split it."""
    part = experiment.batch_size // experiment.accumulate
    if part % num_shards:
        raise errors.UserError(
            f'config.batch_size / accumulate = {part} does not divide over the {num_shards} '
            f'devices of the mesh axes {" and ".join(sharding.BATCH_AXES)}: use a multiple.'
        )


def make_task(experiment: Experiment) -> Any:
    """The task around its model, not yet fitted or restored."""
    model = config_lib.choose(MODELS, experiment.model, 'model')
    if not isinstance(model, nn.Module):
        raise errors.UserError(
            f'config.model.name = {experiment.model["name"]!r} is no Linen module.'
        )
    return config_lib.choose(TASKS, experiment.task, 'task', model=model)


def blocking_differences(old: Mapping, new: Mapping) -> dict[str, tuple[Any, Any]]:
    """The differences between two configs that change what a run computes."""
    return {
        key: values
        for key, values in config_lib.differences(old, new).items()
        if not any(
            key == free or (free.endswith('.') and key.startswith(free)) for free in EXECUTION_KEYS
        )
    }


def training_sources(settings: Experiment) -> list[tuple[Sequence, float]]:
    """The sources of config.data.train with their weights: one, or those of a mixture."""
    section, path = settings.data.train, 'data.train'
    if section.get('name') != 'mixture':
        return [(config_lib.choose(SOURCES, section, path), 1.0)]
    parts = {key: value for key, value in section.items() if key != 'name'}
    sources, weights = config_lib.build(_mixture, parts, path)
    if sources.keys() != weights.keys():
        raise errors.UserError(
            f'config.{path}: sources ({", ".join(sources)}) and weights '
            f'({", ".join(weights)}) must name the same.'
        )
    found = []
    for name in sorted(sources):
        source = config_lib.choose(SOURCES, sources[name], f'{path}.sources.{name}')
        class_folders.check_same_classes(source, f'config.{path}.sources.{name}', found)
        found.append(source)
    shares = [float(weights[name]) for name in sorted(sources)]
    return list(zip(found, shares, strict=True))


def part_names(settings: Experiment) -> list[str]:
    """What to call the sources of config.data.train, in the order of `training_sources`."""
    section = settings.data.train
    return [section['name']] if section['name'] != 'mixture' else sorted(section['sources'])


def _mixture(sources: Mapping, weights: Mapping) -> tuple[Mapping, Mapping]:
    return sources, weights


def training_parts(
    task: Any, sources: Sequence[tuple[Sequence, float]]
) -> list[tuple[Sequence, float]]:
    """The training examples of a fitted task from each source, with its weight."""
    return [
        (task.examples(source, pipeline.cache_dir(), train=True), weight)
        for source, weight in sources
    ]


def training_batches(
    settings: Experiment,
    task: Any,
    sources: Sequence[tuple[Sequence, float]],
    shard: pipeline.Shard = pipeline.WHOLE,
) -> tuple[grain.MapDataset, str]:
    """batch(t) of a run with its fitted task, and what it is made from in words."""
    for name, (source, _) in zip(part_names(settings), sources, strict=True):
        _check_names(task, source, 'config.data.train')  # which a changed config may have others of
        processes.check_same(f'config.data.train ({name})', source)
    parts = training_parts(task, sources)
    described = '; '.join(
        f'{source.describe()}, {len(examples):,} examples'
        for (source, _), (examples, _) in zip(sources, parts, strict=True)
    )
    order = privacy_lib.batch_order(settings, parts)
    batches = pipeline.training_batches(parts, settings.batch_size, settings.seed, shard, order)
    return batches, described


def batch_ids(settings: Experiment, parts: Sequence[tuple[Sequence, float]], t: int) -> list[str]:
    """The examples in global batch t of `parts`, each as 'source[index]', or 'padding'."""
    order = privacy_lib.batch_order(settings, parts)
    ids = pipeline.training_ids(parts, settings.batch_size, settings.seed, order)[t]
    names = part_names(settings)
    return [
        f'{names[part]}[{example}]' if part < len(names) else 'padding'
        for part, example in zip(ids['part'], ids['example'], strict=True)
    ]


def _check_names(
    task: Any, source: Sequence, path: str, trained_on: Sequence[Sequence] = ()
) -> None:
    """Raises UserError for a source that has other classes than the task or the others."""
    named = [task] if isinstance(task, NamedClasses) else []
    class_folders.check_same_classes(source, path, [*named, *trained_on])


def evaluation_sets(
    settings: Experiment,
    task: Any,
    shard: pipeline.Shard = pipeline.WHOLE,
    trained_on: Sequence[Sequence] = (),
) -> dict[str, grain.MapDataset]:
    """The batches of every set in config.data.evals.

    Args:
      trained_on: the training sources, whose classes those of the sets must be, as they must be
        those that the task knows by name.
    """
    sets = {}
    for name, section in settings.data.evals.items():
        source = config_lib.choose(SOURCES, section, f'data.evals.{name}')
        _check_names(task, source, f'config.data.evals.{name}', trained_on)
        processes.check_same(f'config.data.evals.{name}', source)
        examples = task.examples(source, pipeline.cache_dir(), train=False)
        sets[name] = pipeline.evaluation_batches(examples, settings.batch_size, shard)
    return sets
