"""Decoding of connectionist temporal classification (Graves et al. 2006), on the device.

The model says at every frame one of the labels or a blank. A path over the frames stands for the
labels that are left once repetitions are merged and then blanks removed.

Axes: B batch, L frames, V classes, W beams. No label is -1.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bigmodels.models.parts import pooling

Array = jax.Array


def decode_greedily(logits: Array, lengths: Array, blank: int) -> Array:
    """The labels of the most probable path: int32 [B, L], followed by -1.

    Args:
      logits: [B, L, V].
      lengths: int [B], of frames that are real.
      blank: its class.
    """
    path = logits.argmax(-1).astype(jnp.int32)
    before = jnp.pad(path[:, :-1], [(0, 0), (1, 0)], constant_values=-1)
    num_frames = path.shape[1]
    real = pooling.within(lengths, num_frames)
    kept = real & (path != blank) & (path != before)
    places = jnp.where(kept, jnp.cumsum(kept, 1) - 1, num_frames)
    write = lambda places, labels: jnp.full(num_frames, -1).at[places].set(labels, mode='drop')
    return jax.vmap(write)(places, path)


class Beams(NamedTuple):
    """The best sequences of labels so far.

    Fields:
      labels: int32 [W, L], followed by -1.
      counts: int32 [W], labels in each.
      by_blank, by_label: float32 [W], log probabilities of all paths to it that end with a blank,
        and with its last label.
    """

    labels: Array
    counts: Array
    by_blank: Array
    by_label: Array

    @property
    def total(self) -> Array:
        return jnp.logaddexp(self.by_blank, self.by_label)


@functools.partial(jax.jit, static_argnames=('blank', 'width'))
def decode_with_beams(logits: Array, lengths: Array, blank: int, width: int) -> tuple[Array, Array]:
    """The most probable labels, summed over paths, among those that a beam search meets.

    Prefix search (Graves 2012, section 7.5; Hannun et al. 2014) that keeps `width` sequences at
    each frame. With as many as there are sequences, the result is exact.

    Args:
      logits, lengths, blank: as in `decode_greedily`.

    Returns:
      int32 [B, L], followed by -1; and their log probability, float32 [B].
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))

    def one(log_probs, length):
        def step(beams, frame):
            t, at_frame = frame
            extended = _extended(beams, at_frame, blank)
            return jax.tree.map(lambda a, b: jnp.where(t < length, a, b), extended, beams), None

        num_frames = len(log_probs)
        beams = Beams(
            labels=jnp.full((width, num_frames), -1),
            counts=jnp.zeros(width, jnp.int32),
            by_blank=jnp.full(width, -jnp.inf).at[0].set(0),
            by_label=jnp.full(width, -jnp.inf),
        )
        beams, _ = jax.lax.scan(step, beams, (jnp.arange(num_frames), log_probs))
        return beams.labels[0], beams.total[0]

    return jax.vmap(one)(log_probs, lengths)


def _extended(beams: Beams, log_probs: Array, blank: int) -> Beams:
    """The beams after one more frame of log probabilities [V], the most probable first."""
    labels, counts, by_blank, by_label = beams
    width, num_classes = len(labels), len(log_probs)
    rows = jnp.arange(width)
    last = labels[rows, counts - 1]  # -1 of an empty sequence: its place is the last one
    some = counts > 0
    at_last = jnp.where(some, log_probs[last], -jnp.inf)
    stay_by_blank = beams.total + log_probs[blank]
    stay_by_label = by_label + at_last
    # A label that repeats the last one begins anew only after a blank.
    repeats = last[:, None] == jnp.arange(num_classes)
    added = jnp.where(repeats, by_blank[:, None], beams.total[:, None]) + log_probs
    added = added.at[:, blank].set(-jnp.inf)
    # Where beam i and a label make beam j, both ways to it are one.
    shortened = labels.at[rows, counts - 1].set(-1)
    makes = (labels[:, None] == shortened).all(-1) & some & (beams.total > -jnp.inf)  # [i, j]
    gained = jnp.where(makes, added[:, last], -jnp.inf)
    stay_by_label = jnp.logaddexp(stay_by_label, gained.max(0))
    added = added.at[rows[:, None], jnp.where(makes, last, num_classes)].set(-jnp.inf, mode='drop')

    by_blank = jnp.concatenate([stay_by_blank, jnp.full(added.size, -jnp.inf)])
    by_label = jnp.concatenate([stay_by_label, added.ravel()])
    _, best = jax.lax.top_k(jnp.logaddexp(by_blank, by_label), width)
    stays = best < width
    source = jnp.where(stays, best, (best - width) // num_classes)
    place = jnp.where(stays, labels.shape[1], counts[source])  # the former is dropped
    grown = labels[source].at[rows, place].set((best - width) % num_classes, mode='drop')
    return Beams(grown, counts[source] + ~stays, by_blank[best], by_label[best])
