"""Conversations as tokens: a plain format of role markers, and which of the tokens are answers."""

from collections.abc import Sequence

import numpy as np

from bigmodels import errors
from bigmodels.data.sources.chat_sources import ROLES, Message
from bigmodels.data.tokenizers import Tokenizer

MARKERS = {role: f'<|{role}|>\n' for role in ROLES}
FORMAT = 'markers 1'  # part of every cache key: raise it when the format changes


def pieces(messages: Sequence[Message]) -> list[tuple[str, bool]]:
    """The text of a conversation in pieces, each with whether it is an answer of the assistant.

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


def encode(vocabulary: Tokenizer, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
    """(ids int32 [L], whether each is of an answer or ends one, bool [L])."""
    ids, answers = [], []
    for text, is_answer in pieces(messages):
        tokens = vocabulary.encode(text)
        if is_answer:
            tokens = np.append(tokens, vocabulary.end_of_text)
        ids.append(tokens)
        answers.append(np.full(len(tokens), is_answer))
    return np.concatenate(ids).astype(np.int32), np.concatenate(answers)


def prompt(question: str) -> str:
    """The text before the answer to a question."""
    [(text, _)] = pieces([{'role': 'user', 'content': question}])
    return text
