"""The text of a recording, token by token, by an encoder-decoder (Whisper: Radford et al. 2022)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors, losses, metrics
from bigmodels.augmentation.sound import SoundAugmentation
from bigmodels.data import tokenizers
from bigmodels.deploy import beam_search
from bigmodels.models.encoder_decoder import EncoderDecoder
from bigmodels.models.parts import log_mel
from bigmodels.scores import speech
from bigmodels.tasks.sound import SoundTask, Waveforms, name_of
from bigmodels.tasks.tokens import Tokenized


@dataclasses.dataclass(frozen=True)
class WhisperFrontEnd(Waveforms):
    """Recordings to the features that Whisper hears, of the silence behind them as well.

    Fields:
      num_mels: see `log_mel.whisper_features`.
    """

    sample_rate: int = 16_000
    max_seconds: float = 30.0
    num_mels: int = 80

    @property
    def num_states(self) -> int:
        """What the encoder makes of all frames, two of which become one."""
        return -(-(self.most // log_mel.WHISPER_HOP) // 2)

    def features(self, waveforms: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """float32 [B, T] and int [B] samples -> float32 [B, L, num_mels], int [B] frames of sound.

        The latter are for augmentation alone.
        """
        features = log_mel.whisper_features(waveforms, self.sample_rate, self.num_mels)
        return features, jnp.clip(lengths // log_mel.WHISPER_HOP, 1, features.shape[1])


@dataclasses.dataclass(frozen=True)
class SpeechToText(Tokenized, SoundTask):
    """Recordings -> an encoder-decoder's loss of their texts; beam search writes them.

    Fields:
      tokenizer: the config's section, from which `fit` or `restored` makes `vocabulary`.
      sound: the section of `WhisperFrontEnd`.
      max_tokens: of a text, its end included.
      prompt: names of the tokens before every text, in which {language} stands for the language;
        without any it is the end of text.
      language: of recordings that do not say theirs, as the tokens name it, such as 'en'.
      augment: the section of `SoundAugmentation`; for training only.
      input_key, text_key, language_key: of the source's records; the last may be missing there.
      beam_size, length_penalty: of `beam_search.beam_search`, the latter its `alpha`.
      suppressed, suppressed_first: tokens that no text has, and with which none begins.
      score_names: keys of `scores.speech.RATES`; without any, evaluation writes no texts.
    """

    model: EncoderDecoder
    tokenizer: Mapping
    max_tokens: int
    sound: Mapping = dataclasses.field(default_factory=dict)
    prompt: Sequence[str] = ()
    language: str = 'en'
    augment: Mapping | None = None
    input_key: str = 'audio'
    text_key: str = 'text'
    language_key: str = 'language'
    beam_size: int = 1
    length_penalty: float = 0.6
    suppressed: Sequence[int] = ()
    suppressed_first: Sequence[int] = ()
    score_names: Sequence[str] = ()
    vocabulary: tokenizers.Tokenizer | None = None

    sections: ClassVar = {'sound': WhisperFrontEnd, 'augment': SoundAugmentation}
    target_keys: ClassVar = ('text_key',)
    token_fields = ('targets',)
    answer_fields = ('language', 'prompt', 'beam_size', 'length_penalty')

    def __post_init__(self):
        model, sound = self.model, self.front_end
        if model.num_mels != sound.num_mels:
            raise errors.UserError(
                f'task.sound.num_mels = {sound.num_mels} must be model.num_mels = {model.num_mels}.'
            )
        places = model.max_source_length or model.max_length
        if sound.num_states > places:
            raise errors.UserError(
                f'task.sound.max_seconds = {sound.max_seconds} gives {sound.num_states} states, '
                f'more than model.max_source_length = {places}: set one of them otherwise.'
            )
        if self.max_tokens < 1 or self._prompt_length + self.max_tokens - 1 > model.max_length:
            raise errors.UserError(
                f'task.max_tokens = {self.max_tokens} must be at least 1 and, behind a prompt of '
                f'{self._prompt_length}, fit into model.max_length = {model.max_length}.'
            )
        if self.beam_size < 1:
            raise errors.UserError(f'task.beam_size = {self.beam_size} must be at least 1.')
        speech.check(self.score_names)

    @property
    def _prompt_length(self) -> int:
        return max(len(self.prompt), 1)

    def _text_fields(self) -> Sequence[str]:
        return (self.text_key,)

    def _with(self, vocabulary: tokenizers.Tokenizer) -> 'SpeechToText':
        task = super()._with(vocabulary)
        task.prompt_ids(self.language)  # rather than with the first record
        return task

    def prompt_ids(self, language: str) -> np.ndarray:
        """The ids int32 [P] before a text of this language."""
        names = [name.replace('{language}', language) for name in self.prompt]
        ids = [tokenizers.token_id(self.vocabulary, name) for name in names]
        return np.array(ids or [self.vocabulary.end_of_text], np.int32)

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record -> {'inputs' float32 [T], 'lengths' int32, 'prompt' int32 [P]}, and its text's.

        These are 'targets' int32 and 'weights' float32 [max_tokens].

        Raises:
          UserError: see `sound.Waveforms.filled_up`; for a language that no token names; and naming
            the record, for a text that is empty, or longer than `max_tokens`.
        """
        example = self.front_end.filled_up(raw, self.input_key, cut=False)
        example['prompt'] = self.prompt_ids(raw.get(self.language_key) or self.language)
        if self.text_key not in raw:
            return example
        if not raw[self.text_key].strip():
            raise errors.UserError(f'{name_of(raw)} has an empty text. Leave the record out.')
        ids = self.answer_with_end(raw[self.text_key], 'text', None)
        if len(ids) > self.max_tokens:
            raise errors.UserError(
                f'{name_of(raw)} has a text of {len(ids)} tokens, more than task.max_tokens = '
                f'{self.max_tokens}: set that higher.'
            )
        targets = self.filled_up(ids, self.max_tokens)
        weights = np.arange(self.max_tokens) < len(ids)
        return example | {'targets': targets, 'weights': weights.astype(np.float32)}

    def postprocess(self, prediction: Sequence[int]) -> str:
        """Token ids -> the text before their end, without blanks around it."""
        return self.before_end(prediction).strip()

    def example_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of one of `examples`, with texts."""
        return self.front_end.shapes() | {
            'prompt': jax.ShapeDtypeStruct((self._prompt_length,), 'int32'),
            'targets': jax.ShapeDtypeStruct((self.max_tokens,), 'int32'),
            'weights': jax.ShapeDtypeStruct((self.max_tokens,), 'float32'),
        }

    def init(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping:
        """Variables of the model."""
        features, _ = self.front_end.features(batch['inputs'][:1], batch['lengths'][:1])
        return self.model.init(rng, features, batch['prompt'][:1])

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """Cross-entropy in nats per token of the text, and how often the next is the likeliest."""
        if train:
            features, _ = self.augmented_features(batch, rng)
        else:
            features, _ = self.front_end.features(batch['inputs'], batch['lengths'])
        before = jnp.concatenate([batch['prompt'], batch['targets'][:, :-1]], axis=1)
        logits = self.model.apply(
            {'params': params}, features, before, train=train, rngs={'dropout': rng}
        )
        logits = logits[:, self._prompt_length - 1 :]
        pairs = {
            'loss': metrics.pair(
                losses.softmax_cross_entropy(logits, batch['targets']), batch['weights']
            ),
            'accuracy': metrics.pair(logits.argmax(-1) == batch['targets'], batch['weights']),
        }
        return metrics.mean(pairs['loss']), (pairs, model_state)

    def predict(self, params, model_state, batch) -> jax.Array:
        """The best texts that beam search finds: int32 [B, max_tokens], behind ends more ends."""
        features, _ = self.front_end.features(batch['inputs'], batch['lengths'])
        found = beam_search.search(
            self.model,
            params,
            features,
            None,
            beam_size=self.beam_size,
            max_length=self.max_tokens,
            end=self.vocabulary.end_of_text,
            alpha=self.length_penalty,
            start=batch['prompt'],
            suppressed=self.suppressed,
            suppressed_first=self.suppressed_first,
        )
        return found.tokens[:, 0]

    def outcomes(self, params, model_state, batch) -> dict[str, jax.Array]:
        """'transcripts' int32 [B, max_tokens], and the 'targets' that they are scored by."""
        if not self.score_names:
            return {}
        transcripts = self.predict(params, model_state, batch)
        return {'transcripts': transcripts, 'targets': batch['targets']}

    def scores(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The error rates of a whole set's texts."""
        texts = {name: [*map(self.postprocess, rows)] for name, rows in outcomes.items()}
        return {
            name: speech.RATES[name](texts['targets'], texts['transcripts'])
            for name in self.score_names
        }

    def flops_per_step(self, params, shapes) -> float:
        """Model FLOPs of one training step."""
        rows, length = shapes['targets'].shape
        length += self._prompt_length - 1
        return rows * self.model.flops_per_row(params, self.front_end.num_states, length)

    def facts(self) -> dict[str, str]:
        """What the start screen says of the model."""
        return {
            'model': self.model.describe(),
            'precision': f'parameters float32, compute {self.model.dtype}',
        }
