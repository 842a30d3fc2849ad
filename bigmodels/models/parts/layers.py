"""The mathematics that every model shares, as functions over arrays, and `Linear`.

Axes: B batch, L length, D embed, H heads, K head_dim, F mlp or output features.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

from bigmodels import config, sharding
from bigmodels.models.parts import kernels

Array = jax.Array
# What remat may keep of a projection, see `jax.checkpoint_policies.save_only_these_names`.
PRODUCT = 'product'
Dtype = Literal['float32', 'bfloat16', 'float16']


# A float32 parameter [D, F], or what is put in its place.
AnyKernel = Array | kernels.STAND_INS


def matmul(x: Array, kernel: AnyKernel, out_dtype=None) -> Array:
    """x [..., D] @ kernel [D, F] -> [..., F], accumulated in float32, in out_dtype or x's dtype.

    Remat may keep it by the name PRODUCT.
    """
    out_dtype = jnp.dtype(out_dtype or x.dtype)
    if isinstance(kernel, kernels.Adapted):
        return _adapted_matmul(x, kernel, out_dtype)
    if isinstance(kernel, kernels.Rounded):
        return _rounded_matmul(x, kernel, out_dtype)
    if isinstance(kernel, kernels.Observed):
        return matmul(kernels.seen(x, kernel.probe), kernel.multiplied, out_dtype)
    if isinstance(kernel, kernels.Kernel):
        product = kernels.multiply(x.reshape(-1, x.shape[-1]), kernel)
        return product.reshape(*x.shape[:-1], -1).astype(out_dtype)
    if x.dtype == jnp.float32:
        product = (_rows(x) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1]).astype(out_dtype)
    else:
        product = _low_precision_matmul(x, kernel, out_dtype)
    return checkpoint_name(product, PRODUCT)


def _adapted_matmul(x: Array, adapted: kernels.Adapted, out_dtype) -> Array:
    """x [..., D] by an adapted kernel -> [..., F]: two thin products beside that of the kernel.

    So the kernel has no gradient, and its sum with the adapter is never in memory. Where each row
    has an adapter of its own, a narrow kernel is multiplied as it is for decoding.
    """
    kernel, is_shared = adapted.kernel, adapted.down.ndim == 2
    if isinstance(kernel, kernels.Kernel) and is_shared:
        # The backward pass widens it again: what is kept of a quantised kernel is the kernel.
        product = jax.checkpoint(lambda x: matmul(x, kernels.widened(kernel), out_dtype))(x)
    else:
        product = matmul(x, kernel, out_dtype)
    if is_shared:
        added = matmul(matmul(x, adapted.down), adapted.up, jnp.float32)
    else:
        rows = x.reshape(len(x), -1, x.shape[-1])
        added = rows @ adapted.down.astype(x.dtype) @ adapted.up.astype(x.dtype)
        added = added.reshape(product.shape).astype(jnp.float32)
    return (product.astype(jnp.float32) + adapted.scale * added).astype(out_dtype)


def _rounded_matmul(x: Array, rounded: kernels.Rounded, out_dtype) -> Array:
    """x [..., D], rounded to int8, by a kernel -> [..., F]; by int8 products on accelerators."""
    kernel = rounded.multiplied
    whole, scale = rounded.whole(x)
    integers = isinstance(kernel, kernels.Kernel) and kernel.values.dtype == jnp.int8
    if integers and kernel.scales.shape[1] == 1 and sharding.platform() != 'cpu':
        product = kernels.whole_product(whole.reshape(-1, x.shape[-1]), kernel)
        product = product.reshape(*x.shape[:-1], -1)
    else:  # whole numbers up to 127 lose nothing in any type
        product = matmul(whole.astype(x.dtype), kernel, jnp.float32)
    return (product * scale).astype(out_dtype)


def _rows(x: Array) -> Array:
    """x [..., D] -> [B, D], which XLA's CPU backend multiplies two to three times faster.

    But not where the mesh splits x along two dimensions: folded it would have to be gathered.
    """
    return x.reshape(-1, x.shape[-1]) if sharding.axis_size('sequence') == 1 else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _low_precision_matmul(x: Array, kernel: Array, out_dtype) -> Array:
    """x [..., D] @ kernel [D, F] -> [..., F]; operands in x's dtype in the backward pass too.

    Plain differentiation would multiply a float32 cotangent with a low-precision operand, which
    XLA answers by widening both; here all three products keep narrow operands and wide sums, and
    the kernel's gradient stays in float32.
    """
    product = _dot(_rows(x), rows_first(kernel.astype(x.dtype)), out_dtype)
    return product.reshape(*x.shape[:-1], kernel.shape[-1])


def _low_precision_forward(x, kernel, out_dtype):
    return _low_precision_matmul(x, kernel, out_dtype), (x, kernel)


def _low_precision_backward(_, residuals, g):
    given, kernel = residuals
    x, g = _rows(given), _rows(g.astype(given.dtype))
    dx = _dot(g, transposed(kernel.astype(x.dtype)), x.dtype)
    if x.ndim == 2:
        dkernel = rows_first(_dot(transposed(x), g, jnp.float32))
    else:
        rows = tuple(range(x.ndim - 1))
        dkernel = jax.lax.dot_general(
            x, g, ((rows, rows), ((), ())), preferred_element_type=jnp.float32
        )
    return dx.reshape(given.shape), dkernel.astype(kernel.dtype)


def _dot(a, b, out_dtype):
    """Summed in float32; on GPUs rounded at once, as a rounding apart is one more pass.

    But not where the mesh splits what is summed: the parts' sums would be added rounded.
    """
    at_once = sharding.on_gpu() and sharding.axis_size('tensor') == 1
    wide = out_dtype if at_once else jnp.float32
    return jnp.matmul(a, b, preferred_element_type=wide).astype(out_dtype)


def transposed(x: Array) -> Array:
    """x [A, B] -> [B, A], in low precision and on CPUs as a copy.

    XLA's fast products there take no transposed operands: without the copy they are half as fast.
    """
    return x.T if x.dtype == jnp.float32 else rows_first(rows_first(x).T)


def rows_first(x: Array) -> Array:
    """x [A, B], on one CPU device in row-major order, and a transpose of it not folded into it.

    XLA's CPU backend (JAX 0.10) cannot run the products that folding gives in low precision:
    "Unsupported element type for DotThunk". Its partitioner gathers what is so constrained, so on
    several devices x is left as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        return x
    layout = Layout(major_to_minor=(0, 1))
    return jax.lax.platform_dependent(
        x, cpu=lambda x: with_layout_constraint(x, layout), default=lambda x: x
    )


