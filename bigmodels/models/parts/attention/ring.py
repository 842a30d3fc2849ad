"""Ring attention (Liu et al. 2023): each sequence is split over devices, keys and values go round.

Arrays are in the layout of `balanced`, in which causal attention is the same work for each device.

Axes: B batch, L length, H query heads, N key/value heads, G = H / N, K head_dim; inside a device
also R = L / 2n, the length of a half, and X blocks of keys.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from bigmodels import sharding
from bigmodels.models.parts.attention import balanced
from bigmodels.models.parts.attention.scores import (
    bounded,
    empty_sums,
    fold,
    fold_in,
    heads_first,
    products,
    scaled,
    unfold,
    varying_as,
    visible,
    weighted_rows,
    weighted_values,
)

Array = jax.Array
BLOCK = 512  # keys whose scores are held at a time


def ring_attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    causal: bool = True,
    window: int | None = None,
    segment_ids: Array | None = None,
    softcap: float | None = None,
) -> Array:
    """`attention.attend` of arrays in the balanced layout; needs `jax.set_mesh`.

    A device holds its own L / n positions and, in turn, the keys and values of each other device,
    of which it takes at most BLOCK at a time (a divisor of L / 2n): memory is linear in L / n.
    The backward pass sends keys and values round again, with their gradients. Rows are split over
    the batch axes and heads over `tensor` if B and N divide by them; otherwise every device along
    those axes computes all of them.

    Args:
      query: [B, L, H, K].
      key, value: [B, L, N, K]; H must be a multiple of N.
      causal, window, softcap: as in `attention.attend`, of positions in natural order.
      segment_ids: [B, L], in the balanced layout.

    Returns:
      [B, L, H, K] in query's dtype and the balanced layout.

    Raises:
      UserError: if L does not divide by twice the devices along `sequence`.
    """
    balanced.check_length(query.shape[1], sharding.axis_size('sequence'))
    return _ring(scaled(query), key, value, segment_ids, _Options(causal, window, softcap))


class _Options(NamedTuple):
    causal: bool
    window: int | None
    softcap: float | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _ring(query, key, value, segment_ids, options):
    return _ring_forward(query, key, value, segment_ids, options)[0]


def _ring_forward(query, key, value, segment_ids, options):
    """The output, and what the backward pass needs: inputs, output, log of the softmax's sum."""
    heads, rows, sums = _specs(key.shape)
    out, log_total = balanced.on_devices(
        functools.partial(_forward_on_device, options=options),
        (heads, heads, heads, rows),
        (heads, sums),
    )(query, key, value, segment_ids)
    return out, (query, key, value, segment_ids, out, log_total)


def _ring_backward(options, residuals, out_grad):
    heads, rows, sums = _specs(residuals[1].shape)
    grads = balanced.on_devices(
        functools.partial(_backward_on_device, options=options),
        (heads, heads, heads, rows, heads, sums, heads),
        (heads, heads, heads),
    )(*residuals, out_grad)
    return *grads, None


_ring.defvjp(_ring_forward, _ring_backward)


def _specs(key_shape: tuple[int, ...]) -> tuple[PartitionSpec, PartitionSpec, PartitionSpec]:
    """The placement of [B, L, H, K], of [B, L] and of [B, N, G, L]."""
    rows = balanced.row_axes(key_shape[0])
    heads = balanced.head_axis(key_shape[2])
    return (
        PartitionSpec(rows, 'sequence', heads),
        PartitionSpec(rows, 'sequence'),
        PartitionSpec(rows, heads, None, 'sequence'),
    )


class _Queries(NamedTuple):
    """One device's queries, every field with its two halves first."""

    query: Array  # [2, B, N, G, R, K]
    slots: Array  # [2, R]: positions in natural order
    segments: Array | None  # [2, B, R]


class _Keys(NamedTuple):
    """One device's keys, every field with its two halves first."""

    key: Array  # [2, B, N, R, K]
    value: Array
    segments: Array | None  # [2, B, R]
    slots: Array  # [2, R]


def _forward_on_device(query, key, value, segment_ids, *, options):
    queries, block = _halved(query, key, value, segment_ids)

    def step(sums, block, back, own=False):
        keys = _Keys(*block, balanced.slots(back, query.shape[1]))
        for row, column, causal in _pairs(queries, keys, own, options):
            folded = _fold_in_half(
                _at(sums, row), _at(queries, row), _at(keys, column), causal, options
            )
            sums = _put(sums, folded, row)
        return sums

    sums = step(empty_sums(queries.query), block, 0, own=True)
    total, peak, out = _go_round(step, sums, block)
    out = unfold(balanced.joined(out / total[..., None], 3)).astype(query.dtype)
    return out, balanced.joined(peak + jnp.log(total), 3)


def _backward_on_device(query, key, value, segment_ids, out, log_total, out_grad, *, options):
    queries, block = _halved(query, key, value, segment_ids)
    out_grads = balanced.cut(fold(out_grad, key.shape[2]), 3, 2)
    # The part of the softmax's derivative that is the same for all keys of a row.
    shared = (out.astype(jnp.float32) * out_grad).sum(-1)  # [B, L, H]
    shared = balanced.cut(fold(shared[..., None], key.shape[2])[..., 0], 3, 2)
    of_rows = queries, out_grads, balanced.cut(log_total, 3, 2), shared

    def step(grads, block, back, own=False):
        query_grads, key_grads = grads
        if not own:
            # The gradients travel with their keys, one step behind, while new ones are computed.
            key_grads = _sent_on(key_grads)
        keys = _Keys(*block, balanced.slots(back, query.shape[1]))
        for row, column, causal in _pairs(queries, keys, own, options):
            new = _half_grads(*_at(of_rows, row), _at(keys, column), causal, options)
            query_grads = _add(query_grads, new[0], row)
            key_grads = _add(key_grads, new[1:], column)
        return query_grads, key_grads

    zeros = lambda x: varying_as(jnp.zeros(x.shape), x)
    grads = zeros(queries.query), (zeros(block[0]), zeros(block[1]))
    grads = _go_round(step, step(grads, block, 0, own=True), block)
    query_grad, key_grads = grads
    key_grad, value_grad = _sent_on(key_grads)  # from the last device back to their own
    return (
        unfold(balanced.joined(query_grad, 3)).astype(query.dtype),
        heads_first(balanced.joined(key_grad, 2)).astype(key.dtype),
        heads_first(balanced.joined(value_grad, 2)).astype(value.dtype),
    )


