"""What tasks on text share: the tokenizer of a run, and the metrics of losses by token."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors, metrics, trees
from bigmodels.data import spelling, text, tokenizers
from bigmodels.models.parts import pooling
from bigmodels.models.parts.attention import choose_implementation
from bigmodels.tasks.base import Defaults, described

SHORTEST = 32  # that texts are padded to at least


class Tokenized(Defaults):
    """The methods of a task that fit a tokenizer to the training texts, save and restore it.

    The task is a frozen dataclass with the fields `model`, `text_field`, `tokenizer`, the config's
    section, and `vocabulary`, the tokenizer that is made of it.
    """

    def fit(self, source: Sequence) -> Self:
        """Makes the tokenizer; one that is trained sees only the training records."""

        def texts():
            where = described(source)
            for i in range(len(source)):
                record = source[i]
                with errors.told_of(f'{where}, record {i}'):
                    found = self._texts(record)
                    for value in found:
                        spelling.as_utf8(value)
                yield from found

        task = self._with(tokenizers.fit(self.tokenizer, texts, 'task.tokenizer'))
        task.shown()  # what cannot be encoded is said before training and not after it
        return task

    def shown(self) -> Sequence[Any]:
        """The texts of the config that `demonstrate` begins with, encoded."""
        return ()

    def _texts(self, record: Mapping[str, Any]) -> Sequence[str]:
        """The texts of a record that a tokenizer is trained on."""
        return [text.text_of(record, field) for field in self._text_fields()]

    def _text_fields(self) -> Sequence[str]:
        """The fields of a record whose texts a tokenizer is trained on."""
        return (self.text_field,)

    def save(self, directory: Path) -> None:
        """Writes the tokenizer."""
        self.vocabulary.save(directory)

    def restored(self, directory: Path) -> Self:
        """With the tokenizer that `save` wrote."""
        return self._with(tokenizers.restore(directory))

    def _num_ids(self, vocabulary: tokenizers.Tokenizer) -> int:
        """How many ids the model is given."""
        return vocabulary.vocab_size

    def _with(self, vocabulary: tokenizers.Tokenizer) -> Self:
        num_ids = self._num_ids(vocabulary)
        if num_ids > self.model.vocab_size:
            raise errors.UserError(
                f'The tokenizer has {vocabulary.vocab_size} tokens but model.vocab_size is '
                f'{self.model.vocab_size}: set model.vocab_size to at least {num_ids}.'
            )
        return dataclasses.replace(self, vocabulary=vocabulary)

    def with_end(self, value: str, side: str, longest: int | None) -> np.ndarray:
        """The ids int32 [n] of a text and its end.

        Raises:
          UserError: for more than `longest`, which is the task's field `side`_length.
        """
        ids = np.append(self.vocabulary.encode(value), self.vocabulary.end_of_text)
        if longest is not None and len(ids) > longest:
            raise errors.UserError(
                f'The {side} {value[:40]!r}... has {len(ids)} tokens with its end, more than '
                f'task.{side}_length = {longest}: raise it, or shorten the text.'
            )
        return ids.astype(np.int32)

    def answer_with_end(self, value: str, side: str, longest: int | None) -> np.ndarray:
        """`with_end` of a text that the model is to write.

        Raises:
          UserError: also where the token of the end is within the text, as that of the tokenizer
            `characters`, the newline, may be: writing stops there.
        """
        ids = self.with_end(value, side, longest)
        if self.vocabulary.end_of_text in ids[:-1]:
            end = self.vocabulary.decode([self.vocabulary.end_of_text])
            raise errors.UserError(
                f'The {side} {value[:40]!r} has {end!r} within it, where writing would stop: '
                'use a tokenizer that ends texts otherwise.'
            )
        return ids

    def filled_up(self, ids: np.ndarray, length: int) -> np.ndarray:
        """Ids [n] and the token of the end from there on, int [length]."""
        return np.pad(ids, (0, length - len(ids)), constant_values=self.vocabulary.end_of_text)

    def before_end(self, ids: Sequence[int]) -> str:
        """Token ids -> the text before their end."""
        kept = itertools.takewhile(lambda id: id != self.vocabulary.end_of_text, ids)
        return self.vocabulary.decode(list(kept))


def with_perplexity(values: Mapping[str, float]) -> dict[str, float]:
    """Adds perplexity, exp(loss), per token."""
    return {**values, 'perplexity': math.exp(min(values['loss'], 700))}


class TokenSequences(Tokenized):
    """The methods of a `Tokenized` task on sequences of tokens that are cut from a corpus.

    Further fields of the task, whose model is a `Transformer` or has its call and methods:
      sequence_length: L, tokens in one example.
      packing: 'chunks' cuts the corpus at every L tokens; 'documents' packs whole documents,
        with segment ids and positions, so that none sees another.
      append_end_of_text: whether every document ends with the tokenizer's end-of-text token.
    """

    def __post_init__(self):
        if self.sequence_length > self.model.max_length:
            raise errors.UserError(
                f'task.sequence_length = {self.sequence_length} is longer than '
                f'model.max_length = {self.model.max_length}.'
            )

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

    def text_example(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """A text's token ids [n] -> {'inputs', 'segment_ids' int32 [L]}, L a power of 2.

        Raises:
          UserError: for more than the model's context.
        """
        most = self.model.max_length
        if len(ids) > most:
            raise errors.UserError(
                f'A text of {len(ids)} tokens is longer than the context of {most}: shorten it.'
            )
        length = max(1 << (len(ids) - 1).bit_length(), SHORTEST)
        padded = np.zeros((2, min(length, most)), np.int32)
        padded[:, : len(ids)] = ids, np.ones_like(ids)
        return {'inputs': padded[0], 'segment_ids': padded[1]}

    def embed_texts(self, params, model_state, batch) -> jax.Array:
        """The mean of the final hidden states of each text's tokens, float32 [B, D]."""
        hidden = self.model.apply(
            {'params': params},
            batch['inputs'],
            segment_ids=batch['segment_ids'],
            return_hidden=True,
        )
        return pooling.mean(hidden.astype(jnp.float32), batch['segment_ids'] > 0)

    def summary(self, values: Mapping[str, float]) -> dict[str, float]:
        """Adds perplexity, exp(loss), per token."""
        return with_perplexity(values)

    def items(self, shapes: Mapping[str, Any]) -> tuple[int, str]:
        """The number of tokens in a batch, and their unit."""
        return math.prod(shapes['inputs'].shape), 'tokens'

    def facts(self) -> dict[str, str]:
        """What the start screen says of the model."""
        m = self.model
        kernel, reason = choose_implementation(
            m.attention, m.dtype, m.dim_per_head, self.sequence_length, m.attention_softcap
        )
        return {
            'model': f'Transformer, {m.num_layers} layers, embed {m.embed_dim}, '
            f'{m.num_heads} heads of {m.dim_per_head}, vocabulary {m.vocab_size}',
            **({} if m.experts is None else {'experts': m.experts.describe()}),
            'attention': f'{kernel} ({reason})',
            'precision': f'parameters float32, compute {m.dtype}',
        }


