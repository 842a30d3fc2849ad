"""XLA's options: those of the train step by platform, and which of any program's XLA knows.

They are given to single compilations: nothing is set globally.

`config.xla` adds options and changes those of TABLE; None leaves one to XLA:

    --config.xla.xla_gpu_deterministic_ops=True        no atomic additions: bit for bit, slower
    --config.xla.xla_gpu_enable_command_buffer=''      no CUDA graphs; XLA's default captures them

Names come and go with versions of XLA, which is asked: what it does not know is left out and told.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, SingleDeviceSharding

from bigmodels import errors

Value = bool | int | float | str
_COMBINED_BYTES = 128 * 2**20

# By platform, then by `device_kind`, which adds to its platform's: option -> (value, reason).
# Sources: [1] JAX documentation, GPU performance tips; [2] NVIDIA JAX-Toolbox, its MaxText
# scripts; [3] MaxText, benchmarks/xla_flags_library.py. None is measured by itself here.
TABLE: Mapping[str, Mapping[str, tuple[Value, str]]] = {
    'cpu': {},
    'gpu': {
        'xla_gpu_enable_latency_hiding_scheduler': (True, 'collectives run beside kernels [1]'),
        'xla_gpu_all_gather_combine_threshold_bytes': (
            _COMBINED_BYTES,
            'large messages [1, 2]',
        ),
        'xla_gpu_all_reduce_combine_threshold_bytes': (_COMBINED_BYTES, 'as above'),
        'xla_gpu_reduce_scatter_combine_threshold_bytes': (_COMBINED_BYTES, 'as above'),
        'xla_disable_hlo_passes': ('rematerialization', 'model.remat chooses, not XLA [2]'),
    },
    'tpu': {
        'xla_tpu_enable_async_collective_fusion': (True, 'collectives run beside matmuls [3]'),
        'xla_tpu_enable_async_collective_fusion_fuse_all_gather': (True, 'those of fsdp too [3]'),
        'xla_tpu_enable_async_collective_fusion_multiple_steps': (True, 'over several ops [3]'),
        'xla_tpu_overlap_compute_collective_tc': (True, 'the scheduler counts on it [3]'),
        'xla_enable_async_all_gather': ('true', 'needed by the above [3]'),
        'xla_tpu_enable_data_parallel_all_reduce_opt': (True, "gradients' sums overlap [3]"),
        'xla_tpu_data_parallel_opt_different_sized_ops': (True, 'also of unequal sizes [3]'),
    },
    'TPU v6 lite': {
        'xla_tpu_scoped_vmem_limit_kib': (98304, 'larger tiles: of 128 MiB, not 16 [3]'),
    },
}


def for_mesh(
    mesh: Mesh | AbstractMesh, changes: Mapping[str, Value | None]
) -> tuple[dict[str, Value], list[str]]:
    """The options of a compilation for the devices of `mesh`, and notes that say what they are.

    Asking XLA costs the compilation of an addition, once a process.

    Args:
      changes: to those of TABLE, as in `config.xla`.

    Raises:
      UserError: if XLA does not take one of `changes`.
    """
    if isinstance(mesh, AbstractMesh):
        return {}, []  # nothing can be compiled for it
    here = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    device = (here or list(mesh.devices.flat))[0]
    for name, value in changes.items():
        if not isinstance(value, Value | None):
            raise errors.UserError(f'config.xla.{name} = {value!r} must be one value, not several.')
    defaults = {
        name: value
        for key in (device.platform, device.device_kind)
        for name, (value, _) in TABLE.get(key, {}).items()
    }
    wanted = {name: value for name, value in {**defaults, **changes}.items() if value is not None}
    options = known(wanted, device)
    refused = wanted.keys() - options.keys()
    for name in sorted(refused & set(changes)):
        reason = _refusal(device, **{name: wanted[name]})
        raise errors.UserError(
            f'config.xla.{name} = {wanted[name]!r}: {reason}. This is XLA of jaxlib '
            f'{jax.lib.__version__} for {device.platform}.'
        )
    notes = []
    if options:
        listed = ', '.join(f'{name} = {value}' for name, value in options.items())
        notes.append(f'XLA compiles with {listed}')
    if refused:
        notes.append(f'this XLA does not know {", ".join(sorted(refused))}')
    return options, notes


def known(options: Mapping[str, Value], device: jax.Device | None = None) -> dict[str, Value]:
    """Those of the options that XLA takes for a device, by default the first of this process."""
    device = device or jax.devices()[0]
    if not options or _refusal(device, **options) is None:
        return dict(options)
    return {name: value for name, value in options.items() if not _refusal(device, **{name: value})}


@functools.cache
def _refusal(device: jax.Device, **options: Any) -> str | None:
    """What XLA says against these options, or None."""
    argument = jax.ShapeDtypeStruct((), 'float32', sharding=SingleDeviceSharding(device))
    try:
        jax.jit(lambda x: x + 1).lower(argument).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        return str(error).rstrip('.')
    return None
