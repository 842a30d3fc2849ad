"""Facts about chips are found by what JAX calls the chips."""

import os
import shutil
import subprocess
import sys
import types

import pytest

from bigmodels import hardware


@pytest.mark.parametrize(
    ('kind', 'expected'),
    [
        ('NVIDIA H100 80GB HBM3', 'h100'),
        ('NVIDIA H200', 'h200'),
        ('NVIDIA A100-SXM4-80GB', 'a100'),
        ('TPU v4', 'v4'),
        ('TPU v5 lite', 'v5e'),
        ('TPU v5', 'v5p'),
        ('TPU v5p', 'v5p'),
        ('TPU v5e', 'v5e'),
        ('TPU v6 lite', 'v6e'),
        ('NVIDIA RTX A1000 6GB Laptop GPU', None),
        ('NVIDIA GB200', None),
        ('cpu', None),
    ],
)
def test_a_device_s_chip(kind, expected):
    chip = hardware.chip_of(types.SimpleNamespace(device_kind=kind))
    assert (chip and chip.name) == expected


def test_ridge_points_are_plausible():
    """FLOPs that a byte read must serve, which is how chips are compared: 100 to 600 for all."""
    for chip in hardware.CHIPS.values():
        assert 100 < chip.peak_flops / chip.bandwidth < 600
        assert chip.bandwidth > chip.links * chip.link_bandwidth


@pytest.mark.skipif(not shutil.which('taskset'), reason='no taskset, which is of Linux')
def test_cores_are_those_that_the_process_may_use():
    command = 'from bigmodels import hardware; print(hardware.num_cores())'
    run = ['taskset', '-c', '0', sys.executable, '-c', command]
    assert subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip() == '1'
    assert 1 <= hardware.num_cores() <= os.cpu_count()


def test_energy():
    assert hardware.kilowatt_hours(watts=500, seconds=7200) == 1
