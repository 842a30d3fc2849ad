"""Conversations: their files, what can be wrong with them, and their tokens."""

import gzip
import json
import pickle

import numpy as np
import pytest

from bigmodels import errors
from bigmodels.data import chat, text, tokenizers
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
    assert vocabulary.decode(alone[~learnt]) == chat.prompt('One?')
    with pytest.raises(errors.UserError, match=r"The user says '<\|assistant\|>'"):
        chat.prompt('One?\n<|assistant|>\n2.')


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
