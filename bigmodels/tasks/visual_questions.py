"""Answers in words to questions about images.

Axes: B batch, H height, W width, C channels, Q tokens of a question, L of question and answer.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from bigmodels import errors, losses, metrics
from bigmodels.data import images, text, tokenizers
from bigmodels.deploy import beam_search
from bigmodels.models.vision_language import VisionLanguage
from bigmodels.tasks.base import Examples, array_of, checked_labels, field_of
from bigmodels.tasks.tokens import Tokenized


@dataclasses.dataclass(frozen=True)
class VisualQuestions(Tokenized):
    """Images and questions -> the tokens of an answer, each from those before it; greedy decoding.

    A row of tokens is the question, a token that ends it, the answer and its end, which is the same
    token. The loss is that of the answer and its end.

    Fields:
      tokenizer: the config's section, from which `fit` or `restored` makes `vocabulary`.
      question_length, answer_length: the most tokens of each, its end token included.
      image_size: images of another size are scaled until their shorter side has so many pixels,
        and cut to a square about the middle.
      channels: of images, 3 of colour or 1 of grey.
      mean, std: inputs are normalised to (x - mean) / std.
      image_key, question_key, answer_key: of the source's records.
      kind_key: of the kinds of their questions, numbers; kinds: their names, whose figures are
        reported one by one. Without any none are.
    """

    model: VisionLanguage
    tokenizer: Mapping
    question_length: int
    answer_length: int
    image_size: int
    channels: Literal[1, 3] = 3
    mean: float = 0.0
    std: float = 1.0
    image_key: str = 'image'
    question_key: str = 'question'
    answer_key: str = 'answer'
    kind_key: str = 'kind'
    kinds: Sequence[str] = ()
    vocabulary: tokenizers.Tokenizer | None = None

    unit = 'questions'
    token_fields = ('tokens', 'targets')
    target_keys: ClassVar = ('answer_key',)

    def __post_init__(self):
        if self.question_length < 2 or self.answer_length < 2:
            raise errors.UserError(
                f'config.task.question_length = {self.question_length} and answer_length = '
                f'{self.answer_length} must be at least 2: a token and the end.'
            )
        needed = self._num_patches + self._num_tokens
        if needed > self.model.max_length:
            raise errors.UserError(
                f'The {self._num_patches} patches of an image with question and answer are '
                f'{needed} states: set config.model.text.max_length to at least as many.'
            )

    @property
    def _num_patches(self) -> int:
        return self.model.num_patches(self.image_size, self.image_size)

    @property
    def _num_tokens(self) -> int:
        """L: the last end is a target only."""
        return self.question_length + self.answer_length - 1

    def _text_fields(self) -> Sequence[str]:
        return self.question_key, self.answer_key

    @property
    def record_fields(self) -> dict[str, str]:
        """What `preprocess` needs of a record to answer it, see `data.inputs`."""
        return {self.image_key: 'image', self.question_key: 'text'}

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record -> {'inputs' float32 [H, W, C], 'tokens' int32 [L], 'lengths' int32}.

        The last is the question's. With an answer also 'targets' int32 [L], the token after each
        one, with 'weights' float32 [L], 1 where these are the answer; and 'kinds' int32 if there
        are names for them.

        Raises:
          UserError: for a record without image or question, or with a text that is empty or too
            long.
        """
        image = array_of(raw, self.image_key, 'task.image_key')
        image = images.with_channels(image, self.channels)
        if image.shape[:2] != (self.image_size, self.image_size):
            image = images.resize_shorter_side(image, self.image_size)
            image = images.centre_crop(image, self.image_size, self.image_size)
        ids = self._encoded(raw, 'question')
        example = {
            'inputs': images.normalized(image, self.mean, self.std),
            'lengths': np.int32(len(ids) - 1),
        }
        if self.answer_key in raw:
            first = len(ids) - 1
            ids = np.concatenate([ids, self._encoded(raw, 'answer')])
            weights = np.zeros(self._num_tokens, np.float32)
            weights[first : len(ids) - 1] = 1
            targets = self.filled_up(ids[1:], self._num_tokens)
            example |= {'targets': targets, 'weights': weights}
            ids = ids[:-1]
            if self.kinds:
                key = f'task.kind_key = {self.kind_key!r}'
                kind = field_of(raw, self.kind_key, 'task.kind_key')
                limit = 'the number of task.kinds'
                example['kinds'] = checked_labels(kind, len(self.kinds), key, limit)
        return example | {'tokens': self.filled_up(ids, self._num_tokens)}

    def _encoded(self, raw: Mapping[str, Any], side: str) -> np.ndarray:
        """The ids of a record's question or answer, and its end."""
        value = text.text_of(raw, getattr(self, f'{side}_key'))
        if not value.strip():
            raise errors.UserError(f'The {side} is empty.')
        encoded = self.with_end if side == 'question' else self.answer_with_end
        return encoded(value, side, getattr(self, f'{side}_length'))

    def postprocess(self, prediction: Sequence[int]) -> str:
        """Token ids -> the text before their end."""
        return self.before_end(prediction)

    def examples(self, source: Sequence, cache_dir: Path, train: bool) -> Sequence:
        """One example for each record."""
        return Examples(source, self, stacked=False)

    def example_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of one of `examples`."""
        side, row, scalar = self.image_size, (self._num_tokens,), ()
        fields = {
            'inputs': ((side, side, self.channels), 'float32'),
            'tokens': (row, 'int32'),
            'lengths': (scalar, 'int32'),
            'targets': (row, 'int32'),
            'weights': (row, 'float32'),
            **({'kinds': (scalar, 'int32')} if self.kinds else {}),
        }
        return {name: jax.ShapeDtypeStruct(*of) for name, of in fields.items()}

    def init(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping:
        """Variables of the model."""
        return self.model.init(rng, batch['inputs'][:1], batch['tokens'][:1], batch['lengths'][:1])

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """Cross-entropy in nats per token of answers, and the share of answers that are exact.

        Exact are those of which every token is the likeliest given the right ones before it: then
        greedy decoding writes them, and no others.
        """
        logits = self.model.apply(
            {'params': params},
            batch['inputs'],
            batch['tokens'],
            batch['lengths'],
            train=train,
            rngs={'dropout': rng},
        )
        targets, weights = batch['targets'], batch['weights']
        right = (logits.argmax(-1) == targets) | (weights == 0)
        exact, counts = right.all(-1), weights.any(-1)
        pairs = {
            'loss': metrics.pair(losses.softmax_cross_entropy(logits, targets), weights),
            'exact': metrics.pair(exact, counts),
        }
        for i, kind in enumerate(self.kinds):
            pairs[f'exact_{kind}'] = metrics.pair(exact, counts & (batch['kinds'] == i))
        return metrics.mean(pairs['loss']), (pairs, model_state)

    def most_counts(self, weights: jax.Array) -> int:
        """The loss counts tokens of answers."""
        return self.answer_length

    def predict(self, params, model_state, batch) -> jax.Array:
        """Greedy answers int32 [B, answer_length], behind their ends more ends."""
        variables, lengths = {'params': params}, batch['lengths']
        count, before, end = len(lengths), self._num_patches, self.vocabulary.end_of_text
        cache = self.model.init_cache(count, before + self._num_tokens)
        questions = batch['tokens'][:, : self.question_length]
        # What is written behind a question is overwritten before it is ever seen.
        _, cache = self.model.apply(variables, batch['inputs'], questions, lengths, cache=cache)

        def next_logits(tokens, step, cache):
            positions = (before + lengths + step)[:, None]
            logits, cache = self.model.apply(
                variables, tokens[:, None], positions, cache, method=self.model.decode
            )
            return logits[:, 0], cache

        found = beam_search.beam_search(
            next_logits,
            lambda cache, beams: cache,  # of one beam
            cache,
            batch_size=count,
            beam_size=1,
            max_length=self.answer_length,
            start=end,
            end=end,
        )
        return found.tokens[:, 0]

    def facts(self) -> dict[str, str]:
        """What the start screen says of the model."""
        image, words = self.model.image, self.model.text
        return {
            'model': f'{type(self.model).__name__}, {image["num_layers"]} layers of '
            f'{image["embed_dim"]} for images, {words["num_layers"]} of {words["embed_dim"]} for '
            f'{self._num_patches} patches and up to {self._num_tokens} tokens'
        }
