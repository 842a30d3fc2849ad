"""Chat templates: what they give, what the assistant says in it, and what they cannot do."""

import datetime
import json

import pytest

from bigmodels import errors
from bigmodels.data import chat_templates

# As in Qwen's models, https://huggingface.co/Qwen/Qwen2.5-0.5B-Instruct, without tools.
CHATML = (
    '{%- for message in messages %}\n'
    "    {{- '<|im_start|>' + message.role + '\\n' }}\n"
    "    {%- if message.role == 'assistant' %}\n"
    '        {%- generation %}{{- message.content }}{% endgeneration %}\n'
    '    {%- else %}{{- message.content }}{% endif %}\n'
    "    {{- '<|im_end|>' + '\\n' }}\n"
    '{%- endfor %}\n'
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"
)
MESSAGES = [
    {'role': 'user', 'content': '1 < 2?', 'tool_calls': None},
    {'role': 'assistant', 'content': 'Yes. {{ 1 + 1 }}'},
]


def test_a_chat_is_rendered_and_the_answers_are_found():
    template = chat_templates.ChatTemplate(CHATML)
    expected = (
        '<|im_start|>user\n1 < 2?<|im_end|>\n<|im_start|>assistant\nYes. {{ 1 + 1 }}<|im_end|>\n'
    )
    assert template.render(MESSAGES) == expected
    prompt = template.render(MESSAGES, add_generation_prompt=True)
    assert prompt == expected + '<|im_start|>assistant\n'
    text, spans = template.render_spans(MESSAGES)
    assert text == expected
    assert [text[begin:end] for begin, end in spans] == ['Yes. {{ 1 + 1 }}']


def test_a_template_reads_tokens_tools_variables_and_no_clock():
    source = (
        '{{ bos_token }}{{ tools | tojson }}{{ style }}{% if strftime_now is defined %}{% endif %}'
    )
    template = chat_templates.ChatTemplate(source, (('bos_token', '<s>'),))
    assert template.render([], tools=[{'a': 'é<'}], style='x') == '<s>[{"a": "é<"}]x'
    dated = chat_templates.ChatTemplate("{{ strftime_now('%Y') }}")
    assert dated.render([], now=datetime.datetime(1999, 1, 1)) == '1999'
    with pytest.raises(errors.UserError, match='strftime_now'):
        dated.render([])


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        ("{{ raise_exception('roles must alternate') }}", 'roles must alternate'),
        ('{{ messages.append(1) }}', 'unsafe'),
        ("{{ ''.__class__.__mro__ }}", 'unsafe'),
        ('{% for %}', 'template is wrong'),
        ('{{ messages[0].content + 1 }}', 'refuses the messages'),
    ],
)
def test_what_a_template_may_not_do_is_told(source, message):
    with pytest.raises(errors.UserError, match=message):
        chat_templates.ChatTemplate(source).render([{'role': 'user', 'content': 'x'}])


def test_messages_are_json_and_are_not_changed():
    template = chat_templates.ChatTemplate('{% set _ = messages[0].update(role=1) %}')
    messages = [{'role': 'user'}]
    with pytest.raises(errors.UserError, match='unsafe'):
        template.render(messages)
    assert messages == [{'role': 'user'}]
    for content in (object(), '\ufdd0'):
        with pytest.raises(errors.UserError):
            template.render([{'content': content}])


def test_templates_are_found_beside_a_tokenizer(tmp_path):
    assert chat_templates.beside(tmp_path) is None
    entries = {
        'chat_template': [
            {'name': 'tool_use', 'template': 'a'},
            {'name': 'default', 'template': 'b'},
        ],
        'eos_token': {'content': '</s>', 'lstrip': False},
        'bos_token': '<s>',
        'pad_token': None,
        'add_bos_token': True,
    }
    (tmp_path / chat_templates.TOKENIZER_CONFIG).write_text(json.dumps(entries))
    tokens = (('bos_token', '<s>'), ('eos_token', '</s>'))
    assert chat_templates.beside(tmp_path) == chat_templates.ChatTemplate('b', tokens)
    (tmp_path / chat_templates.FILE).write_text('c')
    assert chat_templates.beside(tmp_path) == chat_templates.ChatTemplate('c', tokens)
