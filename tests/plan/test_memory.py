"""The parts of a device's memory add up to what the compiler says, and are what they are called."""

import jax
import jax.numpy as jnp
import pytest

from bigmodels import config as config_lib
from bigmodels import experiment, explain
from bigmodels.plan import hlo, memory
from tests import commands

TINY = f'{commands.ROOT}/configs/transformer.py:tiny'


def compiled_step(*overrides: str):
    run = explain.plan(experiment.from_config(config_lib.load(TINY, overrides)))
    compiled = run.compile_train_step('jit')
    return run, compiled, hlo.parse(compiled.as_text())


@pytest.mark.parametrize('overrides', [(), ('mesh.fsdp=4', 'ema_decay=0.9', 'accumulate=2')])
def test_the_parts_add_up_to_what_the_compiler_sets_aside(overrides):
    run, compiled, program = compiled_step('optimizer.algorithm.name=adamw', *overrides)
    held = memory.of_compiled(compiled, program, run.state_shapes)
    params = explain.device_bytes(run.state_shapes.params)
    assert held.params == params
    assert held.average == (params if 'ema_decay=0.9' in overrides else 0)
    assert 2 * params <= held.optimiser < 2 * params + 100  # both moments, and a count
    sizes = compiled.memory_analysis()
    expected = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes
    expected += sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    assert held.total == expected + sizes.generated_code_size_in_bytes
    assert min(held.gradients, held.activations, held.temporaries) >= 0
    assert held.activations > 0


def test_a_scan_keeps_each_layer_s_input_for_its_backward_pass():
    """20 layers of [64, 128], all else computed again; the gradient's shape is the kernels'."""

    def loss(kernels, x):
        body = jax.checkpoint(lambda x, kernel: (jnp.tanh(x @ kernel), None))
        return jax.lax.scan(body, x, kernels)[0].sum()

    kernels = jax.ShapeDtypeStruct((20, 128, 128), jnp.float32)
    x = jax.ShapeDtypeStruct((64, 128), jnp.float32)
    text = jax.jit(jax.grad(loss)).lower(kernels, x).compile().as_text()
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = jax.ShapeDtypeStruct(kernels.shape, kernels.dtype, sharding=device)
    held = memory.held_at_peak(hlo.parse(text), placed)
    one = 20 * 64 * 128 * 4
    assert one <= held['activations'] <= 1.3 * one
    assert held['gradients'] <= 20 * 128 * 128 * 4  # the result itself is the caller's


def test_more_remat_keeps_fewer_activations():
    kept = {}
    for remat in ('none', 'full'):
        run, compiled, program = compiled_step(
            'model.scan_layers=True', f'model.remat={remat}', 'model.num_layers=8', 'batch_size=32'
        )
        kept[remat] = memory.of_compiled(compiled, program, run.state_shapes).activations
    assert kept['full'] < 0.5 * kept['none']


@pytest.mark.parametrize(
    ('message', 'expected'),
    [
        ('RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space '
         'hbm. Used 40.50G of 31.25G hbm. Exceeded', (40.5 * 2**30, 31.25 * 2**30)),
        ('RESOURCE_EXHAUSTED: Used 512.00M of 256.00M hbm.', (2**29, 2**28)),
        ('RESOURCE_EXHAUSTED: out of it', None),
    ],
)  # fmt: skip
def test_what_a_compiler_says_when_it_refuses(message, expected):
    assert memory.of_refusal(message) == expected
