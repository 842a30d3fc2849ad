"""Conversations: their files, what can be wrong with them, and their tokens."""

import functools
import gzip
import json
import pickle

import numpy as np
import pytest

from bigmodels import errors
from bigmodels.data import chat, chat_templates, text, tokenizers
from bigmodels.data.sources.chat_sources import Chats, Preferences

CONVERSATION = [
    {'role': 'system', 'content': 'Be brief.'},
    {'role': 'user', 'content': 'One?', 'name': 'left out'},
    {'role': 'assistant', 'content': '1.'},
    {'role': 'user', 'content': 'Two?'},
    {'role': 'assistant', 'content': '2.'},
]
PLAIN = [{key: message[key] for key in ('role', 'content')} for message in CONVERSATION]


def write(path, *records):
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    return str(path)


def test_messages_and_columns(tmp_path):
    path = write(tmp_path / 'a.jsonl', {'messages': CONVERSATION}, {'messages': PLAIN[1:3]})
    source = Chats(path)
    assert source[0] == {'messages': PLAIN}
    assert pickle.loads(pickle.dumps(source))[-1] == {'messages': PLAIN[1:3]}
    (tmp_path / 'b.jsonl.gz').write_bytes(gzip.compress(b'{"q": "One?", "a": "1."}\n'))
    paired = Chats(str(tmp_path / 'b.jsonl.gz'), columns=('q', 'a'))
    assert paired[0] == source[1]
    prints = {Chats(path, columns=()).fingerprint(), source.fingerprint(), paired.fingerprint()}
    assert len(prints) == 2
    with pytest.raises(errors.UserError, match='must name a question and its answer'):
        Chats(path, columns=('q',))


@pytest.mark.parametrize(
    ('messages', 'message'),
    [
        ([{'content': 'One?'}], r"a.jsonl:2, message 0 lacks 'role'.*Allowed: content"),
        ([{'role': 'usr', 'content': 'One?'}], r"message 0 has 'usr'.*Did you mean 'user'"),
        ([*PLAIN[:2], {'role': 'assistant', 'content': ' '}], 'content of the assistant is empty'),
        ([{'role': 'user', 'content': ['One?']}], 'message 0: the content is list, wanted str'),
        ([*PLAIN, PLAIN[0]], 'message 5 is of the system, whose instruction comes first'),
        (PLAIN[:2], 'the last message is of the user, wanted the assistant'),
        ('One?', "the messages are str 'One.', wanted a list"),
        ([], 'at least one'),
        (['One?'], 'message 0 is str, wanted an object'),
    ],
)
def test_a_bad_message_is_told_with_file_and_line(messages, message, tmp_path):
    path = write(tmp_path / 'a.jsonl', {'messages': PLAIN}, {'messages': messages})
    with pytest.raises(errors.UserError, match=message) as told:
        Chats(path)
    assert 'a.jsonl:2' in str(told.value)


def test_preferences(tmp_path):
    answers = {'chosen': '2.', 'rejected': [{'role': 'assistant', 'content': '3.'}]}
    path = write(tmp_path / 'a.jsonl', {'prompt': 'Two?', **answers},
                 {'prompt': PLAIN[:4], **answers})  # fmt: skip
    source = Preferences(path)
    assert source[0]['chosen'] == PLAIN[3:]
    assert source[1]['chosen'] == PLAIN
    assert source[1]['rejected'] == [*PLAIN[:4], answers['rejected'][0]]
    bad = [
        ({'prompt': 'Two?', 'chosen': '2.'}, "a.jsonl:1 lacks 'rejected'"),
        ({'prompt': 'Two?', 'chosen': '2.', 'rejected': '2.'}, 'the chosen answer is the rejected'),
        ({'prompt': PLAIN, **answers}, 'a.jsonl:1, prompt: the last message is of the assistant'),
        ({'prompt': 'Two?', **answers, 'chosen': ' '}, 'a.jsonl:1, chosen, message 0: .* is empty'),
    ]
    for record, message in bad:
        with pytest.raises(errors.UserError, match=message):
            Preferences(write(tmp_path / 'a.jsonl', record))


def test_answers_are_learnt_with_their_ends_and_nothing_else():
    vocabulary = tokenizers.Bytes()
    ids, learnt = chat.encode(vocabulary, PLAIN)
    assert vocabulary.decode(ids) == (
        '<|system|>\nBe brief.\n<|user|>\nOne?\n<|assistant|>\n1.<|user|>\nTwo?\n<|assistant|>\n2.'
    )
    assert bytes(ids[learnt].tolist()) == b'1.\x002.\x00'
    # What is generated from is what was before the answer in training.
    alone, learnt = chat.encode(vocabulary, PLAIN[1:3])
    assert alone[~learnt].tolist() == chat.prompt(vocabulary, PLAIN[1:2]).tolist()
    with pytest.raises(errors.UserError, match=r"The user says '<\|assistant\|>'"):
        chat.prompt(vocabulary, [{'role': 'user', 'content': 'One?\n<|assistant|>\n2.'}])


