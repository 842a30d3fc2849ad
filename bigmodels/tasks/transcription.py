"""The text of a recording, by connectionist temporal classification (Graves et al. 2006)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bigmodels import errors, metrics
from bigmodels.data import tokenizers
from bigmodels.deploy import ctc
from bigmodels.models.parts import pooling
from bigmodels.scores import speech
from bigmodels.tasks.sound import SoundTask, name_of
from bigmodels.tasks.tokens import Tokenized


@dataclasses.dataclass(frozen=True)
class Transcription(Tokenized, SoundTask):
    """Recordings of different lengths -> text.

    Fields:
      model: maps features [B, L, M] and their lengths [B] to logits [B, L', classes], of the
        tokens and, last, the blank; `output_lengths(lengths)` says how many of L' are real.
      tokenizer: the config's section, from which `fit` or `restored` makes `vocabulary`.
      sound: the section of `sound.FrontEnd`.
      max_tokens: of a transcript.
      augment: the section of `SoundAugmentation`; for training only.
      input_key, text_key: of the source's records.
      beams: kept in decoding; 1 is the most probable path.
    """

    model: nn.Module
    tokenizer: Mapping
    sound: Mapping
    max_tokens: int
    augment: Mapping | None = None
    input_key: str = 'audio'
    text_key: str = 'text'
    beams: int = 1
    vocabulary: tokenizers.Tokenizer | None = None

    target_keys: ClassVar = ('text_key',)

    def __post_init__(self):
        speech.load_jiwer()  # rather than after training
        if self.beams < 1 or self.max_tokens < 1:
            raise errors.UserError('task.beams and task.max_tokens must be at least 1.')

    @property
    def blank(self) -> int:
        """The class that stands for no token."""
        return self.model.num_classes - 1

    def _text_fields(self) -> Sequence[str]:
        return (self.text_key,)

    def _with(self, vocabulary: tokenizers.Tokenizer) -> 'Transcription':
        wanted = vocabulary.vocab_size + 1
        if self.model.num_classes != wanted:
            raise errors.UserError(
                f'model.num_classes = {self.model.num_classes} must be {wanted}: the tokens of the '
                'tokenizer, and the blank.'
            )
        return dataclasses.replace(self, vocabulary=vocabulary)

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record -> {'inputs' float32 [T], 'lengths' int32}; and with a text its tokens.

        They are 'targets' int32 [max_tokens], of which 'target_lengths' int32 are real.

        Raises:
          UserError: see `sound.FrontEnd.filled_up`; and naming the record, for a text that is
            empty, longer than `max_tokens`, or longer than its recording can say.
        """
        example = self.front_end.filled_up(raw, self.input_key, cut=False)
        if self.text_key not in raw:
            return example
        tokens = self.vocabulary.encode(raw[self.text_key])
        count, where = len(tokens), name_of(raw)
        if not raw[self.text_key].strip():
            raise errors.UserError(f'{where} has an empty text. Leave the record out.')
        if count > self.max_tokens:
            raise errors.UserError(
                f'{where} has a text of {count} tokens, more than task.max_tokens = '
                f'{self.max_tokens}: set that higher.'
            )
        played = int(example['lengths'] / self.augmentation.speed[1])
        states = self.model.output_lengths(self.front_end.num_frames(played))
        # Equal neighbours need a blank between them.
        needed = count + int((tokens[1:] == tokens[:-1]).sum())
        if needed > states:
            raise errors.UserError(
                f'{where} has too much text: its {count} tokens take {needed} states of the model, '
                f'and its sound gives {states}. Use a smaller model.subsampling or '
                'task.sound.hop_seconds, or leave the record out.'
            )
        targets = np.full(self.max_tokens, self.vocabulary.end_of_text, np.int32)
        targets[:count] = tokens
        return example | {'targets': targets, 'target_lengths': np.int32(count)}

    def postprocess(self, prediction: np.ndarray) -> str:
        """Token ids, -1 for none -> text."""
        return self.vocabulary.decode(prediction[prediction >= 0])

    def example_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of one of `examples`, transcribed ones."""
        return self.front_end.shapes() | {
            'targets': jax.ShapeDtypeStruct((self.max_tokens,), 'int32'),
            'target_lengths': jax.ShapeDtypeStruct((), 'int32'),
        }

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """-log of the probability of all paths that stand for the text, in nats per token."""
        logits, frames, model_state = self.logits(params, model_state, batch, rng, train)
        paddings = [
            1.0 - pooling.within(lengths, count)
            for lengths, count in (
                (self.model.output_lengths(frames), logits.shape[1]),
                (batch['target_lengths'], self.max_tokens),
            )
        ]
        loss = optax.ctc_loss(
            logits, paddings[0], batch['targets'], paddings[1], blank_id=self.blank
        )
        total, _ = metrics.pair(loss, batch['weights'])
        pair = total, (batch['target_lengths'] * batch['weights']).sum()
        return metrics.mean(pair), ({'loss': pair}, model_state)

    def most_counts(self, weights: jax.Array) -> int:
        """The loss counts tokens."""
        return self.max_tokens

    def predict(self, params, model_state, batch) -> jax.Array:
        """Tokens int32 [B, L'], followed by -1."""
        logits, frames, _ = self.logits(params, model_state, batch)
        lengths = self.model.output_lengths(frames)
        if self.beams == 1:
            return ctc.decode_greedily(logits, lengths, self.blank)
        return ctc.decode_with_beams(logits, lengths, self.blank, self.beams)[0]

    def outcomes(self, params, model_state, batch) -> dict[str, jax.Array]:
        """What was said, what was decoded and, of beams, what the best path would have been."""
        logits, frames, _ = self.logits(params, model_state, batch)
        lengths = self.model.output_lengths(frames)
        decoded = {'greedy': ctc.decode_greedily(logits, lengths, self.blank)}
        if self.beams > 1:
            decoded['beams'], _ = ctc.decode_with_beams(logits, lengths, self.blank, self.beams)
        real = pooling.within(batch['target_lengths'], self.max_tokens)
        return decoded | {'targets': jnp.where(real, batch['targets'], -1)}

    @property
    def score_names(self) -> tuple[str, ...]:
        return ('wer', 'cer') if self.beams == 1 else ('wer', 'cer', 'greedy_wer', 'greedy_cer')

    def scores(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Word and character error rates of a whole set."""
        texts = {name: [*map(self.postprocess, rows)] for name, rows in outcomes.items()}
        decoders = {'greedy': ''} if self.beams == 1 else {'beams': '', 'greedy': 'greedy_'}
        return {
            prefix + name: rate(texts['targets'], texts[decoder])
            for decoder, prefix in decoders.items()
            for name, rate in speech.RATES.items()
        }

    def facts(self) -> dict[str, str]:
        """What the start screen says of the model."""
        decoder = 'best path' if self.beams == 1 else f'{self.beams} beams'
        return {
            'model': f'{type(self.model).__name__}, {self.model.num_classes} classes with the '
            f'blank, decoded by {decoder}'
        }
