"""Conversations, and pairs of answers of which one is preferred, in JSON lines.

What is wrong with a message is found when the source is built, and told with file and line.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bigmodels import errors
from bigmodels.data.sources import JsonLines, digest

ROLES = ('system', 'user', 'assistant')
Message = Mapping[str, str]  # {'role', 'content'}


class Chats(JsonLines):
    """A conversation a line, {'messages': [{'role', 'content'}, ...]}, plain or `.gz`.

    With `columns` a line has a question and its answer in fields of these names instead. Record
    {'messages': list of {'role', 'content'}}; its last message is the assistant's.
    """

    def __init__(self, path: str, columns: Sequence[str] = ()):
        if len(columns) not in (0, 2):
            raise errors.UserError(
                f'columns = {tuple(columns)} must name a question and its answer, or be ().'
            )
        self._columns = tuple(columns)
        super().__init__(path)

    def _record(self, line: bytes, where: str) -> dict[str, Any]:
        record = super()._record(line, where)
        if self._columns:
            question, answer = (_field(record, name, where) for name in self._columns)
            messages = [
                {'role': 'user', 'content': question},
                {'role': 'assistant', 'content': answer},
            ]
        else:
            messages = _field(record, 'messages', where)
        return {'messages': checked_messages(messages, where, 'assistant')}

    def fingerprint(self) -> str:
        return digest('chats', super().fingerprint(), *self._columns)


class Preferences(JsonLines):
    """A prompt and two answers a line, {'prompt', 'chosen', 'rejected'}, plain or `.gz`.

    The prompt is a text or messages of which the last is the user's; an answer is a text, or one
    message of the assistant in a list. Record {'chosen', 'rejected': conversations as in `Chats`}.
    """

    def _record(self, line: bytes, where: str) -> dict[str, Any]:
        record = super()._record(line, where)
        prompt = _field(record, 'prompt', where)
        if isinstance(prompt, str):
            prompt = [{'role': 'user', 'content': prompt}]
        asked = checked_messages(prompt, f'{where}, prompt', 'user')
        conversations = {}
        for name in ('chosen', 'rejected'):
            answer = _field(record, name, where)
            if isinstance(answer, str):
                answer = [{'role': 'assistant', 'content': answer}]
            answer = checked_messages(answer, f'{where}, {name}', 'assistant')
            conversations[name] = [*asked, *answer]
        if conversations['chosen'] == conversations['rejected']:
            raise errors.UserError(f'{where}: the chosen answer is the rejected one.')
        return conversations

    def fingerprint(self) -> str:
        return digest('preferences', super().fingerprint())


def _field(record: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in record:
        raise errors.unknown(f'field: {where} lacks', name, record)
    return record[name]


def checked_messages(messages: Any, where: str, last: str) -> list[Message]:
    """Messages as {'role', 'content'}; what else one has is left out.

    Args:
      where: for errors, file and line.
      last: the role that the last message must have.

    Raises:
      UserError: for what is no list of messages, an unknown role, a content that is no text or
        blank, an instruction of the system that is not the first, or another last role.
    """
    if not isinstance(messages, list) or not messages:
        raise errors.UserError(
            f'{where}: the messages are {type(messages).__name__} {str(messages)[:40]!r}, wanted a '
            f'list of at least one {{"role": ..., "content": ...}}.'
        )
    checked = []
    for number, message in enumerate(messages):
        at = f'{where}, message {number}'
        if not isinstance(message, Mapping):
            raise errors.UserError(f'{at} is {type(message).__name__}, wanted an object.')
        role, content = _field(message, 'role', at), _field(message, 'content', at)
        if role not in ROLES:
            raise errors.unknown(f'role: {at} has', role, ROLES)
        if not isinstance(content, str):
            raise errors.UserError(f'{at}: the content is {type(content).__name__}, wanted str.')
        if not content.strip():
            raise errors.UserError(f'{at}: the content of the {role} is empty.')
        if role == 'system' and number:
            raise errors.UserError(f'{at} is of the system, whose instruction comes first.')
        checked.append({'role': role, 'content': content})
    if checked[-1]['role'] != last:
        raise errors.UserError(
            f'{where}: the last message is of the {checked[-1]["role"]}, wanted the {last}.'
        )
    return checked