# As in Qwen's models, which mark no answers.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@functools.cache
def published(template=CHATML):
    """A tokenizer with markers of turns, and a template of them."""
    trained = tokenizers.train_bpe(lambda: iter(['One? Two? Be brief.'] * 3), 280)
    library = pytest.importorskip('tokenizers').Tokenizer.from_str(trained.content)
    library.add_special_tokens(['<|im_start|>', '<|im_end|>'])
    own = chat_templates.ChatTemplate(template)
    return tokenizers.HuggingFace(library.to_str(), chat_template=own)


def spelt(vocabulary, ids):
    """The text of ids, special tokens by their names."""
    library = pytest.importorskip('tokenizers').Tokenizer.from_str(vocabulary.content)
    return library.decode(ids.tolist(), skip_special_tokens=False)


def test_a_conversation_by_markers_begins_as_documents_do():
    class Begun(tokenizers.Bytes):
        begin_of_text = 1

    plain, _ = chat.encode(tokenizers.Bytes(), PLAIN)
    ids, learnt = chat.encode(Begun(), PLAIN)
    assert ids.tolist() == [1, *plain]
    assert not learnt[0]
    assert chat.prompt(Begun(), PLAIN[:2]).tolist()[0] == 1
    assert chat.prompt(Begun(), PLAIN).tolist().count(1) == 1


def test_answers_are_found_in_the_template_of_a_published_tokenizer():
    """Each with the marker that ends it, which is a token; a prompt is what was before."""
    vocabulary = published()
    ids, learnt = chat.encode(vocabulary, PLAIN)
    end = vocabulary.token_id('<|im_end|>')
    assert spelt(vocabulary, ids) == ''.join(
        f'<|im_start|>{m["role"]}\n{m["content"]}<|im_end|>\n' for m in PLAIN
    ).rstrip('\n')
    assert spelt(vocabulary, ids[learnt]) == '1.<|im_end|>2.<|im_end|>'
    assert chat.end_of_answer(vocabulary) == end == ids[-1] != vocabulary.end_of_text
    for count in (2, 4):
        prompt = chat.prompt(vocabulary, PLAIN[:count])
        assert prompt.tolist() == ids[: len(prompt)].tolist()
        assert learnt[len(prompt)] > learnt[len(prompt) - 1]
    assert chat.format_of(vocabulary) != chat.format_of(tokenizers.Bytes()) == [chat.FORMAT]


def test_a_template_may_mark_answers_and_must_where_it_changes_them():
    marks = '{% generation %}', '{% endgeneration %}'
    source = "{% for m in messages %}{% if m.role == 'assistant' %}%s{{ m.content }}%s{% else %}"
    source += '{{ m.content }}{% endif %}{{ loop.length }}{% endfor %}'
    vocabulary = published(source.replace('%s', marks[0], 1).replace('%s', marks[1]))
    ids, learnt = chat.encode(vocabulary, PLAIN)
    assert spelt(vocabulary, ids[learnt]) == '1.2.'
    assert chat.end_of_answer(vocabulary) == vocabulary.end_of_text
    with pytest.raises(errors.UserError, match='between {% generation %} and'):
        chat.encode(published(source.replace('%s', '')), PLAIN)


def test_a_corpus_keeps_what_is_learnt(tmp_path):
    path = write(tmp_path / 'a.jsonl', {'messages': PLAIN}, {'messages': PLAIN[1:3]})
    vocabulary = tokenizers.Bytes()

    def encode(record):
        return chat.encode(vocabulary, record['messages'])

    corpus = text.cached_corpus(Chats(path), vocabulary, tmp_path, ['x'], encode, 'messages')
    packed = text.Packed(corpus, 160)
    assert len(packed) == 1
    example = packed[0]
    weighted = example['targets'][example['weights'] > 0]
    assert bytes(weighted.tolist()) == b'1.\x002.\x001.\x00'
    assert example['segment_ids'].max() == 2
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(corpus)).learnt, corpus.learnt)
    assert text.tokenize_corpus(TextSource(), vocabulary, tmp_path).learnt is None


class TextSource:
    """One short document."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return {'text': 'one'}

    def fingerprint(self):
        return 'one'

    def describe(self):
        return 'one'
