"""For every axis of the mesh: the same numbers, less memory, and no collective but the expected.

A silent all-gather of everything computes the right numbers too; here it fails.
"""

import dataclasses
import functools
import math

import numpy as np
import pytest

from bigmodels import errors, metrics, sharding
from tests import programs, test_sharding

MODEL = dict(num_layers=4, embed_dim=64, scan_layers=True, remat='full')


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh, and what its compiled step must be.

    Fields:
      arguments, temporary: shares of the memory of one device that a device may need.
      collectives: how many of each kind; the body of the loop over layers counts once.
      model: changes to the model.
    """

    mesh: dict[str, int]
    arguments: float
    temporary: float
    collectives: dict[str, int]
    model: dict = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return ' '.join(f'{axis}{size}' for axis, size in (self.mesh | self.model).items())


def placement(arguments, temporary, model=(), collectives=(), **mesh) -> Placement:
    return Placement(mesh, arguments, temporary, dict(collectives), dict(model))


GATHERED = 14  # six matrices of a layer, forward and backward; the embeddings
SUMMED = 10  # twice a layer each way; embeddings, the softmax over split logits and their gradient
GRADIENTS = 2  # of the layers, in the loop; of the rest

PLACEMENTS = [
    placement(1, 0.6, data=8, collectives={'all-reduce': GRADIENTS}),
    placement(1, 0.6, replica=2, data=4, collectives={'all-reduce': GRADIENTS}),
    placement(0.15, 0.3, fsdp=8, collectives={'all-gather': GATHERED, 'all-reduce': GRADIENTS}),
    placement(0.27, 0.3, replica=2, fsdp=4, collectives={'all-gather': GATHERED, 'all-reduce': 5}),
    placement(0.27, 0.5, tensor=4, collectives={'all-reduce': SUMMED}),
    placement(
        0.27, 0.3, data=2, fsdp=2, tensor=2, collectives={'all-gather': 16, 'all-reduce': 15}
    ),
    # Round the ring, forward and backward; the result, and its gradient, to all stages.
    placement(
        0.32, 0.25, stage=4,
        collectives={'collective-permute': 2, 'all-reduce': GRADIENTS, 'all-gather': 1},
    ),
    placement(
        0.56, 0.7, stage=2, model={'pipeline_rounds': 2},
        collectives={'collective-permute': 66, 'all-reduce': GRADIENTS, 'all-gather': 1},
    ),
    placement(
        0.15, 0.25, stage=2, fsdp=2, tensor=2,
        collectives={'all-gather': 21, 'all-reduce': 16, 'collective-permute': 4},
    ),
]  # fmt: skip


@functools.cache
def on_one_device():
    return run({})


def run(model, **mesh):
    """(losses and gradient norms, final state, compiled step)."""
    task, batches = test_sharding.language_model(seed=1, **MODEL | model)
    num_devices = math.prod(mesh.values())
    program = test_sharding.make_program(task, batches[0], num_devices=num_devices, **mesh)
    step = program.compile_train_step('jit')
    state, figures = program.init_state(0), []
    for batch in batches:
        state, pairs = step(state, sharding.put_batch(batch, program.mesh))
        figures.append([float(metrics.mean(pairs['loss'])), float(pairs['grad_norm'])])
    return np.array(figures), state, step


@pytest.mark.parametrize('placement', PLACEMENTS, ids=str)
def test_numbers_memory_and_collectives(placement):
    expected, expected_state, alone = on_one_device()
    figures, state, step = run(placement.model, **placement.mesh)
    np.testing.assert_allclose(figures, expected, rtol=2e-5)
    test_sharding.assert_close(state.params, expected_state.params)
    shares = np.divide(programs.memory(step), programs.memory(alone))
    assert (shares <= (placement.arguments, placement.temporary)).all(), shares
    assert programs.collectives(step) == placement.collectives


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (dict(scan_layers=False), 'needs model.scan_layers'),
        (dict(dropout_rate=0.1), 'does not go with model.dropout_rate'),
        (dict(num_layers=3), '3 layers do not divide into 2 stages'),
        (dict(microbatches=1), 'at least as many microbatches'),
        (dict(microbatches=5), 'must divide the 16 rows'),
    ],
)
def test_what_a_pipeline_cannot_do_is_an_error(model, message):
    with pytest.raises(errors.UserError, match=message):
        run(model, stage=2)
