"""Prompts as text, continued by a method: `sampled`, `drafted`, `searched` or `matched`."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors
from bigmodels.data.tokenizers import Tokenizer, document, spelling
from bigmodels.deploy import beam_search, decoding, speculative
from bigmodels.deploy import weights as weights_lib
from bigmodels.deploy.engine import Engine
from bigmodels.deploy.requests import Matcher, Settings
from bigmodels.deploy.sampling import Sampling
from bigmodels.models.transformer import Transformer


class Answer(NamedTuple):
    """What follows a prompt.

    Fields:
      text: up to a stop string (left out) or the end of the text.
      tokens: ids, as many as were generated: [T].
      log_probs: float32 [T] of the tokens, see `sampling.choose`.
    """

    text: str
    tokens: np.ndarray
    log_probs: np.ndarray


class Job(NamedTuple):
    """What a method of generation is given.

    Fields:
      model, params: of `weights.packed`.
      prompts: ids of each, at least one.
      stops: sequences of ids that end a text, `end` among them.
      end: the id that ends a document, -1 if none does.
    """

    model: Transformer
    params: Mapping
    prompts: Sequence[np.ndarray]
    stops: Sequence[np.ndarray]
    end: int
    max_new_tokens: int
    sampling: Sampling
    seed: int


# (tokens [T], log_probs [T]) for each prompt of a job.
Method = Callable[[Job], list[tuple[np.ndarray, np.ndarray]]]


def sampled(job: Job) -> list[tuple[np.ndarray, np.ndarray]]:
    """All prompts at once, by `decoding.generate_tokens`."""
    generated = decoding.generate_tokens(
        job.model,
        job.params,
        *_arrays(job),
        max_new_tokens=job.max_new_tokens,
        sampling=job.sampling,
    )
    return _rows(generated)


def drafted(
    job: Job, *, draft: tuple[Transformer, Mapping], ahead: int = 4
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The same distribution, by `speculative.generate_tokens`.

    draft: another model and its params, as trained.
    """
    needed = max(map(len, job.prompts)) + job.max_new_tokens
    if draft[0].max_length < needed:
        raise errors.UserError(
            f'{needed} tokens exceed the context of the draft, {draft[0].max_length}: ask for '
            'fewer.'
        )
    generated = speculative.generate_tokens(
        speculative.Decoder(job.model, job.params),
        speculative.Decoder(*weights_lib.packed(*draft)),
        *_arrays(job),
        max_new_tokens=job.max_new_tokens,
        sampling=job.sampling,
        ahead=ahead,
    )
    return _rows(generated)


