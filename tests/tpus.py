"""TPUs that are not here: libtpu compiles for them on any machine."""

import importlib.util
import os

import jax
import pytest


def devices(topology: str) -> list[jax.Device]:
    """The devices of a topology as 'v5e:2x2'; skips where libtpu is not installed."""
    if importlib.util.find_spec('libtpu') is None:
        pytest.skip('needs libtpu, which compiles for TPUs: pip install "jax[tpu]"')
    from jax.experimental import topologies

    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # there is no cloud's metadata server to ask
    return list(topologies.get_topology_desc(platform='tpu', topology_name=topology).devices)
