"""A server of a language model, as a process, asked by the official client and in a browser."""

import functools
import json
import re
import time

import jax
import numpy as np
import openai
import pytest

from bigmodels import runs, train
from bigmodels.deploy.sampling import Sampling
from bigmodels.deploy.text import generate
from tests import commands, serving
from tests.deploy.test_generate import forward

KEY = 'a key'


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    """A language model behind a key."""
    folder = tmp_path_factory.mktemp('text')
    train.train(commands.tiny_text_config(folder), folder / 'run')
    with serving.served(folder / 'run', folder / 'log', '--name=tiny', key=KEY) as server:
        server.run = runs.open_run(folder / 'run')
        server.client = openai.OpenAI(base_url=f'{server.url}/v1', api_key=KEY, max_retries=0)
        yield server


def test_the_description_is_of_what_is_there(text):
    serving.check_description(text, KEY)


def test_the_client_lists_the_model_and_needs_the_key(text):
    [model] = text.client.models.list()
    assert (model.id, model.step, model.task) == ('tiny', 20, 'language_modeling')
    assert text.client.models.retrieve('tiny').id == 'tiny'
    with pytest.raises(openai.NotFoundError):
        text.client.models.retrieve('other')
    for key in ('another key', 'ä'):
        headers = {'Authorization': f'Bearer {key}'.encode()}
        status, _, answer = text.ask('GET', '/v1/models', headers=headers)
        assert (status, json.loads(answer)['error']['code']) == (401, 'invalid_api_key')
    assert text.ask('GET', '/metrics')[0] == 401
    assert text.ask('GET', '/')[0] == 200


def test_the_client_gets_embeddings(text):
    run, texts = text.run, ['def f(x):', 'return']
    ids = [run.task.vocabulary.encode(one) for one in texts]
    hidden_of = jax.jit(functools.partial(run.model.apply, return_hidden=True))
    found = text.client.embeddings.create(model='tiny', input=texts, user='me')
    for one, item in zip(ids, found.data, strict=True):
        hidden = hidden_of({'params': run.params}, one[None])
        np.testing.assert_allclose(
            item.embedding, np.asarray(hidden[0], np.float32).mean(0), atol=1e-5
        )
    assert found.usage.prompt_tokens == sum(map(len, ids))
    floats = text.client.embeddings.create(
        model='tiny', input=[one.tolist() for one in ids], encoding_format='float'
    )
    np.testing.assert_allclose(floats.data[1].embedding, found.data[1].embedding, atol=1e-6)
    for bad, message in [
        ('', 'input is empty'), ([256], 'the token 256'), ('a' * 129, 'the context of 128'),
        ('a\0', 'NUL'),
    ]:  # fmt: skip
        with pytest.raises(openai.BadRequestError, match=message):
            text.client.embeddings.create(model='tiny', input=bad)
    with pytest.raises(openai.NotFoundError, match='no model'):
        text.client.embeddings.create(model='other', input='a')


def test_the_client_gets_completions_as_they_are_generated_alone(text):
    create, task = text.client.completions.create, text.run.task
    prompts = ['def ', 'import', '']
    found = create(model='tiny', prompt=prompts, max_tokens=12, temperature=0, logprobs=0)
    greedy = Sampling(temperature=0)
    alone = generate(task, text.run.params, prompts, 12, greedy, seed=0)
    assert [choice.text for choice in found.choices] == [answer.text for answer in alone]
    for choice, answer in zip(found.choices, alone, strict=True):
        np.testing.assert_allclose(choice.logprobs.token_logprobs, answer.log_probs, atol=1e-4)
        assert choice.finish_reason in ('stop', 'length')
    assert found.usage.completion_tokens == sum(len(answer.tokens) for answer in alone)
    assert found.usage.prompt_tokens == len('def import') + 1
    ids = task.vocabulary.encode('def ').tolist()
    again = create(model='tiny', prompt=ids, max_tokens=12, temperature=0)
    assert again.choices[0].text == alone[0].text


