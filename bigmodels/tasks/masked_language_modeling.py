"""Tokens that were masked, from all others (BERT, Devlin et al. 2019).

Axes: B batch, L length, M masked tokens of each sequence, V vocabulary.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors, losses, metrics
from bigmodels.augmentation import token_noise
from bigmodels.data import text, tokenizers
from bigmodels.tasks import tokens

MASK = '[MASK]'  # in texts that are to be filled in


@dataclasses.dataclass(frozen=True)
class MaskedLanguageModeling(tokens.TokenSequences):
    """Text -> a bidirectional model's loss of the tokens that it does not see.

    The mask is one id more than the tokenizer has, unless `mask_token` is one of its. In training
    masked positions are drawn anew in every step; in evaluation they are the same in all sequences,
    and all of them masks, so that no figure depends on how a set is split into batches.

    Fields:
      model: a `Transformer` with `causal = False`, or another module with its call and methods.
      tokenizer: the config's section, from which `fit` or `restored` makes `vocabulary`.
      sequence_length, packing, append_end_of_text: see `tokens.TokenSequences`.
      text_field: of the source's records.
      mask_token: the tokenizer's token that stands for the mask; '' for one more id.
      mask_rate: the share of each sequence's tokens that are to be told; M is that of L.
      random_share, kept_share: see `token_noise.corrupt`.
      sample_text: filled in at the end of a run where it says [MASK].
    """

    model: nn.Module
    tokenizer: Mapping
    sequence_length: int
    packing: Literal['chunks', 'documents'] = 'chunks'
    text_field: str = 'text'
    append_end_of_text: bool = True
    mask_token: str = ''
    mask_rate: float = 0.15
    random_share: float = 0.1
    kept_share: float = 0.1
    sample_text: str = ''
    vocabulary: tokenizers.Tokenizer | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.model.causal:
            raise errors.UserError(
                'A masked language model sees both sides of a mask: set model.causal to False.'
            )
        if not 0 < self.mask_rate < 1:
            raise errors.UserError(f'task.mask_rate = {self.mask_rate} must be between 0 and 1.')
        if min(self.random_share, self.kept_share) < 0 or self.random_share + self.kept_share > 1:
            raise errors.UserError(
                f'task.random_share = {self.random_share} and task.kept_share = {self.kept_share} '
                f'are shares of the masked tokens: from 0 to 1 together.'
            )

    def _num_ids(self, vocabulary: tokenizers.Tokenizer) -> int:
        return vocabulary.vocab_size + (not self.mask_token)

    @property
    def mask_id(self) -> int:
        if not self.mask_token:
            return self.vocabulary.vocab_size
        return tokenizers.token_id(self.vocabulary, self.mask_token)

    @property
    def record_fields(self) -> dict[str, str]:
        """What `preprocess` needs of a record, see `data.inputs`."""
        return {self.text_field: 'text'}

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A text -> {'inputs', 'segment_ids' int32 [L], 0 at padding}, each [MASK] in it one mask.

        Raises:
          UserError: for an empty text, and one of more than L tokens.
        """
        ids = self._with_masks(text.text_of(raw, self.text_field))
        least = 1 + self.append_end_of_text
        if not least <= len(ids) <= self.sequence_length:
            raise errors.UserError(
                f'The text has {len(ids)} tokens: from {least} to task.sequence_length = '
                f'{self.sequence_length} are wanted.'
            )
        padded = np.zeros((2, self.sequence_length), np.int32)
        padded[:, : len(ids)] = ids, np.ones_like(ids)
        return {'inputs': padded[0], 'segment_ids': padded[1]}

    def _with_masks(self, text: str) -> np.ndarray:
        """The ids of a text, in which [MASK] stands for one, up to its end."""
        # A word's token begins with the blank before it.
        parts = re.split(' ?' + re.escape(MASK), text)
        ids = [tokenizers.document(self.vocabulary, parts[0])]
        for part in parts[1:]:
            ids += [np.array([self.mask_id], np.int32), self.vocabulary.encode(part)]
        if self.append_end_of_text:
            ids.append(np.array([self.vocabulary.end_of_text], np.int32))
        return np.concatenate(ids)

    def postprocess(self, prediction: np.ndarray) -> dict[str, str]:
        """Token ids of `predict` -> {'text'}."""
        ids = prediction[prediction >= 0]
        return {'text': self.vocabulary.decode(ids[:-1] if self.append_end_of_text else ids)}

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """Cross-entropy in nats per masked token, and how many of them are told right."""
        position_rng, noise_rng, dropout_rng = jax.random.split(rng, 3)
        positions = self._positions(position_rng, batch['inputs'].shape, train)
        targets = jnp.take_along_axis(batch['inputs'], positions, axis=1)
        seen = jnp.full_like(targets, self.mask_id)
        if train:
            seen = token_noise.corrupt(
                noise_rng,
                targets,
                self.mask_id,
                self.random_share,
                self.kept_share,
                self.vocabulary.vocab_size,
            )
        padding = None if train else batch['weights'].astype(jnp.int32)  # of a set's last chunk
        hidden, sown = self.model.apply(
            {'params': params},
            jnp.put_along_axis(batch['inputs'], positions, seen, axis=1, inplace=False),
            positions=batch.get('positions'),
            segment_ids=batch.get('segment_ids', padding),
            train=train,
            return_hidden=True,
            rngs={'dropout': dropout_rng},
            mutable=['losses', 'metrics'],
        )
        # Logits of all tokens would take more time than a small model does.
        hidden = jnp.take_along_axis(hidden, positions[..., None], axis=1)
        logits = self.model.logits(params, hidden)
        weights = jnp.take_along_axis(batch['weights'], positions, axis=1)
        loss = losses.softmax_cross_entropy(logits, targets)
        pairs = tokens.pairs_of_tokens(loss, weights, sown, train)
        pairs['accuracy'] = metrics.pair(logits.argmax(-1) == targets, weights)
        return metrics.mean(pairs['loss']), (pairs, model_state)

    def most_counts(self, weights: jax.Array) -> int:
        """The loss counts masked tokens."""
        return self._num_masked(weights.shape[1])

    def _num_masked(self, length: int) -> int:
        return max(round(self.mask_rate * length), 1)

    def _positions(self, rng: jax.Array, shape: tuple[int, int], train: bool) -> jax.Array:
        """The masked positions, int32 [B, M]."""
        count = self._num_masked(shape[1])
        if train:
            return token_noise.choose_positions(rng, shape, count)
        same = token_noise.choose_positions(jax.random.key(0), (1, shape[1]), count)
        return jnp.broadcast_to(same, (shape[0], count))

    def predict(self, params, model_state, batch) -> jax.Array:
        """Token ids int32 [B, L]: each mask filled in by the likeliest token, -1 at padding."""
        told = self.logits(params, batch)[..., : self.vocabulary.vocab_size].argmax(-1)
        filled = jnp.where(batch['inputs'] == self.mask_id, told, batch['inputs'])
        if 'segment_ids' not in batch:  # a chunk of a corpus, which has no padding
            return filled
        return jnp.where(batch['segment_ids'] > 0, filled, -1)

    def logits(self, params, batch) -> jax.Array:
        """Of each token, [B, L, V], from all that `inputs` show, masks among them."""
        return self.model.apply(
            {'params': params},
            batch['inputs'],
            positions=batch.get('positions'),
            segment_ids=batch.get('segment_ids'),
        )

    def flops_per_step(self, params, shapes) -> float:
        """Model FLOPs of one training step: as causal ones, but each token attends to all.

        Logits count for masked tokens.
        """
        m, (count, _) = self.model, self.items(shapes)
        later = 6 * m.num_layers * m.num_heads * m.dim_per_head * self.sequence_length
        not_told = 6 * (1 - self.mask_rate) * m.embed_dim * m.vocab_size
        return count * (m.flops_per_token(params, self.sequence_length) + later - not_told)

    def shown(self) -> Sequence[np.ndarray]:
        """The ids of `sample_text`, if there is one."""
        return [self._with_masks(self.sample_text)] if self.sample_text else []

    def demonstrate(self, params, model_state) -> dict[str, str]:
        """`sample_text` with its masks filled in by the likeliest tokens."""
        if not self.sample_text:
            return {}
        [ids] = self.shown()  # of any length
        [filled] = self.predict(params, model_state, {'inputs': ids[None]})
        answer = self.postprocess(np.asarray(filled))
        return {'sample.txt': f'{self.sample_text}\n{answer["text"]}\n'}
