"""Machines to plan for: what their chips can do, and how fast groups of them talk.

`v5p:4x4x4` is a real TPU topology, for which its compiler runs here; `cpu:8` are simulated devices
of this machine; `gpu:h200:8` are GPUs, for which programs of as many CPU devices stand in.
"""

import dataclasses
import importlib.util
import re
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np

from bigmodels import errors, hardware
from bigmodels.plan.collectives import Collective

TPUS = ('v5e', 'v5p', 'v6e')  # of whose chips JAX sees each as one device
GPUS_PER_HOST = 8
FORMS = (
    f'a TPU slice, as v5p:4x4x4 ({", ".join(TPUS)}); GPUs, as gpu:h200:8 '
    f'({", ".join(name for name, chip in hardware.CHIPS.items() if "TPU" not in chip.kind)}); '
    f'simulated devices of this machine, as cpu:8'
)


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices, of which those of `cpu` and `tpu` are compiled for.

    Fields:
      chip: its facts; of CPUs measured ones, of one simulated device.
      devices: JAX's, of which `gpu` has as many CPU devices instead.
    """

    name: str
    kind: Literal['tpu', 'gpu', 'cpu']
    chip: hardware.Chip
    devices: Sequence[jax.Device]

    @property
    def is_stand_in(self) -> bool:
        """Whether other devices are compiled for than meant."""
        return self.kind == 'gpu'

    def seconds(self, one: Collective, devices: Sequence[jax.Device]) -> float:
        """How long one collective takes at the bandwidth of its links, without latency.

        Args:
          devices: in the order of the mesh, to which the collective's groups refer.
        """
        seconds_of = {'tpu': self._torus, 'gpu': self._hosts, 'cpu': self._shared_memory}
        return seconds_of[self.kind](one, devices)

    def _torus(self, one: Collective, devices: Sequence[jax.Device]) -> float:
        """Each dimension that a group extends along has a link either way, two if it is a ring."""
        size = self._size(devices)
        is_ring = [self._is_ring(n) for n in size]
        link = self.chip.link_bandwidth
        places = np.array([devices[i].coords for i in one.groups[0]])
        if one.kind == 'collective-permute':
            return one.sent * self._hops(one, devices, size, is_ring) / link
        extents = [len(set(column)) for column in places.T]
        if one.kind.endswith('all-to-all'):
            # Half of what each half of the devices has crosses their middle, where two links go
            # each way in a ring, and one in a line.
            share = max(
                n / (8 if ring and n == whole else 4)
                for n, whole, ring in zip(extents, size, is_ring, strict=True)
                if n > 1
            )
            return one.size * share / link
        links = sum(
            2 if ring and n == whole else 1
            for n, whole, ring in zip(extents, size, is_ring, strict=True)
            if n > 1
        )
        return one.sent / (links * link)

    def _is_ring(self, length: int) -> bool:
        """Whether a slice of this length has links from end to end (Google Cloud's TPU pages)."""
        return length % 4 == 0 if self.chip.name == 'v5p' else length == 16

    @staticmethod
    def _size(devices: Sequence[jax.Device]) -> np.ndarray:
        return np.array([device.coords for device in devices]).max(0) + 1

    @staticmethod
    def _hops(one: Collective, devices, size: np.ndarray, is_ring: Sequence[bool]) -> float:
        """Links that a message of a permutation passes on average, each of which is shared."""
        places = np.array([[devices[i].coords for i in pair] for pair in one.groups])
        apart = np.abs(places[:, 0] - places[:, 1])
        apart = np.where(is_ring, np.minimum(apart, size - apart), apart)
        return max(1.0, apart.sum(1).mean())

    def _hosts(self, one: Collective, devices: Sequence[jax.Device]) -> float:
        """Within a host over its switch; between hosts each GPU has its own network adapter."""
        hosts = one.groups // GPUS_PER_HOST
        if one.kind == 'collective-permute':
            crosses = (hosts[:, 0] != hosts[:, 1]).any()
            return one.sent / (self.chip.network if crosses else self.chip.link_bandwidth)
        n, within = one.groups.shape[1], np.unique(hosts[0], return_counts=True)[1].max()
        local = one.sent / self.chip.link_bandwidth
        if within == n:
            return local
        if one.kind.endswith('all-to-all'):
            return max(local, one.size * (1 - within / n) / self.chip.network)
        return max(local, one.sent / (self.chip.network * within))

    def _shared_memory(self, one: Collective, devices: Sequence[jax.Device]) -> float:
        """Every byte is read by one device and written by another."""
        return 2 * one.sent / self.chip.bandwidth


def num_cpu_devices(name: str) -> int:
    """How many CPU devices JAX must have before it begins, for `open_topology` of this name.

    Raises:
      UserError: for a name of no form of FORMS.
    """
    if match := re.fullmatch(r'(?:cpu|gpu:\w+):([1-9]\d*)', name):
        return int(match[1])
    if name.split(':')[0] in ('cpu', 'gpu') or ':' not in name:
        raise errors.UserError(f'--topology={name} is none of: {FORMS}.')
    return 1


def open_topology(name: str) -> Topology:
    """The topology of a name.

    Raises:
      UserError: for an unknown one, and for a TPU where its compiler is not installed.
    """
    num_cpu_devices(name)  # refuses what is no name
    kind, _, rest = name.partition(':')
    if kind == 'cpu':
        from bigmodels.plan import calibration

        count = int(rest)
        return Topology(name, 'cpu', calibration.this_machine(count), jax.devices()[:count])
    if kind == 'gpu':
        chip, _, count = rest.partition(':')
        gpus = [each for each in hardware.CHIPS if 'TPU' not in hardware.CHIPS[each].kind]
        if chip not in gpus:
            raise errors.unknown(f'GPU in --topology={name}:', chip, gpus)
        return Topology(name, 'gpu', hardware.CHIPS[chip], jax.devices()[: int(count)])
    if kind not in TPUS:
        raise errors.UserError(f'--topology={name} is none of: {FORMS}.')
    return Topology(name, 'tpu', hardware.CHIPS[kind], _tpu_devices(name))


def _tpu_devices(name: str) -> list[jax.Device]:
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform='tpu', topology_name=name).devices
    except Exception as error:  # JAX raises several types, and libtpu its own texts
        if importlib.util.find_spec('libtpu') is None:
            raise errors.UserError(
                f"--topology={name} needs the TPU's compiler: pip install libtpu, or the extra "
                f'bigmodels[tpu] in an environment of its own.'
            ) from error
        reason = str(error).partition(':')[2].strip() or str(error)
        raise errors.UserError(
            f'--topology={name} is no slice that the compiler knows: {reason}. Slices are written '
            f'as v5e:4x4, v6e:16x16 (up to 16x16) or v5p:4x4x4, in multiples of 2x2 chips.'
        ) from error
    return list(found)
