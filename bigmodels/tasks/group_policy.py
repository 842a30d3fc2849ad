"""A language model that learns from what it answers itself, where answers can be checked.

Axes: B prompts, G answers of each, P prompt tokens, A answer tokens, R = B * G rows.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors, losses, metrics
from bigmodels.data import text, tokenizers
from bigmodels.deploy import decoding, weights
from bigmodels.deploy.sampling import Sampling
from bigmodels.models import transformer
from bigmodels.tasks.base import Examples
from bigmodels.tasks.tokens import Tokenized

NO_TOKEN = -1  # behind the end of an answer


@dataclasses.dataclass(frozen=True)
class GroupPolicy(Tokenized):
    """Prompts -> answers, rewarded where they are right; group relative policy optimisation.

    GRPO (Shao et al. 2024, arXiv:2402.03300, section 4.1) with the outcome as the reward and one
    step a batch: the policy that answers is the one that learns, so its ratio is 1 and there is
    nothing to clip. Without the penalty on leaving the first policy, as this reward cannot be
    fooled. Answering is a part of the step, a pure function of the params and the step's key, so
    that such a run resumes like any other.

    Fields:
      model: a causal `Transformer`, trained without dropout and what experts add to the loss.
      tokenizer: the config's section, from which `fit` or `restored` makes `vocabulary`.
      prompt_length: P, the most tokens of a prompt.
      answer_length: A, the most tokens of an answer, its end included.
      group_size: G, answers to a prompt, whose mean reward is what each is compared with.
      temperature: of the answers in training; evaluation takes the most probable tokens.
      prompt_field, answer_field: of the source's records.
    """

    model: transformer.Transformer
    tokenizer: Mapping
    prompt_length: int
    answer_length: int
    group_size: int = 8
    temperature: float = 1.0
    prompt_field: str = 'prompt'
    answer_field: str = 'answer'
    vocabulary: tokenizers.Tokenizer | None = None

    unit = 'prompts'
    target_keys: ClassVar = ('answer_field',)

    def __post_init__(self):
        if self.prompt_length + self.answer_length > self.model.max_length:
            raise errors.UserError(
                f'task.prompt_length = {self.prompt_length} and answer_length = '
                f'{self.answer_length} together exceed model.max_length = {self.model.max_length}.'
            )
        for name, least in (('prompt_length', 1), ('answer_length', 1), ('group_size', 2)):
            if getattr(self, name) < least:
                raise errors.UserError(
                    f'task.{name} = {getattr(self, name)} must be at least {least}.'
                )
        if self.temperature <= 0:
            raise errors.UserError(f'task.temperature = {self.temperature} must be over 0.')

    def _text_fields(self) -> Sequence[str]:
        return self.prompt_field, self.answer_field

    @property
    def record_fields(self) -> dict[str, str]:
        """What `preprocess` needs of a record, see `data.inputs`."""
        return {self.prompt_field: 'text'}

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A record -> {'inputs' int32 [P], 'lengths' int32}, and 'targets' int32 [A] of an answer.

        Raises:
          UserError: for a record without a prompt, or with a text of no token or too many.
        """
        prompt = text.text_of(raw, self.prompt_field)
        ids = tokenizers.document(self.vocabulary, prompt).astype(np.int32)
        if not 0 < len(ids) <= self.prompt_length:
            raise errors.UserError(
                f'The prompt {prompt[:40]!r} has {len(ids)} tokens, wanted 1 to '
                f'task.prompt_length = {self.prompt_length}.'
            )
        example = {
            'inputs': np.pad(ids, (0, self.prompt_length - len(ids))),
            'lengths': np.int32(len(ids)),
        }
        if self.answer_field in raw:
            answer = text.text_of(raw, self.answer_field)
            if not answer:
                raise errors.UserError('The answer is empty.')
            ids = self.answer_with_end(answer, 'answer', self.answer_length)
            room = self.answer_length - len(ids)
            example['targets'] = np.pad(ids, (0, room), constant_values=NO_TOKEN)
        return example

    def examples(self, source: Sequence, cache_dir: Path, train: bool) -> Sequence:
        """One example a record, which has an answer."""
        return Examples(source, self, stacked=False)

    def example_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of one of `examples`."""
        shapes = dict(inputs=(self.prompt_length,), lengths=(), targets=(self.answer_length,))
        return {name: jax.ShapeDtypeStruct(shape, 'int32') for name, shape in shapes.items()}

    def init(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping:
        """Variables of the model."""
        return self.model.init(rng, batch['inputs'][:1])

    def answers(self, params, batch, rng: jax.Array, sampling: Sampling) -> decoding.Generated:
        """What follows prompts [R, P]: up to A tokens each, the end included."""
        end = jnp.full((1, 1), self.vocabulary.end_of_text)
        model, params = weights.packed(self.model, params)
        return decoding.continue_prompts(
            model,
            params,
            batch['inputs'],
            batch['lengths'],
            end,
            rng,
            sampling.rows(len(batch['inputs']), only_used=True),
            max_new_tokens=self.answer_length,
        )

    def loss_fn(self, params, model_state, batch, rng, train: bool):
        """The policy's loss; 'reward' is the share of right answers, sampled or the likeliest."""
        if not train:
            tokens, counts, _ = self.answers(params, batch, rng, Sampling(temperature=0))
            reward = rewards(tokens, counts, batch['targets'])
            figures = {'loss': 1 - reward, 'reward': reward, 'answer_tokens': counts}
            pairs = {name: metrics.pair(f, batch['weights']) for name, f in figures.items()}
            return metrics.mean(pairs['loss']), (pairs, model_state)
        experts = self.model.experts
        if self.model.dropout_rate or (experts and experts.capacity_factor is not None):
            raise errors.UserError(
                'An answer is learnt by how probable it was when it was drawn, which dropout and '
                'experts of a capacity change: set model.dropout_rate = 0 and '
                'model.moe.capacity_factor = None.'
            )
        sample_rng, dropout_rng = jax.random.split(rng)
        repeated = {key: jnp.repeat(value, self.group_size, axis=0) for key, value in batch.items()}
        sampling = Sampling(temperature=self.temperature)
        tokens, counts, _ = self.answers(
            jax.lax.stop_gradient(params), repeated, sample_rng, sampling
        )
        reward = rewards(tokens, counts, repeated['targets']).reshape(-1, self.group_size)
        log_probs = self.log_probs(params, repeated, tokens, dropout_rng)
        chosen = jnp.arange(self.answer_length) < counts[:, None]
        means = (log_probs * chosen).sum(1) / counts
        policy = -(advantages(reward) * means.reshape(reward.shape)).mean(1)
        lengths = counts.reshape(reward.shape).mean(1)
        figures = {'loss': policy, 'reward': reward.mean(1), 'answer_tokens': lengths}
        pairs = {name: metrics.pair(f, batch['weights']) for name, f in figures.items()}
        return metrics.mean(pairs['loss']), (pairs, model_state)

    def log_probs(self, params, batch, tokens: jax.Array, rng: jax.Array) -> jax.Array:
        """Log-probabilities [R, A] of answers' tokens [R, A], at the temperature of sampling."""
        places = batch['lengths'][:, None] + jnp.arange(self.answer_length)
        rows = jnp.arange(len(tokens))[:, None]
        inputs = jnp.pad(batch['inputs'], ((0, 0), (0, self.answer_length)))
        inputs = inputs.at[rows, places].set(tokens)
        hidden = self.model.apply(
            {'params': params}, inputs, train=True, return_hidden=True, rngs={'dropout': rng}
        )
        before = jnp.take_along_axis(hidden, places[..., None] - 1, axis=1)
        logits = self.model.logits(params, before) / self.temperature
        return -losses.softmax_cross_entropy(logits, tokens)

    def predict(self, params, model_state, batch) -> jax.Array:
        """The likeliest answers: int32 [B, A], NO_TOKEN from their end on."""
        greedy = Sampling(temperature=0)
        tokens, counts, _ = self.answers(params, batch, jax.random.key(0), greedy)
        ended = tokens == self.vocabulary.end_of_text
        real = (jnp.arange(self.answer_length) < counts[:, None]) & ~ended
        return jnp.where(real, tokens, NO_TOKEN)

    def postprocess(self, prediction: np.ndarray) -> str:
        """Tokens [A] -> the answer."""
        return self.vocabulary.decode(prediction[prediction != NO_TOKEN])

    def facts(self) -> dict[str, str]:
        """What the start screen says of the model."""
        return {
            'model': f'Transformer, {self.model.num_layers} layers, embed {self.model.embed_dim}, '
            f'{self.group_size} answers to each prompt'
        }


def rewards(tokens: jax.Array, counts: jax.Array, targets: jax.Array) -> jax.Array:
    """[R]: 1 for answers [R, A], of `counts` [R] tokens, that are the targets [R, A], else 0."""
    wanted = targets != NO_TOKEN
    same = jnp.where(wanted, tokens == targets, True).all(1) & (counts == wanted.sum(1))
    return same.astype(jnp.float32)


def advantages(reward: jax.Array) -> jax.Array:
    """Rewards [B, G] less their group's mean, over its deviation; 0 where all are the same."""
    centred = reward - reward.mean(1, keepdims=True)
    return centred / (reward.std(1, keepdims=True) + 1e-4)