def pairs_of_tokens(
    loss: jax.Array, weights: jax.Array, sown: Mapping, train: bool
) -> dict[str, metrics.Pair]:
    """The metric 'loss' of tokens' losses [B, L], and what the model sowed for each sequence.

    What is in the collection 'metrics' is averaged over layers; what is in 'losses' is added to the
    loss of each of the sequence's tokens in training, and 'cross_entropy' is then the loss without
    it.
    """
    pairs = _sown_metrics(sown, weights)
    if train and 'losses' in sown:
        pairs['cross_entropy'] = metrics.pair(loss, weights)
        for added in jax.tree.leaves(sown['losses']):  # [B]; of scanned layers [layers, B]
            loss += added.reshape(-1, len(loss), 1).sum(0)
    return pairs | {'loss': metrics.pair(loss, weights)}


def _sown_metrics(sown: Mapping, weights: jax.Array) -> dict[str, metrics.Pair]:
    """For each name, its mean over layers and, by the weights of their tokens, over sequences."""
    by_name = collections.defaultdict(list)
    for name, leaf in trees.flatten_named(sown.get('metrics', {})).items():
        by_name[name.split('/')[-2]].append(leaf.reshape(-1, len(weights)))
    return {
        name: metrics.pair(jnp.concatenate(values).mean(0), weights.sum(1))
        for name, values in by_name.items()
    }
