"""Tables from parameters to published tensors, and parameters through them, in both directions.

A table has a row for every parameter that a family of models may have; those count whose
parameter a model has. So whatever one of the two has and the other lacks is found, before any
value is read.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bigmodels import errors, trees
from bigmodels.interop import directories

# Modules of which a model has several: 'layers_3/', or 'stage1_3/' where layers are in stages.
NUMBERED = re.compile(r'\b(?:stage(?P<stage>\d+)_|layers_)(?P<layer>\d+)/')
PARAMETER_DTYPES = [directories.DTYPES[name] for name in ('F32', 'F16', 'BF16')]


class Form(NamedTuple):
    """How a tensor lies: (tensor -> parameter, parameter -> tensor), as views where it can be."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


SAME = Form(lambda x: x, lambda x: x)
TRANSPOSED = Form(lambda x: x.T, lambda x: x.T)


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter and the tensor that holds it.

    Fields:
      ours: the parameter's name; of any layer as in a scanned model: 'layers/mlp/up/kernel'. What
        a model has beside its parameters is in its collection: 'batch_stats/stem_norm/mean'.
      theirs: the tensor's, with {stage}, {layer} and {expert} where each of them has its own.
      form: of the tensor.
      part: (i, n): the parameter is part i of n equal ones along the last axis that the tensor has
        in this form; the form is that of all parts.
      vocabulary: the parameter's axis that `model.vocab_multiple` pads.
      beside: a name as `ours`: the row counts for models that have this one as well, in the place
        of an earlier row of the same parameter.
    """

    ours: str
    theirs: str
    form: Form = SAME
    part: tuple[int, int] = (0, 1)
    vocabulary: int | None = None
    beside: str = ''


@dataclasses.dataclass(frozen=True)
class Table:
    """Fields:
    rows: of all parameters that models of the family may have.
    prefix: of tensors' names, which files of a model without its head leave out.
    copies: tensors that may be there once more under another name, name -> the one in a row.
    ignored: regexes of tensors that are no parameters, such as masks.
    renamed: pairs (end of a tensor's name in older files, what it is now).
    """

    rows: tuple[Row, ...]
    prefix: str = ''
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()

    def name(self, given: str) -> str:
        """What a tensor of an older file is called now."""
        for old, new in self.renamed:
            if given.endswith(old):
                return given.removesuffix(old) + new
        return given


class Source(NamedTuple):
    """Where a parameter is: tensors' names in row-major order of its leading axes, layers, experts.

    `leading` are the sizes of these axes.
    """

    row: Row
    leading: tuple[int, ...]
    names: tuple[str, ...]


def sources(table: Table, params: Any) -> dict[str, Source]:
    """For each parameter of a model where its tensors are; `params` may be shapes.

    Further collections of a model's variables are beside its parameters, by their names.

    Raises:
      UserError: if the table has no row for a parameter.
    """
    leaves = trees.flatten_named(params)
    of_any_layer = {name: NUMBERED.sub('layers/', name) for name in leaves}
    present = {'', *of_any_layer.values()}
    rows = {row.ours: row for row in table.rows if row.beside in present}
    found, lacking = {}, []
    for name, leaf in leaves.items():
        layer = NUMBERED.search(name)
        row = rows.get(of_any_layer[name])
        if row is None:
            lacking.append(name)
            continue
        axes = ['layer'] * ('{layer}' in row.theirs and layer is None)
        axes += ['expert'] * ('{expert}' in row.theirs)
        leading = tuple(leaf.shape[: len(axes)])
        of_layer = layer.groupdict() if layer else {}
        names = tuple(
            row.theirs.format(**of_layer, **dict(zip(axes, at, strict=True)))
            for at in np.ndindex(leading)
        )
        found[name] = Source(row, leading, names)
    if lacking:
        raise errors.UserError(
            f'This family of models has no such parameters: {errors.some(lacking)}.'
        )
    return found


def load(
    table: Table, tensors: Mapping[str, np.ndarray], shapes: Any, vocab_size: int | None = None
) -> Any:
    """The parameters of a model, each device reading from the files what it is to hold.

    Args:
      tensors: by name, mapped from disk.
      shapes: of the parameters, float32, each with its sharding.
      vocab_size: rows that the tables of the vocabulary have in the files.

    Raises:
      UserError: if a tensor is missing, is one that nothing takes, or has another shape or type
        than its parameter needs. It names them.
    """
    tensors = {table.name(name): tensor for name, tensor in tensors.items()}
    if table.prefix and not any(name.startswith(table.prefix) for name in tensors):
        tensors = {table.prefix + name: tensor for name, tensor in tensors.items()}
    where = sources(table, shapes)
    _check(table, where, tensors, trees.flatten_named(shapes), vocab_size)

    def read(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        row, leading, names = where[name]
        views = [_view(row, tensors[theirs]) for theirs in names]
        read_block = functools.partial(_block, views, leading, leaf.shape)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, read_block)

    return trees.map_named(read, shapes)


def _view(row: Row, tensor: np.ndarray) -> np.ndarray:
    """The tensor as its parameter lies, nothing read yet."""
    part, count = row.part
    whole = row.form.to_ours(tensor)
    if count == 1:
        return whole
    width, rest = divmod(whole.shape[-1], count)
    if rest:
        raise ValueError(f'There are no {count} equal parts.')
    return whole[..., part * width : (part + 1) * width]


def _block(
    views: Sequence[np.ndarray],
    leading: tuple[int, ...],
    shape: tuple[int, ...],
    index: tuple[slice, ...],
) -> np.ndarray:
    """The part `index` of a parameter of this shape; float32. Padding of the vocabulary is 0."""
    stacked, rest = index[: len(leading)], index[len(leading) :]
    numbers = np.asarray(np.arange(len(views)).reshape(leading)[stacked])
    sizes = [len(range(*part.indices(size))) for part, size in zip(index, shape, strict=True)]
    out = np.zeros(sizes, np.float32)
    for at, number in np.ndenumerate(numbers):
        block = views[number][rest]
        out[(*at, *map(slice, block.shape))] = block
    return out


def _check(
    table: Table,
    where: Mapping[str, Source],
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, Any],
    vocab_size: int | None,
) -> None:
    """Raises UserError for everything that does not fit, by names and shapes."""
    problems, used = [], set()
    for name, (row, leading, names) in where.items():
        wanted = list(shapes[name].shape[len(leading) :])
        if row.vocabulary is not None:
            wanted[row.vocabulary] = vocab_size
        for theirs in names:
            used.add(theirs)
            if theirs not in tensors:
                problems.append(f'{theirs} is missing, for {name}')
                continue
            tensor = tensors[theirs]
            if tensor.dtype not in PARAMETER_DTYPES:
                problems.append(f'{theirs} is of the type {tensor.dtype}, for {name}')
            elif (shape := _shape(row, tensor)) != wanted:
                problems.append(
                    f'{theirs} is {list(tensor.shape)}, which gives {shape}, but {name} is {wanted}'
                )
    for name in tensors.keys() - used:
        if any(re.search(pattern, name) for pattern in table.ignored):
            continue
        original = table.copies.get(name)
        if original not in used:
            problems.append(f'{name} {list(tensors[name].shape)} is unexpected')
        elif original in tensors and not _equal(tensors[name], tensors[original]):
            problems.append(
                f'{name} is not {original}, although config.json says that they are tied'
            )
    if problems:
        raise errors.UserError(
            f'The tensors are not those of the model that config.json describes: '
            f'{errors.some(sorted(problems), 10)}.'
        )


def _shape(row: Row, tensor: np.ndarray) -> list[int] | str:
    """The shape of the parameter that a tensor gives, or why it gives none."""
    try:
        return list(_view(row, tensor).shape)
    except (ValueError, IndexError):
        return 'no such parameter'


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())


def unload(
    table: Table, params: Any, dtype: str, vocab_size: int | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a model's parameters, one after the other; the inverse of `load`.

    Args:
      dtype: 'float32', which loses nothing, or what values are rounded to.

    Raises:
      UserError: if the table has no row for a parameter.
    """
    where, leaves = sources(table, params), trees.flatten_named(params)
    holders: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for name, source in where.items():
        for theirs, at in zip(source.names, np.ndindex(source.leading), strict=True):
            holders.setdefault(theirs, []).append((name, at))
    kind = np.dtype(jax.numpy.dtype(dtype))
    for theirs, parts in holders.items():
        parts.sort(key=lambda part: where[part[0]].row.part)
        pieces = []
        for name, at in parts:
            row, piece = where[name].row, np.asarray(leaves[name])[(*at, ...)]
            if row.vocabulary is not None:
                piece = piece.take(range(vocab_size), axis=row.vocabulary)
            pieces.append(piece)
        whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, -1)
        yield theirs, row.form.to_theirs(whole).astype(kind)
