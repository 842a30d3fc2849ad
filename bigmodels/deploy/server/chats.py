"""Messages of a chat as the tokens that the model goes on from."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bigmodels.data import chat
from bigmodels.data.tokenizers import document
from bigmodels.deploy.server import forms
from bigmodels.tasks.chat import Chat

ROLES = ('system', 'developer', 'user', 'assistant')


def prompt(
    task: Any, messages: Sequence[forms.Message]
) -> tuple[np.ndarray, list[str], list[tuple[int]]]:
    """(ids int32 [L]; stop strings and tokens that no answer goes beyond), as the model has it.

    It knows the format of `data.chat` where it was tuned with it, or has a chat template; else the
    plain names of the roles are a text that it may go on with.

    Raises:
      UserError: for messages that the format refuses.
    """
    vocabulary = task.vocabulary
    if isinstance(task, Chat) or getattr(vocabulary, 'chat_template', None) is not None:
        roles = {'developer': 'system'}  # as the newer models of the API call it
        said = [{'role': roles.get(m.role, m.role), 'content': _content(m)} for m in messages]
        return chat.prompt(vocabulary, said), [], [(chat.end_of_answer(vocabulary),)]
    turns = [f'{message.role}: {_content(message)}\n\n' for message in messages]
    ids = document(vocabulary, ''.join([*turns, 'assistant:']))
    return ids, [f'\n{role}:' for role in ROLES], []


def _content(message: forms.Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return ''.join(part.text for part in message.content)
