"""Facts about chips, each with its source."""

import dataclasses
import os
import re

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip, which JAX shows as one device, can do at most.

    Fields:
      name: as in --topology.
      kind: a regular expression of words of its `device_kind`.
      peak_flops: dense bfloat16 FLOP/s.
      memory: bytes of its main memory that a program may use.
      bandwidth: of that memory, bytes/s.
      links: to neighbours in the same slice or host, and `link_bandwidth` of each in bytes/s one
        way. GPUs have one here, the sum of those to the switch between them.
      network: bytes/s one way to other hosts, for one GPU; TPUs of a slice need none.
      watts: the chip's own power, see POWER_SOURCES; without host, network and cooling.
      float32_flops: where products of float32 matrices have a peak of their own, as on CPUs.
      dollars_per_hour: on demand, see PRICE_SOURCE; None where no list price is kept here.
    """

    name: str
    kind: str
    peak_flops: float
    memory: float
    bandwidth: float
    links: int
    link_bandwidth: float
    network: float | None
    watts: float
    dollars_per_hour: float | None = None
    watts_published: bool = True
    float32_flops: float | None = None

    def peak_of(self, dtype: str) -> float:
        """FLOP/s of matrix products with operands of a dtype, as 'f32'.

        Accelerators multiply float32 matrices in bfloat16 or its like unless told otherwise.
        """
        return self.float32_flops if dtype == 'f32' and self.float32_flops else self.peak_flops


GIB = 2**30
# Sources of peak, memory and links. TPUs: Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p" and
# "TPU v6e"; a link's bandwidth is the bidirectional one of the chip over twice its ports, and of
# the memory 0.25 GiB is taken to be the runtime's.
# GPUs: NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM and B200 (HGX), NVLink one way;
# their network is one adapter of 200 (A100) or 400 Gbit/s a GPU, as in DGX systems; 6 % of memory
# is left to the runtime.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip('a100', 'A100', 312e12, 0.94 * 80e9, 2.039e12, 1, 300e9, 25e9, 400),
        Chip('h100', 'H100', 989e12, 0.94 * 80e9, 3.35e12, 1, 450e9, 50e9, 700),
        Chip('h200', 'H200', 989e12, 0.94 * 141e9, 4.8e12, 1, 450e9, 50e9, 700),
        Chip('b200', 'B200', 2250e12, 0.94 * 180e9, 7.7e12, 1, 900e9, 50e9, 1000),
        Chip('v4', 'TPU v4', 275e12, 31.75 * GIB, 1.2e12, 6, 50e9, None, 192, 3.22),
        Chip('v5e', 'TPU v5( lite|e)', 197e12, 15.75 * GIB, 819e9, 4, 50e9, None, 200, 1.20, False),
        Chip('v5p', 'TPU v5p?', 459e12, 94.75 * GIB, 2765e9, 6, 100e9, None, 450, 4.20, False),
        Chip(
            'v6e', 'TPU v6( lite|e)', 918e12, 31.25 * GIB, 1638e9, 4, 100e9, None, 300, 2.70, False
        ),
    )
}
POWER_SOURCES = (
    'GPUs: the thermal design power of the data sheet. TPU v4: the largest that its page measures. '
    'Google publishes none for v5e, v5p and v6e: assumed here, to be replaced by --watts.'
)
# A CPU core's, without memory: what Green Algorithms (Lannelongue et al. 2021) takes for any CPU.
CORE_WATTS = 12.0
PRICE_SOURCE = 'Google Cloud, on demand, United States, 2025; --price replaces it.'


def chip_of(device: jax.Device) -> Chip | None:
    """The chip of a device, None where it is not in the table, as for CPUs."""
    # The longest first, as 'TPU v5' is a part of 'TPU v5 lite'.
    for chip in sorted(CHIPS.values(), key=lambda chip: -len(chip.kind)):
        if re.search(rf'\b{chip.kind}\b', device.device_kind):
            return chip
    return None


def peak_flops(mesh: jax.sharding.Mesh) -> float | None:
    """The peak of all devices of a mesh, or None where it is not known, as for CPUs."""
    chip = chip_of(mesh.devices.flat[0])
    return None if chip is None else chip.peak_flops * mesh.size


def num_cores() -> int:
    """How many CPU cores this process may use."""
    affinity = getattr(os, 'sched_getaffinity', None)  # Linux has it
    return len(affinity(0)) if affinity else os.cpu_count()


def kilowatt_hours(watts: float, seconds: float) -> float:
    """The energy of a power over a time, of all devices together."""
    return watts * seconds / 3.6e6
