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


MIXTURE = {'moe': dict(num_experts=4, mlp_dim=64, capacity_factor=1.0)}
DROPLESS = {'moe': dict(num_experts=4, mlp_dim=64, capacity_factor=None)}


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh, and what its compiled step must be.

    Fields:
      arguments, temporary: shares of the memory of one device that a device may need.
      collectives: how many of each kind there may be; the body of a loop counts once. Newer XLA
        joins fewer all-reduces.
      model: changes to the model.
    """

    mesh: dict[str, int]
    arguments: float
    temporary: float
    collectives: dict[str, int]
    model: dict = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return ' '.join([*(f'{axis}{size}' for axis, size in self.mesh.items()), *self.model])


GATHERED = 14  # six matrices of a layer, forward and backward; the embeddings
SUMMED = 10  # twice a layer each way; embeddings, the softmax over split logits and their gradient
GRADIENTS = 2  # of the layers, in the loop; of the rest

PLACEMENTS = [
    Placement(dict(data=8), 1, 0.6, {'all-reduce': GRADIENTS}),
    Placement(dict(replica=2, data=4), 1, 0.6, {'all-reduce': GRADIENTS}),
    Placement(dict(fsdp=8), 0.15, 0.3, {'all-gather': GATHERED, 'all-reduce': GRADIENTS}),
    Placement(dict(replica=2, fsdp=4), 0.27, 0.3, {'all-gather': GATHERED, 'all-reduce': 5}),
    Placement(dict(tensor=4), 0.27, 0.5, {'all-reduce': SUMMED}),
    Placement(
        dict(data=2, fsdp=2, tensor=2), 0.27, 0.3, {'all-gather': 16, 'all-reduce': 15}
    ),
    # Keys and values go round, forward, backward and as they are computed again.
    Placement(dict(sequence=4), 1, 0.6, {'collective-permute': 24, 'all-reduce': GRADIENTS}),
    Placement(
        dict(sequence=2, fsdp=2, tensor=2), 0.27, 0.3,
        {'collective-permute': 16, 'all-gather': 16, 'all-reduce': 16},
    ),
    # From stage to stage, forward and backward; the result, and its gradient, to all stages.
    Placement(
        dict(stage=4), 0.32, 0.27,
        {'collective-permute': 3, 'all-reduce': GRADIENTS, 'all-gather': 1},
    ),
    # Two rounds: the weights of every layer travel, twice forward and twice backward.
    Placement(
        dict(stage=2, tensor=2), 0.29, 0.5,
        {'collective-permute': 67, 'all-reduce': 12, 'all-gather': 1}, {'pipeline_rounds': 2},
    ),
    # Two permutes are of the embeddings, whose parts lie on other neighbours than the rows'.
    Placement(
        dict(stage=2, fsdp=2, tensor=2), 0.15, 0.27,
        {'collective-permute': 5, 'all-gather': 21, 'all-reduce': 17},
    ),
    Placement(
        dict(stage=2, sequence=2, data=2), 0.56, 0.6,
        {'collective-permute': 19, 'all-gather': 4, 'all-reduce': 8},
    ),
    # To the experts and back, forward, backward and as it is computed again.
    Placement(dict(expert=4), 0.56, 0.45, {'all-to-all': 6, 'all-reduce': GRADIENTS}, MIXTURE),
    Placement(
        dict(stage=2, expert=2, sequence=2), 0.4, 0.45,
        {'collective-permute': 35, 'all-gather': 16, 'all-reduce': 13, 'all-to-all': 6}, MIXTURE,
    ),
    Placement(
        dict(expert=4, tensor=2), 0.3, 0.3,
        {'all-gather': 7, 'all-reduce': 13, 'reduce-scatter': 3}, DROPLESS,
    ),
    Placement(
        dict(stage=2, expert=2), 0.4, 0.3,
        {'collective-permute': 10, 'all-gather': 10, 'all-reduce': 6, 'reduce-scatter': 3},
        DROPLESS,
    ),
]  # fmt: skip


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


MODELS = {'dense': {}, 'mixture': MIXTURE, 'dropless': DROPLESS}


@functools.cache
def on_one_device(name: str):
    return run(MODELS[name])


@pytest.mark.parametrize('placement', PLACEMENTS, ids=str)
def test_numbers_memory_and_collectives(placement):
    name = next((name for name, model in MODELS.items() if placement.model is model), 'dense')
    expected, expected_state, alone = on_one_device(name)
    figures, state, step = run(placement.model, **placement.mesh)
    np.testing.assert_allclose(figures, expected, rtol=2e-5)
    test_sharding.assert_close(state.params, expected_state.params)
    shares = np.divide(programs.memory(step), programs.memory(alone))
    assert (shares <= (placement.arguments, placement.temporary)).all(), shares
    found = programs.collectives(step)
    assert found.keys() == placement.collectives.keys()
    assert all(found[kind] <= most for kind, most in placement.collectives.items()), found


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
