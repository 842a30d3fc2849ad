"""Batch normalisation (Ioffe and Szegedy 2015), with its averages as model state.

Axes: B batch, C channels, the last one.
"""

import contextlib
import functools
import math
import re
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels import sharding

Array = jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize_batch(
    x: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[Array, Array, Array]:
    """Each channel of x [B, ..., C] normalised by its mean and variance over all the rest.

    Under jit over a mesh the statistics are those of the global batch; under pmap they are
    averaged over the mapped axis, so both compute the same. Mean and square are summed in one
    pass, in float32.

    Returns:
      scale * (x - mean) / sqrt(variance + epsilon) + bias in x's dtype; and mean and (biased)
      variance, float32 [C], through which no gradient flows.
    """
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x, scale, bias, epsilon):
    wide = x.astype(jnp.float32)
    mean, square = (_channel_sums(values) / _count(x) for values in (wide, wide * wide))
    mean, square = sharding.mapped_mean((mean, square))
    variance = jnp.maximum(square - jnp.square(mean), 0)
    y = apply_affine(x, mean, variance, scale, bias, epsilon)
    return (y, mean, variance), (x, mean, variance, scale)


def _backward(epsilon, residuals, cotangents):
    x, mean, variance, scale = residuals
    g = cotangents[0].astype(jnp.float32)
    inverse = jax.lax.rsqrt(variance + epsilon)
    normal = (x.astype(jnp.float32) - mean) * inverse
    dbias, dscale = _channel_sums(g), _channel_sums(g * normal)
    mean_g, mean_gn = sharding.mapped_mean((dbias / _count(x), dscale / _count(x)))
    dx = (g - mean_g - normal * mean_gn) * (inverse * scale)
    return dx.astype(x.dtype), dscale, dbias


normalize_batch.defvjp(_forward, _backward)


def apply_affine(
    x: Array, mean: Array, variance: Array, scale: Array, bias: Array, epsilon: float
) -> Array:
    """scale * (x - mean) / sqrt(variance + epsilon) + bias, in float32, back in x's dtype."""
    slope = scale * jax.lax.rsqrt(variance + epsilon)
    return (x.astype(jnp.float32) * slope + (bias - mean * slope)).astype(x.dtype)


def _channel_sums(x: Array) -> Array:
    return x.sum(tuple(range(x.ndim - 1)))


def _count(x: Array) -> int:
    return math.prod(x.shape[:-1])


class BatchNorm(nn.Module):
    """x [B, ..., C] normalised by its batch in training, by running averages in evaluation.

    Fields:
      momentum: what the averages keep of themselves at each step. The variance that enters them
        is unbiased, as in the paper.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        shape = x.shape[-1:]
        scale = self.param('scale', self.scale_init, shape, jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, shape, jnp.float32)
        mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
        variance = self.variable('batch_stats', 'variance', jnp.ones, shape)
        if not train:
            return apply_affine(x, mean.value, variance.value, scale, bias, self.epsilon)
        y, batch_mean, batch_variance = normalize_batch(x, scale, bias, self.epsilon)
        if not self.is_initializing():
            count = _count(x) * sharding.mapped_size()
            unbiased = batch_variance * (count / max(count - 1, 1))
            mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
            variance.value = self.momentum * variance.value + (1 - self.momentum) * unbiased
        return y


def frozen(patterns: Sequence[str]) -> contextlib.AbstractContextManager:
    """A context in which each `BatchNorm` whose scale is not trained is applied as in evaluation.

    Else its averages would go on, and a frozen network would not stay as it was.

    Args:
      patterns: regexes of the parameters that are not trained. It decorates functions, too.
    """

    def applied(call, args, kwargs, context):
        module = context.module
        if isinstance(module, BatchNorm) and context.method_name == '__call__':
            name = '/'.join((*module.path, 'scale'))
            if any(re.search(pattern, name) for pattern in patterns):
                return call(args[0], train=False)
        return call(*args, **kwargs)

    return nn.intercept_methods(applied)
