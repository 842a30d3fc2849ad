"""Bringing tokens to the experts that they chose, and what these make of them back.

Two ways: with a capacity, as one batched product over equally many tokens an expert; and for all
tokens, sorted by expert. Both keep every sequence's result apart from the others'.

Axes: B batch, L length, D embed, E experts, C capacity of an expert, k choices of a token, F mlp,
N rows.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from bigmodels import sharding
from bigmodels.models.parts import activations, layers
from bigmodels.models.parts.attention import balanced

Array = jax.Array
# {'up', 'down' and, for gated activations, 'gate': {'kernel': [E, D, F], 'bias': [E, F]}}; 'down'
# is [E, F, D] and [E, D]; of one expert, without E.
Params = Mapping[str, Mapping[str, Array]]


def places(experts: Array, num_experts: int) -> Array:
    """Each choice's place in its expert's queue of one sequence: int [B, L, k] -> int [B, L, k].

    Earlier tokens come first with all their choices. (Were all first choices served before any
    second one, as in GShard, whether a token is dropped would depend on later tokens.) Where the
    mesh splits sequences, and so has them in the layout of `balanced`, earlier is still earlier.
    """
    split = sharding.axis_size('sequence') > 1
    experts = balanced.from_balanced(experts) if split else experts
    # The choices of one token are different experts: at most one place each.
    chosen = jax.nn.one_hot(experts, num_experts, dtype=jnp.int32).sum(2)  # [B, L, E]
    before = jnp.cumsum(chosen, axis=1) - chosen
    queued = jnp.take_along_axis(before, experts, axis=-1)
    return balanced.to_balanced(queued) if split else queued


def apply_with_capacity(
    x: Array, experts: Array, weights: Array, params: Params, capacity: int, activation: str
) -> tuple[Array, Array]:
    """Each expert on the first `capacity` tokens of each sequence that chose it.

    On a mesh each device gathers from its own sequences, an all-to-all brings the tokens to the
    devices of their experts, and another brings them back.

    Args:
      x: [B, L, D].
      experts, weights: [B, L, k], of `route`.

    Returns:
      (the weighted sum of the experts' outputs [B, L, D]; the share of the choices that were
      dropped, float32 [B]).
    """
    b, l, d = x.shape
    num_experts = len(params['up']['kernel'])
    place = places(experts, num_experts)
    # Where sequences are split, so are the slots: hence some more than the capacity.
    width = capacity + -capacity % sharding.axis_size('sequence')
    slots = num_experts * width
    # An index out of range drops what is written there and reads zeros.
    slot = jnp.where(place < capacity, experts * width + place, slots)
    tokens = jnp.broadcast_to(jnp.arange(l)[None, :, None], slot.shape)
    write = jax.vmap(lambda at, new: jnp.full(slots, l).at[at].set(new, mode='drop'))
    read = jax.vmap(lambda row, at: row.at[at].get(mode='fill', fill_value=0))
    whole_rows = functools.partial(sharding.constrain, axes=(sharding.BATCH_AXES,))
    by_row = functools.partial(sharding.constrain, axes=(sharding.BATCH_AXES, None, 'sequence'))
    expert_axis = _fitting('expert', num_experts)
    rest = tuple(axis for axis in sharding.BATCH_AXES if axis != expert_axis)
    by_expert = functools.partial(sharding.constrain, axes=(rest, expert_axis, 'sequence'))

    rows = read(whole_rows(x), write(slot, tokens)).reshape(b, num_experts, width, d)
    one_expert = functools.partial(feed_forward, activation=activation)
    apply = jax.vmap(one_expert, in_axes=(0, 1), out_axes=1)
    out = by_row(by_expert(apply(params, by_expert(by_row(rows)))))
    out = read(whole_rows(out.reshape(b, slots, d)), slot)
    return _weighted_sum(out, weights).astype(x.dtype), (place >= capacity).mean((1, 2))


def apply_dropless(
    x: Array, experts: Array, weights: Array, params: Params, activation: str
) -> Array:
    """Each expert on all tokens that chose it, sorted by expert: [B, L, D] -> [B, L, D].

    On a mesh each device gathers the tokens of those that share its experts with it, applies its
    own experts and hidden units to them, and the sums go back to the tokens' devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    ids = jnp.arange(len(params['up']['kernel']))
    if mesh.empty or set(sharding.AXES) - set(mesh.axis_names):
        return _apply_sorted(x, experts, weights, ids, params, activation=activation)
    expert_axis = _fitting('expert', len(ids))
    hidden_axis = _fitting('tensor', params['up']['kernel'].shape[-1])
    axes = {'up': (None, hidden_axis), 'gate': (None, hidden_axis), 'down': (hidden_axis, None)}
    of_params = {
        name: {'kernel': PartitionSpec(expert_axis, *axes[name])}
        | ({'bias': PartitionSpec(expert_axis, axes[name][1])} if 'bias' in part else {})
        for name, part in params.items()
    }
    of_tokens = PartitionSpec(sharding.BATCH_AXES, 'sequence')
    return jax.shard_map(
        functools.partial(
            _apply_sorted, activation=activation, expert_axis=expert_axis, hidden_axis=hidden_axis
        ),
        in_specs=(of_tokens, of_tokens, of_tokens, PartitionSpec(expert_axis), of_params),
        out_specs=of_tokens,
        # Unchecked, for a pipeline has a vmap over 'stage' around this, see `balanced.on_devices`.
        check_vma=False,
    )(x, experts, weights, ids, params)


