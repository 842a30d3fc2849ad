"""One class for each text.

Axes: B batch, L length.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np

from bigmodels import errors, metrics
from bigmodels.augmentation import token_noise
from bigmodels.data import text, tokenizers
from bigmodels.tasks import tokens
from bigmodels.tasks.base import checked_labels, described, field_of
from bigmodels.tasks.classes import Classes


@dataclasses.dataclass(frozen=True)
class TextClassification(Classes, tokens.Tokenized):
    """Texts -> one of the classes that the config names.

    Fields:
      model: maps inputs int [B, L], with segment_ids of 0 at padding, to logits [B, classes].
      tokenizer: the config's section, from which `fit` or `restored` makes `vocabulary`.
      sequence_length: L; of longer texts the first L tokens are read.
      classes: their names. A record's label is one of them, or its number from 0. A number that is
        a name, as stars are, is that one; there may be none besides that are counted from 0.
      text_field, label_field: of the source's records.
      token_dropout: the share of tokens that training leaves out, see `token_noise.drop_tokens`.

    And those of `classes.Classes`: the loss, and what is reported.
    """

    model: nn.Module
    tokenizer: Mapping
    sequence_length: int
    classes: Sequence[str]
    text_field: str = 'text'
    label_field: str = 'label'
    token_dropout: float = 0.0
    vocabulary: tokenizers.Tokenizer | None = None

    unit = 'texts'
    alike_in_teacher: ClassVar = ('classes',)

    def __post_init__(self):
        self.check_classes()
        if len(self.classes) != self.model.num_classes:
            raise errors.UserError(
                f'task.classes names {len(self.classes)} classes, but model.num_classes is '
                f'{self.model.num_classes}.'
            )
        if not 0 <= self.token_dropout < 1:
            raise errors.UserError(
                f'task.token_dropout = {self.token_dropout} must be from 0 to under 1.'
            )

    @property
    def record_fields(self) -> dict[str, str]:
        """What `preprocess` needs of a record, see `data.inputs`."""
        return {self.text_field: 'text'}

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record -> {'inputs', 'segment_ids' int32 [L], and 'targets' where it has a label}.

        Raises:
          UserError: for a record without text, or a label that is no class.
        """
        given = text.text_of(raw, self.text_field)
        ids = tokenizers.document(self.vocabulary, given)[: self.sequence_length]
        if not len(ids):
            raise errors.UserError(f'The field {self.text_field!r} is empty: there is no text.')
        padded = np.zeros((2, self.sequence_length), np.int32)
        padded[:, : len(ids)] = ids, np.ones_like(ids)
        example = {'inputs': padded[0], 'segment_ids': padded[1]}
        if self.label_field in raw:
            example['targets'] = self._label(raw)
        return example

    def _label(self, record: Mapping[str, Any]) -> np.int32:
        """The number of a record's class."""
        label = field_of(record, self.label_field, 'task.label_field')
        if str(label) in self.classes:  # names may be numbers, as stars are
            return np.int32(self.classes.index(str(label)))
        if isinstance(label, str):
            raise errors.unknown('class', label, self.classes)
        key = f'task.label_field = {self.label_field!r}'
        return checked_labels(label, len(self.classes), key)[()]

    def examples(self, source: Sequence, cache_dir: Path, train: bool) -> Sequence:
        """One example for each record; all are looked at before the first is used."""
        corpus = text.tokenize_corpus(
            source, self.vocabulary, cache_dir, field=self.text_field, append_end_of_text=False
        )
        labels, where = np.zeros(len(source), np.int32), described(source)
        named, counted = set(), set()  # numbers: names that are not their own place, and no names
        for i in range(len(source)):
            with errors.told_of(f'Record {i} of {where}'):
                record = source[i]
                labels[i] = self._label(record)
            if not isinstance(given := record[self.label_field], str):
                if str(given) not in self.classes:
                    counted.add(int(given))
                elif given != labels[i]:
                    named.add(int(given))
        with errors.told_of(where):
            if named and counted:  # of classes '1' and '2' as 0 and 1, both would be the first
                raise errors.UserError(
                    f'Labels {sorted(named)} are names in task.classes = {tuple(self.classes)}, '
                    f'and {sorted(counted)} are none: name the classes otherwise to have all '
                    'counted from 0.'
                )
            return Labelled(text.Padded(corpus, self.sequence_length), labels)

    def example_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of one of `examples`."""
        row = jax.ShapeDtypeStruct((self.sequence_length,), 'int32')
        return {
            'inputs': row,
            'segment_ids': row,
            'targets': jax.ShapeDtypeStruct((), 'int32'),
            'weights': jax.ShapeDtypeStruct((), 'float32'),
        }

    def init(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping:
        """Variables of the model."""
        return self.model.init(rng, batch['inputs'][:1])

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """Cross-entropy in nats, and accuracy."""
        dropout_rng, token_rng = jax.random.split(rng)
        segment_ids = batch['segment_ids']
        if train and self.token_dropout:
            segment_ids = token_noise.drop_tokens(token_rng, segment_ids, self.token_dropout)
        logits = self.model.apply(
            {'params': params},
            batch['inputs'],
            segment_ids=segment_ids,
            train=train,
            rngs={'dropout': dropout_rng},
        )
        pairs = self.class_pairs(logits, batch['targets'], batch['weights'], train)
        return metrics.mean(pairs['loss']), (pairs, model_state)

    def predict(self, params, model_state, batch) -> jax.Array:
        """Probabilities [B, classes]."""
        logits = self.model.apply(
            {'params': params}, batch['inputs'], segment_ids=batch['segment_ids']
        )
        return jax.nn.softmax(logits)

    def facts(self) -> dict[str, str]:
        """What the start screen says of the model."""
        return {'model': f'{type(self.model).__name__}, classes {", ".join(self.classes)}'}


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Texts with their labels int32 [n]."""

    texts: text.Padded
    labels: np.ndarray

    def __post_init__(self):
        if len(self.texts) != len(self.labels):
            raise errors.UserError(
                f'There are {len(self.texts):,} texts in the cache of tokens, but '
                f'{len(self.labels):,} labels: delete the folders tokens-* of the cache.'
            )

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {**self.texts[index], 'targets': self.labels[index]}

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples of int64 [n] indices, stacked."""
        return {**self.texts.take(indices), 'targets': self.labels[indices]}
