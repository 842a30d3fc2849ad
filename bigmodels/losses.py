"""Losses of single examples, on arrays. `metrics.pair` reduces them under weights."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from bigmodels import boxes, sharding

Array = jax.Array

# Of predictions and targets [...], elementwise.
REGRESSION: dict[str, Callable[[Array, Array], Array]] = {
    'squared': optax.losses.squared_error,
    'absolute': lambda predictions, targets: jnp.abs(predictions - targets),
    'huber': optax.losses.huber_loss,
}


def softmax_cross_entropy(
    logits: Array, targets: Array, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Array:
    """-log softmax(logits)[target], in nats, in float32.

    Args:
      logits: [..., V]; -inf where there is no class.
      targets: int [...].
      label_smoothing: the share of the target's probability spread over all classes
        (Szegedy et al. 2016).
      z_loss: weight of log(sum(exp(logits)))^2, which keeps logits small (PaLM, section 5).

    Returns:
      [...] float32.
    """
    log_normalizer, target_logit = _normalizer_and_target(logits, targets)
    if label_smoothing:
        mean = logits.astype(jnp.float32).mean(-1, where=logits > -jnp.inf)
        target_logit = (1 - label_smoothing) * target_logit + label_smoothing * mean
    loss = log_normalizer - target_logit
    return loss + z_loss * jnp.square(log_normalizer) if z_loss else loss


@jax.custom_vjp
def _normalizer_and_target(logits: Array, targets: Array) -> tuple[Array, Array]:
    """(log(sum(exp(logits))), logits[target]), each [...] in float32; see `softmax_cross_entropy`.

    The backward pass reads the logits, the largest array of a language model, once and by itself:
    a GPU's compiler else fuses it with sums of the forward pass, at a third of the speed.
    """
    wide = logits.astype(jnp.float32)
    return jax.nn.logsumexp(wide, axis=-1), jnp.where(_is_target(logits, targets), wide, 0).sum(-1)


def _is_target(logits: Array, targets: Array) -> Array:
    """A comparison instead of a gather: it fuses, and its gradient needs no scatter."""
    return targets[..., None] == jnp.arange(logits.shape[-1])


def _normalizer_and_target_forward(logits, targets):
    both = _normalizer_and_target(logits, targets)
    return both, (logits, targets, both[0])


def _normalizer_and_target_backward(residuals, cotangents):
    logits, targets, log_normalizer = residuals
    of_normalizer, of_target = (g[..., None] for g in cotangents)
    wide = sharding.apart_on_gpu(logits).astype(jnp.float32)
    d = jnp.exp(wide - log_normalizer[..., None]) * of_normalizer
    d += jnp.where(_is_target(logits, targets), of_target, 0)
    return d.astype(logits.dtype), None


_normalizer_and_target.defvjp(_normalizer_and_target_forward, _normalizer_and_target_backward)


def divergence(logits: Array, other: Array, temperature: float = 1.0) -> Array:
    """KL(softmax(other / T) || softmax(logits / T)), in nats, in float32.

    (Hinton et al. 2015, section 2: its gradient is that of their cross-entropy)

    Args:
      logits, other: [..., V]; -inf where there is no class, in both alike.
      temperature: T.

    Returns:
      [...] float32, from 0.
    """
    own, others = (jax.nn.log_softmax(x.astype(jnp.float32) / temperature) for x in (logits, other))
    return (jnp.exp(others) * jnp.where(other > -jnp.inf, others - own, 0)).sum(-1)


def preference(margins: Array) -> Array:
    """-log sigmoid of how much more the chosen is rewarded than the rejected, [...] float32.

    (Bradley and Terry 1952; DPO, Rafailov et al. 2023, equation 7)
    """
    return -jax.nn.log_sigmoid(margins.astype(jnp.float32))


def binary_cross_entropy(logits: Array, targets: Array) -> Array:
    """-t log p - (1 - t) log(1 - p), float32, of targets t from 0 to 1 and p, the sigmoid."""
    return optax.losses.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets)


def focal(losses: Array, gamma: float) -> Array:
    """(1 - p)^gamma of each cross-entropy -log p, which leaves less of what is known already.

    (Lin et al. 2017, equation 4, for any number of classes)
    """
    # 1 - exp(-x) without cancellation; kept from 0, where the power has no gradient for gamma < 1.
    return jnp.maximum(-jnp.expm1(-losses), 1e-7) ** gamma * losses


def centre_focal(logits: Array, heat: Array, alpha: float = 2.0, beta: float = 4.0) -> Array:
    """-(1 - p)^alpha log p where the heat is 1, -(1 - heat)^beta p^alpha log(1 - p) elsewhere.

    (Zhou et al. 2019, equation 1, before the sum)

    Args:
      logits: [...]; p is their sigmoid.
      heat: [...] from 0 to 1, 1 in the cells of objects' centres.

    Returns:
      [...] float32.
    """
    logits = logits.astype(jnp.float32)
    log_p, log_other = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    centre = -jnp.exp(alpha * log_other) * log_p
    other = -((1 - heat) ** beta) * jnp.exp(alpha * log_p) * log_other
    return jnp.where(heat == 1, centre, other)


def giou(one: Array, other: Array) -> Array:
    """1 - generalised intersection over union, from 0 to 2 (Rezatofighi et al. 2019, algorithm 1).

    Args:
      one, other: boxes [..., 4] of positive area, (left, top, right, bottom).

    Returns:
      [...].
    """
    both, either = boxes.intersection_and_union(one, other)
    upper = jnp.minimum(one[..., :2], other[..., :2])
    lower = jnp.maximum(one[..., 2:], other[..., 2:])
    around = jnp.maximum(boxes.area(jnp.concatenate([upper, lower], axis=-1)), 1e-9)
    return 1 - both / jnp.maximum(either, 1e-9) + (around - either) / around


def best_matching(cost: Array) -> Array:
    """The column of each row, all different, with which the costs' sum is least: int [M].

    Args:
      cost: [M, N], N at least M; what is not finite counts as more than anything else there is.
    """
    # The algorithm's search would not end.
    cost = jnp.nan_to_num(jax.lax.stop_gradient(cost), nan=1e9, posinf=1e9, neginf=1e9)
    rows, columns = optax.assignment.hungarian_algorithm(cost)
    return jnp.zeros(len(cost), int).at[rows].set(columns)


def box_set(
    logits: Array, found: Array, boxes: Array, labels: Array, size: Array, box_weight: float = 1.0
) -> tuple[Array, Array]:
    """The losses of a set of boxes, each object matched with one of them at the least cost of all.

    (DETR, Carion et al. 2020, section 3.1, with the focal loss and weights of Deformable DETR, Zhu
    et al. 2021, halved) What no object is matched with is to be background: so no object is found
    twice, and nothing has to be suppressed.

    Args:
      logits: [N, C] of one image; an object's class has its sigmoid's probability.
      found: [N, 4], N at least the number of objects.
      boxes: [M, 4].
      labels: int [M] from 0; -1 for padding.
      size: [2], width and height of the image, in which distances of edges are measured.
      box_weight: of the loss of boxes beside that of classes, for the cost of a match.

    Returns:
      The loss of classes and that of boxes, 2.5 |distances| + `giou`, float32, sums over the image.
    """
    logits, real = logits.astype(jnp.float32), labels >= 0
    label = jnp.where(real, labels, 0)
    as_object = 0.25 * focal(jax.nn.softplus(-logits), 2.0)
    as_background = 0.75 * focal(jax.nn.softplus(logits), 2.0)

    def apart(one, other):
        distances = jnp.abs(one - other) / jnp.tile(size, 2)
        return 2.5 * distances.sum(-1) + giou(one, other)

    cost = (as_object - as_background).T[label] + box_weight * apart(found, boxes[:, None])
    # Padding is matched with columns of its own, so that the search does not walk through it.
    cost = jnp.where(real[:, None], cost, 1e6)
    own = jnp.where(jnp.eye(len(boxes), dtype=bool) & ~real[:, None], 0, 1e6)
    matched = best_matching(jnp.concatenate([cost, own], axis=1))
    is_object = jnp.zeros(logits.shape, bool).at[matched, label].max(real)
    of_classes = jnp.where(is_object, as_object, as_background).sum()
    return of_classes, jnp.where(real, apart(found[matched], boxes), 0).sum()


def dice(probabilities: Array, targets: Array, weights: Array, smooth: float = 1.0) -> Array:
    """1 - (2 |p t| + smooth) / (|p| + |t| + smooth) of each class but 0, the background; the mean.

    (Milletari et al. 2016, equation 3 with plain sums below the line)

    Args:
      probabilities: [B, ..., C].
      targets: int [B, ...].
      weights: [B, ...], 0 for pixels that do not count.

    Returns:
      [B] float32.
    """
    classes = probabilities.shape[-1]
    pixels = tuple(range(1, targets.ndim))
    of_class = jax.nn.one_hot(targets, classes)[..., 1:] * weights[..., None]
    found = probabilities[..., 1:] * weights[..., None]
    both = (found * of_class).sum(pixels)
    sizes = found.sum(pixels) + of_class.sum(pixels)
    return (1 - (2 * both + smooth) / (sizes + smooth)).mean(-1)


def chunked_over_tokens(
    loss_of_hidden: Callable[[Array, Array], Array], hidden: Array, targets: Array, chunk: int
) -> Array:
    """`loss_of_hidden(hidden, targets)`, computed for `chunk` tokens at a time.

    The logits of a large vocabulary are never held for more than one chunk; the backward pass
    computes each chunk's again. On a mesh that splits sequences a chunk is of each device's tokens,
    and so of as many of every row: at least one of each row and device.

    Args:
      loss_of_hidden: ([..., D], int [...]) -> pytree of [...].
      hidden: [..., D].
      targets: int [...].

    Returns:
      The pytree of [...] that the unchunked call gives.
    """
    num_parts = sharding.axis_size('sequence')
    if num_parts > 1:
        return _chunked_within_parts(loss_of_hidden, hidden, targets, chunk, num_parts)
    shape = targets.shape
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    count = len(targets)
    padding = -count % chunk
    hidden = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(-1, chunk, hidden.shape[-1])
    targets = jnp.pad(targets, (0, padding)).reshape(-1, chunk)
    values = _one_by_one(loss_of_hidden, hidden, targets)
    return jax.tree.map(lambda value: value.reshape(-1)[:count].reshape(shape), values)


def _chunked_within_parts(
    loss_of_hidden: Callable, hidden: Array, targets: Array, chunk: int, num_parts: int
) -> Array:
    """The same for hidden [B, L, D] of which a mesh splits both B and L: they are never merged."""
    rows, length = targets.shape
    share = length // num_parts
    size = min(max(chunk // (rows * num_parts), 1), share)
    padding = -share % size

    def chunks(x):
        x = x.reshape(rows, num_parts, share, *x.shape[2:])
        x = jnp.pad(x, [(0, 0), (0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 3))
        return jnp.moveaxis(x.reshape(rows, num_parts, -1, size, *x.shape[3:]), 2, 0)

    def whole(values):  # [chunks, B, parts, size] -> [B, L]
        values = jnp.moveaxis(values, 0, 2).reshape(rows, num_parts, -1)
        return values[:, :, :share].reshape(rows, length)

    return jax.tree.map(whole, _one_by_one(loss_of_hidden, chunks(hidden), chunks(targets)))


def _one_by_one(loss_of_hidden: Callable, hidden: Array, targets: Array) -> Array:
    """loss_of_hidden of each slice, one after the other; computed again in the backward pass."""
    return jax.lax.map(jax.checkpoint(lambda pair: loss_of_hidden(*pair)), (hidden, targets))


def in_batch_softmax(scores: Array, items: Array, log_frequency: Array, weights: Array) -> Array:
    """-log softmax(scores of all items)[own], with the sum over all estimated from the batch's.

    Items are in a batch as often as in the data, so that popular ones would be pushed away most.
    An item drawn with probability q therefore counts exp(score) / (n q), of n others: the logQ
    correction (Yi et al. 2019, section 4). A query's own item is there without being drawn: it
    counts once and as it is, which makes the sum right in expectation.

    Args:
      scores: [B, B], of query `row` for the item of example `column`.
      items: int [B], of each example.
      log_frequency: [B], log q.
      weights: [B]; examples of weight 0 are no others.

    Returns:
      [B] float32, in nats.
    """
    is_own = jnp.eye(len(items), dtype=bool)
    counted = (weights > 0) & (items[:, None] != items)
    log_drawn = jnp.log(jnp.maximum((weights > 0).sum() - 1, 1)) + log_frequency
    others = jnp.where(counted, scores.astype(jnp.float32) - log_drawn, -jnp.inf)
    return softmax_cross_entropy(jnp.where(is_own, scores, others), jnp.arange(len(items)))


def bpr(right: Array, wrong: Array) -> Array:
    """-log sigmoid(right - wrong) (Rendle et al. 2009): a right item's score is to be higher.

    Args:
      right, wrong: scores, broadcast against each other.
    """
    return jax.nn.softplus(wrong - right)


def contrastive_softmax(scores: Array, positives: Array, weights: Array) -> Array:
    """Cross-entropy of each image over the batch's texts and of its text over the images, halved.

    (Radford et al. 2021, figure 3) Where a row has several positives the target is spread evenly
    over them (Yang et al. 2022, equations 2 and 3).

    Args:
      scores: [B, B], of image `row` and text `column`.
      positives: bool [B, B], symmetric, True on the diagonal.
      weights: [B]; examples of weight 0 are nobody's positives or negatives.

    Returns:
      [B] float32, in nats, each to be weighted by its example's weight.
    """
    counted = (weights > 0) | jnp.eye(len(scores), dtype=bool)  # a row of padding stays finite
    targets = positives & counted
    scores = scores.astype(jnp.float32)

    def over_columns(scores):
        log_p = jax.nn.log_softmax(jnp.where(counted, scores, -jnp.inf))
        return -jnp.where(targets, log_p, 0).sum(1) / targets.sum(1)

    return (over_columns(scores) + over_columns(scores.T)) / 2


def contrastive_sigmoid(scores: Array, positives: Array, weights: Array) -> Array:
    """-log sigmoid(z score) of each image and all texts of the batch, z = 1 at positives, else -1.

    (SigLIP, Zhai et al. 2023, section 3.2: their algorithm 1) Arguments as for
    `contrastive_softmax`.

    Returns:
      [B] float32, in nats: the sum over texts of weight above 0.
    """
    counted = (weights > 0) | jnp.eye(len(scores), dtype=bool)
    scores = scores.astype(jnp.float32)
    each = jax.nn.softplus(jnp.where(positives, -scores, scores))
    return jnp.where(counted, each, 0).sum(1)
