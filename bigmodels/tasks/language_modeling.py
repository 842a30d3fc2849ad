"""The next token, from those before it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors, losses, metrics
from bigmodels.data import text, tokenizers
from bigmodels.deploy.decoding import generate_text
from bigmodels.deploy.sampling import Sampling
from bigmodels.models.attention import choose_implementation


@dataclasses.dataclass(frozen=True)
class LanguageModeling:
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
      sample_prompt, sample_tokens: of the continuation written at the end of a run.
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

    def __post_init__(self):
        if self.sequence_length > self.model.max_length:
            raise errors.UserError(
                f'task.sequence_length = {self.sequence_length} is longer than '
                f'model.max_length = {self.model.max_length}.'
            )

    def fit(self, source: Sequence) -> 'LanguageModeling':
        """Makes the tokenizer; one that is trained sees only the training records."""

        def texts():
            return (source[i][self.text_field] for i in range(len(source)))

        return self._with(tokenizers.fit(self.tokenizer, texts, 'task.tokenizer'))

    def save(self, directory: Path) -> None:
        """Writes the tokenizer."""
        self.vocabulary.save(directory)

    def restored(self, directory: Path) -> 'LanguageModeling':
        """With the tokenizer that `save` wrote."""
        return self._with(tokenizers.restore(directory))

    def _with(self, vocabulary: tokenizers.Tokenizer) -> 'LanguageModeling':
        if vocabulary.vocab_size > self.model.vocab_size:
            raise errors.UserError(
                f'The tokenizer has {vocabulary.vocab_size} tokens but model.vocab_size is '
                f'{self.model.vocab_size}: set model.vocab_size to at least that.'
            )
        return dataclasses.replace(self, vocabulary=vocabulary)

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record with text -> {'inputs': token ids}."""
        return {'inputs': self.vocabulary.encode(raw[self.text_field])}

    def postprocess(self, prediction: Sequence[int]) -> str:
        """Token ids -> text."""
        return self.vocabulary.decode(prediction)

    def examples(self, source: Sequence, cache_dir: Path, train: bool) -> Sequence:
        """Examples of L tokens; in evaluation the last one may be padded with weights 0."""
        corpus = text.tokenize_corpus(
            source,
            self.vocabulary,
            cache_dir,
            field=self.text_field,
            append_end_of_text=self.append_end_of_text,
        )
        if self.packing == 'documents':
            return text.Packed(corpus, self.sequence_length)
        return text.Chunks(corpus, self.sequence_length, drop_remainder=train)

    def example_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of one of `examples`, which do not depend on the text."""
        names = ['inputs', 'targets']
        if self.packing == 'documents':
            names += ['positions', 'segment_ids']
        shape = (self.sequence_length,)
        return {name: jax.ShapeDtypeStruct(shape, 'int32') for name in names} | {
            'weights': jax.ShapeDtypeStruct(shape, 'float32')
        }

    def init(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping:
        """Variables of the model."""
        return self.model.init(rng, batch['inputs'][:1])

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """Cross-entropy in nats per token; bits per byte of text; accuracy."""
        hidden = self.model.apply(
            {'params': params},
            batch['inputs'],
            positions=batch.get('positions'),
            segment_ids=batch.get('segment_ids'),
            train=train,
            return_hidden=True,
            rngs={'dropout': rng},
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
            loss = losses.chunked_over_tokens(of_hidden, hidden, batch['targets'], self.loss_chunk)
        else:
            loss = of_hidden(hidden, batch['targets'])
        loss = metrics.pair(loss, batch['weights'])
        pairs = {'loss': loss}
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

    def summary(self, values: Mapping[str, float]) -> dict[str, float]:
        """Adds perplexity, exp(loss), per token."""
        return {**values, 'perplexity': math.exp(min(values['loss'], 700))}

    def items(self, shapes: Mapping[str, Any]) -> tuple[int, str]:
        """The number of tokens in a batch, and their unit."""
        return math.prod(shapes['inputs'].shape), 'tokens'

    def flops_per_step(self, params, shapes) -> float:
        """Model FLOPs of one training step, causal convention."""
        tokens, _ = self.items(shapes)
        return tokens * self.model.flops_per_token(params, self.sequence_length)

    def demonstrate(self, params, model_state) -> dict[str, str]:
        """A sampled continuation of `sample_prompt`."""
        room = self.model.max_length - max(len(self.vocabulary.encode(self.sample_prompt)), 1)
        count = min(self.sample_tokens, room)
        if count < 1:
            return {}
        settings = Sampling(temperature=0.8, top_k=50)
        [continuation] = generate_text(self, params, [self.sample_prompt], count, settings, seed=0)
        return {'sample.txt': self.sample_prompt + continuation}

    def facts(self) -> dict[str, str]:
        """What the start screen says of the model."""
        m = self.model
        kernel, reason = choose_implementation(
            m.attention, m.dtype, m.dim_per_head, self.sequence_length, m.attention_softcap
        )
        return {
            'model': f'Transformer, {m.num_layers} layers, embed {m.embed_dim}, '
            f'{m.num_heads} heads of {m.dim_per_head}, vocabulary {m.vocab_size}',
            'attention': f'{kernel} ({reason})',
            'precision': f'parameters float32, compute {m.dtype}',
        }
