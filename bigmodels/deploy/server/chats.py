"""Messages of a chat as the tokens that the model goes on from."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bigmodels.data import chat
from bigmodels.deploy.server import forms
from bigmodels.tasks.chat import Chat

ROLES = ('system', 'developer', 'user', 'assistant')


def prompt(task: Any, messages: Sequence[forms.Message]) -> tuple[np.ndarray, list[str]]:
    """(ids int32 [L], stop strings that no answer goes beyond), in the format the model knows.

    Those are the markers of `data.chat` where it was tuned with them, the chat template of its
    tokenizer, and else the plain names of the roles, as a text that it may go on with.

    Raises:
      UserError: for messages that the format refuses.
    """
    vocabulary = task.vocabulary
    said = [{'role': message.role, 'content': _content(message)} for message in messages]
    if isinstance(task, Chat):
        roles = {'developer': 'system'}  # as the newer models of the API call it
        said = [{**one, 'role': roles.get(one['role'], one['role'])} for one in said]
        return chat.encode(vocabulary, said)[0], []
    template = getattr(vocabulary, 'chat_template', None)
    if template is not None:
        return vocabulary.encode_chat(template.render(said, add_generation_prompt=True)), []
    turns = [f'{one["role"]}: {one["content"]}\n\n' for one in said]
    return vocabulary.encode(''.join([*turns, 'assistant:'])), [f'\n{role}:' for role in ROLES]


def _content(message: forms.Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return ''.join(part.text for part in message.content)
