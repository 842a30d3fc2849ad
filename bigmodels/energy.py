"""What a run costs: FLOPs, the time of its devices and their energy, measured where it can be.

Counters of energy are read from the beginning to the end: of processors and their memory in Linux'
powercap (RAPL), of GPUs by NVIDIA's management library (NVML). Where there is none, the
power of the chip or the cores from `hardware` is taken over the time; for other chips nothing is.
They count all that the machine does meanwhile, of this process' machine alone.
"""

import ctypes
import pathlib
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from bigmodels import hardware, sharding
from bigmodels.plan import costs, hlo

RAPL = pathlib.Path('/sys/class/powercap')
NVML = 'libnvidia-ml.so.1'
INTERVAL = 60.0  # seconds between readings


class Meter:
    """Runs from when it is made.

    Args:
      mesh: of the devices that are used.
      rapl: where the counters of processors are.
    """

    def __init__(self, mesh: jax.sharding.Mesh, rapl: pathlib.Path = RAPL):
        self._device, self._num_devices, self._rapl = mesh.devices.flat[0], mesh.size, rapl
        self._began, self._source, self._counters = time.perf_counter(), *self._read()
        self._joules, self._lock, self._ended = 0.0, threading.Lock(), threading.Event()
        if self._source == 'RAPL':  # others do not begin again
            threading.Thread(target=self._keep_reading, daemon=True).start()

    def cost(self, steps: int, flops: float | None, step: Callable) -> dict[str, Any]:
        """What was spent so far.

        Args:
          steps: that were made meanwhile.
          flops: of one by the task's formula, None where there is none.
          step: compiled, which may tell them.

        Returns:
          seconds, flops and device_seconds, kilowatt_hours, None where they are not known, and
          flops_source and energy_source, what they are known by.
        """
        seconds = time.perf_counter() - self._began
        counted = "the task's formula"
        if flops is None and hasattr(step, 'as_text'):
            flops, counted = self._counted(step)
            flops = flops and flops * self._num_devices  # each runs the same program on its part
        kwh, source = self._energy(seconds)
        return {
            'seconds': round(seconds, 1),
            'device_seconds': round(seconds * self._num_devices, 1),
            'flops': flops and flops * steps,
            'flops_source': counted if flops else 'not known',
            'kilowatt_hours': kwh,
            'energy_source': source,
        }

    def _counted(self, step: jax.stages.Compiled) -> tuple[float | None, str]:
        """FLOPs of a step on one device, and who counted them.

        GPUs' products are calls of libraries, which only XLA's own count knows; but that takes the
        body of a loop once, and on CPUs convolutions are loops.
        """
        if self._device.platform in sharding.GPU:
            return step.cost_analysis().get('flops'), "XLA's count, a loop for one turn"
        text = step.as_text()
        return text and costs.all_flops(hlo.parse(text)), 'the products in its program'

    def _keep_reading(self) -> None:
        """Before a counter can begin again twice: RAPL's do after ten minutes at 400 W."""
        while not self._ended.wait(INTERVAL):
            self._add()

    def _add(self) -> None:
        """What was spent since the counters were read last."""
        with self._lock:
            source, now = self._read()
            if now.keys() == self._counters.keys():
                for name, (end, wraps) in now.items():
                    self._joules += _passed(self._counters[name][0], end, wraps)
            else:
                source = ''  # a part is not known
            self._source, self._counters = self._source and source, now

    def _energy(self, seconds: float) -> tuple[float | None, str]:
        self._ended.set()
        self._add()
        if self._source:
            return self._joules / 3.6e6, f'measured by {self._source}'
        if self._device.platform == 'cpu':  # as many devices as wanted, of the same cores
            watts, cores = hardware.CORE_WATTS, hardware.num_cores()
            kwh = hardware.kilowatt_hours(watts * cores, seconds)
            return kwh, f'estimated by {watts:g} W for each of {cores} cores'
        chip = hardware.chip_of(self._device)
        if chip is None:
            return None, (
                f'not known: no counter can be read, and {self._device.device_kind!r} is not in '
                'the table of chips'
            )
        kwh = hardware.kilowatt_hours(chip.watts * self._num_devices, seconds)
        return kwh, f'estimated by the {chip.watts:g} W of a {chip.name}'

    def _read(self) -> tuple[str, Mapping[str, tuple[float, float]]]:
        """A source and its counters in joules, each with the value at which it begins again."""
        if self._device.platform in sharding.GPU:
            counters = _of_gpus()
            return ('NVML', counters) if counters else ('', {})
        if self._device.platform != 'cpu':
            return '', {}
        counters = _of_processors(self._rapl)
        return ('RAPL', counters) if counters else ('', {})


def _passed(begin: float, end: float, wraps: float) -> float:
    return end - begin if end >= begin else end - begin + wraps


def _of_processors(root: pathlib.Path) -> dict[str, tuple[float, float]]:
    """Of whole packages, and of memory; cores are counted in those, and 'psys' has all again."""
    counters = {}
    for domain in sorted(root.glob('*-rapl:[0-9]*')):
        try:
            if not re.match('package|dram$', (domain / 'name').read_text().strip()):
                continue
            value, wraps = (
                int((domain / name).read_text()) / 1e6
                for name in ('energy_uj', 'max_energy_range_uj')
            )
        except OSError:  # since 2020 for administrators alone, on most systems
            return {}
        counters[domain.name] = value, wraps
    return counters


def _of_gpus() -> dict[str, tuple[float, float]]:
    """Of all GPUs of the machine, which begin at 0 when the driver is loaded."""
    try:
        library = ctypes.CDLL(NVML)
    except OSError:
        return {}
    count, handle, energy = ctypes.c_uint(), ctypes.c_void_p(), ctypes.c_ulonglong()
    if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return {}
    counters = {}
    for i in range(count.value):
        if library.nvmlDeviceGetHandleByIndex_v2(i, ctypes.byref(handle)) or (
            library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(energy))
        ):
            return {}
        counters[str(i)] = energy.value / 1e3, 0.0
    return counters
