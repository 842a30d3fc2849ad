"""The rooms of a server by themselves: limits, batches, texts of tokens, records."""

import asyncio
import io
import json
import threading
import types

import numpy as np
import pydantic
import pytest
import soundfile
from starlette.requests import Request

from bigmodels import errors
from bigmodels.deploy.server import answering, failures, forms, records
from bigmodels.deploy.server.app import Server
from bigmodels.deploy.server.batching import Batcher
from bigmodels.deploy.server.completions import Completions
from bigmodels.deploy.server.limits import Admission, Limits
from bigmodels.deploy.server.telemetry import Metrics, Observed
from bigmodels.deploy.server.texts import Assembler
from tests import sound_files
from tests.data import image_files


def asked(app, limits, *messages, key=None, headers=()):
    """What a request gets whose body comes in `messages`: (status, body); 0 for nothing."""

    async def ask():
        coming = asyncio.Queue()
        for message in messages:
            coming.put_nowait(message)
        sent = []

        async def send(message):
            sent.append(message)

        scope = {'type': 'http', 'method': 'POST', 'path': '/v1/predict', 'headers': [*headers]}
        observed = Observed(Admission(app, limits, key), Metrics(), frozenset())
        await asyncio.wait_for(observed(scope, coming.get, send), 10)
        return sent

    sent = asyncio.run(ask())
    status = sent[0]['status'] if sent else 0
    return status, b''.join(message.get('body', b'') for message in sent)


def part(body, more_body=False):
    return {'type': 'http.request', 'body': body, 'more_body': more_body}


async def echo(scope, receive, send):
    body = (await receive())['body']
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': body})


def test_a_body_has_a_size_and_a_time():
    parts = [part(b'ab', True), part(b'cd')]
    assert asked(echo, Limits(body=4), *parts) == (200, b'abcd')
    assert asked(echo, Limits(body=3), *parts)[0] == 413
    status, body = asked(echo, Limits(sending=0.05), part(b'ab', True))
    assert (status, b'has not come within' in body) == (408, True)
    assert asked(echo, Limits(), part(b'ab', True), {'type': 'http.disconnect'})[0] == 0


def test_limits_are_numbers_that_can_be():
    for name in ('body', 'concurrent', 'queued', 'timeout'):
        with pytest.raises(errors.UserError, match=f'limit {name} = -1 must be at least'):
            Limits(**{name: -1})


def test_an_answer_has_a_time_and_ends_with_its_client():
    ended = []

    async def slow(scope, receive, send):
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    assert asked(slow, Limits(timeout=0.05), part(b''))[0] == 504
    assert asked(slow, Limits(), part(b''), {'type': 'http.disconnect'})[0] == 0
    assert len(ended) == 2


def test_a_stream_that_takes_too_long_says_so_in_its_last_event():
    async def stream(scope, receive, send):
        headers = [(b'content-type', b'text/event-stream')]
        await send({'type': 'http.response.start', 'status': 200, 'headers': headers})
        await send({'type': 'http.response.body', 'body': b'data: 1\n\n', 'more_body': True})
        await asyncio.sleep(60)

    status, body = asked(stream, Limits(timeout=0.05), part(b''))
    assert status == 200
    assert body.startswith(b'data: 1\n\ndata: {"error": {"message": "The answer took over')


def test_an_unforeseen_fault_tells_nothing_of_itself():
    async def broken(scope, receive, send):
        raise ValueError('a secret')

    status, body = asked(broken, Limits(), part(b''))
    assert (status, b'secret' in body) == (500, False)


def test_a_server_whose_engine_failed_is_neither_ready_nor_alive():
    server = object.__new__(Server)
    server.is_ready = True
    for failed, status in ((False, 200), (True, 503)):
        server._generation = types.SimpleNamespace(has_failed=failed)
        for answer in (server._readiness, server._health):
            assert asyncio.run(answer(None)).status_code == status


@pytest.mark.parametrize('given', [b'', b'key', b'Basic key', b'Bearer', b'Bearer other', b'\xff'])
def test_only_the_key_opens(given):
    headers = [(b'authorization', given)]
    assert asked(echo, Limits(), part(b''), key='key', headers=headers)[0] == 401
    right = [(b'authorization', b'bearer key')]
    assert asked(echo, Limits(), part(b''), key='key', headers=right)[0] == 200


