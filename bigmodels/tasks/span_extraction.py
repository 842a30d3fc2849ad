"""Answers that are passages of a text: where they begin and where they end.

Axes: B batch, L length, A tokens of an answer, R references.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors, losses, metrics
from bigmodels.data import question_windows, tokenizers
from bigmodels.data.question_windows import UNUSED
from bigmodels.scores import text as text_scores
from bigmodels.tasks import tokens


@dataclasses.dataclass(frozen=True)
class SpanExtraction(tokens.Tokenized):
    """A question and its context -> the tokens of the context that answer it.

    Fields:
      model: maps inputs int [B, L], with segment_ids of 0 at padding, to logits [B, L, 2] of the
        first and the last token of the answer.
      tokenizer: the config's section, from which `fit` or `restored` makes `vocabulary`.
      sequence_length, question_length, stride, max_references: see `question_windows.Windows`.
      answer_length: A, the most tokens of an answer, of those given and those found.
    """

    model: nn.Module
    tokenizer: Mapping
    sequence_length: int
    question_length: int = 64
    stride: int = 128
    answer_length: int = 48
    max_references: int = 1
    vocabulary: tokenizers.Tokenizer | None = None

    score_names = ('exact_match', 'token_f1')
    unit = 'windows'
    token_fields = ('inputs',)  # targets are places

    def __post_init__(self):
        if self.model.num_classes != 2:
            raise errors.UserError(
                f'model.num_classes = {self.model.num_classes} must be 2: the first and the last '
                f'token of an answer.'
            )
        self._windows()  # building them checks the lengths

    def _windows(self) -> question_windows.Windows:
        return question_windows.Windows(
            self.vocabulary,
            self.sequence_length,
            self.question_length,
            self.stride,
            self.answer_length,
            self.max_references,
        )

    def _text_fields(self) -> Sequence[str]:
        return 'question', 'context'

    @property
    def record_fields(self) -> dict[str, str]:
        """What `preprocess` needs of a record, see `data.inputs`."""
        return {'question': 'text', 'context': 'text'}

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record whose context fits into one window -> that window, see `Windows.of`.

        Raises:
          UserError: for a longer context, besides what that raises.
        """
        windows = self._windows().of(raw)
        if len(windows) > 1:
            raise errors.UserError(
                f'The context {raw["context"][:40]!r}... takes {len(windows)} windows of '
                f'{self.sequence_length} tokens: shorten it.'
            )
        return windows[0]

    def postprocess(self, prediction: Mapping[str, np.ndarray]) -> str:
        """What `predict` gives of one example -> the answer's text."""
        return self._text(prediction['answers'])

    def _text(self, ids: np.ndarray) -> str:
        return self.vocabulary.decode(ids[ids != UNUSED]).strip()

    def examples(self, source: Sequence, cache_dir: Path, train: bool) -> Sequence:
        """Every window of every record."""
        return question_windows.QuestionWindows(source, self._windows())

    def example_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of one of `examples`."""
        row, scalar = (self.sequence_length,), ()
        shapes = dict(inputs=row, segment_ids=row, context_start=scalar, record=scalar)
        shapes |= dict(targets=(2,), references=(self.max_references, self.answer_length))
        made = {name: jax.ShapeDtypeStruct(shape, 'int32') for name, shape in shapes.items()}
        return made | {'weights': jax.ShapeDtypeStruct((), 'float32')}

    def init(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping:
        """Variables of the model."""
        return self.model.init(rng, batch['inputs'][:1])

    def _logits(self, params, batch, train: bool, rng=None) -> jax.Array:
        """[B, 2, L], -inf where no answer is: before the context, but for the end token there."""
        logits = self.model.apply(
            {'params': params},
            batch['inputs'],
            segment_ids=batch['segment_ids'],
            train=train,
            rngs=None if rng is None else {'dropout': rng},
        )
        places = jnp.arange(logits.shape[1])
        possible = (places >= batch['context_start'][:, None] - 1) & (batch['segment_ids'] > 0)
        return jnp.where(possible[:, None], logits.swapaxes(1, 2), -jnp.inf)

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """Cross-entropy in nats of an answer's two ends, and how often both are the likeliest.

        A window without the answer has both at the end token before the context.
        """
        logits = self._logits(params, batch, train, rng)
        loss = losses.softmax_cross_entropy(logits, batch['targets']).mean(1)
        right = (logits.argmax(-1) == batch['targets']).all(1)
        pairs = {
            'loss': metrics.pair(loss, batch['weights']),
            'accuracy': metrics.pair(right, batch['weights']),
        }
        return metrics.mean(pairs['loss']), (pairs, model_state)

    def predict(self, params, model_state, batch) -> dict[str, jax.Array]:
        """'answers' int32 [B, A], the likeliest span's tokens, and 'scores' [B], its logits' sum.

        A span has its end not before its start, at most A tokens, and all of them in the context,
        of which an empty one has none.
        """
        starts, ends = self._logits(params, batch, train=False).swapaxes(0, 1)
        places = jnp.arange(starts.shape[1])
        apart = places[None] - places[:, None]
        allowed = (apart >= 0) & (apart < self.answer_length)
        allowed &= places[:, None] >= batch['context_start'][:, None, None]
        sums = jnp.where(allowed, starts[:, :, None] + ends[:, None], -jnp.inf)
        sums = sums.reshape(len(sums), -1)
        first, last = jnp.divmod(sums.argmax(1), len(places))
        best = sums.max(1)
        found = jnp.isfinite(best)  # an empty context has no span
        spans = first[:, None] + jnp.arange(self.answer_length)
        ids = jnp.take_along_axis(batch['inputs'], jnp.minimum(spans, len(places) - 1), axis=1)
        return {
            'answers': jnp.where((spans <= last[:, None]) & found[:, None], ids, UNUSED),
            'scores': best,
        }

    def outcomes(self, params, model_state, batch) -> dict[str, jax.Array]:
        """What `predict` gives, and of what record, with its references."""
        kept = {name: batch[name] for name in ('record', 'references')}
        return {**self.predict(params, model_state, batch), **kept}

    def scores(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Exact match and F1 of words of SQuAD v1.1, of each record's likeliest window."""
        order = np.lexsort([-outcomes['scores'], outcomes['record']])
        _, first = np.unique(outcomes['record'][order], return_index=True)
        best = order[first]
        answers = [self._text(ids) for ids in outcomes['answers'][best]]
        references = [
            [self._text(ids) for ids in several if (ids != UNUSED).any()]
            for several in outcomes['references'][best]
        ]
        return {name: text_scores.SCORES[name](answers, references) for name in self.score_names}

    def facts(self) -> dict[str, str]:
        """What the start screen says of the model."""
        return {'model': f'{type(self.model).__name__}, the ends of an answer'}
