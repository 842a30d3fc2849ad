"""A process of test_processes: python -m tests.feeding, started by the launcher.

Feeds batches on a mesh on which this process holds rows that are not one part of the batch, and
on one on which both processes hold the same rows.
"""

import contextlib

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bigmodels import errors, processes, sharding
from bigmodels.data import pipeline
from tests.data.test_pipeline import Numbers


class Described(Numbers):
    """Examples as a source of them."""

    def fingerprint(self):
        return f'{self.count} from {self.first}'

    def describe(self):
        return f'{self.count} numbers'


def check(order: list[int], shape: dict[str, int], expected_blocks: list[tuple[int, ...]]) -> None:
    """On the mesh of all devices in this order, every batch is that of one process."""
    sizes = [shape.get(axis, 1) for axis in sharding.AXES]
    devices = np.array(jax.devices())[order].reshape(sizes)
    mesh = Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * len(sizes))
    shard = sharding.batch_shard(mesh)
    assert shard == (expected_blocks[jax.process_index()], sharding.num_batch_shards(mesh)), shard
    parts = [(Numbers(10), 1.0)]
    mine, whole = (pipeline.training_batches(parts, 8, 0, *rest) for rest in ((shard,), ()))
    everywhere = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
    for t in range(3):
        batch = sharding.put_batch(mine[t], mesh)
        for key, value in whole[t].items():
            np.testing.assert_array_equal(np.asarray(everywhere(batch[key])), value)


if __name__ == '__main__':
    with processes.together(30, lambda: 'There is no checkpoint.'):
        check([0, 2, 1, 3], {'data': 4}, [(0, 2), (1, 3)])
        check([0, 2, 1, 3], {'data': 2, 'tensor': 2}, [(0, 1), (0, 1)])
        result = processes.on_first(lambda: {'ä': [jax.process_index(), None]})
        assert result == {'ä': [0, None]}, result
        processes.check_same('data', Described(3, first=1))
        expected = contextlib.nullcontext()
        if jax.process_index() == 1:
            message = 'data in process 1 of 2 on .* the first process: 4 numbers .* and 3 numbers '
            expected = pytest.raises(errors.UserError, match=message)
        with expected:
            processes.check_same('data', Described(3 + jax.process_index()))
        print('as fed by one process')