def test_examples_of_equal_shapes_are_computed_together():
    sizes, may_go, begun = [], threading.Event(), threading.Event()

    def double(examples, size):
        begun.set()
        assert may_go.wait(10)
        if any(example['x'].sum() < 0 for example in examples):
            raise errors.UserError('negative')
        return [2 * example['x'] for example in examples]

    batcher = Batcher(4, 0.001, sizes.append)

    async def ask(*values):
        return await batcher.answers(double, [{'x': np.array(value)} for value in values])

    async def all_of_them():
        first = asyncio.ensure_future(ask([1]))
        await asyncio.to_thread(begun.wait)  # the device is busy; what follows waits
        others = [asyncio.ensure_future(ask(*v)) for v in ([[2], [3]], [[4, 5]], [[6]], [[-7, 0]])]
        left = asyncio.ensure_future(ask([8]))
        await asyncio.sleep(0.05)
        left.cancel()
        await asyncio.sleep(0.05)
        may_go.set()
        return await asyncio.gather(first, *others, left, return_exceptions=True)

    one, pair, wide, single, bad, left = asyncio.run(all_of_them())
    assert [x.tolist() for x in (*one, *pair, *single)] == [[2], [4], [6], [12]]
    assert isinstance(left, asyncio.CancelledError)
    assert sizes == [1, 3, 2]  # two wide ones share a batch, and its fault
    assert all(isinstance(answer, errors.UserError) for answer in (wide, bad))
    batcher.close(10)


@pytest.mark.parametrize(
    ('parts', 'stops', 'wanted'),
    [
        ([b'ab', b'c'], (), ['ab', 'c', '']),
        ([b'\xc3', b'\xa4b'], (), ['', 'äb', '']),
        ([b'a\xc3'], (), ['a', '\ufffd']),
        ([b'a<', b'b<e', b'nd>c'], ('<end>',), ['a', '<b', '', '']),
        ([b'a<e', b'f'], ('<end>',), ['a', '<ef', '']),
        ([b'a<e'], ('<end>',), ['a', '<e']),
        ([b'abc', b'd'], ('c', 'bc'), ['a', '', '']),
    ],
)
def test_text_is_told_when_it_is_certain(parts, stops, wanted):
    assembler = Assembler(parts, stops)
    assert [*map(assembler.add, range(len(parts))), assembler.end()] == wanted


def test_the_pixels_of_a_request_are_limited_together():
    files, image = records.Files(100, None), image_files.encoded(np.zeros((7, 8, 3), np.uint8))
    assert files.decode(image, 'image', 'a').shape == (7, 8, 3)
    with pytest.raises(errors.UserError, match='b has 7 x 8 pixels: 44 at most'):
        files.decode(image, 'image', 'b')


def test_a_recording_is_not_made_long_by_what_it_claims():
    samples = np.ones(4000, np.int16)
    assert len(records.recording(sound_files.wav(samples), 'file', 16_000)) == 8000
    for rate in (1, 44_101, 2**31 - 1):
        with pytest.raises(errors.UserError, match='Hz are taken|samples a second'):
            records.recording(sound_files.wav(samples, rate=rate), 'file', 16_000)
    with pytest.raises(errors.UserError, match='file has 601 s: 600 s at most are taken'):
        records.recording(sound_files.wav(np.zeros(601 * 8000, np.int16), 1), 'file', 16_000)
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros((7_500_000, 8), np.int16), 48_000, format='FLAC')
    with pytest.raises(errors.UserError, match='file is too long'):
        records.recording(silence.getvalue(), 'file', 16_000)


def request(kind, body):
    """One with a body of a type of content."""

    async def receive():
        return part(body)

    headers = [(b'content-type', kind)]
    return Request({'type': 'http', 'method': 'POST', 'path': '/', 'headers': headers}, receive)


def test_a_prompt_that_is_too_long_does_not_come_to_the_engine():
    vocabulary = types.SimpleNamespace(vocab_size=9, end_of_text=0)
    task = types.SimpleNamespace(vocabulary=vocabulary)
    generation = types.SimpleNamespace(tasks={'a': task}, length=8, spelling=[])  # cannot submit
    body = json.dumps({'model': 'a', 'prompt': [1] * 5, 'max_tokens': 4}).encode()
    asked = Completions(generation, None, None).complete(request(b'application/json', body))
    with pytest.raises(failures.Failure, match='5 tokens and 4 new ones exceed') as caught:
        asyncio.run(asked)
    assert caught.value.param == 'prompt'


FORM = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\\ud800\r\n--x--\r\n'