def test_a_seed_repeats_a_text_and_a_stream_has_its_parts(text):
    asked = dict(model='tiny', prompt='for ', max_tokens=24, temperature=1.2, seed=7, n=2)
    asked['logprobs'] = 0
    whole = text.client.completions.create(**asked)
    assert whole.choices[0].text != whole.choices[1].text
    parts = {0: '', 1: ''}
    stream = text.client.completions.create(
        **asked, stream=True, stream_options={'include_usage': True}
    )
    for chunk in stream:
        for choice in chunk.choices:
            if choice.text:
                assert choice.logprobs.text_offset == [len(parts[choice.index])]
            parts[choice.index] += choice.text
    assert [parts[0], parts[1]] == [choice.text for choice in whole.choices]
    assert chunk.usage == whole.usage
    stop = whole.choices[0].text[5:7]
    short = text.client.completions.create(**asked, stop=stop)
    assert short.choices[0].text == whole.choices[0].text.split(stop)[0]
    assert short.choices[0].finish_reason == 'stop'
    assert short.usage.completion_tokens < whole.usage.completion_tokens


def test_the_client_gets_alternatives_and_its_prompt_back(text):
    """By the model again, as a client of evaluation asks: the whole text, and what was likely."""
    prompt, run = 'def f', text.run
    ask = functools.partial(text.client.completions.create, model='tiny', temperature=0)
    found = ask(prompt=[prompt, prompt * 2], max_tokens=2, logprobs=3, echo=True).choices
    for choice, given in zip(found, (prompt, prompt * 2), strict=True):
        assert choice.text.startswith(given)
        ids = run.task.vocabulary.encode(choice.text)
        padded = np.pad(ids, (0, 12 - len(ids)))[None]
        logits = forward(run.model)(run.params, padded)[0]
        log_probs = np.asarray(jax.nn.log_softmax(logits))[: len(ids) - 1]
        shown = choice.logprobs
        assert ''.join(shown.tokens) == choice.text
        assert shown.text_offset == [*range(len(ids))]
        assert shown.token_logprobs[0] is None is shown.top_logprobs[0]
        each = log_probs[np.arange(len(ids) - 1), ids[1:]]
        np.testing.assert_allclose(shown.token_logprobs[1:], each, atol=1e-4)
        for best, row in zip(shown.top_logprobs[1:], log_probs, strict=True):
            np.testing.assert_allclose(sorted(best.values()), np.sort(row)[-3:], atol=1e-4)
    plain = ask(prompt=prompt, max_tokens=2, echo=True)
    assert plain.choices[0].text == found[0].text
    assert plain.usage.completion_tokens == 2
    messages = [{'role': 'user', 'content': 'Hello'}]
    chat = text.client.chat.completions.create(
        model='tiny', messages=messages, max_tokens=2, logprobs=True, top_logprobs=2, temperature=0
    )
    for token in chat.choices[0].logprobs.content:
        first, second = token.top_logprobs
        assert (first.token, first.bytes, first.logprob) == (
            token.token, token.bytes, pytest.approx(token.logprob)
        )  # fmt: skip
        assert second.logprob <= first.logprob


SCHEMA = {'type': 'object', 'properties': {'a': {'enum': [1, 23]}}, 'required': ['a'],
          'additionalProperties': False, 'x-guidance': {'whitespace_flexible': False}}  # fmt: skip


def test_the_client_gets_the_format_that_it_asks_for(text):
    """Of a model that has learnt nothing of it."""
    ask = functools.partial(
        text.client.chat.completions.create, model='tiny', temperature=2, max_tokens=100,
        messages=[{'role': 'user', 'content': 'Hello'}],
    )  # fmt: skip
    schema = {'type': 'json_schema', 'json_schema': {'name': 'a', 'strict': True, 'schema': SCHEMA}}
    for seed in range(3):
        [choice] = ask(response_format=schema, seed=seed).choices
        assert json.loads(choice.message.content) in ({'a': 1}, {'a': 23})
        assert choice.finish_reason == 'stop'
    [choice] = ask(response_format={'type': 'json_object'}, max_tokens=5).choices
    assert choice.message.content.startswith('{')
    with ask(response_format=schema, stream=True) as stream:
        parts = [chunk.choices[0].delta.content for chunk in stream]
    assert json.loads(''.join(parts)) in ({'a': 1}, {'a': 23})
    matched = text.client.completions.create(
        model='tiny', prompt='a', max_tokens=9,
        extra_body={'response_format': {'type': 'regex', 'pattern': '(cat|dog)[0-9]'}},
    )  # fmt: skip
    assert re.fullmatch('(cat|dog)[0-9]', matched.choices[0].text)