def _apply_sorted(
    x: Array,
    experts: Array,
    weights: Array,
    ids: Array,
    params: Params,
    *,
    activation: str,
    expert_axis: str | None = None,
    hidden_axis: str | None = None,
) -> Array:
    """`apply_dropless` on one device, which has the experts `ids`, an ascending range."""
    if expert_axis:
        gather = functools.partial(jax.lax.all_gather, axis_name=expert_axis, tiled=True)
        x, experts, weights = gather(x), gather(experts), gather(weights)
    num_choices = experts.shape[-1]
    group = experts.reshape(-1) - ids[0]
    group = jnp.where((group >= 0) & (group < len(ids)), group, len(ids))  # others' go last
    order = jnp.argsort(group, stable=True)
    group = group[order]
    sizes = jnp.bincount(group, length=len(ids))
    # What `ragged_dot` leaves in rows after the last group is not promised, in either pass.
    own = (group < len(ids))[:, None]
    rows = jnp.where(own, x.reshape(-1, x.shape[-1])[order // num_choices], 0)

    def grouped(part, rows):
        y = checkpoint_name(grouped_matmul(rows, part['kernel'], sizes), layers.PRODUCT)
        if 'bias' in part:
            y += part['bias'].at[group].get(mode='fill', fill_value=0).astype(y.dtype)
        return y

    if hidden_axis and 'bias' in params['down']:  # each device adds its part of the sum
        bias = params['down']['bias'] / jax.lax.axis_size(hidden_axis)
        params = dict(params) | {'down': dict(params['down']) | {'bias': bias}}
    out = jnp.where(own, feed_forward(params, rows, activation, grouped), 0)
    out = out[jnp.argsort(order)].reshape(*experts.shape, -1)
    out = _weighted_sum(out, weights)
    if expert_axis:
        out = jax.lax.psum_scatter(out, expert_axis, tiled=True)
    if hidden_axis:
        out = jax.lax.psum(out, hidden_axis)
    return out.astype(x.dtype)


@jax.custom_vjp
def grouped_matmul(x: Array, kernel: Array, sizes: Array) -> Array:
    """x [N, D] @ kernel [E, D, F] -> [N, F]: the first sizes[0] rows by the first matrix, etc.

    Precisions are those of `layers.matmul`: operands in x's dtype, sums and the kernel's gradient
    in float32.
    """
    narrow = kernel.astype(x.dtype)
    return jax.lax.ragged_dot(x, narrow, sizes, preferred_element_type=jnp.float32).astype(x.dtype)


def _grouped_matmul_forward(x, kernel, sizes):
    return grouped_matmul(x, kernel, sizes), (x, kernel, sizes)


def _grouped_matmul_backward(residuals, g):
    x, kernel, sizes = residuals
    by_rows = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())),
        lhs_ragged_dimensions=(0,),
        rhs_group_dimensions=(),
    )
    d_kernel = jax.lax.ragged_dot_general(
        x, g, sizes, by_rows, preferred_element_type=jnp.float32
    )  # [E, D, F]
    return grouped_matmul(g, kernel.mT, sizes), d_kernel.astype(kernel.dtype), None


grouped_matmul.defvjp(_grouped_matmul_forward, _grouped_matmul_backward)


def linear(part: Mapping[str, Array], x: Array) -> Array:
    """x [..., D] -> [..., F] by {'kernel': [D, F]} and, where there is one, {'bias': [F]}."""
    y = layers.matmul(x, part['kernel'])
    return layers.add_bias(y, part['bias']) if 'bias' in part else y


def feed_forward(params: Params, x: Array, activation: str, linear: Callable = linear) -> Array:
    """down(activation(up(x))), or with a gate, where linear(params['up'], x) is up(x)."""
    hidden = linear(params['up'], x)
    if activation in activations.GATED_ACTIVATIONS:
        hidden = activations.GATED_ACTIVATIONS[activation](linear(params['gate'], x), hidden)
    else:
        hidden = activations.ACTIVATIONS[activation](hidden)
    return linear(params['down'], hidden)


def _weighted_sum(outputs: Array, weights: Array) -> Array:
    """[B, L, k, D] and float32 [B, L, k] -> float32 [B, L, D]."""
    return (outputs * weights[..., None]).sum(2)


def _fitting(axis: str, size: int) -> str | None:
    """The mesh axis if a dimension of this size splits over it, as in `sharding.param_specs`."""
    devices = sharding.axis_size(axis)
    return axis if devices > 1 and size % devices == 0 else None
