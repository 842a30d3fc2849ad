"""The next token, from those before it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import losses, metrics
from bigmodels.data import tokenizers
from bigmodels.data.text import text_of
from bigmodels.deploy.sampling import Sampling
from bigmodels.deploy.text import generate_text
from bigmodels.tasks import tokens


@dataclasses.dataclass(frozen=True)
class LanguageModeling(tokens.TokenSequences):
    """Text -> a decoder's next-token loss.

    Fields:
      model: a `Transformer`, or another module with its call and methods.
      tokenizer: the config's section, from which `fit` or `restored` makes `vocabulary`.
      sequence_length: L, tokens in one example.
      packing: 'chunks' cuts the corpus at every L tokens; 'documents' packs whole documents,
        with segment ids and positions, so that none sees another.
      text_field: of the source's records.
      append_end_of_text: whether every document ends with the tokenizer's end-of-text token.
      label_smoothing, z_loss: see `losses.softmax_cross_entropy`; in training only.
      loss_chunk: logits are computed for this many tokens at a time; 0 for all at once.
      sample_prompt: of the continuation written at the end of a run.
      sample_tokens: the most tokens of it, and of an answer of `bigmodels.predict`.
    """

    model: nn.Module
    tokenizer: Mapping
    sequence_length: int
    packing: Literal['chunks', 'documents'] = 'chunks'
    text_field: str = 'text'
    append_end_of_text: bool = True
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    loss_chunk: int = 0
    sample_prompt: str = ''
    sample_tokens: int = 300
    vocabulary: tokenizers.Tokenizer | None = None

    alike_in_teacher: ClassVar = ()
    answer_fields: ClassVar = ('sample_tokens',)

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record with text -> {'inputs': token ids}."""
        return {'inputs': tokenizers.document(self.vocabulary, text_of(raw, self.text_field))}

    def postprocess(self, prediction: Sequence[int]) -> str:
        """Token ids -> text."""
        return self.vocabulary.decode(prediction)

    def prompt(self, text: str) -> np.ndarray:
        """The ids that the model is to continue for a user's text, int32 [L]: those of the text."""
        return tokenizers.document(self.vocabulary, text)

    @property
    def end(self) -> int | None:
        """The id that ends what is generated, None if none does: then it is one like others."""
        return self.vocabulary.end_of_text if self.append_end_of_text else None

    def token_losses(self, params, batch, rng, train: bool) -> tuple[jax.Array, Mapping]:
        """Cross-entropy in nats of every token [B, L], and what the model sows."""
        hidden, sown = self.model.apply(
            {'params': params},
            batch['inputs'],
            positions=batch.get('positions'),
            segment_ids=batch.get('segment_ids'),
            train=train,
            return_hidden=True,
            rngs={'dropout': rng},
            mutable=['losses', 'metrics'],
        )

        def of_hidden(hidden, targets):
            logits = self.model.logits(params, hidden)
            return losses.softmax_cross_entropy(
                logits,
                targets,
                label_smoothing=self.label_smoothing if train else 0.0,
                z_loss=self.z_loss if train else 0.0,
            )

        if self.loss_chunk:
            chunk = self.loss_chunk
            return losses.chunked_over_tokens(of_hidden, hidden, batch['targets'], chunk), sown
        return of_hidden(hidden, batch['targets']), sown

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """Cross-entropy in nats per token, see `tokens.pairs_of_tokens`; bits per byte of text."""
        loss, sown = self.token_losses(params, batch, rng, train)
        pairs = tokens.pairs_of_tokens(loss, batch['weights'], sown, train)
        loss = pairs['loss']
        if not train:
            lengths = jnp.asarray(self.vocabulary.byte_lengths())[batch['targets']]
            text_bytes = (lengths * batch['weights']).sum()
            pairs['bits_per_byte'] = (loss[0] / math.log(2), text_bytes)
        return metrics.mean(loss), (pairs, model_state)

    def predict(self, params, model_state, batch) -> jax.Array:
        """Logits of the next token, [B, L, V]."""
        return self.model.apply(
            {'params': params},
            batch['inputs'],
            positions=batch.get('positions'),
            segment_ids=batch.get('segment_ids'),
        )

    def flops_per_step(self, params, shapes) -> float:
        """Model FLOPs of one training step, causal convention."""
        count, _ = self.items(shapes)
        return count * self.model.flops_per_token(params, self.sequence_length)

    def shown(self) -> Sequence[np.ndarray]:
        """The ids of `sample_prompt`."""
        return [self.prompt(self.sample_prompt)]

    def demonstrate(self, params, model_state) -> dict[str, str]:
        """A sampled continuation of `sample_prompt`."""
        [prompt] = self.shown()
        room = self.model.max_length - max(len(prompt), 1)
        count = min(self.sample_tokens, room)
        if count < 1:
            return {}
        settings = Sampling(temperature=0.8, top_k=50)
        [continuation] = generate_text(self, params, [prompt], count, settings, seed=0)
        return {'sample.txt': self.vocabulary.decode(prompt) + continuation}
