"""XLA's own options, for single programs."""

import functools
from collections.abc import Mapping

import jax

Value = bool | int | str


@functools.cache
def _is_known(name: str, value: Value) -> bool:
    program = jax.jit(lambda x: x, compiler_options={name: value})
    try:
        program.lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def known(options: Mapping[str, Value]) -> dict[str, Value]:
    """Those of the options that the installed XLA knows, for `jax.jit(compiler_options=...)`.

    Their names change from one version to another; an unknown one would end the program.
    """
    return {name: value for name, value in options.items() if _is_known(name, value)}
