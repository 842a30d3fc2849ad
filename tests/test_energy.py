"""The cost of a run against counters that are written here."""

import time
import types

import jax
import pytest

from bigmodels import energy, hardware, sharding


def mesh_of(count=2):
    return sharding.make_mesh(sharding.MeshShape(), jax.devices()[:count])


def counter(root, name, joules, wraps=100.0, kind='package-0'):
    domain = root / name
    domain.mkdir(parents=True, exist_ok=True)
    texts = {
        'name': kind,
        'energy_uj': round(joules * 1e6),
        'max_energy_range_uj': round(wraps * 1e6),
    }
    for file, text in texts.items():  # a reader never finds half of one
        (root / 'written').write_text(f'{text}\n')
        (root / 'written').replace(domain / file)


def test_processors_are_read_at_the_beginning_and_at_the_end(tmp_path):
    counter(tmp_path, 'intel-rapl:2', 0, kind='psys')
    counter(tmp_path, 'intel-rapl:0:1', 7, kind='dram')
    counter(tmp_path, 'intel-rapl:0:0', 5, kind='core')
    for name, joules in (('intel-rapl:0', 10), ('intel-rapl:1', 99)):
        counter(tmp_path, name, joules)
    meter = energy.Meter(mesh_of(), tmp_path)
    counter(tmp_path, 'intel-rapl:2', 90, kind='psys')
    counter(tmp_path, 'intel-rapl:0:1', 8, kind='dram')
    counter(tmp_path, 'intel-rapl:0:0', 20, kind='core')
    for name, joules in (('intel-rapl:0', 46), ('intel-rapl:1', 35)):
        counter(tmp_path, name, joules)  # the second began again at 100
    cost = meter.cost(7, 3.0, print)
    assert cost['kilowatt_hours'] == pytest.approx((36 + 36 + 1) / 3.6e6)
    assert cost['energy_source'] == 'measured by RAPL'
    assert (cost['flops'], cost['flops_source']) == (21.0, "the task's formula")
    assert cost['device_seconds'] == pytest.approx(2 * cost['seconds'], abs=0.11)


def test_a_counter_may_begin_again_many_times(tmp_path, monkeypatch):
    counter(tmp_path, 'intel-rapl:0', 90)
    meter = energy.Meter(mesh_of(), tmp_path)
    for joules in (60, 30, 0, 70):  # 70 each time
        counter(tmp_path, 'intel-rapl:0', joules)
        meter._add()
    assert meter.cost(1, 1.0, print)['kilowatt_hours'] == pytest.approx(4 * 70 / 3.6e6)

    monkeypatch.setattr(energy, 'INTERVAL', 0.01)
    meter = energy.Meter(mesh_of(), tmp_path)
    counter(tmp_path, 'intel-rapl:0', 80)
    for _ in range(500):
        if meter._joules:
            break
        time.sleep(0.01)
    assert meter._joules == 10

    (tmp_path / 'intel-rapl:0').rename(tmp_path / 'gone')
    assert meter.cost(1, 1.0, print)['energy_source'].startswith('estimated by')


def test_without_counters_the_power_is_taken_over_the_time(tmp_path, monkeypatch):
    turns = lambda x: jax.lax.fori_loop(0, 3, lambda i, y: y @ x, x)
    step = jax.jit(turns).lower(jax.numpy.ones((8, 8))).compile()
    cost = energy.Meter(mesh_of(), tmp_path).cost(5, None, step)
    cores = hardware.num_cores()
    assert cost['energy_source'] == f'estimated by 12 W for each of {cores} cores'
    expected = 12 * cores * cost['seconds'] / 3.6e6
    assert cost['kilowatt_hours'] == pytest.approx(expected, abs=12 * cores * 0.06 / 3.6e6)
    assert cost['flops'] == 2 * 5 * 3 * 2 * 8**3  # devices, steps, turns
    assert cost['flops_source'] == 'the products in its program'
    assert energy.Meter(mesh_of(), tmp_path).cost(5, None, print)['flops'] is None

    other = types.SimpleNamespace(platform='tpu', device_kind='TPU v99')
    meter = energy.Meter(mesh_of(), tmp_path)
    monkeypatch.setattr(meter, '_device', other)
    kwh, source = meter._energy(3600.0)
    assert kwh is None
    assert "no counter can be read, and 'TPU v99' is not" in source

    h100 = types.SimpleNamespace(platform='tpu', device_kind='NVIDIA H100 80GB HBM3')
    meter = energy.Meter(mesh_of(), tmp_path)
    monkeypatch.setattr(meter, '_device', h100)
    kwh, source = meter._energy(3600.0)
    assert kwh == 2 * hardware.CHIPS['h100'].watts / 1000
    assert source == 'estimated by the 700 W of a h100'
