"""Servers of images and sounds, as processes, asked by the official client and by worse ones."""

import base64
import contextlib
import gzip
import io
import json
import re
import socket
import struct
import time
import zlib

import numpy as np
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from bigmodels import config, predict, runs, train
from bigmodels.data import images
from bigmodels.deploy.server import page
from tests import commands, serving, sound_files
from tests.data import image_files


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """A classifier of images, whose server lets few requests in at a time."""
    folder = tmp_path_factory.mktemp('digits')
    train.train(config.load(str(commands.ROOT / 'configs/digits_mlp.py:tiny'), []), folder / 'run')
    limits = '--max_body=300000', '--concurrent=2', '--queued=2', '--max_pixels=1000000'
    with serving.served(folder / 'run', folder / 'log', *limits) as server:
        server.run = runs.open_run(folder / 'run')
        yield server


def png(seed=0, size=(8, 8)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    return image_files.encoded(pixels)


def encoded(data):
    return base64.b64encode(data).decode()


def upload(*parts):
    """A form of (name, file name or None, content): its headers and body."""
    lines = []
    for name, file, content in parts:
        given = f'; filename="{file}"' if file else ''
        head = f'--edge\r\nContent-Disposition: form-data; name="{name}"{given}\r\n\r\n'
        lines += [head.encode(), content, b'\r\n']
    body = b''.join([*lines, b'--edge--\r\n'])
    return {'Content-Type': 'multipart/form-data; boundary=edge'}, body


def test_images_are_answered_as_by_the_command_however_they_come(digits):
    files = [png(seed) for seed in range(3)] + [png(3, (30, 20))]
    records = [(str(i), {'image': images.decode(file, '')}) for i, file in enumerate(files)]
    wanted = [answer for _, answer in predict.predict(digits.run, records)]
    together = {'inputs': [{'image': encoded(file)} for file in files]}
    url = {'inputs': [{'image': f'data:image/png;base64,{encoded(files[0])}'}]}
    headers, form = upload(*(('file', f'{i}.png', file) for i, file in enumerate(files)))
    for asked, options, expected in [
        (together, {}, wanted), (url, {}, wanted[:1]), (form, headers, wanted),
        (upload(('image', 'a.png', files[1]))[1], headers, wanted[1:2]),
    ]:  # fmt: skip
        status, answer = digits.post('/v1/predict', asked, options)
        assert status == 200, answer
        for found, one in zip(answer['answers'], expected, strict=True):
            assert found['label'] == one['label']
            assert found['probability'] == pytest.approx(one['probability'], abs=1e-5)


def bomb(width, height):
    """A PNG file that says how large it is, and holds nothing."""

    def chunk(kind, data):
        return (
            struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        )

    head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', b'') + chunk(b'IEND', b'')


@pytest.mark.parametrize(
    ('body', 'message'),
    [
        (b'{"inputs": [', 'Invalid JSON'),
        (b'\xff\xfe{"inputs": []}', 'Invalid JSON'),
        (b'{"inputs": [{"image": "\xff"}]}', 'Invalid JSON|unicode'),
        (b'[' * 100_000, 'Invalid JSON'),
        (b'{}', "'inputs' is missing"),
        (b'[]', 'object'),
        (b'{"inputs": [], "prompt": 1}', "inputs: .*; Unknown field 'prompt'"),
        (b'{"inputs": [{"image": 1e999}]}', r'inputs\.0\.image'),
        (b'{"inputs": [{"image": ' + b'9' * 5000 + b'}]}', r'inputs\.0\.image|Invalid JSON'),
        (b'{"inputs": [{"image": "a", "path": "b"}]}', r"Unknown field 'inputs\.0\.path'"),
        (b'{"inputs": [{"image": "/etc/passwd"}]}', 'Paths and links are not read'),
        (b'{"inputs": [{"image": "http://localhost/a.png"}]}', 'Paths and links are not read'),
        (b'{"inputs": [{"image": "data:text/plain,a"}]}', 'a data URL without base64'),
        (b'{"inputs": [{"image": ""}]}', 'no JPEG or PNG image'),
        ({'inputs': [{'image': encoded(b'GIF89a')}]}, 'no JPEG or PNG image'),
        ({'inputs': [{'image': encoded(png(0, (64, 64))[:-400])}]}, 'not a whole JPEG or PNG'),
        ({'inputs': [{'image': encoded(bomb(60_000, 60_000))}]}, '60,000 x 60,000 pixels|whole'),
        ({'inputs': [{'image': encoded(bomb(2000, 1000))}]}, '1,000 x 2,000 pixels'),
        ({'inputs': [{'image': encoded(bomb(1, 900))}]}, 'a long side of at most'),
        ({'inputs': [{'image': encoded(png())}] * 257}, 'at most 256'),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_by_name(digits, body, message):
    headers = {'Content-Type': 'application/json'}
    status, answer = digits.post('/v1/predict', body, headers)
    assert status == 400, answer
    assert re.search(message, answer['error']['message'], re.IGNORECASE)
    assert sorted(answer['error']) == ['code', 'message', 'param', 'type']
    assert 'Traceback' not in answer['error']['message']


@pytest.mark.parametrize(
    ('method', 'path', 'headers', 'body', 'status'),
    [
        ('POST', '/v1/predict', {'Content-Type': 'text/plain'}, b'{}', 415),
        ('GET', '/v1/predict', {}, None, 405),
        ('POST', '/v1/embeddings', {}, b'', 404),
        ('GET', '/../../../etc/passwd', {}, None, 404),
        ('GET', '/v1/models/..%2f..%2f..%2fetc%2fpasswd', {}, None, 404),
        ('GET', '/page.html', {}, None, 404),
        ('POST', '/v1/predict', *upload(('nothing', 'a', b'')), 400),
        ('POST', '/v1/predict', *upload(('file', 'a', b'a'), ('path', None, b'/etc')), 400),
        ('POST', '/v1/predict', upload()[0], b'--edge\r\nno form', 400),
        ('POST', '/v1/predict', {'Content-Type': 'multipart/form-data'}, b'a', 400),
        ('POST', '/v1/predict', *upload(*[('file', 'a', png())] * 70), 400),
    ],
)  # fmt: skip
def test_other_requests_fail_in_the_same_shape(digits, method, path, headers, body, status):
    found, answered, answer = digits.ask(method, path, body, headers)
    assert found == status, answer
    assert set(json.loads(answer)['error']) == {'message', 'type', 'param', 'code'}
    assert answered['x-content-type-options'] == 'nosniff'


SHORT = st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | SHORT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SHORT, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(['inputs', 'image', 'user']), VALUES))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_json_makes_it_fail(digits, body):
    status, answer = digits.post('/v1/predict', body)
    assert status == 400
    assert answer['error']['message']


def test_a_large_body_is_refused_before_it_is_read(digits):
    head = b'POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n'
    with digits.connect() as told:
        told.sendall(head + b'Content-Length: 999999999999\r\n\r\n')
        assert told.recv(4096).startswith(b'HTTP/1.1 413')
    with digits.connect() as streamed:
        streamed.sendall(head + b'Transfer-Encoding: chunked\r\n\r\n')
        for _ in range(10):
            streamed.sendall(b'ffff\r\n' + b'[' * 0xFFFF + b'\r\n')
        assert streamed.recv(4096).startswith(b'HTTP/1.1 413')


def test_a_hundred_megabytes_are_refused_and_what_is_packed_is_not_unpacked(digits):
    headers = {'Content-Type': 'application/json'}
    status = 413  # or the connection is closed while the client sends
    with contextlib.suppress(ConnectionError):
        status = digits.ask('POST', '/v1/predict', b' ' * 100_000_000, headers)[0]
    assert status == 413
    packed = gzip.compress(b' ' * 1_000_000)
    headers['Content-Encoding'] = 'gzip'
    status, _, answer = digits.ask('POST', '/v1/predict', packed, headers)
    assert (status, b'Invalid JSON' in answer) == (400, True)


def test_a_thousand_connections_are_held_and_no_more_are_answered(digits):
    held = []
    try:
        for _ in range(990):
            held.append(digits.connect())
        assert digits.ask('GET', '/healthz')[0] == 200
        while len(held) < 1001:
            held.append(digits.connect())
        assert digits.ask('GET', '/healthz')[0] == 503
    finally:
        for connection in held:
            connection.close()
    deadline = time.monotonic() + 20
    while digits.ask('GET', '/healthz')[0] != 200:
        assert time.monotonic() < deadline


def test_half_a_connection_and_half_a_request_are_nothing(digits):
    body = json.dumps({'inputs': [{'image': encoded(png())}]}).encode()
    head = b'POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n'
    whole = head + b'Content-Length: %d\r\n\r\n' % len(body) + body
    for sent in (whole, whole[:-5], whole[:40], b'\xff\0\r\n\r\n'):
        with digits.connect() as half:
            half.sendall(sent)
            half.shutdown(socket.SHUT_WR)
            while half.recv(4096):  # an answer or none, and the end
                pass
    deadline = time.monotonic() + 10
    while in_flight(digits) > 1:
        assert time.monotonic() < deadline
    assert digits.post('/v1/predict', json.loads(body))[0] == 200


def test_too_many_at_once_are_told_to_come_again(digits):
    head = b'POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n'
    slow = [digits.connect() for _ in range(4)]  # two are answered and two may wait
    try:
        for connection in slow:
            connection.sendall(head + b'Content-Length: 100\r\n\r\n{"inputs')
        deadline = time.monotonic() + 10
        while in_flight(digits) < 5:
            assert time.monotonic() < deadline
        status, headers, answer = digits.ask('POST', '/v1/predict', {'inputs': []})
        assert (status, headers['retry-after']) == (429, '1')
        assert json.loads(answer)['error']['type'] == 'rate_limit_error'
        assert digits.ask('GET', '/healthz')[0] == 200
    finally:
        for connection in slow:  # two leave in the middle of their body
            connection.close()
    while in_flight(digits) > 1:
        assert time.monotonic() < deadline
    assert digits.post('/v1/predict', {'inputs': [{'image': encoded(png())}]})[0] == 200


def in_flight(server):
    """Requests at hand, that of the metrics included."""
    return metrics_of(server)['bigmodels_requests_in_flight']


def metrics_of(server):
    text = server.ask('GET', '/metrics')[2].decode()
    samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
    return {s.name: s.value for s in samples if not s.labels}


def test_a_request_is_logged_by_its_id_and_counted(digits):
    before = metrics_of(digits)['bigmodels_batch_examples_count']
    asked = {'inputs': [{'image': encoded(png())}]}
    status, headers, _ = digits.ask('POST', '/v1/predict', asked, {'X-Request-Id': 'mine-1'})
    assert (status, headers['x-request-id']) == (200, 'mine-1')
    deadline = time.monotonic() + 10
    while not (lines := [line for line in digits.logged() if line.get('id') == 'mine-1']):
        assert time.monotonic() < deadline  # the log follows the answer
    [line] = lines
    assert (line['path'], line['status']) == ('/v1/predict', 200)
    assert metrics_of(digits)['bigmodels_batch_examples_count'] == before + 1
    forged = digits.ask('GET', '/healthz', headers={'X-Request-Id': 'a b" c'})[1]
    assert re.fullmatch('[0-9a-f]{32}', forged['x-request-id'])


def test_the_page_runs_what_is_in_it_and_asks_nobody_else(digits):
    status, headers, body = digits.ask('GET', '/')
    assert (status, body) == (200, page.FILE.read_bytes())
    policy = headers['content-security-policy']
    assert "default-src 'none'" in policy
    assert policy.count("'sha256-") == 2
    assert 'unsafe' not in policy
    assert not re.search(rb'https?://|style="|onclick="', body)


def test_the_description_is_of_what_is_there(digits):
    serving.check_description(digits)


def test_the_page_answers_an_image(digits, tmp_path):
    with serving.browsed(digits) as browser_page:
        browser_page.get_by_text('classification, step').wait_for()
        file = browser_page.locator('#file')
        file.set_input_files({'name': 'a.png', 'mimeType': 'image/png', 'buffer': png()})
        browser_page.get_by_text('probability').wait_for()
        assert browser_page.locator('#preview img').is_visible()
        file.set_input_files({'name': 'a.png', 'mimeType': 'image/png', 'buffer': b'nothing'})
        browser_page.get_by_role('alert').get_by_text('no JPEG or PNG image').wait_for()
        browser_page.screenshot(path=tmp_path / 'page.png')


@pytest.fixture(scope='module')
def speech(tmp_path_factory):
    """Transcription of recordings, by a run that has learnt nothing."""
    folder = tmp_path_factory.mktemp('speech')
    texts = ['ab', 'ba', 'aab', 'b', 'a', 'abab', 'bb', 'ba']
    path = sound_files.transcribed(folder / 'data', texts)
    sources = [
        f'data.{split}.{key}={value}'
        for split in ('train', 'evals.test')
        for key, value in (('name', 'transcribed'), ('path', path), ('sample_rate', 8000))
    ]
    loaded = config.load(str(commands.ROOT / 'configs/speech_ctc.py:tiny'), [
        *sources, 'task.tokenizer.characters=', 'model.num_classes=4', 'model.subsampling=1',
        'task.sound.max_seconds=1.0', 'task.beams=1', 'total_steps=3', 'checkpoint.every=3',
    ])  # fmt: skip
    train.train(loaded, folder / 'run')
    with serving.served(folder / 'run', folder / 'log', '--name=ears') as server:
        server.run = runs.open_run(folder / 'run')
        server.client = openai.OpenAI(base_url=f'{server.url}/v1', api_key='any', max_retries=0)
        yield server


@pytest.mark.slow
def test_the_client_gets_transcriptions(speech):
    samples = (8000 * np.sin(np.arange(8000) ** 1.5 / 90)).astype(np.int16)
    file = io.BytesIO(sound_files.wav(samples))
    record = {'audio': (samples / 2**15).astype(np.float32), 'sample_rate': 8000}
    [(_, wanted)] = predict.predict(speech.run, [('', record)])
    create = speech.client.audio.transcriptions.create
    assert create(model='ears', file=('a.wav', file), language='en').text == wanted
    assert create(model='ears', file=('a.wav', file), response_format='text') == wanted + '\n'
    for data, message in [
        (sound_files.wav(samples)[:-100], 'cut short'), (b'RIFF', 'not a PCM WAV'), (b'', 'WAV'),
        (sound_files.wav(samples, rate=7777), '7,777 Hz'),
        (sound_files.wav(np.tile(samples, 6)), 'more than'),
    ]:  # fmt: skip
        with pytest.raises(openai.BadRequestError, match=message):
            create(model='ears', file=('a.wav', io.BytesIO(data)))
    with pytest.raises(openai.BadRequestError, match="Unknown field 'timestamp_granularities"):
        create(model='ears', file=('a.wav', file), timestamp_granularities=['word'])
    with pytest.raises(openai.BadRequestError, match='response_format'):
        create(model='ears', file=('a.wav', file), response_format='srt')
