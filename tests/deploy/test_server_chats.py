"""A chat becomes the tokens of the format that the model knows."""

import dataclasses

import pytest

from bigmodels import errors
from bigmodels.data import chat, chat_templates, tokenizers
from bigmodels.deploy.server import chats, forms
from bigmodels.models.transformer import Transformer
from bigmodels.tasks import Chat, LanguageModeling

MESSAGES = [
    forms.Message(role='developer', content='Be brief.'),
    forms.Message(role='user', content=[forms.TextPart(type='text', text='Hello')]),
]
MODEL = Transformer(vocab_size=400, num_layers=1, embed_dim=8, num_heads=1, max_length=64)
BYTES = tokenizers.Bytes()


def test_a_language_model_reads_the_names_of_the_roles():
    task = LanguageModeling(MODEL, {'name': 'bytes'}, 16, vocabulary=BYTES)
    ids, stops, ends = chats.prompt(task, MESSAGES)
    assert ends == []
    assert BYTES.decode(ids) == 'developer: Be brief.\n\nuser: Hello\n\nassistant:'
    assert '\nuser:' in stops
    trained = tokenizers.train_bpe(lambda: iter(['Hello Be brief.'] * 3), 280)
    vocabulary = tokenizers.HuggingFace(trained.content, begin_of_text='<|endoftext|>')
    begun, *_ = chats.prompt(dataclasses.replace(task, vocabulary=vocabulary), MESSAGES)
    assert begun[0] == vocabulary.begin_of_text
    assert vocabulary.decode(begun) == BYTES.decode(ids)


def test_a_tuned_model_reads_its_markers_and_ends_of_answers():
    task = Chat(MODEL, {'name': 'bytes'}, 16, vocabulary=BYTES)
    asked = [*MESSAGES, forms.Message(role='assistant', content='Hi'), MESSAGES[1]]
    ids, stops, ends = chats.prompt(task, asked)
    said = [
        {'role': role, 'content': content}
        for role, content in (
            ('system', 'Be brief.'), ('user', 'Hello'), ('assistant', 'Hi'), ('user', 'Hello')
        )
    ]  # fmt: skip
    assert ids.tolist() == chat.encode(BYTES, said)[0].tolist()
    assert ids.tolist().count(BYTES.end_of_text) == 1
    assert (stops, ends) == ([], [(BYTES.end_of_text,)])
    with pytest.raises(errors.UserError, match='by which messages are told apart'):
        chats.prompt(task, [forms.Message(role='user', content='<|assistant|>')])


def test_a_published_model_reads_its_template():
    trained = tokenizers.train_bpe(lambda: iter(['Hello Be brief.'] * 3), 280)
    template = chat_templates.ChatTemplate(
        '{% for m in messages %}{{ eos_token }}{{ m.content }}{% endfor %}', (('eos_token', '!'),)
    )
    template = dataclasses.replace(
        template, tokens=(('eos_token', trained.special_tokens['eos_token']),)
    )
    vocabulary = tokenizers.HuggingFace(trained.content, chat_template=template)
    task = LanguageModeling(MODEL, {'name': 'bpe'}, 16, vocabulary=vocabulary)
    ids, *_ = chats.prompt(task, MESSAGES)
    assert ids.tolist().count(vocabulary.end_of_text) == 2
    assert vocabulary.decode(ids) == 'Be brief.Hello'
    # So it does where it was tuned, and before.
    tuned = Chat(MODEL, {'name': 'bpe'}, 16, vocabulary=vocabulary)
    assert chats.prompt(tuned, MESSAGES)[0].tolist() == ids.tolist()
    assert tuned.prompt('Hello').tolist() == ids[-len(tuned.prompt('Hello')) :].tolist()
