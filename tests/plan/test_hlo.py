"""What is read from compiled programs, against known counts and XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels.plan import costs, hlo


def parsed(function, *shapes) -> hlo.Program:
    return hlo.parse(jax.jit(function).lower(*shapes).compile().as_text())


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def layers(x, kernels):
    return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]


def test_a_scanned_layer_counts_as_often_as_it_runs():
    program = parsed(layers, floats(16, 32), floats(7, 32, 32))
    assert costs.all_flops(program) == 7 * 2 * 16 * 32 * 32
    assert program.unknown_loops() == []


def test_loops_within_loops_multiply():
    def twice(x, kernels):
        return jax.lax.scan(lambda x, _: (layers(x, kernels), None), x, None, length=11)[0]

    program = parsed(twice, floats(16, 32), floats(7, 32, 32))
    assert costs.all_flops(program) == 11 * 7 * 2 * 16 * 32 * 32


def test_the_gradient_of_a_scan_is_three_times_its_products():
    gradient = jax.grad(lambda kernels, x: layers(x, kernels).sum(), argnums=(0, 1))
    program = parsed(gradient, floats(7, 32, 32), floats(16, 32))
    assert costs.all_flops(program) == 3 * 7 * 2 * 16 * 32 * 32


def test_a_loop_that_depends_on_data_is_told_and_counts_once():
    def until(x):
        return jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: jnp.tanh(x @ x) + 1, x)

    program = parsed(until, floats(32, 32))
    assert len(program.unknown_loops()) == 1
    assert costs.all_flops(program) == 2 * 32**3


def test_of_a_conditional_the_longer_branch_counts():
    def either(x):
        return jax.lax.cond(x.sum() > 0, lambda: jnp.tanh(x @ x @ x), lambda: x)

    assert costs.all_flops(parsed(either, floats(32, 32))) == 2 * 2 * 32**3


@pytest.mark.parametrize(
    ('stride', 'padding', 'dilation'), [(1, 'VALID', 1), (2, 'SAME', 1), (1, ((1, 1), (1, 1)), 2)]
)
def test_convolutions_leave_out_padding(stride, padding, dilation):
    """Against a convolution of ones, whose sum is the number of multiplications."""

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding,
            lhs_dilation=(dilation, dilation),
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )

    shapes = floats(2, 10, 10, 3), floats(3, 3, 3, 5)
    products = convolve(*(jnp.ones(shape.shape) for shape in shapes)).sum()
    # Between the elements of a dilated input are zeros, which are not counted either.
    assert costs.all_flops(parsed(convolve, *shapes)) == 2 * float(products)


def test_a_batched_product_as_tpus_write_it():
    text = """HloModule m, is_scheduled=true

ENTRY %main (a: bf16[8,64,16], b: bf16[8,32,16]) -> f32[8,64,32] {
  %a = bf16[8,64,16]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[8,32,16]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %c = f32[8,64,32]{2,1,0:T(8,128)} convolution(%a, %b), window={size=8 stride=7 \
lhs_dilate=8}, dim_labels=0bf_0oi->0bf
}
"""
    program = hlo.parse(text)
    *_, run = program.runs()
    assert costs.flops(program, run) == {'bf16': 2 * 8 * 64 * 32 * 16}
    # What lies in the fast memory beside the cores is not read from the main one.
    assert costs.bytes_moved(program, run) == 2 * 8 * 64 * 16 + 4 * 8 * 64 * 32


@pytest.mark.parametrize(
    ('name', 'grid', 'expected'),
    [
        ('splash_mha_fwd_residuals.1', '1,4,4', 2 * (1 + 2 + 3 + 4) / 16),
        ('splash_mha_dq_no_residuals.2', '1,4,2', 3 * 2 / 4),
        ('splash_mha_dkv_no_residuals.2', '1,4,4', 4 * (1 + 2 + 3 + 4) / 16),
    ],
)
def test_splash_attention_counts_the_blocks_that_it_visits(name, grid, expected):
    """Causal: a triangle of 4 x 4 blocks; a window: two blocks for each of four."""
    text = f"""HloModule m

ENTRY %main (p: s8[{grid}]) -> bf16[6,256,32] {{
  %next = s8[{grid}]{{2,1,0}} parameter(0)
  %mask = s8[{grid}]{{2,1,0}} parameter(1)
  %q = bf16[6,256,32]{{2,1,0}} parameter(2)
  %k = bf16[2,256,32]{{2,1,0}} parameter(3)
  ROOT %{name} = bf16[6,256,32]{{2,1,0}} custom-call(%next, %mask, %q, %k, %k), \
custom_call_target="tpu_custom_call", frontend_attributes={{kernel_metadata={{
"xprof_metadata":"of several lines"
}}}}, metadata={{op_name="jit(f)"}}
}}
"""
    program = hlo.parse(text)
    *_, run = program.runs()
    assert costs.flops(program, run) == {'bf16': expected * 2 * 6 * 256 * 256 * 32}
    assert run.instruction.op_name == 'jit(f)'
    assert costs.silent_kernels(program) == []


def test_a_kernel_that_tells_nothing_is_named_and_one_that_tells_is_counted():
    text = """HloModule m