@pytest.mark.parametrize('charset', ['unicode_escape', 'utf-16', 'none', 'a\0b', '', 'x' * 999])
def test_a_form_is_in_utf8(charset):
    kind = b'multipart/form-data; boundary=x'
    for said in (b'', b'; charset=UTF-8', b'; charset="utf8"'):
        form, _ = asyncio.run(answering.uploaded(request(kind + said, FORM)))
        assert dict(form) == {'a': r'\ud800'}
    said = f'; charset="{charset}"'.encode()
    with pytest.raises(failures.Failure, match='charset .* wanted utf-8') as caught:
        asyncio.run(answering.uploaded(request(kind + said, FORM)))
    assert caught.value.status == 415


FIELDS = {
    'capital-gain': 'value', 'copy': 'text', 'items': 'ids', 'x': 'series', 'edges': 'array',
}  # fmt: skip


def test_a_record_is_read_by_its_fields():
    reader = records.Reader(types.SimpleNamespace(record_fields=FIELDS), max_pixels=100)
    good = {
        'capital-gain': True, 'copy': 'ä', 'items': ['a', 3], 'x': [1, 2.5, None],
        'edges': [[0, 1]],
    }  # fmt: skip
    read = reader.of_json(
        reader.form.model_validate_json(json.dumps(good)), 'inputs.0', reader.files()
    )
    edges = read.pop('edges')
    assert (edges.dtype, edges.tolist()) == (np.int64, [[0, 1]])
    assert read == {name: value for name, value in good.items() if name != 'edges'}
    for name, bad in [
        ('capital-gain', [1]), ('capital-gain', 10**400), ('copy', 5), ('items', {'a': 1}),
        ('items', [1.5]), ('x', 1), ('x', [[1]]), ('edges', [1]), ('edges', [['a']]),
    ]:  # fmt: skip
        with pytest.raises(pydantic.ValidationError) as caught:
            reader.form.model_validate_json(json.dumps(good | {name: bad}))
        assert failures.of_validation(caught.value).param.split('.')[0] == name
    uneven = reader.form.model_validate_json(json.dumps(good | {'edges': [[0], [1, 2]]}))
    with pytest.raises(errors.UserError, match='rows of different lengths'):
        reader.of_json(uneven, 'inputs.0', reader.files())
    nan = json.dumps(good | {'x': [float('nan')]})
    with pytest.raises(pydantic.ValidationError):
        reader.form.model_validate_json(nan)


MANY = 10_000


@pytest.mark.parametrize(
    ('form', 'body'),
    [
        (forms.Embeddings, {'input': [1.5] * MANY}),
        (forms.Embeddings, {'input': [[1.5] * MANY] * 9}),
        (forms.Completion, {'prompt': [[]] * MANY}),
        (forms.Completion, {str(i): 0 for i in range(MANY)}),
        (forms.Completion, {'logit_bias': {str(i): 1 for i in range(MANY)}}),
        (forms.Completion, {'logit_bias': {str(i): False for i in range(MANY)}}),
        (forms.Completion, {'response_format': {'type': 'x' * MANY}}),
        (forms.Completion, {'x' * MANY: 1}),
        (forms.Chat, {'messages': [{'role': 'user', 'content': [1] * MANY}] * 9}),
        (forms.Chat, {'messages': [{'role': 'user', 'content': 'a', 'b': 'c'}] * 999}),
        ({'x': 'series'}, {'inputs': [{'x': [[]] * MANY}] * 9}),
        ({'x': 'ids'}, {'inputs': [{'x': [1.5] * MANY}] * 9}),
        ({'x': 'array'}, {'inputs': [{'x': [['a'] * MANY] * 9}]}),
        ({'x': 'text'}, {'inputs': [{'y': 1}] * 256}),
        ({'x': 'text'}, {'inputs': [{str(i): 0 for i in range(MANY)}]}),
    ],
)
def test_a_body_of_countless_faults_is_told_of_a_few(form, body):
    if isinstance(form, dict):
        form = forms.prediction_form(forms.record_form(form))
    with pytest.raises(pydantic.ValidationError) as caught:
        form.model_validate_json(json.dumps(body))
    assert caught.value.error_count() <= 20
    failure = failures.of_validation(caught.value)
    assert len(failure.message) < 3000
    assert len(failure.param) <= failures.LONGEST


def test_what_is_no_number_in_json_is_null():
    answer = {'a': [float('nan'), {'b': float('inf')}], 1: 'x'}
    assert records.plain(answer) == {'a': [None, {'b': None}], '1': 'x'}


def test_a_failure_names_its_faults():
    failure = failures.of(errors.UserError('what came'))
    assert failure.body()['error'] == {
        'message': 'what came', 'type': 'invalid_request_error', 'param': None, 'code': None,
    }  # fmt: skip
