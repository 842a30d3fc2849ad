"""How much each part of an input counts for an answer.

An answer is a function of what is inside the network: `inputs_of` says of what it can be
differentiated at the input, `answer` makes the function of it, and the methods below take the two.
They work as well on the outputs of any module, as `activations.capture` gives them.

Axes: B batch, L length, H height, W width, C channels, D embed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors, trees
from bigmodels.interpret import activations
from bigmodels.models.parts import pooling

Array = jax.Array
Values = Mapping[str, Array]  # by path, see `activations`
Answer = Callable[[Values], Array]  # [B]
TINY = float(np.finfo(np.float32).tiny)


def inputs_of(task: Any, params: Any, model_state: Any, batch: Any) -> dict[str, Array]:
    """What a task's answers can be differentiated by, by path.

    That is the model's input, where it is of numbers: pixels, log-mel features, numeric columns;
    and of ids, tokens and categories, their embeddings [B, L, D]. 0 stands in numbers for the mean
    or the median of what they were; of texts `mean_embeddings` are as neutral.

    Raises:
      UserError: for a model that has neither.
    """
    paths = [f'(.*/)?embed|{activations.INPUT}']
    _, found = activations.capture(task, params, model_state, batch, paths)
    values = {
        path: x for path, x in found.items() if jnp.issubdtype(x.dtype, jnp.floating) and x.size
    }
    if not values:
        raise errors.UserError(
            f'{type(task.model).__name__} takes ids and has no table `embed`: there is nothing '
            'that its answer could be differentiated by.'
        )
    return values


def mean_embeddings(values: Values, real: Array) -> dict[str, Array]:
    """The mean of each text's own embeddings at all of its places.

    As a baseline: a norm that follows at once, as in a Transformer, is singular at 0, where all of
    the way from there is in its first thousandth.

    Args:
      values: {path: [B, L, D]}.
      real: bool [B, L], False for padding.
    """

    def mean(x: Array) -> Array:
        return jnp.broadcast_to(pooling.mean(x, real)[:, None], x.shape)

    return {path: mean(x) for path, x in values.items()}


def answer(
    task: Any, params: Any, model_state: Any, batch: Any, score: Callable[[Any], Array]
) -> Answer:
    """A score [B] of what the task predicts, as a function of values by path.

    Args:
      score: predictions -> [B], such as `class_score(classes)`.
    """

    def of_values(values: Values) -> Array:
        edits = {path: activations.Edit(value) for path, value in values.items()}
        return score(activations.edited(task, edits).predict(params, model_state, batch))

    return of_values


def class_score(classes: Array) -> Callable[[Array], Array]:
    """Of probabilities [B, C]: the logit of classes int [B] above the mean of all logits.

    A logit, unlike a probability, has a gradient also where the network is sure.
    """

    def score(probabilities: Array) -> Array:
        logits = jnp.log(jnp.maximum(probabilities, TINY))
        own = jnp.take_along_axis(logits, classes[:, None], axis=-1)[:, 0]
        return own - logits.mean(-1)

    return score


def token_score(tokens: Array, positions: Array) -> Callable[[Array], Array]:
    """Of logits [B, L, V]: log p of tokens int [B] as the next ones at positions int [B]."""

    def score(logits: Array) -> Array:
        at = jnp.take_along_axis(logits, positions[:, None, None], axis=1)[:, 0]
        return jnp.take_along_axis(jax.nn.log_softmax(at), tokens[:, None], axis=-1)[:, 0]

    return score


def gradient(function: Answer, values: Values) -> dict[str, Array]:
    """d answer / d value, in the shapes of the values (Simonyan et al. 2014)."""
    return jax.grad(lambda values: function(values).sum())(dict(values))


def input_x_gradient(function: Answer, values: Values) -> dict[str, Array]:
    """Each value times its gradient (Shrikumar et al. 2017)."""
    return jax.tree.map(jnp.multiply, dict(values), gradient(function, values))


def integrated_gradients(
    function: Answer, values: Values, baselines: Values | None = None, steps: int = 32
) -> dict[str, Array]:
    """Gradients on the way from a baseline, times the way (Sundararajan et al. 2017, section 3).

    They add up to the answer's difference between the two, as far as so many steps, which are
    those of Gauss and Legendre, are exact.

    Args:
      baselines: in the values' shapes; by default 0, see `inputs_of`.
    """
    values = dict(values)
    start = jax.tree.map(jnp.zeros_like, values) if baselines is None else dict(baselines)
    way = jax.tree.map(jnp.subtract, values, start)
    nodes, weights = np.polynomial.legendre.leggauss(steps)

    def step(total, node):
        share, weight = node
        here = jax.tree.map(lambda x, d: x + share * d, start, way)
        found = gradient(function, here)
        return jax.tree.map(lambda t, g: t + weight * g, total, found), None

    zeros = jax.tree.map(jnp.zeros_like, values)
    along = jnp.float32((nodes + 1) / 2), jnp.float32(weights / 2)
    total, _ = jax.lax.scan(step, zeros, along)
    return jax.tree.map(jnp.multiply, way, total)


def smooth_grad(
    function: Answer, values: Values, rng: Array, noise: float = 0.15, samples: int = 16
) -> dict[str, Array]:
    """The mean gradient of values with noise (Smilkov et al. 2017).

    Args:
      noise: its standard deviation, as a share of each example's range of values.
    """
    values = dict(values)

    def noisy(rng: Array, x: Array) -> Array:
        axes = tuple(range(1, x.ndim))
        spread = x.max(axes, keepdims=True) - x.min(axes, keepdims=True)
        return x + noise * spread * jax.random.normal(rng, x.shape)

    def step(total, rng):
        keys = dict(zip(values, jax.random.split(rng, len(values)), strict=True))
        found = gradient(function, {path: noisy(keys[path], x) for path, x in values.items()})
        return jax.tree.map(lambda t, g: t + g / samples, total, found), None

    zeros = jax.tree.map(jnp.zeros_like, values)
    return jax.lax.scan(step, zeros, jax.random.split(rng, samples))[0]


def occlusion(
    function: Answer,
    values: Values,
    sizes: Mapping[str, Sequence[int]],
    baselines: Values | None = None,
) -> dict[str, Array]:
    """By how much the answer falls when a part is covered (Zeiler and Fergus 2014, section 4.2).

    Args:
      sizes: of the parts, by path, along the first axes behind B: (4, 4) of images covers squares
        of 4 x 4 pixels one after another, (1,) of texts every token.
      baselines: what covers; by default 0, see `inputs_of`.

    Returns:
      {path: [B, *the axes of its size]}, equal within a part.
    """
    values = dict(values)
    whole = function(values)
    found = {}
    for path, size in sizes.items():
        x = values[path]
        cover = jnp.zeros_like(x) if baselines is None else baselines[path]
        shape = x.shape[1 : 1 + len(size)]
        # The number of the part that each place is in.
        grid = [np.arange(n) // part for n, part in zip(shape, size, strict=True)]
        counts = [int(g[-1]) + 1 for g in grid]
        parts = np.ravel_multi_index(np.meshgrid(*grid, indexing='ij'), counts)

        def fall(part, path=path, x=x, cover=cover, parts=parts):
            at = (parts == part).reshape(1, *parts.shape, *[1] * (x.ndim - 1 - parts.ndim))
            return whole - function({**values, path: jnp.where(at, cover, x)})

        falls = jax.lax.map(fall, jnp.arange(int(np.prod(counts))))  # [parts, B]
        found[path] = jnp.moveaxis(falls[parts], -1, 0)
    return found


def grad_cam(function: Answer, values: Values) -> Array:
    """Where a layer's features speak for the answer, not negative (Selvaraju et al. 2017).

    Args:
      values: the output of one module, [B, H, W, C], or [B, L, D] of tokens; of scanned layers
        [layers, ...], of which the last one counts.

    Returns:
      [B, H, W] or [B, L].

    Raises:
      UserError: for several modules.
    """
    if len(values) != 1:
        raise errors.UserError(
            f'Grad-CAM is of one layer, and {len(values)} were given: {errors.some(list(values))}.'
        )
    [(path, x)] = values.items()
    slope = gradient(function, values)[path]
    if trees.is_scanned(path):
        x, slope = x[-1], slope[-1]
    weights = slope.mean(tuple(range(1, x.ndim - 1)), keepdims=True)
    return jax.nn.relu((weights * x).sum(-1))


def attention_rollout(maps: Array) -> Array:
    """How much of each token reaches each other through all layers [B, L, S], rows sum to 1.

    Each layer mixes half by the mean of its heads and half by the residual connection (Abnar and
    Zuidema 2020, arXiv:2005.00928, section 3).

    Args:
      maps: [layers, B, H, L, L], as `activations.stacked(activations.attention_maps(...))`.
    """
    mixed = 0.5 * maps.mean(2) + 0.5 * jnp.eye(maps.shape[-1])
    mixed /= mixed.sum(-1, keepdims=True)
    start = jnp.broadcast_to(jnp.eye(maps.shape[-1]), mixed.shape[1:])
    return jax.lax.scan(lambda below, layer: (layer @ below, None), start, mixed)[0]


def by_place(found: Values, norm: bool = False) -> dict[str, Array]:
    """Attributions of features as one number for each pixel, token, frame and band, or column.

    Channels of images and features of embeddings are added up, by which completeness is kept.

    Args:
      norm: takes their Euclidean norm instead: how strongly, without a direction, as suits a plain
        gradient.
    """

    def reduced(path: str, x: Array) -> Array:
        has_features = path != activations.INPUT or x.ndim == 4
        if norm:
            return jnp.sqrt(jnp.square(x).sum(-1)) if has_features else jnp.abs(x)
        return x.sum(-1) if has_features else x

    return {path: reduced(path, x) for path, x in found.items()}