_low_precision_matmul.defvjp(_low_precision_forward, _low_precision_backward)


def add_bias(x: Array, bias: Array) -> Array:
    """x [..., F] + bias [F] in x's dtype, added in float32.

    So the bias' gradient is a sum in float32 too, which XLA's CPU backend takes many times faster.
    """
    return (x.astype(jnp.float32) + bias).astype(x.dtype)


def layer_norm(x: Array, scale: Array, bias: Array | None, epsilon: float) -> Array:
    """Layer normalisation over the last axis (Ba et al. 2016), in float32, back in x's dtype."""
    return _normalised(x, scale, bias, epsilon, True)


def rms_norm(x: Array, scale: Array | None, epsilon: float) -> Array:
    """Root-mean-square normalisation over the last axis (Zhang and Sennrich 2019), in float32."""
    return _normalised(x, scale, None, epsilon, False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalised(x, scale, bias, epsilon, centred):
    """x [..., D], `centred` at 0 or not, at a root mean square of 1, times scale, plus bias.

    Plain differentiation would keep several float32 arrays as large as x for the backward pass;
    here it keeps x and two numbers of each row.
    """
    return _norm_forward(x, scale, bias, epsilon, centred)[0]


def _norm_forward(x, scale, bias, epsilon, centred):
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True) if centred else jnp.zeros((), jnp.float32)
    wide -= mean
    inverse = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + epsilon)
    y = wide * inverse
    y = y if scale is None else y * scale
    y = y if bias is None else y + bias
    return y.astype(x.dtype), (x, scale, bias, mean, inverse)


