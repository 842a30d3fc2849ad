"""The values of a checkpoint as they were saved, without the model that they belong to."""

import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors
import safetensors.numpy

from bigmodels import checkpoint, errors, trees
from bigmodels.state import TrainState


def evaluation_part(directory: pathlib.Path, step: int) -> str:
    """The part of a saved step to evaluate: the moving average where there is one."""
    return 'ema_params' if (directory / str(step) / 'ema_params').is_dir() else 'params'


def shapes(directory: pathlib.Path, step: int, part: str) -> Any:
    """The tree of a part as shapes on the first device; {} if the step has no such part."""
    root = directory.absolute() / str(step) / part
    if not root.is_dir():
        return {}
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(root).item_metadata.tree
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), saved
    )


def read(directory: pathlib.Path, step: int, part: str) -> Any:
    """A part of a saved step as a tree of numpy arrays. Check `checkpoint.damage` first."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    nothing = TrainState(jax.ShapeDtypeStruct((), 'int32', sharding=here), {}, {}, {})
    wanted = nothing.replace(**{part: shapes(directory, step, part)})
    return jax.tree.map(np.asarray, getattr(checkpoint.restore(directory, step, wanted), part))


def write_safetensors(path: pathlib.Path, params: Any) -> None:
    """Writes a tree of arrays by slash-separated names; the file is the old one or the new one.

    Raises:
      UserError: if it cannot be written.
    """
    # Row-major: the format's writer takes the bytes of an array as they lie.
    arrays = {
        name: np.asarray(leaf, order='C') for name, leaf in trees.flatten_named(params).items()
    }
    try:
        safetensors.numpy.save_file(arrays, path)
    except safetensors.SafetensorError as error:
        raise errors.UserError(f'The file {path} cannot be written: {error}.') from error
