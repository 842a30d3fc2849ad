"""Mixture of experts: each token goes through the few feed-forward layers that a router chooses.

Nothing depends on which other sequences are in the batch or on where they lie: capacities, and
the balance that the router is trained for, are of single sequences. So every placement, and every
split of the batch, computes the same.

Axes: B batch, L length, D embed, E experts, C capacity of an expert, k choices of a token, F mlp.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels import errors, trees
from bigmodels.models.parts import activations, dispatch, layers

Array = jax.Array

SHARDING_RULES = (
    (r'/router/kernel$', ('fsdp', None)),  # [D, E]
    (r'/experts/(gate|up)/kernel$', ('expert', 'fsdp', 'tensor')),  # [E, D, F]
    (r'/experts/down/kernel$', ('expert', 'tensor', 'fsdp')),  # [E, F, D]
    (r'/experts/(gate|up)/bias$', ('expert', 'tensor')),
    (r'/experts/down/bias$', ('expert', None)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """config.model.moe.

    Fields:
      num_experts: E.
      experts_per_token: k.
      mlp_dim: F of one expert; default that of the model.
      capacity_factor: an expert takes at most ceil(k * L * capacity_factor / E) tokens of a
        sequence, the earliest that chose it; for later ones it adds nothing. None takes all:
        on TPUs at the cost of k experts, while elsewhere `jax.lax.ragged_dot` computes as much
        as all experts on all choices. Decoding with a cache, and what says how probable texts are,
        take all in either case.
      num_shared_experts: experts that every token goes through beside the chosen ones
        (DeepSeekMoE, arXiv:2401.06066); computed as one of that many times mlp_dim.
      normalize_top_k: scale the weights of the chosen experts to a sum of 1 (Mixtral); otherwise
        they are their shares of the softmax over all (Switch, Qwen-MoE).
      load_balance_weight, router_z_weight: of `load_balance` and `router_z` in the training
        loss, summed over layers; the defaults are OLMoE's (arXiv:2409.02060).
    """

    num_experts: int
    experts_per_token: int = 2
    mlp_dim: int | None = None
    capacity_factor: float | None = 1.25
    num_shared_experts: int = 0
    normalize_top_k: bool = True
    load_balance_weight: float = 0.01
    router_z_weight: float = 0.001

    def __post_init__(self):
        for name in ('num_experts', 'experts_per_token', 'mlp_dim'):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise errors.UserError(f'config.model.moe.{name} = {value} must be at least 1.')
        for name in ('num_shared_experts', 'load_balance_weight', 'router_z_weight'):
            if getattr(self, name) < 0:
                raise errors.UserError(
                    f'config.model.moe.{name} = {getattr(self, name)} must not be negative.'
                )
        if self.experts_per_token > self.num_experts:
            raise errors.UserError(
                f'config.model.moe.experts_per_token = {self.experts_per_token} must be at most '
                f'num_experts = {self.num_experts}.'
            )
        if self.capacity_factor is not None and self.capacity_factor <= 0:
            raise errors.UserError(
                f'config.model.moe.capacity_factor = {self.capacity_factor} must be positive, or '
                f'None to drop no token.'
            )

    def describe(self) -> str:
        """What the start screen says of it."""
        capacity = '' if self.capacity_factor is None else f', capacity x {self.capacity_factor:g}'
        shared = f', {self.num_shared_experts} shared' if self.num_shared_experts else ''
        return f'{self.experts_per_token} of {self.num_experts} a token{shared}{capacity}'

    def capacity(self, length: int) -> int:
        """C: tokens of a sequence of `length` that one expert takes at most."""
        share = self.experts_per_token * length * self.capacity_factor / self.num_experts
        return min(length, math.ceil(share))


def route(logits: Array, experts_per_token: int, normalize: bool) -> tuple[Array, Array]:
    """Which experts each token goes to, and how much each of them counts.

    Args:
      logits: float32 [..., E].
      normalize: see `Settings.normalize_top_k`.

    Returns:
      (experts int32 [..., k], the most probable first and of equal ones that of the lower index;
      weights float32 [..., k]).
    """
    probabilities = jax.nn.softmax(logits)
    # Sorted, for of a split batch XLA gathers all before it takes a `jax.lax.top_k` of each.
    order = jnp.argsort(probabilities, axis=-1, stable=True, descending=True)
    experts = order[..., :experts_per_token]
    weights = jnp.take_along_axis(probabilities, experts, axis=-1)
    if normalize:
        weights /= weights.sum(-1, keepdims=True)
    return experts, weights


def load_balance(logits: Array, experts: Array) -> Array:
    """E * sum over experts of (share of the choices) * (mean probability), for each sequence.

    1 where all are used alike, up to E / k where k experts get everything; the gradient goes
    through the probabilities. (Switch Transformer, arXiv:2101.03961, equation 4, over single
    sequences as in DeepSeek-V3, arXiv:2412.19437, equation 17.)

    Args:
      logits: float32 [B, L, E].
      experts: int [B, L, k].

    Returns:
      float32 [B].
    """
    num_experts = logits.shape[-1]
    share = jax.nn.one_hot(experts, num_experts).mean((1, 2))
    return num_experts * (share * jax.nn.softmax(logits).mean(1)).sum(-1)


def router_z(logits: Array) -> Array:
    """Mean of log(sum(exp(logits)))^2 over a sequence, [B, L, E] -> [B]; it keeps logits small.

    (ST-MoE, arXiv:2202.08906, equation 5.)
    """
    return jnp.square(jax.nn.logsumexp(logits, axis=-1)).mean(1)


class MixtureOfExperts(nn.Module):
    """x [B, L, D] -> [B, L, D].

    Sows into the collection 'losses' what is added to the loss of every token of a sequence, and
    into 'metrics' 'load_balance' and, with a capacity, 'dropped_share': float32 [B] each.

    Fields:
      mlp_dim: default of settings.mlp_dim; its own default is 4 * D.
      residual_init: fan-in -> initialiser of the kernels that write to the residual stream.
    """

    settings: Settings
    mlp_dim: int | None
    activation: str
    use_bias: bool
    residual_init: Callable

    @nn.compact
    def __call__(self, x: Array, dropless: bool = False) -> Array:
        """`dropless` takes all tokens, whatever the capacity."""
        c, (_, l, d) = self.settings, x.shape
        mlp_dim = c.mlp_dim or self.mlp_dim or 4 * d
        # In float32: rounding would change which expert is chosen. (Switch, section 2.4.)
        router = layers.Linear(
            c.num_experts, use_bias=False, kernel_init=_fan_in_normal(d), name='router'
        )
        with jax.default_matmul_precision('highest'):  # accelerators would round the operands
            logits = router(x.astype(jnp.float32))
        experts, weights = route(logits, c.experts_per_token, c.normalize_top_k)
        balance = load_balance(logits, experts)
        self._sow('metrics', 'load_balance', balance)
        self._sow('losses', 'load_balance', c.load_balance_weight * balance)
        self._sow('losses', 'router_z', c.router_z_weight * router_z(logits))

        params = self.param('experts', self._init_params, d, mlp_dim, (c.num_experts,))
        if dropless or c.capacity_factor is None:
            out = dispatch.apply_dropless(x, experts, weights, params, self.activation)
        else:
            out, dropped = dispatch.apply_with_capacity(
                x, experts, weights, params, c.capacity(l), self.activation
            )
            self._sow('metrics', 'dropped_share', dropped)
        if c.num_shared_experts:
            shared = self.param('shared', self._init_params, d, c.num_shared_experts * mlp_dim)
            out += dispatch.feed_forward(shared, x, self.activation)
        return out

    def _sow(self, collection: str, name: str, value: Array) -> None:
        if not self.is_initializing():  # these are results, not variables to begin with
            self.sow(collection, name, value)

    def _init_params(
        self, rng: Array, embed_dim: int, mlp_dim: int, stacked: tuple[int, ...] = ()
    ) -> dispatch.Params:
        """Feed-forward parameters, initialised as those of a dense layer."""
        inward, outward = (embed_dim, mlp_dim), (mlp_dim, embed_dim)
        shapes = {'up': inward, 'down': outward}
        if self.activation in activations.GATED_ACTIVATIONS:
            shapes['gate'] = inward
        params = {}
        for name, key in zip(shapes, jax.random.split(rng, len(shapes)), strict=True):
            init = self.residual_init(mlp_dim) if name == 'down' else _fan_in_normal(embed_dim)
            params[name] = {'kernel': init(key, (*stacked, *shapes[name]))}
            if self.use_bias:
                params[name]['bias'] = jnp.zeros((*stacked, shapes[name][1]))
        return params


def _fan_in_normal(fan_in: int) -> Callable:
    return nn.initializers.normal(fan_in**-0.5)


def num_idle(params: Any, settings: Settings) -> int:
    """How many of a model's parameters a token does not use: those of experts not chosen."""
    experts = [leaf for name, leaf in trees.flatten_named(params).items() if '/experts/' in name]
    idle = settings.num_experts - settings.experts_per_token
    return trees.count(experts) // settings.num_experts * idle
