"""Beginning a run with what another one has learnt: config.init_from."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from bigmodels import checkpoint, compress, errors, processes, rundir, trees
from bigmodels import config as config_lib
from bigmodels.checkpoint import values
from bigmodels.experiment import InitFrom
from bigmodels.state import TrainState

Variables = Mapping[str, Any]  # collections of a model, 'params' among them


def make_transfer(settings: InitFrom, shapes: Variables) -> Callable[[Variables], Variables]:
    """A function that puts another run's arrays into variables that were just initialised.

    They are those that the other run is evaluated with, its model state among them, bit for bit;
    what it keeps in few bits is widened.
    Names and shapes are checked here; values are read when the function is called.

    Args:
      shapes: of the new run's variables, 'params' and other collections, each with its sharding.

    Raises:
      UserError: if there is no such run or step, it holds adapters, and as `sources` does.
    """
    workdir = pathlib.Path(settings.workdir)
    directory = workdir / rundir.CHECKPOINTS
    config = rundir.read_config(workdir)
    kept = config_lib.build(checkpoint.Settings, config['checkpoint'], 'checkpoint')
    step = processes.on_first(lambda: checkpoint.good_step(directory, settings.step, kept))
    if (directory / checkpoint.FROZEN).is_dir():
        raise errors.UserError(
            f'config.init_from: the run {workdir} holds adapters of a frozen base. Merge them '
            f'first: python -m bigmodels.adapters merge --workdir={workdir} --out=MERGED.'
        )
    part = values.evaluation_part(directory, step)
    saved = {
        'params': compress.from_saved(values.shapes(directory, step, part)),
        **values.shapes(directory, step, 'model_state'),
    }
    wanted = trees.flatten_named(shapes)
    plain = jax.eval_shape(compress.plain, saved['params'])
    names = sources(settings, wanted, trees.flatten_named({**saved, 'params': plain}))
    # What is not wanted is read too, and thrown away; orbax reads whole trees.
    mesh = jax.tree.leaves(shapes)[0].sharding.mesh
    whole = NamedSharding(mesh, PartitionSpec())
    placed = {there: wanted[name].sharding for name, there in names.items()}
    saved = trees.map_named(
        lambda name, leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=placed.get(name, whole)
        ),
        saved,
    )
    params = saved.pop('params')
    number = jax.ShapeDtypeStruct((), 'int32', sharding=whole)
    abstract = TrainState(number, params={}, model_state=saved, opt_state=())
    abstract = abstract.replace(**{part: params})

    def transfer(variables: Variables) -> Variables:
        state = checkpoint.restore(directory, step, abstract)
        params = compress.plain(state.eval_params)
        given = trees.flatten_named({'params': params, **state.model_state})

        def copied(name: str, leaf: jax.Array) -> jax.Array:
            if name not in names:
                return leaf
            # Never the same array twice: a step donates each.
            return jax.device_put(given[names[name]], leaf.sharding, may_alias=False)

        return trees.map_named(copied, variables)

    return transfer


def sources(
    settings: InitFrom, wanted: Mapping[str, Any], saved: Mapping[str, Any]
) -> dict[str, str]:
    """For each array that begins as one of another run: the other's name.

    Args:
      wanted, saved: arrays or shapes by collection and name, as 'params/head/kernel'.

    Raises:
      UserError: if an array is not said to be new and has no counterpart of its shape and dtype;
        if a prefix or a regex covers no array. It names them all.
    """
    names, problems = {}, []
    unused = {*settings.new, *(own for own, _ in settings.prefixes)}
    for name, leaf in wanted.items():
        collection, _, below = name.partition('/')
        if found := trees.found(settings.new, below, 'config.init_from.new'):
            unused -= found
            continue
        own, other = next(
            (pair for pair in settings.prefixes if f'{below}/'.startswith(_folder(pair[0]))),
            (None, None),
        )
        unused.discard(own)
        if own is None:
            problems.append(f'{name} is under no prefix')
            continue
        there = f'{collection}/{_folder(other)}{below[len(_folder(own)) :]}'.rstrip('/')
        if there not in saved:
            problems.append(f'{name} has no counterpart {there}')
        elif _kind(leaf) != _kind(saved[there]):
            problems.append(f'{name} is {_kind(leaf)}, but {there} is {_kind(saved[there])}')
        else:
            names[name] = there
    problems += [f'no parameter is covered by {covers!r}' for covers in sorted(unused)]
    if problems:
        raise errors.UserError(
            f'config.init_from: {errors.some(problems, 20)}, in the run {settings.workdir}. Name '
            f'what is to begin as usual in init_from.new, and what has another name there in '
            f'init_from.prefixes.'
        )
    return names


def _folder(prefix: str) -> str:
    return f'{prefix}/' if prefix else ''


def _kind(leaf: Any) -> str:
    return f'{leaf.dtype}{list(leaf.shape)}'
