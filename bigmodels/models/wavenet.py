"""WaveNet (van den Oord et al. 2016, arXiv:1609.03499): sound sample by sample.

Axes: B batch, T samples, P places in a recording, D embed, S skip, V levels.
"""

import functools
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels import errors, sharding
from bigmodels.models.parts import layers

Array = jax.Array

# Parameter name -> mesh axes of its trailing dimensions.
SHARDING_RULES = (
    (r'embed/embedding$', (None, 'fsdp')),  # [V, D], [classes, P*D], [speakers, D]
    (r'(gate|condition)/kernel$', ('fsdp', 'tensor')),  # [3D, 2D], [D, D]
    (r'(out|skip)/kernel$', ('tensor', 'fsdp')),  # [D, D], [D, S]
    (r'^head_\d/kernel$', ('fsdp', 'tensor')),  # [S, S], [S, V]
    (r'bias$', ()),
)


class Cache(NamedTuple):
    """What the samples before leave for the next one.

    Fields:
      step: int, how many there were.
      inputs: for each layer its inputs at the last `dilation` samples, [dilation, B, D]: that of
        sample t is in place t % dilation. Zero before the first one.
    """

    step: Array
    inputs: tuple[Array, ...]


class WaveNet(nn.Module):
    """A sample's probabilities from those before it; see `__call__`.

    A layer is a convolution of two taps, a sample and one that lies a power of 2 before it, with a
    gated unit (section 2.3). Its output is added to its input and, by another projection, to what
    the probabilities are made of (section 2.4). All layers are told the class, the speaker and how
    much of the recording is over (section 2.5): a class has states of its own at evenly spaced
    places from the beginning to the end of a recording, between which there are lines.

    Fields:
      num_classes, num_speakers: of recordings. Label `num_classes` stands for no class.
      num_layers: of them one after another reaches twice as far back, 1, 2, 4, ... samples;
      cycle: after so many layers this begins again.
      embed_dim, skip_dim: D and S.
      num_places: P, at least 2.
      num_levels: V, of a sample, see `mu_law`.
      dtype: of the computation; parameters, the last projection and logits are float32.
    """

    num_classes: int
    num_speakers: int
    num_layers: int
    cycle: int
    embed_dim: int
    skip_dim: int
    num_places: int = 16
    num_levels: int = 256
    dtype: layers.Dtype = 'float32'

    sharding_rules: ClassVar = SHARDING_RULES

    def __post_init__(self):
        for name, least in (('num_layers', 1), ('cycle', 1), ('num_places', 2), ('num_levels', 2)):
            if getattr(self, name) < least:
                raise errors.UserError(
                    f'config.model.{name} = {getattr(self, name)} must be at least {least}.'
                )
        super().__post_init__()

    @property
    def dilations(self) -> tuple[int, ...]:
        """How many samples the other tap of each layer lies before the first."""
        return tuple(2 ** (i % self.cycle) for i in range(self.num_layers))

    @property
    def receptive_field(self) -> int:
        """How many samples before a sample change its probabilities."""
        return 1 + sum(self.dilations)

    @nn.compact
    def __call__(
        self,
        inputs: Array,
        labels: Array,
        speakers: Array,
        progress: Array,
        *,
        cache: Cache | None = None,
        train: bool = False,
    ) -> Array | tuple[Array, Cache]:
        """Logits of the samples that follow the inputs.

        Args:
          inputs: int [B, T], codes of samples, each the one before that which is predicted.
          labels, speakers: int [B], the former up to `num_classes`.
          progress: [B, T], how much of the recording is over at the sample that is predicted, from
            0 to 1.
          cache: of `init_cache`, or as returned for the samples before; T is then 1.

        Returns:
          float32 [B, T, V]; with a cache, that and the cache for the next sample.
        """
        table = functools.partial(layers.Embed, embedding_init=nn.initializers.normal(1.0))
        embed = table(self.num_levels, self.embed_dim, name='embed')
        x = embed(inputs).astype(self.dtype)
        x = sharding.constrain_activations(x)
        condition = self._condition(table, labels, speakers, progress)
        total, kept = 0.0, []
        for i, dilation in enumerate(self.dilations):
            if cache is None:
                before = jnp.pad(x, ((0, 0), (dilation, 0), (0, 0)))[:, : x.shape[1]]
            else:
                before, slots = _exchanged(cache.inputs[i], x, cache.step % dilation)
                kept.append(slots)
            last = i == self.num_layers - 1
            layer = Layer(self.embed_dim, self.skip_dim, last, name=f'layers_{i}')
            x, skip = layer(x, before, condition)
            total += skip
        hidden = layers.Linear(self.skip_dim, name='head_0')(nn.relu(total))
        hidden = nn.relu(hidden.astype(jnp.float32))
        logits = layers.Linear(self.num_levels, name='head_1')(hidden)
        return logits if cache is None else (logits, Cache(cache.step + 1, tuple(kept)))

    def _condition(self, table, labels: Array, speakers: Array, progress: Array) -> Array:
        """What all layers are told of each sample, [B, T, D]; in the compact `__call__`."""
        shape = (len(labels), self.num_places, self.embed_dim)
        of_class = table(self.num_classes + 1, shape[1] * shape[2], name='class_embed')
        of_speaker = table(self.num_speakers, shape[2], name='speaker_embed')
        told = of_class(labels).reshape(shape)
        told += of_speaker(speakers)[:, None]
        told = jnp.tanh(layers.Linear(self.embed_dim, name='condition')(told))
        place = progress[..., None] * (self.num_places - 1)
        shares = jnp.maximum(1 - jnp.abs(place - jnp.arange(self.num_places)), 0)  # [B, T, P]
        return jnp.einsum('btp,bpd->btd', shares, told).astype(self.dtype)

    def init_cache(self, batch_size: int) -> Cache:
        """That before the first sample."""
        return Cache(
            jnp.zeros((), jnp.int32),
            tuple(jnp.zeros((d, batch_size, self.embed_dim), self.dtype) for d in self.dilations),
        )


class Layer(nn.Module):
    """x [B, T, D], the same some samples before, condition [B, T, D] -> (x, skip [B, T, S]).

    The last one returns no x.
    """

    embed_dim: int
    skip_dim: int
    last: bool

    @nn.compact
    def __call__(self, x: Array, before: Array, condition: Array) -> tuple[Array | None, Array]:
        seen = jnp.concatenate([before, x, condition], axis=-1)  # one product instead of three
        gate, value = jnp.split(layers.Linear(2 * self.embed_dim, name='gate')(seen), 2, axis=-1)
        y = nn.sigmoid(gate) * jnp.tanh(value)
        skip = layers.Linear(self.skip_dim, name='skip')(y)
        if self.last:
            return None, skip
        x += layers.Linear(self.embed_dim, name='out')(y)
        return sharding.constrain_activations(x), skip


def _exchanged(slots: Array, x: Array, place: Array) -> tuple[Array, Array]:
    """What was in a place of slots [dilation, B, D], as [B, 1, D], and the slots with x there."""
    before = jax.lax.dynamic_index_in_dim(slots, place, keepdims=False)
    return before[:, None], jax.lax.dynamic_update_index_in_dim(slots, x[:, 0], place, 0)
