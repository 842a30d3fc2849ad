"""Programs as ONNX files, by the library jax2onnx; `deploy.export` is the command."""

import contextlib
import io
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from bigmodels import errors, trees

# Its own requirements ask for an older orbax-checkpoint than checkpoints are written with.
INSTALL = (
    'pip install chex onnx onnx-ir onnxruntime && '
    'pip install --no-deps jax2onnx dm-pix equinox jaxtyping wadler-lindig'
)
TOLERANCE = 1e-4  # of what is computed once by either, relative to its largest number


def converted(
    function: Callable[[Mapping[str, Any]], Any], shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> tuple[bytes, dict[str, str]]:
    """(the file's content, the shapes of its outputs by name) of a function of named arrays.

    Parameters are in the file. It is run once beside the function.

    Args:
      shapes: of the arrays; a dimension may be a symbol.

    Raises:
      UserError: if the library is missing, cannot convert the function, or gives another one.
    """
    library, runtime = _libraries()
    outputs = trees.flatten_named(jax.eval_shape(function, dict(shapes)))
    names = [name or 'answer' for name in outputs]

    def flat(*arrays):
        found = function(dict(zip(shapes, arrays, strict=True)))
        return tuple(trees.flatten_named(found).values())

    try:
        with contextlib.redirect_stderr(io.StringIO()):  # what of itself it could not load
            made = library.to_onnx(
                flat, list(shapes.values()), input_names=list(shapes), output_names=names
            )
        content = made.SerializeToString()
        session = runtime.InferenceSession(content, providers=['CPUExecutionProvider'])
    except Exception as error:  # the libraries raise no narrower class
        said = (str(error).splitlines() or [''])[0]
        raise errors.UserError(
            f'jax2onnx cannot convert this program, {type(error).__name__}: {said[:300]}. '
            '--batch_size and --length make shapes numbers; --format=stablehlo takes all programs.'
        ) from error
    _check(flat, session, shapes, names)
    return content, dict(zip(names, map(described, outputs.values()), strict=True))


def described(shape: jax.ShapeDtypeStruct) -> str:
    """As in 'float32[b,10]'."""
    return f'{shape.dtype}[{",".join(map(str, shape.shape))}]'


def _check(function: Callable, session: Any, shapes: Mapping, names: list[str]) -> None:
    """Whether a session gives what the function does; a symbol is 2."""
    rng = np.random.default_rng(0)
    batch = {}
    for name, shape in shapes.items():
        sizes = [size if isinstance(size, int) else 2 for size in shape.shape]
        whole = np.issubdtype(shape.dtype, np.integer)
        drawn = rng.integers(0, 2, sizes) if whole else rng.normal(size=sizes)
        batch[name] = drawn.astype(shape.dtype)
    wanted = jax.device_get(jax.jit(function)(*batch.values()))
    for name, one, other in zip(names, wanted, session.run(None, batch), strict=True):
        same = one == other  # as are infinities, which have no difference
        most = np.abs(np.where(same, 0, one) - np.where(same, 0, other)).max()
        if not most <= TOLERANCE * max(np.abs(one).max(initial=0, where=np.isfinite(one)), 1.0):
            raise errors.UserError(
                f'jax2onnx has made another program of this one: {name} differs by {most:.2g}. Use '
                '--format=stablehlo.'
            )


def _libraries() -> tuple[Any, Any]:
    try:
        import jax2onnx
        import onnxruntime
    except ImportError as error:
        raise errors.UserError(
            f'ONNX needs {error.name}, which is not installed: {INSTALL}.'
        ) from error
    return jax2onnx, onnxruntime
