"""What may stand in the place of a kernel: a narrow one, an adapted one, one of rounded inputs.

Axes: B rows, D input features, F output features, G groups of D with a scale of their own; of
convolutions, K taps along each side and C channels, D = K * K * C.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
# Up to this many rows a product on a CPU is a reduction rather than a matmul.
THIN = 8


@flax.struct.dataclass
class Kernel:
    """The matrix [D, F] whose transpose is values * scales; an embedding [V, D] as it lies.

    Or a convolution's kernel [K, K, C, F].

    Fields:
      values: [F, D] or [F, K, K, C], of any floating or integer type.
      scales: float32 [F, G], each for D / G neighbouring values; None for 1.
    """

    values: Array
    scales: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        outputs, *inputs = self.values.shape
        return (*inputs, outputs)

    def rows(self, ids: Array) -> Array:
        """The rows `ids` [...] of the transpose: float32 [..., D]."""
        rows = jnp.take(self.values, ids, axis=0).astype(jnp.float32)
        if self.scales is None:
            return rows
        scales = jnp.take(self.scales, ids, axis=0)
        return (_grouped(rows, self.scales) * scales[..., None]).reshape(rows.shape)


@flax.struct.dataclass
class Adapted:
    """kernel + scale * down @ up, which is never added up (LoRA; Hu et al. 2021, section 4.1).

    Fields:
      kernel: [D, F], an array or a `Kernel`.
      down, up: [D, R] and [R, F], the paper's A and B transposed; or [B, D, R] and [B, R, F], for
        each row of a batch its own.
      scale: alpha / R of the paper.
    """

    kernel: Array | Kernel
    down: Array
    up: Array
    scale: float = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Rounded:
    """A kernel whose inputs are rounded to int8 before they are multiplied.

    Gradients go through the rounding as if it were none (Bengio et al. 2013), but not to inputs
    beyond the largest.

    Fields:
      multiplied: the kernel, an array or a `Kernel`.
      scale: float32 [] of all inputs, the largest of them over 127; None for each row's own.
    """

    multiplied: Array | Kernel
    scale: Array | None = None

    def whole(self, x: Array) -> tuple[Array, Array]:
        """x [..., D] as whole numbers from -127 to 127, float32, and their scale [..., 1] or []."""
        wide, scale = x.astype(jnp.float32), self.scale
        if scale is None:
            largest = jax.lax.stop_gradient(jnp.abs(wide).max(-1, keepdims=True))
            scale = jnp.where(largest > 0, largest, 1) / 127
        clipped = jnp.clip(wide / scale, -127, 127)
        return straight_through(clipped, jnp.round(clipped)), scale


@flax.struct.dataclass
class Observed:
    """A kernel whose inputs are measured, see `compress.calibrate`.

    Fields:
      multiplied: the kernel, an array.
      probe: float32 [2]; its gradient is the largest magnitude among the inputs, and 1: both are
        added up where the kernel multiplies several times.
    """

    multiplied: Array
    probe: Array


# What modules may find in the place of a kernel.
STAND_INS = Kernel | Adapted | Rounded | Observed


@jax.custom_vjp
def seen(x: Array, probe: Array) -> Array:
    """x, of which the backward pass gives the largest magnitude and 1 as the probe's gradient."""
    return x


seen.defvjp(
    lambda x, probe: (x, jnp.stack([jnp.abs(x).max().astype(jnp.float32), jnp.float32(1)])),
    lambda found, g: (g, found),
)


def straight_through(x: Array, rounded: Array) -> Array:
    """`rounded`, bit for bit, with the gradient of x (Bengio et al. 2013)."""
    return jax.lax.stop_gradient(rounded) + (x - jax.lax.stop_gradient(x))


def widened(kernel: Kernel) -> Array:
    """The kernel itself: float32 [D, F] or [K, K, C, F]."""
    values, scales = kernel.values.astype(jnp.float32), kernel.scales
    if scales is not None:
        values = (values.reshape(*scales.shape, -1) * scales[..., None]).reshape(values.shape)
    return jnp.moveaxis(values, 0, -1)


def whole_product(x: Array, kernel: Kernel) -> Array:
    """x [B, D] of whole numbers by an int8 kernel, a scale an output -> float32 [B, F], in int32.

    On CPUs XLA multiplies integers many times slower than floats.
    """
    product = jax.lax.dot_general(
        x.astype(jnp.int8),
        kernel.values,
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.int32,
    )
    return product.astype(jnp.float32) * kernel.scales[:, 0]


def multiply(x: Array, kernel: Kernel) -> Array:
    """x [B, D] @ kernel [D, F] -> float32 [B, F], without a gradient."""
    if jax.default_backend() == 'cpu' and len(x) <= THIN:
        return _thin(x, kernel)
    scales = kernel.scales
    if scales is None or scales.shape[1] == 1:
        product = jnp.einsum(
            'bd,fd->bf', x, kernel.values.astype(x.dtype), preferred_element_type=jnp.float32
        )
        return product if scales is None else product * scales[:, 0]
    return jnp.matmul(x, widened(kernel).astype(x.dtype), preferred_element_type=jnp.float32)


def _thin(x: Array, kernel: Kernel) -> Array:
    """`multiply` for few rows on a CPU: one loop over the values, with all sums in registers.

    XLA compiles a matmul to a call that first packs the kernel, which costs more than the product;
    and where it does not, on one thread and with narrow kernels widened in memory. This reduction
    of several operands becomes a loop that widens values in registers; see
    `deploy.decoding.CPU_OPTIONS` for what that takes, experiments/notes_decode.md for figures.
    """
    x = jax.lax.optimization_barrier(x)  # else what x is made of is computed again at every value
    outputs, scales = len(kernel.values), kernel.scales
    in_groups = scales is not None and scales.shape[1] > 1
    split = (lambda a: _grouped(a, scales)) if in_groups else (lambda a: a)
    values, rows = (split(a.astype(jnp.float32)) for a in (kernel.values, x))
    # Two halves of the outputs at once use what is read of x twice, which matters where x outgrows
    # its cache. Of an odd number, both compute the one in the middle.
    half = -(-outputs // 2)
    parts = [values] if len(x) <= 2 else [values[:half], values[-half:]]
    products = tuple(part * row for part in parts for row in rows)
    zeros = (np.float32(0),) * len(products)
    sums = jax.lax.reduce(
        products, zeros, lambda a, b: tuple(map(jax.lax.add, a, b)), (values.ndim - 1,)
    )
    first, *second = (jnp.stack(sums[i : i + len(x)]) for i in range(0, len(sums), len(x)))
    product = jnp.concatenate([first, *(part[:, 2 * half - outputs :] for part in second)], 1)
    if in_groups:
        return (product * scales).sum(-1)
    return product if scales is None else product * scales[:, 0]


def _grouped(x: Array, scales: Array) -> Array:
    """[..., D] -> [..., G, D / G]."""
    return x.reshape(*x.shape[:-1], scales.shape[1], -1)
