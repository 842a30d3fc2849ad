"""Conversations as tokens, and which of these are answers.

They have the chat template that comes with a published tokenizer, or else plain role markers.
"""

import functools
from collections.abc import Sequence

import numpy as np

from bigmodels import errors
from bigmodels.data.chat_templates import ChatTemplate
from bigmodels.data.sources.chat_sources import ROLES, Message
from bigmodels.data.tokenizers import Tokenizer, document

MARKERS = {role: f'<|{role}|>\n' for role in ROLES}
FORMAT = 'markers 2'  # part of every cache key: raise it when the format changes


def pieces(messages: Sequence[Message]) -> list[tuple[str, bool]]:
    """A conversation by markers, in pieces of text, each with whether it is an answer.

    Every message has its role's marker before it, and a line's end behind it unless it is an
    answer, which the tokenizer's end-of-text token ends. Where the last message is no answer, the
    text ends with the assistant's marker: a prompt.

    Raises:
      UserError: for a content that spells a marker, and so would begin another message.
    """
    found, text = [], ''
    for message in messages:
        role, content = message['role'], message['content']
        for marker in MARKERS.values():
            if marker.strip() in content:
                raise errors.UserError(
                    f'The {role} says {marker.strip()!r}, by which messages are told apart: '
                    f'{content[:40]!r}...'
                )
        text += MARKERS[role]
        if role == 'assistant':
            found += [(text, False), (content, True)]
            text = ''
        else:
            text += f'{content}\n'
    return [*found, (text + MARKERS['assistant'], False)] if text else found


def format_of(vocabulary: Tokenizer) -> list:
    """What decides the text of a conversation, a part of every cache key."""
    template = _template(vocabulary)
    return [FORMAT] if template is None else [template.source, *map(list, template.tokens)]


def encode(vocabulary: Tokenizer, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
    """(ids int32 [L], whether each is of an answer or ends one, bool [L]); the last is an answer.

    The text is that of the tokenizer's chat template, if it has one, else that of `pieces`.

    Raises:
      UserError: for messages that the format refuses.
    """
    template = _template(vocabulary)
    if template is not None:
        return _rendered(vocabulary, template, messages)
    ids, answers = [], []
    for text, is_answer in pieces(messages):
        tokens = vocabulary.encode(text) if ids else document(vocabulary, text)
        if is_answer:
            tokens = np.append(tokens, vocabulary.end_of_text)
        ids.append(tokens)
        answers.append(np.full(len(tokens), is_answer))
    return np.concatenate(ids).astype(np.int32), np.concatenate(answers)


def prompt(vocabulary: Tokenizer, messages: Sequence[Message]) -> np.ndarray:
    """The ids int32 [L] after which the assistant's next message comes, as `encode` has them."""
    template = _template(vocabulary)
    if template is not None:
        return vocabulary.encode_chat(template.render(messages, add_generation_prompt=True))
    ids, _ = encode(vocabulary, messages)
    if messages[-1]['role'] == 'assistant':
        ids = np.concatenate([ids, vocabulary.encode(MARKERS['assistant'])])
    return ids


@functools.lru_cache(maxsize=16)
def end_of_answer(vocabulary: Tokenizer) -> int:
    """The token that ends an answer: what a chat template has behind it, or the end of a text."""
    template = _template(vocabulary)
    if template is None:
        return vocabulary.end_of_text
    asked, answer = {'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}
    ids, learnt = _rendered(vocabulary, template, [asked, answer])
    spelt = vocabulary.token_bytes()
    special = [id for id in ids[learnt].tolist() if not spelt[id]]
    return special[-1] if special else vocabulary.end_of_text


def _template(vocabulary: Tokenizer) -> ChatTemplate | None:
    return getattr(vocabulary, 'chat_template', None)


def _rendered(
    vocabulary: Tokenizer, template: ChatTemplate, messages: Sequence[Message]
) -> tuple[np.ndarray, np.ndarray]:
    """`encode` by a template, up to the end of the last answer."""
    text, spans = template.render_spans(messages)
    ids, begins = vocabulary.encode_spans(text)
    learnt = np.zeros(len(ids), bool)
    for begin, end in spans or _answers(template, messages, text):
        learnt |= (begins >= begin) & (begins < end)
    used = np.flatnonzero(learnt)[-1] + 1
    return ids[:used], learnt[:used]


def _answers(
    template: ChatTemplate, messages: Sequence[Message], text: str
) -> list[tuple[int, int]]:
    """Where the answers are in the text of a template that does not mark them: [begin, end) each.

    One is what comes with it to the prompt before it, but for white space at its end.
    """
    spans = []
    for i, message in enumerate(messages):
        if message['role'] != 'assistant':
            continue
        before = template.render(messages[:i], add_generation_prompt=True)
        after = template.render(messages[: i + 1])
        if not (text.startswith(after) and after.startswith(before)):
            raise errors.UserError(
                'The chat template writes an answer otherwise where more follows, or other than '
                'its prompt says, so that it is not known which tokens are of answers: put what '
                'the assistant says between {% generation %} and {% endgeneration %} in it.'
            )
        spans.append((len(before), len(after.rstrip())))
    return spans
