"""Chats as text: the templates that come with models which were trained on chats.

A template is a program in Jinja's language, https://jinja.palletsprojects.com. It runs in Jinja's
sandbox, which reaches nothing but the messages; nothing else decides what it gives, not the clock.
"""

import dataclasses
import datetime
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from bigmodels import errors

# Around what the assistant says, where a template marks it: characters that no text has, as
# Unicode keeps them for uses within a program.
_BEGIN, _END = '\ufdd0', '\ufdd1'
# Beside a tokenizer.json.
TOKENIZER_CONFIG, FILE = 'tokenizer_config.json', 'chat_template.jinja'
MARK = 'generation'  # {% generation %} ... {% endgeneration %}


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template and the special tokens that it may name.

    Fields:
      source: in Jinja's language.
      tokens: pairs such as ('bos_token', '<s>').
    """

    source: str
    tokens: tuple[tuple[str, str], ...] = ()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        now: datetime.datetime | None = None,
        **variables: Any,
    ) -> str:
        """The text of a chat, as `tokenizer.apply_chat_template` of transformers gives it.

        Args:
          messages: each with a 'role', such as 'user', and a 'content'.
          add_generation_prompt: whether it ends with what the assistant's answer follows.
          tools: JSON schemas of functions that the model may call.
          now: what the template takes for the date; a template may do without.
          variables: others that the template reads.

        Raises:
          UserError: if the template fails or refuses the messages.
        """
        given = {'add_generation_prompt': add_generation_prompt, 'tools': tools, 'now': now}
        return self._rendered(messages, variables | given)[0]

    def render_spans(
        self, messages: Sequence[Mapping[str, Any]], **variables: Any
    ) -> tuple[str, list[tuple[int, int]]]:
        """`render`, and which characters the assistant says: [begin, end) each.

        None where the template does not mark them, by {% generation %}.
        """
        return self._rendered(messages, variables)

    def _rendered(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
    ) -> tuple[str, list[tuple[int, int]]]:
        jinja2, template = _compiled(self.source)
        given = dict(self.tokens) | variables
        now = given.pop('now', None)
        if now is not None:
            given['strftime_now'] = now.strftime
        # A key without a value is as good as none, and templates know it as none.
        given['messages'] = [
            {key: value for key, value in message.items() if value is not None}
            for message in messages
        ]
        given |= _plain({key: given.get(key) for key in ('messages', 'tools')})
        try:
            marked = template.render(**given)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise errors.UserError(f'The chat template refuses the messages: {error}.') from error
        return _without_marks(marked)


def beside(directory: pathlib.Path) -> ChatTemplate | None:
    """The template in a tokenizer's directory: a file, or an entry of tokenizer_config.json."""
    entries, file = config_beside(directory), directory / FILE
    source = entries.get('chat_template')
    if isinstance(source, list):  # several, by name
        source = {each['name']: each['template'] for each in source}.get('default')
    if file.is_file():
        source = file.read_text(encoding='utf-8')
    if source is None:
        return None
    return ChatTemplate(source, special_tokens(entries))


def config_beside(directory: pathlib.Path) -> Mapping[str, Any]:
    """The entries of a directory's tokenizer_config.json, none where it has none."""
    file = directory / TOKENIZER_CONFIG
    return json.loads(file.read_text(encoding='utf-8')) if file.is_file() else {}


def special_tokens(entries: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Pairs such as ('bos_token', '<s>') of what a tokenizer_config.json says."""
    found = {}
    for name, value in entries.items():
        token = value.get('content') if isinstance(value, dict) else value
        if name.endswith('_token') and isinstance(token, str):
            found[name] = token
    return tuple(sorted(found.items()))


def _plain(values: Any) -> Any:
    """A copy that is nothing but JSON: a template reaches no object of the caller's."""
    try:
        text = json.dumps(values, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise errors.UserError(f'Messages and tools must be JSON: {error}.') from error
    if _BEGIN in text or _END in text:
        raise errors.UserError('A message has a character that Unicode keeps from texts.')
    return json.loads(text)


def _without_marks(marked: str) -> tuple[str, list[tuple[int, int]]]:
    text, spans = '', []
    for piece in marked.split(_BEGIN):
        said, end, rest = piece.rpartition(_END)
        if end:
            spans.append((len(text), len(text) + len(said)))
        text += said + rest
    return text, spans


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> tuple[Any, Any]:
    """The library and the template."""
    try:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox
    except ImportError as error:
        raise errors.UserError(
            "Chat templates need the library 'jinja2': pip install 'bigmodels[text]'."
        ) from error

    class Marks(jinja2.ext.Extension):
        """The tag {% generation %}."""

        tags = frozenset({MARK})

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements([f'name:end{MARK}'], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method('_mark'), [], [], body).set_lineno(line)

        def _mark(self, caller):
            return f'{_BEGIN}{caller()}{_END}'

    def refuse(message):
        raise jinja2.TemplateError(message)

    def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Marks, jinja2.ext.loopcontrols]
    )
    environment.filters['tojson'] = to_json  # Jinja's own escapes HTML
    environment.globals['raise_exception'] = refuse
    try:
        return jinja2, environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise errors.UserError(f'The chat template is wrong: {error}.') from error
