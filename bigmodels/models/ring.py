"""Ring attention: each sequence is split over devices, and keys and values go round.

Ring attention is of Liu et al. 2023. The balanced layout, in which every device has as much of
causal attention to compute, is that of Llama 3 (section 3.3.2): of the 2n half-chunks of a
sequence over n devices, device i holds halves i and 2n - 1 - i.

Axes: B batch, L length, H query heads, N key/value heads, G = H / N, K head_dim; inside a device
also R = L / 2n, the length of a half, and X blocks of keys.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from bigmodels import errors, sharding
from bigmodels.models.scores import (
    bounded,
    empty_sums,
    fold,
    fold_in,
    heads_first,
    products,
    scaled,
    unfold,
    visible,
    weighted_rows,
    weighted_values,
)

Array = jax.Array
BLOCK = 512  # keys whose scores are held at a time
# Named one by one: the axis `stage` may be that of a shard_map around this one.
_MANUAL_AXES = frozenset({*sharding.BATCH_AXES, 'sequence', 'tensor'})


def to_balanced(x: Array) -> Array:
    """x [B, L, ...] in natural order -> in the balanced layout, L split over `sequence`.

    Each device sends its two halves directly to where they belong. Differentiable; the inverse is
    `from_balanced`.

    Raises:
      UserError: if L does not divide by twice the devices along `sequence`.
    """
    return _exchange(x, lambda halves, odd: _swapped(_permuted(halves, _routes()), odd))


def from_balanced(x: Array) -> Array:
    """x [B, L, ...] in the balanced layout -> in natural order; see `to_balanced`."""
    back = [[(target, source) for source, target in route] for route in _routes()]
    return _exchange(x, lambda halves, odd: _permuted(_swapped(halves, odd), back))


def check_length(length: int, num_devices: int) -> None:
    """Raises UserError if a sequence does not split into two halves for each device."""
    if length % (2 * num_devices):
        raise errors.UserError(
            f'A sequence of {length} tokens does not split into two equal parts for each of the '
            f'{num_devices} devices of the mesh axis sequence: its length must be a multiple of '
            f'{2 * num_devices}.'
        )


def _exchange(x: Array, local: Callable) -> Array:
    """local([2, B, R, ...], whether the device's index is odd) on each device's halves."""
    size = sharding.axis_size('sequence')
    check_length(x.shape[1], size)
    if size == 1:
        return x

    def on_device(x, index):
        return _joined(local(_parts(x, 1, 2), index[0] % 2 == 1), 1)

    placed = PartitionSpec(_row_axes(len(x)), 'sequence')
    return jax.shard_map(
        on_device,
        in_specs=(placed, PartitionSpec('sequence')),
        out_specs=placed,
        axis_names=_MANUAL_AXES,
    )(x, jnp.arange(size))


def _routes() -> list[list[tuple[int, int]]]:
    """Where each device's even and odd half go.

    In natural order device d holds halves 2d and 2d + 1, in the balanced layout one of either
    kind too: so two permutations of the devices move everything.
    """
    size = sharding.axis_size('sequence')
    owner = lambda half: min(half, 2 * size - 1 - half)
    return [[(d, owner(2 * d + parity)) for d in range(size)] for parity in (0, 1)]


def _permuted(halves: Array, routes: list[list[tuple[int, int]]]) -> Array:
    return jnp.stack(
        [
            jax.lax.ppermute(half, 'sequence', route)
            for half, route in zip(halves, routes, strict=True)
        ]
    )


def _swapped(halves: Array, odd: Array) -> Array:
    """(even half, odd half) <-> (earlier, later): device i's earlier half is half i."""
    return jnp.where(odd, halves[::-1], halves)


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
    check_length(query.shape[1], sharding.axis_size('sequence'))
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
    out, log_total = _on_devices(
        functools.partial(_forward_on_device, options=options),
        (heads, heads, heads, rows),
        (heads, sums),
    )(query, key, value, segment_ids)
    return out, (query, key, value, segment_ids, out, log_total)


def _ring_backward(options, residuals, out_grad):
    heads, rows, sums = _specs(residuals[1].shape)
    grads = _on_devices(
        functools.partial(_backward_on_device, options=options),
        (heads, heads, heads, rows, heads, sums, heads),
        (heads, heads, heads),
    )(*residuals, out_grad)
    return *grads, None


_ring.defvjp(_ring_forward, _ring_backward)


def _on_devices(local: Callable, in_specs: tuple, out_specs: tuple) -> Callable:
    """local(*arrays, index of the device along `sequence`), on each device's part of arrays.

    The index comes as data: `axis_index` is not there in a shard_map over only some axes.
    """
    mapped = jax.shard_map(
        lambda index, *arrays: local(*arrays, index=index[0]),
        in_specs=(PartitionSpec('sequence'), *in_specs),
        out_specs=out_specs,
        axis_names=_MANUAL_AXES,
        check_vma=False,  # never differentiated, and its loops start from constants
    )
    return lambda *arrays: mapped(jnp.arange(sharding.axis_size('sequence')), *arrays)


def _specs(key_shape: tuple[int, ...]) -> tuple[PartitionSpec, PartitionSpec, PartitionSpec]:
    """The placement of [B, L, H, K], of [B, L] and of [B, N, G, L]."""
    rows = _row_axes(key_shape[0])
    heads = None if key_shape[2] % sharding.axis_size('tensor') else 'tensor'
    return (
        PartitionSpec(rows, 'sequence', heads),
        PartitionSpec(rows, 'sequence'),
        PartitionSpec(rows, heads, None, 'sequence'),
    )


def _row_axes(num_rows: int) -> tuple[str, ...] | None:
    """The axes over which a leading dimension is split: none where it does not divide."""
    num_shards = sharding.num_batch_shards(jax.sharding.get_abstract_mesh())
    return None if num_rows % num_shards else sharding.BATCH_AXES


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


def _forward_on_device(query, key, value, segment_ids, *, index, options):
    queries, block = _halved(query, key, value, segment_ids, index)

    def step(sums, block, back, own=False):
        keys = _Keys(*block, _slots(index - back, query.shape[1]))
        for row, column, causal in _pairs(queries, keys, own, options):
            folded = _fold_in_half(
                _at(sums, row), _at(queries, row), _at(keys, column), causal, options
            )
            sums = _put(sums, folded, row)
        return sums

    sums = step(empty_sums(queries.query), block, 0, own=True)
    total, peak, out = _go_round(step, sums, block)
    out = unfold(_joined(out / total[..., None], 3)).astype(query.dtype)
    return out, _joined(peak + jnp.log(total), 3)


def _backward_on_device(
    query, key, value, segment_ids, out, log_total, out_grad, *, index, options
):
    queries, block = _halved(query, key, value, segment_ids, index)
    out_grads = _parts(fold(out_grad, key.shape[2]), 3, 2)
    # The part of the softmax's derivative that is the same for all keys of a row.
    shared = (out.astype(jnp.float32) * out_grad).sum(-1)  # [B, L, H]
    shared = _parts(fold(shared[..., None], key.shape[2])[..., 0], 3, 2)
    of_rows = queries, out_grads, _parts(log_total, 3, 2), shared

    def step(grads, block, back, own=False):
        query_grads, key_grads = grads
        if not own:
            # The gradients travel with their keys, one step behind, while new ones are computed.
            key_grads = _sent_on(key_grads)
        keys = _Keys(*block, _slots(index - back, query.shape[1]))
        for row, column, causal in _pairs(queries, keys, own, options):
            new = _half_grads(*_at(of_rows, row), _at(keys, column), causal, options)
            query_grads = _add(query_grads, new[0], row)
            key_grads = _add(key_grads, new[1:], column)
        return query_grads, key_grads

    zeros = lambda x: jnp.zeros(x.shape, jnp.float32)
    grads = zeros(queries.query), (zeros(block[0]), zeros(block[1]))
    grads = _go_round(step, step(grads, block, 0, own=True), block)
    query_grad, key_grads = grads
    key_grad, value_grad = _sent_on(key_grads)  # from the last device back to their own
    return (
        unfold(_joined(query_grad, 3)).astype(query.dtype),
        heads_first(_joined(key_grad, 2)).astype(key.dtype),
        heads_first(_joined(value_grad, 2)).astype(value.dtype),
    )


def _halved(query, key, value, segment_ids, index) -> tuple[_Queries, tuple]:
    """A device's queries, and (key, value, segments) to go round."""
    segments = None if segment_ids is None else _parts(segment_ids, 1, 2)
    queries = _parts(fold(query, key.shape[2]), 3, 2)
    block = (_parts(heads_first(key), 2, 2), _parts(heads_first(value), 2, 2), segments)
    return _Queries(queries, _slots(index, query.shape[1]), segments), block


def _slots(index: Array, length: int) -> Array:
    """Positions [2, R] in natural order of the `length` that device `index`, modulo n, holds."""
    size = sharding.axis_size('sequence')
    index = index % size
    halves = jnp.stack([index, 2 * size - 1 - index])
    return halves[:, None] * (length // 2) + jnp.arange(length // 2)


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
            lambda x: _scores(x, queries, keys, causal, options),
            products(queries.query, keys.key),
        )
        weights = jnp.exp(scores - log_total[..., None])
        [grad] = pull(weights * (products(out_grad, keys.value) - shared[..., None]))
        query_grad += weighted_values(grad, keys.key)
        return query_grad, (weighted_rows(grad, queries.query), weighted_rows(weights, out_grad))

    start = jnp.zeros(queries.query.shape, jnp.float32)
    query_grad, grads = jax.lax.scan(one_block, start, _blocks(keys))
    return query_grad, *(_joined(grad, 2) for grad in grads)


def _scores(
    products: Array, queries: _Queries, keys: _Keys, causal: bool, options: _Options
) -> Array:
    """Soft-capped and masked products [B, N, G, R, S] of half the queries and a block of keys."""
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
    return bounded(products, mask, options.softcap)


def _blocks(keys: _Keys) -> _Keys:
    """A half of keys in the fewest equal blocks of at most BLOCK, stacked along a first axis."""
    length = len(keys.slots)
    count = next(count for count in range(-(-length // BLOCK), length + 1) if not length % count)
    axes = _Keys(key=2, value=2, segments=None if keys.segments is None else 1, slots=0)
    return jax.tree.map(lambda x, axis: _parts(x, axis, count), keys, axes)


def _parts(x: Array, axis: int, count: int) -> Array:
    """Cuts an axis into `count` equal parts, stacked along a new first axis."""
    shape = (*x.shape[:axis], count, x.shape[axis] // count, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def _joined(parts: Array, axis: int) -> Array:
    """The inverse of `_parts`."""
    x = jnp.moveaxis(parts, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


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