def _halved(query, key, value, segment_ids) -> tuple[_Queries, tuple]:
    """A device's queries, and (key, value, segments) to go round."""
    segments = None if segment_ids is None else balanced.cut(segment_ids, 1, 2)
    queries = balanced.cut(fold(query, key.shape[2]), 3, 2)
    block = (balanced.cut(heads_first(key), 2, 2), balanced.cut(heads_first(value), 2, 2), segments)
    return _Queries(queries, balanced.slots(0, query.shape[1]), segments), block


def _pairs(queries: _Queries, keys: _Keys, own: bool, options: _Options) -> list[tuple]:
    """(query half, key half, whether some of these keys are later) of all that see any.

    Under causality a query half sees none of the keys of later halves. That leaves, of the four
    pairs, two for any two devices: this is the balance.
    """
    if not options.causal:
        return [(row, column, False) for row in (0, 1) for column in (0, 1)]
    if own:
        return [(0, 0, True), (1, 0, False), (1, 1, True)]
    earlier = keys.slots[0, 0] < queries.slots[0, 0]
    same = jnp.where(earlier, 0, 1)  # both earlier halves, or both later ones
    return [(1, 0, False), (same, same, False)]


def _go_round(step: Callable, carry: Any, block: Any) -> Any:
    """carry = step(carry, block of the device `back` before, back) for back = 1 .. n - 1.

    Each next block is asked for before the current one is used: neither waits for the other.
    """
    size = sharding.axis_size('sequence')
    if size == 1:
        return carry

    def one_step(state, back):
        carry, block = state
        following = _sent_on(block)
        return (step(carry, block, back), following), None

    (carry, block), _ = jax.lax.scan(one_step, (carry, _sent_on(block)), jnp.arange(1, size - 1))
    return step(carry, block, size - 1)  # outside of the loop: nothing follows it


def _sent_on(block: Any) -> Any:
    size = sharding.axis_size('sequence')
    ring = [(i, (i + 1) % size) for i in range(size)]
    return jax.lax.ppermute(block, 'sequence', ring) if size > 1 else block


def _fold_in_half(sums, queries: _Queries, keys: _Keys, causal: bool, options: _Options):
    """The online softmax's sums with one more half of keys."""

    def one_block(sums, keys):
        scores = _scores(products(queries.query, keys.key), queries, keys, causal, options)
        return fold_in(sums, scores, keys.value), None

    return jax.lax.scan(one_block, sums, _blocks(keys))[0]


def _half_grads(
    queries: _Queries, out_grad, log_total, shared, keys: _Keys, causal: bool, options: _Options
) -> tuple[Array, Array, Array]:
    """float32 gradients of the query, key and value of a pair of halves."""

    def one_block(query_grad, keys):
        scores, pull = jax.vjp(
            lambda raw: _scores(raw, queries, keys, causal, options),
            products(queries.query, keys.key),
        )
        weights = jnp.exp(scores - log_total[..., None])
        [grad] = pull(weights * (products(out_grad, keys.value) - shared[..., None]))
        query_grad += weighted_values(grad, keys.key)
        return query_grad, (weighted_rows(grad, queries.query), weighted_rows(weights, out_grad))

    start = varying_as(jnp.zeros(queries.query.shape), queries.query)
    query_grad, grads = jax.lax.scan(one_block, start, _blocks(keys))
    return query_grad, *(balanced.joined(grad, 2) for grad in grads)


def _scores(raw: Array, queries: _Queries, keys: _Keys, causal: bool, options: _Options) -> Array:
    """Soft-capped, masked scores [B, N, G, R, S] of half the queries and a block of keys."""
    mask = visible(
        queries.slots,
        keys.slots,
        causal=causal,
        window=options.window,
        segment_ids=None,
        query_slots=None,
    )
    if queries.segments is not None:
        same = queries.segments[:, :, None] == keys.segments[:, None]
        mask = same if mask is None else mask & same
    return bounded(raw, mask, options.softcap)


def _blocks(keys: _Keys) -> _Keys:
    """A half of keys in the fewest equal blocks of at most BLOCK, stacked along a first axis."""
    length = len(keys.slots)
    count = next(count for count in range(-(-length // BLOCK), length + 1) if not length % count)
    axes = _Keys(key=2, value=2, segments=None if keys.segments is None else 1, slots=0)
    return jax.tree.map(lambda x, axis: balanced.cut(x, axis, count), keys, axes)


def _at(halves: Any, half: Array | int) -> Any:
    """One half of each array of a tree."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, half, 0, keepdims=False), halves)


def _put(halves: Any, new: Any, half: Array | int) -> Any:
    """A tree of halves with one of them replaced."""
    return jax.tree.map(
        lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, half, 0), halves, new
    )


def _add(halves: Any, new: Any, half: Array | int) -> Any:
    """A tree of halves with something added to one of them."""
    return _put(halves, jax.tree.map(jnp.add, _at(halves, half), new), half)
