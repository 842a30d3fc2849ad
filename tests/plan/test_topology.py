"""How fast groups of devices talk, from where they are; names of topologies."""

import itertools
import types

import numpy as np
import pytest

from bigmodels import errors, hardware
from bigmodels.plan import topology
from bigmodels.plan.collectives import Collective

V5P, V6E, H100 = (hardware.CHIPS[name] for name in ('v5p', 'v6e', 'h100'))
MB = 1_000_000


def torus(*sizes: int) -> list:
    return [types.SimpleNamespace(coords=at) for at in itertools.product(*map(range, sizes))]


def collective(kind: str, groups, size: float = MB, sent: float = MB) -> Collective:
    return Collective(kind, np.array(groups), 'fsdp', size, sent, 1, '')


def seconds(kind: str, chip: hardware.Chip, devices, one: Collective) -> float:
    return topology.Topology('', kind, chip, devices).seconds(one, devices)


@pytest.mark.parametrize(
    ('chip', 'sizes', 'group', 'links'),
    [
        (V5P, (4, 4, 4), range(64), 6),  # three rings
        (V5P, (4, 4, 4), range(16), 4),  # a plane of two
        (V5P, (4, 4, 4), range(4), 2),  # one ring
        (V5P, (4, 4, 4), range(2), 1),  # two neighbours
        (V5P, (2, 2, 1), range(4), 2),  # less than a cube: two lines
        (V6E, (4, 4, 1), range(16), 2),
        (V6E, (16, 16, 1), range(256), 4),
        (V6E, (16, 16, 1), range(16), 2),
        (V6E, (8, 16, 1), range(128), 3),
    ],
)
def test_a_group_sends_over_the_links_along_which_it_extends(chip, sizes, group, links):
    one = collective('all-gather', [list(group)])
    assert seconds('tpu', chip, torus(*sizes), one) == pytest.approx(
        MB / (links * chip.link_bandwidth)
    )


def test_permutations_pass_links_in_turn():
    devices = torus(4, 4, 4)
    ring = [[i, (i + 1) % 4] for i in range(4)]
    neighbours = seconds('tpu', V5P, devices, collective('collective-permute', ring))
    assert neighbours == pytest.approx(MB / V5P.link_bandwidth)
    across = collective('collective-permute', [[0, 2], [1, 3]])
    assert seconds('tpu', V5P, devices, across) == pytest.approx(2 * neighbours)


def test_an_exchange_goes_further_on_longer_rings():
    devices = torus(16, 16, 1)
    whole = collective('all-to-all', [[i * 16 for i in range(16)]])
    # Each half sends half of what its eight have over two links.
    assert seconds('tpu', V6E, devices, whole) == pytest.approx(MB * 4 / (2 * V6E.link_bandwidth))
    half = collective('all-to-all', [[i * 16 for i in range(8)]])  # four to four, over one
    assert seconds('tpu', V6E, devices, half) == pytest.approx(MB * 2 / V6E.link_bandwidth)


def test_gpus_talk_over_their_switch_and_between_hosts_over_the_network():
    within = seconds('gpu', H100, [], collective('all-reduce', [range(8)]))
    assert within == pytest.approx(MB / H100.link_bandwidth)
    # All eight adapters of a host carry a part; one GPU of each host has its own alone.
    across = seconds('gpu', H100, [], collective('all-reduce', [range(16)]))
    assert across == pytest.approx(MB / (8 * H100.network))
    alone = seconds('gpu', H100, [], collective('all-reduce', [[0, 8]]))
    assert alone == pytest.approx(MB / H100.network)


@pytest.mark.parametrize(
    'name', ['v5q:4x4', 'v5p', 'cpu', 'cpu:', 'cpu:0', 'cpu:two', 'gpu:8', 'tpu:v5p']
)
def test_names_of_no_form(name):
    with pytest.raises(errors.UserError, match=f'--topology={name} is none of: a TPU slice'):
        topology.open_topology(name)


def test_an_unknown_gpu():
    with pytest.raises(errors.UserError, match="'h300'.*Did you mean 'h[12]00'.*a100, b200"):
        topology.open_topology('gpu:h300:8')


def test_a_tpu_without_its_compiler(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    monkeypatch.setattr('jax.experimental.topologies.get_topology_desc', _fail)
    with pytest.raises(errors.UserError, match='pip install libtpu'):
        topology.open_topology('v5p:4x4x4')


def _fail(**_):
    raise RuntimeError('no such plugin')
