"""Facts about chips, each with its source."""

import jax

# Dense bfloat16 peak, FLOP/s per device, by a part of `device_kind`. Sources: NVIDIA data sheets
# (A100, H100 SXM, H200, B200); Google Cloud TPU documentation, system architecture pages.
PEAK_FLOPS = {
    'A100': 312e12,
    'H100': 989e12,
    'H200': 989e12,
    'B200': 2250e12,
    'TPU v4': 275e12,
    'TPU v5 lite': 197e12,
    'TPU v5p': 459e12,
    'TPU v5': 459e12,
    'TPU v6 lite': 918e12,
}


def peak_flops(mesh: jax.sharding.Mesh) -> float | None:
    """The peak of all devices of a mesh, or None where it is not known, as for CPUs."""
    kind = mesh.devices.flat[0].device_kind
    for name, peak in PEAK_FLOPS.items():
        if name in kind:
            return peak * mesh.size
    return None