def searched(job: Job, *, beam_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The most probable text that so many beams find; settings of sampling do not matter.

    Stops are found in the text alone. Its log probabilities are NaN: only their sum is compared.
    """
    if beam_size < 1:
        raise errors.UserError(f'beam_size = {beam_size} must be at least 1.')
    prompts, lengths, *_ = _arrays(job)
    search = jax.jit(
        functools.partial(
            beam_search.continuations,
            job.model,
            beam_size=beam_size,
            max_length=job.max_new_tokens,
            end=job.end,
        ),
        compiler_options=decoding.compiler_options(),
    )
    best = np.asarray(search(job.params, prompts, lengths).tokens[:, 0])
    counts = [_count_to(row, job.end) for row in best]
    return [(row[:n], np.full(n, np.nan)) for row, n in zip(best, counts, strict=True)]


def matched(
    job: Job, *, matcher: Callable[[], Matcher], end: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """What `constraints` allow, by an `engine.Engine`; each prompt has a seed of its own.

    end: the token that ends what matches, `Tokenizer.end_of_text`, which is left out.

    Raises:
      UserError: where no token goes on with what is to match.
    """
    longest = max(map(len, job.prompts))
    engine = Engine(
        job.model,
        job.params,
        slots=min(len(job.prompts), 8),
        length=longest + job.max_new_tokens,
        widths=[min(longest, 256)],
    )
    requests = [
        engine.submit(
            prompt,
            Settings(
                job.max_new_tokens,
                job.sampling,
                stops=[*(stop.tolist() for stop in job.stops), [end]],
                seed=(job.seed + i) % 2**32,
                matcher=matcher,
            ),
        )
        for i, prompt in enumerate(job.prompts)
    ]
    found = {request: [] for request in requests}
    while engine.num_waiting + engine.num_active:
        for event in engine.step():
            if event.finish == 'unmatched':
                raise errors.UserError(
                    'No token of the model goes on with what the format wants, after '
                    f'{len(event.request.new_tokens)} tokens.'
                )
            if event.token != end:
                found[event.request].append((event.token, event.log_prob))
    return [
        (np.array([token for token, _ in found[r]], int), np.array([p for _, p in found[r]]))
        for r in requests
    ]


def generate(
    task: Any,
    params: Mapping,
    prompts: Sequence[str | np.ndarray],
    max_new_tokens: int,
    sampling: Sampling,
    *,
    seed: int,
    stop: Sequence[str] = (),
    weights: str | None = None,
    method: Method = sampled,
) -> list[Answer]:
    """Continuations of prompts: texts, or their ids [L], as `task.prompt` gives them.

    A text begins a document: the tokenizer's token for that comes before it, and an empty one
    stands for the end-of-text token where there is none. `weights`: see `weights.packed`. A stop
    string that no tokens spell is cut off behind, when all tokens are made.

    Raises:
      UserError: for a prompt that leaves no room in the context, no tokens to generate, or a stop
        string that is empty or cannot be encoded.
    """
    if max_new_tokens < 1:
        raise errors.UserError(f'max_new_tokens = {max_new_tokens} must be at least 1.')
    if '' in stop:
        raise errors.UserError('A stop string is empty: it would end every text at once.')
    vocabulary = task.vocabulary
    encoded = [document(vocabulary, p) if isinstance(p, str) else p for p in prompts]
    encoded = [begun(vocabulary, ids) for ids in encoded]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) + max_new_tokens > task.model.max_length:
            raise errors.UserError(
                f'A prompt of {len(ids)} tokens and {max_new_tokens} new ones exceed the context '
                f'of {task.model.max_length}: shorten {_shown(prompt)} or ask for fewer.'
            )
    spelt = spelling(vocabulary, task.model.vocab_size)
    stops = _token_stops(vocabulary, spelt, stop)
    end = -1 if task.end is None else task.end
    if end >= 0:
        stops.append(np.asarray([end]))
    model, params = weights_lib.packed(task.model, params, weights)
    rows = method(Job(model, params, encoded, stops, end, max_new_tokens, sampling, seed))
    texts = [_cut(spelt_text(spelt, ids, end), stop) for ids, _ in rows]
    return [Answer(text, *row) for text, row in zip(texts, rows, strict=True)]


def begun(vocabulary: Tokenizer, prompt: np.ndarray) -> np.ndarray:
    """A prompt's ids, or the end-of-text token in the place of none."""
    return prompt if len(prompt) else np.asarray([vocabulary.end_of_text])


def spelt_text(spelt: Sequence[bytes], ids: Sequence[int], end: int | None = None) -> str:
    """How the text of a prompt goes on by generated ids, the last of which may be its `end`.

    A tokenizer's `decode` leaves out a space that its texts begin with.

    Args:
      spelt: see `tokenizers.spelling`.
    """
    ids = ids[:-1] if len(ids) and ids[-1] == end else ids
    return b''.join(spelt[id] for id in ids).decode(errors='replace')


def generate_text(*arguments, **options) -> list[str]:
    """The texts of `generate`."""
    return [answer.text for answer in generate(*arguments, **options)]


def _token_stops(
    vocabulary: Tokenizer, spelt: Sequence[bytes], stop: Sequence[str]
) -> list[np.ndarray]:
    """The ids of those stop strings that their tokens spell.

    A tokenizer may leave out a part of a text, or all of it, or have a token for the unknown: such
    ids would end other texts. Those strings are found in the text alone.
    """
    found = []
    for text in stop:
        with errors.told_of(f'The stop string {text[:40]!r}'):
            ids = vocabulary.encode(text)
        if text in spelt_text(spelt, ids):
            found.append(ids)
    return found


def _shown(prompt: str | np.ndarray) -> str:
    return f'{prompt[:40]!r}...' if isinstance(prompt, str) else 'it'


def _arrays(job: Job) -> tuple[jax.Array, ...]:
    """prompts, lengths, stops and the key, as `decoding.generate_tokens` takes them."""
    width = max(map(len, job.prompts))
    longest = max(map(len, job.stops), default=0)
    stops = [np.pad(ids, (longest - len(ids), 0), constant_values=-1) for ids in job.stops]
    return (
        jnp.asarray([np.pad(ids, (0, width - len(ids))) for ids in job.prompts], jnp.int32),
        jnp.asarray([len(ids) for ids in job.prompts], jnp.int32),
        jnp.asarray(stops, jnp.int32).reshape(len(stops), longest),
        jax.random.key(job.seed),
    )


def _rows(generated: decoding.Generated) -> list[tuple[np.ndarray, np.ndarray]]:
    tokens, counts, log_probs = map(np.asarray, generated)
    return [(tokens[i, :count], log_probs[i, :count]) for i, count in enumerate(counts)]


def _count_to(row: np.ndarray, end: int) -> int:
    """How many tokens there are up to the first `end`, it included."""
    return int((row == end).argmax()) + 1 if end in row else len(row)


def _cut(text: str, stop: Sequence[str]) -> str:
    """Text before the first stop string; tokens need not end where a stop string ends."""
    ends = [text.index(word) for word in stop if word in text]
    return text[: min(ends)] if ends else text
