"""From config to one optax chain: penalties, clipping, the algorithm, decay, the schedule."""

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from bigmodels import config as config_lib
from bigmodels import errors, trees
from bigmodels.layer_decay import layer_factors

Rules = Sequence[tuple[str, Any]]
# Biases, norm scales and embeddings are not decayed, the custom since GPT-2.
DECAY_KERNELS = ((r'kernel$|^unembed$', True), (r'.*', False))
# Muon orthogonalises the matrices between hidden states; the rest is left to Adam.
HIDDEN_MATRICES = ((r'embed|head', False), (r'kernel$', True), (r'.*', False))


def make_optimizer(
    params: Any,
    total_steps: int,
    *,
    learning_rate: float,
    algorithm: Mapping,
    schedule: Mapping,
    clip_norm: float | None = None,
    weight_decay: float = 0.0,
    weight_decay_rules: Rules = DECAY_KERNELS,
    l1: float = 0.0,
    l2: float = 0.0,
    penalty_rules: Rules = DECAY_KERNELS,
    learning_rate_rules: Rules = (),
    layer_decay: float = 1.0,
    freeze: Sequence[str] = (),
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser of `params` (arrays or shapes), and its learning rate by step.

    Args:
      learning_rate: the peak of the schedule.
      algorithm: name, a key of ALGORITHMS, and its arguments.
      schedule: name, a key of SCHEDULES, and its arguments.
      clip_norm: bound of the gradient's global norm, penalties included.
      weight_decay: decoupled decay per unit of learning rate (Loshchilov and Hutter 2019).
      l1, l2: weights of sum(|p|) and sum(p^2)/2 in the gradient; the reported loss leaves them
        out.
      weight_decay_rules, penalty_rules: (regex, bool) pairs; the first regex found in a
        parameter's name decides, and every parameter must be covered. An adapter's is the name of
        its kernel.
      learning_rate_rules: (regex, factor) pairs, likewise; none means 1 for all.
      layer_decay: the learning rate of each layer as a share of the next one's, see
        `layer_decay.layer_factors`.
      freeze: regexes of parameters that are not trained and have no optimiser state; BatchNorm
        whose scale is one of them is applied as in evaluation.

    Raises:
      UserError: for an unknown name or argument, or rules that leave a parameter out.
    """
    if weight_decay and algorithm.get('name') == 'adam':
        raise errors.UserError(
            'algorithm "adam" has no decoupled weight decay: use "adamw", or the penalty `l2`.'
        )
    if learning_rate < 0:
        raise errors.UserError(f'optimizer.learning_rate = {learning_rate} must not be negative.')
    if not 0 < layer_decay <= 1:
        raise errors.UserError(f'optimizer.layer_decay = {layer_decay} must be over 0, at most 1.')
    if clip_norm is not None and clip_norm <= 0:
        raise errors.UserError(
            f'optimizer.clip_norm = {clip_norm} must be over 0; leave it out, or set it to None, '
            'for no bound.'
        )
    rate = make_schedule(learning_rate, total_steps, schedule)
    parts = []
    if l2:
        mask = _of_kernels(penalty_rules, params, 'optimizer.penalty_rules')
        parts.append(optax.add_decayed_weights(l2, mask))
    if l1:
        mask = _of_kernels(penalty_rules, params, 'optimizer.penalty_rules')
        parts.append(optax.masked(_add_l1(l1), mask))
    if clip_norm is not None:
        parts.append(optax.clip_by_global_norm(clip_norm))
    parts.append(config_lib.choose(ALGORITHMS, algorithm, 'optimizer.algorithm'))
    if weight_decay:
        mask = _of_kernels(weight_decay_rules, params, 'optimizer.weight_decay_rules')
        parts.append(optax.add_decayed_weights(weight_decay, mask))
    if learning_rate_rules:
        factors = trees.match_rules(learning_rate_rules, params, 'optimizer.learning_rate_rules')
        parts.append(_scale_by(factors))
    if layer_decay != 1:
        parts.append(_scale_by(layer_factors(params, layer_decay)))
    parts.append(optax.scale_by_learning_rate(rate))
    tx = optax.chain(*parts)
    if freeze:
        tx = _freeze(tx, freeze, params)
    return tx, rate


def check(section: Mapping, total_steps: int) -> None:
    """Raises UserError for what `make_optimizer` takes of no model."""
    values = config_lib.checked(make_optimizer, section, 'optimizer', ('params', 'total_steps'))
    make_schedule(values['learning_rate'], total_steps, values['schedule'])
    config_lib.choose(ALGORITHMS, values['algorithm'], 'optimizer.algorithm')


def _of_kernels(rules: Rules, params: Any, what: str) -> Any:
    """`trees.match_rules`, in which an adapter is called as its kernel."""
    called = lambda name: re.sub(r'(kernel|^unembed)/(down|up)$', r'\1', name)
    return trees.match_rules(rules, params, what, called)


def _add_l1(weight: float) -> optax.GradientTransformation:
    """Adds the gradient of weight * sum(|p|)."""
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda g, p: g + weight * jnp.sign(p), updates, params)
    )


def _scale_by(factors: Any) -> optax.GradientTransformation:
    """Multiplies each update by its factor."""
    # The factors lead the map: the update of a frozen parameter is an empty tree.
    return optax.stateless(lambda updates, _: jax.tree.map(optax.tree.scale, factors, updates))


def held(params: Any, patterns: Sequence[str]) -> Any:
    """The params, of which those that `freeze` matches have a gradient of 0.

    So they take no part in what is made of gradients before the optimiser: the norm of private
    ones, and the local steps of clients.
    """
    matched = lambda name: any(re.search(pattern, name) for pattern in patterns)
    return trees.map_named(lambda name, p: jax.lax.stop_gradient(p) if matched(name) else p, params)


def _freeze(tx, patterns: Sequence[str], params: Any) -> optax.GradientTransformation:
    rules = [(pattern, 'frozen') for pattern in patterns]
    labels = trees.match_rules([*rules, (r'.*', 'trained')], params, 'optimizer.freeze')
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in trees.flatten_named(params)):
            raise errors.UserError(
                f'optimizer.freeze: no parameter matches {pattern!r}. There '
                f'are: {", ".join(trees.flatten_named(params))}.'
            )
    return optax.partition({'trained': tx, 'frozen': optax.set_to_zero()}, labels)


# Algorithms: from the clipped gradient to an update of about unit size, before the learning rate.


def adam(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    moment_dtype: Literal['float32', 'bfloat16'] = 'float32',
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015); 'adamw' is the same with `weight_decay` allowed.

    Moments kept in bfloat16 take half the memory; they are updated in float32.

    Raises:
      UserError: if b2 is so near to 1 that rounding would keep the second moment from falling.
    """
    wide = optax.scale_by_adam(b1, b2, eps)
    if moment_dtype == 'float32':
        return wide
    if b2 > 0.99:
        # Half the distance between two values of bfloat16 is up to 2**-8 of them.
        raise errors.UserError(
            f'optimizer.algorithm: with moment_dtype = "bfloat16", b2 = {b2} would be lost in '
            f'rounding: use at most 0.99, for example 0.95.'
        )

    def cast(state, dtype):
        mu, nu = optax.tree.cast((state.mu, state.nu), dtype)
        return state._replace(mu=mu, nu=nu)

    def update(updates, state, params=None):
        updates, state = wide.update(updates, cast(state, 'float32'), params)
        return updates, cast(state, moment_dtype)

    return optax.GradientTransformation(
        lambda params: cast(wide.init(params), moment_dtype), update
    )


def sgd(momentum: float = 0.9, nesterov: bool = False) -> optax.GradientTransformation:
    """Gradient descent with momentum."""
    return optax.trace(momentum, nesterov) if momentum else optax.identity()


def adafactor(
    decay_rate: float = 0.8, clipping_threshold: float = 1.0, min_dim_size_to_factor: int = 128
) -> optax.GradientTransformation:
    """Adafactor (Shazeer and Stern 2018) without relative step sizes."""
    return optax.chain(
        optax.scale_by_factored_rms(
            decay_rate=decay_rate, min_dim_size_to_factor=min_dim_size_to_factor
        ),
        optax.clip_by_block_rms(clipping_threshold),
    )


def lion(b1: float = 0.9, b2: float = 0.99) -> optax.GradientTransformation:
    """Lion (Chen et al. 2023)."""
    return optax.scale_by_lion(b1, b2)


def muon(
    momentum: float = 0.95,
    ns_steps: int = 5,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    rules: Rules = HIDDEN_MATRICES,
) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the matrices that `rules` choose, Adam for the rest.

    Muon's updates are scaled to Adam's root mean square, 0.2 * sqrt(max(rows, columns)), so that
    one learning rate serves both (Liu et al. 2025, section 2.2). Matrices of scanned layers and
    of experts, stacked along their leading axes, are orthogonalised one by one.
    """

    def labels(params):
        chosen = trees.match_rules(rules, params, 'optimizer.algorithm.rules')
        return jax.tree.map(lambda matrix: 'muon' if matrix else 'adam', chosen)

    def scale(updates, _):
        return trees.map_named(lambda name, u: u * _muon_scale(name, u), updates)

    orthogonal = optax.contrib.scale_by_muon(
        ns_steps=ns_steps,
        beta=momentum,
        weight_dimension_numbers=lambda params: trees.map_named(_matrix_axes, params),
    )
    return optax.partition(
        {'muon': optax.chain(orthogonal, optax.stateless(scale)), 'adam': adam(b1, b2, eps)}, labels
    )


def _matrix_axes(name: str, leaf: Any) -> optax.contrib.MuonDimensionNumbers:
    """Which axes are the rows and the columns: all but the last, and the last."""
    first = trees.num_stacked(name)
    return optax.contrib.MuonDimensionNumbers(tuple(range(first, leaf.ndim - 1)), leaf.ndim - 1)


def _muon_scale(name: str, leaf: Any) -> float:
    rows = math.prod(leaf.shape[trees.num_stacked(name) : -1])
    return 0.2 * math.sqrt(max(rows, leaf.shape[-1]))


ALGORITHMS: dict[str, Callable[..., optax.GradientTransformation]] = {
    'adam': adam,
    'adamw': adam,
    'sgd': sgd,
    'adafactor': adafactor,
    'lion': lion,
    'muon': muon,
}


# Schedules: the share of the peak learning rate after `warmup_steps`, by progress in [0, 1].


def constant() -> Callable:
    """The peak throughout."""
    return lambda progress, step: jnp.ones_like(progress)


def linear(final: float = 0.0) -> Callable:
    """Straight down to the share `final`."""
    return lambda progress, step: 1 - (1 - final) * progress


def cosine(final: float = 0.1) -> Callable:
    """Half a cosine down to the share `final` (Loshchilov and Hutter 2017)."""
    return lambda progress, step: final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


def warmup_stable_decay(decay: float = 0.2, final: float = 0.0) -> Callable:
    """The peak, then straight down over the last share `decay` of the steps (Hu et al. 2024)."""
    return lambda progress, step: final + (1 - final) * jnp.clip((1 - progress) / decay, 0, 1)


def inverse_sqrt(timescale: int = 1000) -> Callable:
    """1 / sqrt(1 + steps after warm-up / timescale) (Vaswani et al. 2017, without an end)."""
    return lambda progress, step: jax.lax.rsqrt(1 + step / timescale)


SCHEDULES: dict[str, Callable[..., Callable]] = {
    'constant': constant,
    'linear': linear,
    'cosine': cosine,
    'warmup_stable_decay': warmup_stable_decay,
    'inverse_sqrt': inverse_sqrt,
}


def make_schedule(peak: float, total_steps: int, section: Mapping) -> optax.Schedule:
    """step -> learning rate: up to `peak` over `warmup_steps`, then as the section's name says."""
    section = dict(section)
    warmup = section.pop('warmup_steps', 0)
    if not isinstance(warmup, int) or not 0 <= warmup < max(total_steps, 1):
        raise errors.UserError(
            f'optimizer.schedule.warmup_steps = {warmup!r} must be an integer '
            f'from 0 to total_steps - 1 = {total_steps - 1}.'
        )
    own = inspect.signature(config_lib.chosen(SCHEDULES, section, 'optimizer.schedule')).parameters
    for key in section.keys() - {'name', *own}:
        where = 'key in config.optimizer.schedule'
        raise errors.unknown(where, key, ['warmup_steps', *own])
    shape = config_lib.choose(SCHEDULES, section, 'optimizer.schedule')

    def schedule(step):
        after = jnp.maximum(jnp.asarray(step, jnp.float32) - warmup, 0)
        progress = jnp.minimum(after / max(total_steps - warmup, 1), 1)
        rising = jnp.minimum((step + 1) / max(warmup, 1), 1)
        return peak * rising * shape(progress, after)

    return schedule
