"""A text from another: translation, summaries, answers in words."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors, losses, metrics
from bigmodels.data import pairs, pipeline, text, tokenizers
from bigmodels.deploy import beam_search
from bigmodels.models.encoder_decoder import EncoderDecoder
from bigmodels.scores import text as text_scores
from bigmodels.tasks import tokens
from bigmodels.tasks.base import Examples, described


@dataclasses.dataclass(frozen=True)
class TextToText(tokens.Tokenized):
    """Sources -> an encoder-decoder's loss of their targets; beam search gives answers.

    Fields:
      tokenizer: the config's section, from which `fit` or `restored` makes `vocabulary`, one for
        sources and targets.
      source_length, target_length: the most tokens of a text, its end token included.
      source_field, target_field: of the source's records.
      references_field: of a record's list of texts that are right, for scores; '' for its target.
      max_references: the most of them that a record may have.
      cut_sources: longer sources lose their end; otherwise they are refused, as targets always are.
      row_length: training has pairs side by side in rows of so many tokens; 0 for one a row.
      label_smoothing: see `losses.softmax_cross_entropy`; in training only.
      start_id: the token before the first one of a target; by default the end of text.
      beam_size, length_penalty: of `beam_search.beam_search`, the latter its `alpha`.
      score_names: keys of `scores.text.SCORES`; without any, evaluation writes no answers.
      samples: sources whose answers are written at the end of a run.
    """

    model: EncoderDecoder
    tokenizer: Mapping
    source_length: int
    target_length: int
    source_field: str = 'source'
    target_field: str = 'target'
    references_field: str = ''
    max_references: int = 1
    cut_sources: bool = False
    row_length: int = 0
    label_smoothing: float = 0.0
    start_id: int | None = None
    beam_size: int = 1
    length_penalty: float = 0.6
    score_names: Sequence[str] = ()
    samples: Sequence[str] = ()
    vocabulary: tokenizers.Tokenizer | None = None

    alike_in_teacher: ClassVar = ('start_id',)

    target_keys: ClassVar = ('target_field', 'references_field')

    def __post_init__(self):
        longest = max(self.source_length, self.target_length)
        if longest > self.model.max_length:
            raise errors.UserError(
                f'task.source_length = {self.source_length} and target_length = '
                f'{self.target_length} must be at most model.max_length = {self.model.max_length}.'
            )
        if 0 < self.row_length < longest:
            raise errors.UserError(
                f'task.row_length = {self.row_length} must be 0, or at least {longest}, the longer '
                f'of source_length and target_length.'
            )
        if self.start_id is not None and not 0 <= self.start_id < self.model.vocab_size:
            raise errors.UserError(
                f'task.start_id = {self.start_id} must be a token of model.vocab_size = '
                f'{self.model.vocab_size}.'
            )
        if self.beam_size < 1:
            raise errors.UserError(f'task.beam_size = {self.beam_size} must be at least 1.')
        text_scores.check(self.score_names)

    @property
    def start(self) -> int:
        """The token before the first one of a target."""
        return self.vocabulary.end_of_text if self.start_id is None else self.start_id

    def _text_fields(self) -> Sequence[str]:
        return self.source_field, self.target_field

    @property
    def record_fields(self) -> dict[str, str]:
        """What `preprocess` needs of a record, see `data.inputs`."""
        return {self.source_field: 'text'}

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record -> {'inputs', 'input_segment_ids' int32 [S]}, and what it has of targets.

        These are 'targets' int32 [T] with 'weights' float32 [T], and 'references' int32
        [max_references, T], in which an unused row begins with -1.

        Raises:
          UserError: for a record without the source, or with a text that is too long.
        """
        limit = None if self.cut_sources else self.source_length
        ids = self.with_end(text.text_of(raw, self.source_field), 'source', limit)
        if len(ids) > self.source_length:
            ids = np.append(ids[: self.source_length - 1], ids[-1])
        example = {
            'inputs': self.filled_up(ids, self.source_length),
            'input_segment_ids': _real(ids, self.source_length).astype(np.int32),
        }
        if self.target_field in raw:
            target = text.text_of(raw, self.target_field)
            ids = self.answer_with_end(target, 'target', self.target_length)
            example['targets'] = self.filled_up(ids, self.target_length)
            example['weights'] = _real(ids, self.target_length).astype(np.float32)
        if self.references_field and self.references_field in raw:
            example['references'] = self._references(raw[self.references_field])
        return example

    def _references(self, texts: Sequence[str]) -> np.ndarray:
        if not 0 < len(texts) <= self.max_references:
            raise errors.UserError(
                f'{self.references_field!r} has {len(texts)} texts, wanted 1 to '
                f'task.max_references = {self.max_references}.'
            )
        rows = np.full((self.max_references, self.target_length), -1, np.int32)
        for row, reference in zip(rows, texts, strict=False):
            ids = self.answer_with_end(reference, 'target', self.target_length)
            row[:] = self.filled_up(ids, self.target_length)
        return rows

    def postprocess(self, prediction: Sequence[int]) -> str:
        """Token ids -> the text before their end."""
        return self.before_end(prediction)

    def examples(self, source: Sequence, cache_dir: Path, train: bool) -> Sequence:
        """One example a pair, or in training rows of them, see `pairs.PackedPairs`.

        Those of training have no references, which only scores need.
        """
        if not train:
            return Examples(source, self, stacked=False)
        if not self.row_length:
            task = dataclasses.replace(self, references_field='')
            return Examples(source, task, stacked=False)
        sides = [
            text.tokenize_corpus(source, self.vocabulary, cache_dir, key, begin=False)
            for key in (self.source_field, self.target_field)
        ]
        longest = self.source_length, self.target_length
        ends = np.count_nonzero(sides[1].tokens == self.vocabulary.end_of_text)
        if ends > len(source):  # one is within a text: it is told which
            for i in range(len(source)):
                with errors.told_of(f'Record {i} of {described(source)}'):
                    self.answer_with_end(source[i][self.target_field], 'target', None)
        return pairs.PackedPairs(*sides, self.row_length, longest, self.cut_sources)

    def example_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of one of the training examples, which do not depend on the text."""
        sides = {
            ('inputs', 'input_positions', 'input_segment_ids'): self.source_length,
            ('targets', 'positions', 'segment_ids'): self.target_length,
        }
        packed = bool(self.row_length)
        return {
            name: jax.ShapeDtypeStruct((self.row_length or length,), 'int32')
            for names, length in sides.items()
            for name in names
            if packed or name in ('inputs', 'input_segment_ids', 'targets')
        } | {'weights': jax.ShapeDtypeStruct((self.row_length or self.target_length,), 'float32')}

    def init(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping:
        """Variables of the model."""
        return self.model.init(rng, batch['inputs'][:1], batch['targets'][:1])

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """Cross-entropy in nats per target token, and how often the next one is the likeliest."""
        positions = batch.get('positions', jnp.arange(batch['targets'].shape[1])[None])
        before = jnp.where(positions == 0, self.start, jnp.roll(batch['targets'], 1, axis=1))
        logits = self.model.apply(
            {'params': params},
            batch['inputs'],
            before,
            input_positions=batch.get('input_positions'),
            input_segment_ids=batch['input_segment_ids'],
            positions=positions,
            segment_ids=batch.get('segment_ids'),
            train=train,
            rngs={'dropout': rng},
        )
        loss = losses.softmax_cross_entropy(
            logits, batch['targets'], label_smoothing=self.label_smoothing if train else 0.0
        )
        pairs_of = {
            'loss': metrics.pair(loss, batch['weights']),
            'accuracy': metrics.pair(logits.argmax(-1) == batch['targets'], batch['weights']),
        }
        return metrics.mean(pairs_of['loss']), (pairs_of, model_state)

    def predict(self, params, model_state, batch) -> jax.Array:
        """The best answers that beam search finds: int32 [B, T], behind their ends more ends."""
        found = beam_search.search(
            self.model,
            params,
            batch['inputs'],
            batch['input_segment_ids'],
            beam_size=self.beam_size,
            max_length=self.target_length,
            end=self.vocabulary.end_of_text,
            alpha=self.length_penalty,
            start=self.start,
        )
        return found.tokens[:, 0]

    def outcomes(self, params, model_state, batch) -> dict[str, jax.Array]:
        """'answers' int32 [B, T], and the 'references' int32 [B, R, T] that they are scored by."""
        if not self.score_names:
            return {}
        references = batch.get('references', batch['targets'][:, None])
        return {'answers': self.predict(params, model_state, batch), 'references': references}

    def scores(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The scores of a whole set's answers as texts."""
        answers = [self.postprocess(ids) for ids in outcomes['answers']]
        references = [
            [self.postprocess(ids) for ids in several if ids[0] >= 0]
            for several in outcomes['references']
        ]
        return {name: text_scores.SCORES[name](answers, references) for name in self.score_names}

    def summary(self, values: Mapping[str, float]) -> dict[str, float]:
        """Adds perplexity, exp(loss), per token."""
        return tokens.with_perplexity(values)

    def items(self, shapes: Mapping[str, Any]) -> tuple[int, str]:
        """The number of tokens on both sides of a batch, and their unit."""
        return sum(math.prod(shapes[name].shape) for name in ('inputs', 'targets')), 'tokens'

    def flops_per_step(self, params, shapes) -> float:
        """Model FLOPs of one training step."""
        rows, source_length = shapes['inputs'].shape
        return rows * self.model.flops_per_row(params, source_length, shapes['targets'].shape[1])

    def shown(self) -> Sequence[dict[str, np.ndarray]]:
        """The examples of `samples`."""
        return [self.preprocess({self.source_field: sample}) for sample in self.samples]

    def demonstrate(self, params, model_state) -> dict[str, str]:
        """The answers to `samples`."""
        if not self.samples:
            return {}
        batch = pipeline.stacked(self.shown())
        answers = jax.jit(self.predict)(params, model_state, batch)
        shown = [
            f'{sample}\n    {self.postprocess(answer)}\n'
            for sample, answer in zip(self.samples, np.asarray(answers).tolist(), strict=True)
        ]
        return {'samples.txt': '\n'.join(shown)}

    def facts(self) -> dict[str, str]:
        """What the start screen says of the model."""
        return {
            'model': self.model.describe(),
            'precision': f'parameters float32, compute {self.model.dtype}',
        }


def _real(ids: np.ndarray, length: int) -> np.ndarray:
    return np.arange(length) < len(ids)
