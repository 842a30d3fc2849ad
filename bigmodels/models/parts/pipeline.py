"""Pipeline parallelism: a stack of layers cut over the mesh axis `stage`.

A batch goes through in microbatches. Each device holds `rounds` groups of consecutive layers, and
the microbatches go round the devices as often (the circular, interleaved schedule of Narayanan et
al. 2021, section 2.2). Of each device's time (S - 1) / (rounds * M + S - 1) is idle, for S stages
and M microbatches.

The backward pass is the compiler's transpose of the forward one: it keeps what the layers keep of
every microbatch, so pair it with remat. (1F1B keeps less, but needs the loss inside the pipeline:
it would own the step.)
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from bigmodels import errors, sharding

KEEP_ALL = jax.checkpoint_policies.everything_saveable


def num_microbatches(requested: int, batch_size: int) -> int:
    """The microbatches of a batch; by default the most, up to four a stage, that divide it.

    Raises:
      UserError: if the rows of a device do not divide, or there are fewer parts than stages.
    """
    stages, shards = sharding.axis_size('stage'), sharding.num_batch_shards()
    rows = batch_size // shards
    fitting = [count for count in range(stages, 4 * stages + 1) if rows % count == 0]
    chosen = requested or max(fitting, default=0)
    if chosen < stages or rows % chosen:
        raise errors.UserError(
            f'A pipeline of {stages} stages needs at least as many microbatches, and '
            f'they must divide the {rows} rows of a batch that each device has: '
            f'model.microbatches = {requested}. Choose another, or a larger batch_size.'
        )
    return chosen


def pipelined(
    layer: Callable[[Any, Any, Any], Any],
    params: Any,
    carried: Any,
    constant: Any,
    *,
    microbatches: int,
    rounds: int = 1,
    policy: Callable = KEEP_ALL,
) -> Any:
    """Applies stacked layers one after the other; equals a `lax.scan` of `layer` over `params`.

    Args:
      layer: (one layer's params, carried, constant) -> carried, row by row.
      params: leaves [N, ...], split over `stage` along N.
      carried: what goes from layer to layer, leaves [B, ...].
      constant: what every layer sees beside it, leaves [B, ...].
      microbatches: M, at least the number of stages S.
      rounds: groups of N / (S * rounds) layers on each device. More than one shortens the idle
        time and moves the weights between devices once a step.
      policy: of `jax.checkpoint`, what the backward pass keeps of a layer.

    Returns:
      Leaves [B, ...], like `carried`.
    """
    stages = sharding.axis_size('stage')
    num_layers = len(jax.tree.leaves(params)[0])
    if num_layers % (stages * rounds):
        raise errors.UserError(
            f'{num_layers} layers do not divide into {stages} stages x {rounds} rounds: choose '
            f'another config.mesh.stage or config.model.pipeline_rounds.'
        )
    deal = jax.shard_map(
        functools.partial(_deal, stages=stages, rounds=rounds),
        in_specs=PartitionSpec('stage'),
        out_specs=PartitionSpec('stage'),
        axis_names={'stage'},
    )
    groups = jax.tree.map(lambda leaf: leaf.reshape(stages, -1, *leaf.shape[1:]), deal(params))
    split = lambda leaf: leaf.reshape(-1, microbatches, *leaf.shape[1:]).swapaxes(0, 1)
    join = lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:])
    apply_group = _group_function(layer, rounds, policy)
    done = _run(
        apply_group,
        groups,
        jax.tree.map(split, carried),
        jax.tree.map(split, constant),
        stages,
        rounds,
    )
    return jax.tree.map(join, done)


def _group_function(layer: Callable, rounds: int, policy: Callable) -> Callable:
    """(one stage's params [layers, ...], turn, carried, constant) -> carried."""

    def apply_group(params, turn, carried, constant):
        if rounds > 1:
            params = jax.tree.map(lambda leaf: leaf.reshape(rounds, -1, *leaf.shape[1:]), params)
            params = jax.tree.map(lambda leaf: leaf[jnp.clip(turn, 0, rounds - 1)], params)

        def one(carried, params):
            carried = checkpoint_name(carried, 'layer_input')
            return jax.checkpoint(layer, policy=policy)(params, carried, constant), None

        return jax.lax.scan(one, carried, params)[0]

    if rounds == 1:
        return apply_group
    # The group of a turn is looked up again in the backward pass, not kept every tick.
    inputs = jax.checkpoint_policies.save_only_these_names('layer_input')
    kept = jax.checkpoint_policies.save_from_both_policies(policy, inputs)
    return jax.checkpoint(apply_group, policy=kept)


def _run(apply_group, params, inputs, constant, stages: int, rounds: int):
    """All stages at once, along a first axis that is split over `stage`.

    At tick t stage s works on item t - s; item i is microbatch i % M in round i // M. `waiting`
    holds what the first stage takes next: the inputs, then what came round to it. Leaves: params
    [S, layers, ...], inputs and constant [M, rows, ...].
    """
    count = len(jax.tree.leaves(inputs)[0])
    stage = jnp.arange(stages)
    spread = lambda leaf: sharding.constrain(
        jnp.broadcast_to(leaf, (stages, *leaf.shape)), ('stage', None, sharding.BATCH_AXES)
    )

    def keep(waiting, arrived, item):
        """Stores what came out of the last stage, once that is no longer the idle start."""
        slot = item % count
        return jax.tree.map(
            lambda w, a: w.at[slot].set(jnp.where(item >= 0, a, w[slot])), waiting, arrived
        )

    def work(stage, params, waiting, arrived, t):
        waiting = keep(waiting, arrived, t - stages)
        item = t - stage
        slot = item % count
        taken = jax.tree.map(lambda w, a: jnp.where(stage == 0, w[slot], a), waiting, arrived)
        seen = jax.tree.map(lambda leaf: leaf[slot], constant)
        return waiting, apply_group(params, item // count, taken, seen)

    def tick(state, t):
        on_all = jax.vmap(work, in_axes=(0, 0, 0, 0, None), spmd_axis_name='stage')
        waiting, out = on_all(stage, params, *state, t)
        return (waiting, jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), out)), None

    # A stage that idles computes on the first microbatch, whose numbers are as good as any.
    waiting = jax.tree.map(spread, inputs)
    start = (waiting, jax.tree.map(lambda leaf: leaf[:, 0], waiting))
    ticks = rounds * count + stages - 1
    (waiting, arrived), _ = jax.lax.scan(tick, start, jnp.arange(ticks))
    done = jax.vmap(keep, in_axes=(0, 0, None))(waiting, arrived, ticks - stages)
    first = lambda leaf: stage.reshape(-1, *[1] * (leaf.ndim - 1)) == 0
    return jax.tree.map(lambda leaf: jnp.where(first(leaf), leaf, 0).sum(0), done)


def _deal(params: Any, stages: int, rounds: int) -> Any:
    """One device's leaves [layers, ...] of consecutive layers -> those of its turns, in order.

    Group g of all is stored by device g // rounds, and applied by device g % stages in round
    g // stages. Each of `rounds` permutations moves one group from and to every device.
    """
    if rounds == 1:
        return params
    stage = jax.lax.axis_index('stage')
    groups = jax.tree.map(lambda leaf: leaf.reshape(rounds, -1, *leaf.shape[1:]), params)
    numbers = np.arange(stages * rounds)
    # Distinct among the groups of one source, and among those of one destination.
    permutation = (numbers + numbers // np.lcm(stages, rounds)) % rounds
    dealt = jax.tree.map(jnp.zeros_like, groups)
    for i in range(rounds):
        moved = numbers[permutation == i]  # by source, one each
        sent, received = jnp.asarray(moved % rounds), np.empty(stages, int)
        received[moved % stages] = moved // stages
        here = sent[stage], jnp.asarray(received)[stage]
        pairs = list(zip((moved // rounds).tolist(), (moved % stages).tolist(), strict=True))
        dealt = jax.tree.map(
            lambda d, g, here=here, pairs=pairs: d.at[here[1]].set(
                jax.lax.ppermute(g[here[0]], 'stage', pairs)
            ),
            dealt,
            groups,
        )
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), dealt)
