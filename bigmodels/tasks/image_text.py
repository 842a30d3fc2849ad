"""Images and their texts next to each other in one space, and images classified by texts alone.

Axes: B batch, L length, C classes, P prompts of a class, E features of the space.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import config, errors, losses, metrics
from bigmodels.augmentation import Augmentation
from bigmodels.data import images, text, tokenizers
from bigmodels.data.sources.caption_sources import check_prompts
from bigmodels.scores import retrieval
from bigmodels.tasks.base import Examples, array_of, checked_labels
from bigmodels.tasks.classes import check_targets
from bigmodels.tasks.classification import AUGMENTATION
from bigmodels.tasks.tokens import Tokenized

LOSSES = {'softmax': losses.contrastive_softmax, 'sigmoid': losses.contrastive_sigmoid}
RECALLED = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class ImageText(Tokenized):
    """Images and texts, told from the others of their batch; then images -> one of the classes.

    The loss of evaluation is likewise that within its batches, so it depends on their size.

    Fields:
      model: a `CLIP`.
      tokenizer: the config's section, from which `fit` or `restored` makes `vocabulary`.
      sequence_length: L, with the end of text; longer texts are cut before it.
      padding: the token that texts are filled up with, and which the model then sees (SigLIP); with
        None it sees nothing behind their end.
      loss: 'softmax' (Radford et al. 2021) or 'sigmoid' (Zhai et al. 2023), see `losses`.
      equal_texts: what an image's negatives are that have the same text as it: 'positive', as the
        text is as right for the one as for the other, or 'negative', as published, where texts
        rarely repeat. Labels play no part in training.
      image_key, text_field: of the source's records.
      label_key: of their labels, which figures use where there are some.
      image_size: images are scaled until their shorter side has so many pixels, and cut to a square
        about the middle; 0 leaves them as they are.
      mean, std: inputs are normalised to (x - mean) / std; a number each, or one for each channel.
      augment: changes of training images, see `augmentation.Augmentation`; none that mixes them.
      classes: the names that an image is classified by, by label.
      templates: texts with one '{}', in whose place a name comes; the prompts of a class.
    """

    model: nn.Module
    tokenizer: Mapping
    sequence_length: int
    classes: Sequence[str]
    templates: Sequence[str] = ('a photo of a {}.',)
    padding: int | None = None
    loss: Literal['softmax', 'sigmoid'] = 'softmax'
    equal_texts: Literal['positive', 'negative'] = 'positive'
    image_key: str = 'image'
    text_field: str = 'caption'
    label_key: str = 'label'
    image_size: int = 0
    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0
    augment: Mapping[str, Any] | None = None
    vocabulary: tokenizers.Tokenizer | None = None

    sections: ClassVar = {'augment': Augmentation}
    unit = 'pairs'
    compares_examples = True
    token_fields = ('tokens',)
    answer_fields = ('classes', 'templates')
    target_keys = ('text_field',)
    score_names = tuple(
        f'{way}_recall@{k}' for way in ('image_to_text', 'text_to_image') for k in RECALLED
    )

    def __post_init__(self):
        check_prompts(self.classes, self.templates, 'config.task.classes', 'config.task.templates')
        if not self.classes:
            raise errors.UserError('config.task.classes must name at least one class.')
        if not 2 <= self.sequence_length <= self.model.max_length:
            raise errors.UserError(
                f'config.task.sequence_length = {self.sequence_length} must be from 2, a token and '
                f'the end of text, to model.text.max_length = {self.model.max_length}.'
            )
        augmentation = self._augmentation()
        if augmentation.mixup or augmentation.cutmix:
            raise errors.UserError(
                'config.task.augment mixes images, of which no text tells: set mixup and cutmix '
                'to 0.'
            )

    def _augmentation(self) -> Augmentation:
        return config.build(Augmentation, self.augment or {}, 'task.augment')

    @property
    def record_fields(self) -> dict[str, str]:
        """What `preprocess` needs of a record to answer it, see `data.inputs`."""
        return {self.image_key: 'image'}

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record -> {'inputs' float32 [H, W, C], and what follows from a text and a label}.

        Those are 'tokens' and 'segment_ids' int32 [L], and 'labels' int32.

        Raises:
          UserError: for a record without an image, an empty text, or a label without a name.
        """
        image = array_of(raw, self.image_key, 'task.image_key')
        if self.image_size:
            image = images.with_channels(image, 3)  # refuses what is no image
            image = images.resize_shorter_side(image, self.image_size)
            image = images.centre_crop(image, self.image_size, self.image_size)
        example = {'inputs': images.normalized(image, self.mean, self.std)}
        if self.text_field in raw:
            caption = text.text_of(raw, self.text_field)
            example['tokens'], example['segment_ids'] = self._encoded(caption)
        if self.label_key in raw:
            example['labels'] = checked_labels(
                raw[self.label_key],
                len(self.classes),
                f'task.label_key = {self.label_key!r}',
                'the number of task.classes',
            )
        return example

    def _encoded(self, caption: str) -> np.ndarray:
        """Tokens with the end of text, and their segment ids: int32 [2, L]."""
        if not caption.strip():
            raise errors.UserError(f'The field {self.text_field!r} is empty: there is no text.')
        ids = tokenizers.document(self.vocabulary, caption)
        return np.stack([*self.text_example(ids).values()])

    def text_example(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """A text's token ids [n] -> {'tokens', 'segment_ids' int32 [L]}, with the end of text."""
        ids = ids[: self.sequence_length - 1]
        encoded = np.zeros((2, self.sequence_length), np.int32)
        encoded[0, : len(ids)] = ids
        encoded[0, len(ids)] = self.vocabulary.end_of_text
        encoded[1, : len(ids) + 1] = 1
        if self.padding is not None:
            encoded[0, len(ids) + 1 :] = self.padding
            encoded[1] = 1
        return {'tokens': encoded[0], 'segment_ids': encoded[1]}

    def embed_texts(self, params, model_state, batch) -> jax.Array:
        """The unit vectors [B, E] of texts."""
        tokens = batch['tokens'], batch['segment_ids']
        return self.model.apply({'params': params}, *tokens, method=self.model.texts)

    def examples(self, source: Sequence, cache_dir: Path, train: bool) -> Sequence:
        """One example for each record, which has a text."""
        return Examples(source, self, stacked=False)

    def init(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping:
        """Variables of the model."""
        return self.model.init(rng, batch['inputs'], batch['tokens'], batch['segment_ids'])

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """The contrastive loss in nats and the scale; of labelled sets also zero-shot accuracy."""
        variables = {'params': params}
        inputs, tokens, weights = batch['inputs'], batch['tokens'], batch['weights']
        if train and self.augment:
            augment_rng = jax.random.fold_in(rng, AUGMENTATION)
            changed = self._augmentation()(augment_rng, {'inputs': inputs}, self.mean, self.std)
            inputs = changed['inputs']
        scores = self.model.apply(
            variables, inputs, tokens, batch['segment_ids'], train=train, rngs={'dropout': rng}
        )
        positives = jnp.eye(len(tokens), dtype=bool)
        if self.equal_texts == 'positive':
            positives = (tokens[:, None] == tokens).all(-1)
        loss = LOSSES[self.loss](scores, positives, weights)
        scale = self.model.apply(variables, method=self.model.scale)
        pairs = {
            'loss': metrics.pair(loss, weights),
            'scale': metrics.pair(jnp.full(len(weights), scale), weights),
        }
        if not train and 'labels' in batch:
            check_targets(batch['labels'], weights.shape)
            right = self._logits(params, batch).argmax(-1) == batch['labels']
            pairs['zero_shot_accuracy'] = metrics.pair(right, weights)
        return metrics.mean(pairs['loss']), (pairs, model_state)

    def class_vectors(self, params) -> jax.Array:
        """The classes as unit vectors [C, E]: the mean of their prompts' (CLIP, section 3.1.4).

        All prompts go through the text tower, those of one class at a time: with each batch.
        """
        texts = [t.replace('{}', name) for name in self.classes for t in self.templates]
        for prompt in texts:
            if len(tokenizers.document(self.vocabulary, prompt)) >= self.sequence_length:
                raise errors.UserError(
                    f'The prompt {prompt!r} is longer than task.sequence_length = '
                    f'{self.sequence_length} tokens with the end of text: choose a shorter name.'
                )
        prompts = jnp.asarray(np.stack([self._encoded(prompt) for prompt in texts]))

        def of_class(prompts):  # [P, 2, L]
            tokens, segment_ids = prompts[:, 0], prompts[:, 1]
            method = self.model.texts
            return self.model.apply({'params': params}, tokens, segment_ids, method=method).mean(0)

        shape = (len(self.classes), len(self.templates), *prompts.shape[1:])
        means = jax.lax.map(of_class, prompts.reshape(shape))
        return means / jnp.linalg.norm(means, axis=-1, keepdims=True)

    def _logits(self, params, batch) -> jax.Array:
        """Scores [B, C] of images and classes."""
        variables = {'params': params}
        vectors = self.model.apply(variables, batch['inputs'], method=self.model.images)
        classes = self.class_vectors(params)
        return self.model.apply(variables, vectors, classes, method=self.model.scores)

    def predict(self, params, model_state, batch) -> jax.Array:
        """Probabilities [B, C], the softmax of scores, whichever loss was trained with."""
        return jax.nn.softmax(self._logits(params, batch))

    def postprocess(self, prediction: np.ndarray) -> dict[str, Any]:
        """Probabilities [C] -> {'label', 'probability', 'probabilities': {name: probability}}."""
        best = int(np.argmax(prediction))
        values = dict(zip(self.classes, map(float, prediction), strict=True))
        label = self.classes[best]
        return {'label': label, 'probability': values[label], 'probabilities': values}

    def outcomes(self, params, model_state, batch) -> dict[str, jax.Array]:
        """The unit vectors [B, E] of images and of texts, the texts' tokens, and labels if any."""
        variables, tokens = {'params': params}, batch['tokens']
        outcomes = {
            'images': self.model.apply(variables, batch['inputs'], method=self.model.images),
            'texts': self.model.apply(
                variables, tokens, batch['segment_ids'], method=self.model.texts
            ),
            'tokens': tokens,
        }
        return outcomes | ({'labels': batch['labels']} if 'labels' in batch else {})

    def scores(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Recall of retrieval both ways, see `retrieval.recalls`."""
        return retrieval.recalls(**{'labels': None, **outcomes}, ks=RECALLED)

    def facts(self) -> dict[str, str]:
        """What the start screen says of the model."""
        return {
            'model': f'{type(self.model).__name__}, images and texts as vectors of '
            f'{self.model.embed_dim}, {self.loss} loss, {len(self.classes)} classes'
        }