def _norm_backward(epsilon, centred, residuals, g):
    x, scale, bias, mean, inverse = residuals
    normal = (x.astype(jnp.float32) - mean) * inverse
    g = g.astype(jnp.float32)
    rows = tuple(range(x.ndim - 1))
    d_scale = None if scale is None else (g * normal).sum(rows).astype(scale.dtype)
    d_bias = None if bias is None else g.sum(rows).astype(bias.dtype)
    g = g if scale is None else g * scale
    dx = g - normal * (g * normal).mean(-1, keepdims=True)
    dx = dx - g.mean(-1, keepdims=True) if centred else dx
    return (dx * inverse).astype(x.dtype), d_scale, d_bias


_normalised.defvjp(_norm_forward, _norm_backward)


def rotary_frequencies(
    head_dim: int, theta: float, scaling: Mapping[str, Any] | None = None
) -> tuple[np.ndarray, float]:
    """The angles per position of rotary embedding (Su et al. 2021), and how long it makes vectors.

    `scaling` stretches them for longer contexts: a name of ROTARY_SCALINGS and its arguments.

    Returns:
      (float32 [K/2], the length of what was of length 1), for `rotate`.
    """
    frequencies, length = theta ** -(np.arange(0, head_dim, 2) / head_dim), 1.0
    if scaling is not None:
        frequencies, length = config.choose(
            ROTARY_SCALINGS, scaling, 'model.rotary_scaling', frequencies=frequencies
        )
    return frequencies.astype(np.float32), length


def _linear_scaling(frequencies: np.ndarray, factor: float) -> tuple[np.ndarray, float]:
    """All positions divided by the factor (Chen et al. 2023)."""
    return frequencies / factor, 1.0


def _llama3_scaling(
    frequencies: np.ndarray,
    factor: float,
    low_frequency_factor: float,
    high_frequency_factor: float,
    original_length: int,
) -> tuple[np.ndarray, float]:
    """Slow angles divided by the factor, fast ones kept, a blend between (Llama 3's own code)."""
    turns = original_length * frequencies / (2 * np.pi)
    share = (turns - low_frequency_factor) / (high_frequency_factor - low_frequency_factor)
    share = np.clip(share, 0, 1)
    return share * frequencies + (1 - share) * frequencies / factor, 1.0


def _yarn_scaling(
    frequencies: np.ndarray,
    factor: float,
    original_length: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    length: float | None = None,
) -> tuple[np.ndarray, float]:
    """YaRN (Peng et al. 2023, section 3): as Llama 3's, the blend linear in an angle's number.

    Args:
      beta_fast, beta_slow: angles that turn so often in the original length begin to be stretched,
        and are wholly stretched.
      truncate: the blend begins and ends at whole numbers, as in the authors' code.
      length: of vectors, by default 0.1 ln(factor) + 1 (equation 22): it sharpens attention.
    """
    head_dim = 2 * len(frequencies)
    step = -np.log(frequencies[1])  # each frequency is the one before it, times exp(-step)
    first, last = (
        np.log(original_length / (2 * np.pi * turns)) / step for turns in (beta_fast, beta_slow)
    )
    if truncate:
        first, last = np.floor(first), np.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    numbers = np.arange(len(frequencies))
    stretched = np.clip((numbers - first) / max(last - first, 0.001), 0, 1)
    if length is None:
        length = 0.1 * np.log(max(factor, 1)) + 1
    return (1 - stretched) * frequencies + stretched * frequencies / factor, float(length)