def test_the_client_chats_by_plain_role_markers(text):
    messages = [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hello'}]
    asked = dict(model='tiny', messages=messages, max_completion_tokens=16, temperature=0)
    whole = text.client.chat.completions.create(**asked, logprobs=True)
    prompt = 'system: Be brief.\n\nuser: Hello\n\nassistant:'
    answer = text.client.completions.create(
        model='tiny', prompt=prompt, max_tokens=16, temperature=0, stop=['\nuser:', '\nassistant:']
    )
    assert whole.choices[0].message.content == answer.choices[0].text
    assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
    with text.client.chat.completions.create(**asked, stream=True) as stream:
        deltas = [chunk.choices[0].delta for chunk in stream]
    assert deltas[0].role == 'assistant'
    assert ''.join(delta.content for delta in deltas) == whole.choices[0].message.content
    again = [*messages, whole.choices[0].message, messages[1]]  # as clients send it back
    found = text.client.chat.completions.create(**asked | {'messages': again})
    assert found.usage.prompt_tokens > whole.usage.prompt_tokens


def test_what_is_null_is_not_given(text):
    headers = {'Authorization': f'Bearer {KEY}'}
    asked = {'model': 'tiny', 'prompt': 'a', 'seed': 1}
    names = ('temperature', 'top_p', 'n', 'stream', 'max_tokens', 'presence_penalty', 'echo')
    found = [text.post('/v1/completions', asked | given, headers)
             for given in ({}, dict.fromkeys(names))]  # fmt: skip
    assert found[0][0] == found[1][0] == 200
    assert found[0][1]['choices'] == found[1][1]['choices']
    status, answer = text.post('/v1/completions', asked | {'max_token': None}, headers)
    assert (status, answer['error']['param']) == (400, 'max_token')


CHAT = {'messages': [{'role': 'user', 'content': 'a'}]}


def schema(given):
    """The format of a chat that a schema asks for."""
    asked = {'type': 'json_schema', 'json_schema': {'name': 'a', 'schema': given}}
    return {'response_format': asked}


@pytest.mark.parametrize(
    ('path', 'body', 'message'),
    [
        ('completions', {'prompt': 'a', 'max_tokens': 1000}, 'exceed the context of 128'),
        ('completions', {'prompt': 'a', 'max_tokens': 10**30}, 'max_tokens'),
        ('completions', {'prompt': 'a', 'temperature': -1}, 'temperature'),
        ('completions', {'prompt': 'a', 'temperature': '1'}, 'temperature'),
        ('completions', {'prompt': [99999]}, 'the token 99999'),
        ('completions', {'prompt': [['a']]}, 'prompt'),
        ('completions', {'prompt': 'a', 'stop': ''}, 'stop string is empty'),
        ('completions', {'prompt': 'a', 'echo': True, 'stream': True}, 'a stream has no echo'),
        ('completions', {'prompt': 'a', 'echo': True, 'max_tokens': 128}, 'exceed the context'),
        ('completions', {'prompt': 'a', 'logprobs': 21}, 'logprobs'),
        ('chat/completions', CHAT | {'top_logprobs': 2}, 'needs logprobs'),
        ('chat/completions', CHAT | {'response_format': {'type': 'xml'}}, 'response_format'),
        ('chat/completions', CHAT | {'response_format': {'type': 'regex', 'pattern': '('}},
         'expression cannot be matched'),
        ('chat/completions', CHAT | {'response_format': {'type': 'regex', 'pattern': '\0'}},
         'cannot be'),
        ('chat/completions', CHAT | schema({'type': 'nothing'}), 'JSON schema cannot be matched'),
        ('chat/completions', CHAT | schema({'not': {'const': 3}}), 'JSON schema cannot be matched'),
        ('chat/completions', CHAT | schema([]), r'json_schema\.schema'),
        ('chat/completions', CHAT | schema({'$ref': 'http://a/b'}), 'JSON schema cannot be'),
        ('completions', {'prompt': 'a', 'max_token': 5}, "Unknown field 'max_token'"),
        ('completions', {'prompt': 'a', 'stream': True, 'n': 17}, 'n: '),
        ('chat/completions', {'messages': []}, 'messages'),
        ('chat/completions', {'messages': [{'role': 'tool', 'content': ''}]}, r'messages\.0\.role'),
        ('chat/completions', {'messages': [{'role': 'user', 'content': 'a' * 200}]}, 'exceed'),
    ],
)  # fmt: skip
def test_texts_that_cannot_go_on_are_refused_by_name(text, path, body, message):
    headers = {'Authorization': f'Bearer {KEY}'}
    status, answer = text.post(f'/v1/{path}', {'model': 'tiny', **body}, headers)
    assert status == 400, answer
    assert re.search(message, answer['error']['message'], re.IGNORECASE)


def test_what_nobody_waits_for_is_not_generated(text):
    with text.client.completions.create(
        model='tiny', prompt='a', max_tokens=120, stream=True, n=16, temperature=2
    ) as stream:
        next(iter(stream))
    deadline = time.monotonic() + 10
    headers = {'Authorization': f'Bearer {KEY}'}
    while b'bigmodels_requests_in_flight 1.0' not in text.ask('GET', '/metrics', None, headers)[2]:
        assert time.monotonic() < deadline
    assert any(line.get('status') == 499 for line in text.logged())


def test_the_page_streams_stops_and_tells_what_is_wrong(text, tmp_path):
    with serving.browsed(text) as page:
        page.get_by_label('API key').fill('another')
        page.keyboard.press('Enter')
        page.get_by_role('alert').get_by_text('the API key of this server').wait_for()
        page.get_by_label('API key').fill(KEY)
        page.keyboard.press('Enter')
        page.get_by_text('language modeling, step 20').wait_for()
        prompt = page.get_by_label('Text to go on with')
        prompt.fill('def ')
        page.keyboard.press('Control+Enter')
        page.get_by_text('done in').wait_for()
        said = page.locator('#result output').text_content()
        assert said.startswith('def ')
        assert len(said) > len('def ')
        page.screenshot(path=tmp_path / 'page.png', full_page=True)
        page.get_by_label('Most tokens').fill('1000')
        page.get_by_role('button', name='Run').click()
        page.get_by_role('alert').get_by_text('exceed the context of 128').wait_for()
        page.route('**/v1/completions', lambda route: None)  # an answer that does not come
        page.get_by_role('button', name='Run').click()
        page.get_by_role('button', name='Stop').click()
        page.get_by_text('stopped').wait_for()
        page.get_by_role('tab', name='Chat').click()
        page.get_by_label('Message').fill('Hello')
        page.get_by_role('button', name='Run').click()
        page.get_by_text('done in').wait_for()
        assert page.locator('.turn').count() == 2


def test_a_server_that_is_asked_to_end_ends_its_streams(text, tmp_path):
    with serving.served(text.run.workdir, tmp_path / 'log', '--name=tiny') as server:
        client = openai.OpenAI(base_url=f'{server.url}/v1', api_key='any', max_retries=0)
        chunks = client.completions.create(
            model='tiny', prompt='a', max_tokens=100, stream=True, temperature=2, seed=1
        )
        first = next(chunks)
        began = time.monotonic()
        server.process.terminate()
        reasons = [first.choices[0].finish_reason, *(c.choices[0].finish_reason for c in chunks)]
        assert reasons[-1] in ('stop', 'length')
        assert server.process.wait(10) == 0
        assert time.monotonic() - began < 10