ENTRY %main (x: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8]{1,0} parameter(0)
  %mine.1 = f32[8,8]{1,0} custom-call(%x), custom_call_target="tpu_custom_call"
  ROOT %mine.2 = f32[8,8]{1,0} custom-call(%mine.1), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"cost_estimate":{"flops":"123","bytes_accessed":"9"}}}
}
"""
    program = hlo.parse(text)
    assert costs.silent_kernels(program) == ['mine.1']
    assert costs.all_flops(program) == 123


def test_loops_move_the_slices_that_they_read():
    """Each turn reads one kernel of 7 and x, and writes x: not the whole stack each time."""
    program = parsed(layers, floats(16, 32), floats(7, 32, 32))
    moved = sum(run.times * costs.bytes_moved(program, run) for run in program.runs())
    least = 4 * 7 * (32 * 32 + 2 * 16 * 32)
    assert least <= moved < 4 * least


def test_slices_taken_and_put_within_nested_fusions():
    """One layer of nine is read and written, in place: 2 kB of either."""
    text = """HloModule m

%inner (stack: f32[9,16,32], i: s32[]) -> f32[1,16,32] {
  %stack = f32[9,16,32]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = f32[1,16,32]{2,1,0} dynamic-slice(%stack, %i, %zero, %zero), \
dynamic_slice_sizes={1,16,32}
}

%outer (stack: f32[9,16,32], i: s32[]) -> f32[9,16,32] {
  %stack = f32[9,16,32]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %layer = f32[1,16,32]{2,1,0} fusion(%stack, %i), kind=kLoop, calls=%inner
  %twice = f32[1,16,32]{2,1,0} add(%layer, %layer)
  ROOT %put = f32[9,16,32]{2,1,0} dynamic-update-slice(%stack, %twice, %i, %zero, %zero)
}

ENTRY %main (stack: f32[9,16,32], i: s32[]) -> f32[9,16,32] {
  %stack = f32[9,16,32]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %f = f32[9,16,32]{2,1,0} fusion(%stack, %i), kind=kLoop, calls=%outer
}
"""
    program = hlo.parse(text)
    *_, run = program.runs()
    assert costs.bytes_moved(program, run) == 2 * 4 * 16 * 32 + 4  # and the index


def test_a_fusion_that_ends_in_a_reduction_of_pairs_writes_both():
    """As an argmax does: values and their places."""
    text = """HloModule m

%pair (a: f32[], i: s32[], b: f32[], j: s32[]) -> (f32[], s32[]) {
  %a = f32[] parameter(0)
  %i = s32[] parameter(1)
  %b = f32[] parameter(2)
  %j = s32[] parameter(3)
  ROOT %t = (f32[], s32[]) tuple(%a, %i)
}

%body (x: f32[8,64]) -> (f32[8], s32[8]) {
  %x = f32[8,64]{1,0} parameter(0)
  %places = s32[8,64]{1,0} iota(), iota_dimension=1
  %zero = f32[] constant(0)
  %first = s32[] constant(0)
  ROOT %r = (f32[8]{0}, s32[8]{0}) reduce(%x, %places, %zero, %first), dimensions={1}, \
to_apply=%pair
}

ENTRY %main (x: f32[8,64]) -> (f32[8], s32[8]) {
  %x = f32[8,64]{1,0} parameter(0)
  ROOT %f = (f32[8]{0}, s32[8]{0}) fusion(%x), kind=kLoop, calls=%body
}
"""
    program = hlo.parse(text)
    [run] = [run for run in program.runs() if run.instruction.opcode == 'fusion']
    assert costs.bytes_moved(program, run) == 4 * 8 * 64 + 2 * 4 * 8


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('bf16[2,3]{1,0}', [12]),
        ('f32[]', [4]),
        ('(s4[3], pred[5]{0:T(512)})', [2, 5]),
        ('f8e4m3fn[10,10]', [100]),
    ],
)
def test_sizes_of_arrays(text, expected):
    assert [array.bytes for array in hlo.arrays(text)] == expected


def test_flops_agree_with_xla_where_there_is_no_loop():
    def network(x, a, b):
        return jnp.tanh(x @ a) @ b

    shapes = floats(64, 128), floats(128, 256), floats(256, 32)
    compiled = jax.jit(network).lower(*shapes).compile()
    ours = costs.all_flops(hlo.parse(compiled.as_text()))
    # XLA adds one for each element-wise operation.
    np.testing.assert_allclose(ours, compiled.cost_analysis()['flops'], rtol=0.01)