ROTARY_SCALINGS = {'linear': _linear_scaling, 'llama3': _llama3_scaling, 'yarn': _yarn_scaling}


def rotate(x: Array, positions: Array, frequencies: Array, length: float = 1.0) -> Array:
    """Rotary embedding of x [B, L, H, K] at positions [B, L] or [1, L], in float32.

    The two halves of K are the coordinates of the rotated pairs, as in Llama's converted weights.
    Vectors become `length` times as long, see `rotary_frequencies`.
    """
    angles = positions[..., None].astype(jnp.float32) * frequencies  # [B, L, K/2]
    sin, cos = (length * turn(angles)[:, :, None] for turn in (jnp.sin, jnp.cos))
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def soft_cap(x: Array, cap: float | None) -> Array:
    """cap * tanh(x / cap), in float32: bounds logits smoothly (Gemma 2); x where cap is None."""
    return x if cap is None else (cap * jnp.tanh(x.astype(jnp.float32) / cap)).astype(x.dtype)


def kernel_of(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...]) -> AnyKernel:
    """A module's float32 parameter [D, F] or [K, K, C, F], or what is put in its place."""
    kernel = module.get_variable('params', name)
    # Not by `param`, which compares the shape: a `Kernel` lies transposed.
    if isinstance(kernel, kernels.STAND_INS):
        return kernel
    return module.param(name, init, shape, jnp.float32)


def rounded_inputs(x: Array, kernel: AnyKernel) -> tuple[Array, Array]:
    """Of a product that is not `matmul`: its inputs, rounded if they are to be, and an array."""
    if isinstance(kernel, kernels.Rounded):
        whole, scale = kernel.whole(x)
        x, kernel = (whole * scale).astype(x.dtype), kernel.multiplied
    if isinstance(kernel, kernels.Observed):
        x, kernel = kernels.seen(x, kernel.probe), kernel.multiplied
    return x, kernels.widened(kernel) if isinstance(kernel, kernels.Kernel) else kernel


class Linear(nn.Module):
    """x [..., D] -> [..., features] in x's dtype, by a two-dimensional float32 kernel."""

    features: int
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if x.ndim == 2:
            # Where a mesh splits rows and features both, XLA's partitioner gives wrong gradients if
            # there are as many of the one as of the other: features are gathered.
            x = sharding.constrain(x, (sharding.BATCH_AXES,))
        kernel = kernel_of(self, 'kernel', self.kernel_init, (x.shape[-1], self.features))
        y = matmul(x, kernel)
        if self.use_bias:
            bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
            y = add_bias(y, bias)
        return y


class Embed(nn.Embed):
    """A table of embeddings [V, D], an array or a `Kernel`; ids [B, L] -> float32 [B, L, D].

    `rows` is the mesh axis that the table's rows are split over. Its columns are gathered first:
    otherwise XLA looks up a part of them for all positions and gathers that.
    """

    def __call__(self, inputs: Array, rows: str | None = None) -> Array:
        if isinstance(self.embedding, kernels.Kernel):
            return self.embedding.rows(inputs)
        table = sharding.constrain(self.embedding, (rows, None))
        return jnp.take(table, inputs, axis=0).astype(jnp.float32)


class Norm(nn.Module):
    """`layer_norm` or `rms_norm` with learned scale [D] and, for the former, bias [D].

    The parameter `scale` is the scale less `offset`; it begins at 1 - offset.
    """

    kind: str
    epsilon: float
    use_bias: bool = True
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape, init = x.shape[-1:], nn.initializers.constant(1 - self.offset)
        scale = self.param('scale', init, shape, jnp.float32)
        scale = scale + self.offset if self.offset else scale
        if self.kind == 'rms_norm':
            return rms_norm(x, scale, self.epsilon)
        bias = self.param('bias', nn.initializers.zeros, shape) if self.use_bias else None
        return layer_norm(x, scale, bias, self.epsilon)
