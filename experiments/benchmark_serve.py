"""A server under sustained load: errors, latencies, and how its memory grows.

    python experiments/benchmark_serve.py --workdir=runs/transformer [--seconds=600] [--clients=48]

Serves the run in a process of its own and asks it from this one, each client at once again when it
is answered, so that the server is never idle. What is asked is by what the run offers: completions
of 32 tokens, or predictions of an image, a text or a row of zeros; --path and --body, a JSON file,
ask anything else. The first tenth of the time warms up and is left out. Memory is resident; what it
grows by is told between the first and the last fifth of what is left. Keeps the result of each run
and path in results/serve.json and the table results/serve.md; --note says what else went on.
"""

import argparse
import asyncio
import base64
import collections
import dataclasses
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import measure
import numpy as np
from PIL import Image


@dataclasses.dataclass
class Load:
    """What is asked, and what came of it: (second, status, latency in s), (second, bytes)."""

    path: str
    body: bytes
    answers: list[tuple[float, int, float]] = dataclasses.field(default_factory=list)
    memory: list[tuple[float, int]] = dataclasses.field(default_factory=list)


def started(workdir: pathlib.Path, log: Any = subprocess.DEVNULL) -> tuple[subprocess.Popen, str]:
    """A server of a run, when it is ready, and its URL."""
    process = subprocess.Popen(
        [sys.executable, '-m', 'bigmodels.deploy.serve', f'--workdir={workdir}', '--port=0'],
        cwd=measure.ROOT, stdout=subprocess.PIPE, stderr=log, text=True,
    )  # fmt: skip
    url = process.stdout.readline().split()[-1]
    while True:
        try:
            urllib.request.urlopen(f'{url}/readyz').close()
            return process, url
        except urllib.error.HTTPError:  # 503: it compiles
            time.sleep(0.2)


def asked(model: dict) -> tuple[str, dict]:
    """A path that a model answers, and what it may be asked there."""
    if '/v1/completions' in model['endpoints']:
        body = {'model': model['id'], 'prompt': 'def ', 'max_tokens': 32, 'temperature': 0.8}
        return '/v1/completions', body
    if '/v1/predict' not in model['endpoints']:
        return '/v1/embeddings', {'model': model['id'], 'input': 'def main():'}
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(file, 'PNG')
    values = {
        'image': base64.b64encode(file.getvalue()).decode(),
        'text': 'a',
        'value': 0,
        'ids': [],
    }
    for name, kind in model['fields'].items():
        if kind not in values:
            raise SystemExit(f'the field {name} is of the kind {kind}: say --path and --body')
    return '/v1/predict', {'inputs': [{n: values[kind] for n, kind in model['fields'].items()}]}


async def client(load: Load, address: tuple[str, int], began: float, seconds: float) -> None:
    """Asks again and again over one connection."""
    reader, writer = await asyncio.open_connection(*address)
    head = f'POST {load.path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n'
    request = f'{head}Content-Length: {len(load.body)}\r\n\r\n'.encode() + load.body
    while (now := time.perf_counter() - began) < seconds:
        writer.write(request)
        answered = (await reader.readuntil(b'\r\n\r\n')).decode().lower()
        length = int(answered.split('content-length: ')[1].split('\r\n')[0])
        await reader.readexactly(length)
        latency = time.perf_counter() - began - now
        load.answers.append((now, int(answered.split()[1]), latency))
    writer.close()


async def watch(load: Load, pid: int, began: float, seconds: float) -> None:
    """The server's memory, twice a second."""
    while (now := time.perf_counter() - began) < seconds:
        lines = pathlib.Path('/proc', str(pid), 'status').read_text().splitlines()
        kilobytes = next(int(line.split()[1]) for line in lines if line.startswith('VmRSS'))
        load.memory.append((now, kilobytes * 1024))
        await asyncio.sleep(0.5)


async def ask(load: Load, pid: int, url: str, clients: int, seconds: float) -> None:
    """All clients at once."""
    place = urllib.parse.urlsplit(url)
    began = time.perf_counter()
    asking = [client(load, (place.hostname, place.port), began, seconds) for _ in range(clients)]
    await asyncio.gather(watch(load, pid, began, seconds), *asking)


def summary(load: Load, seconds: float) -> dict:
    """What is left when the server has warmed up."""
    start = seconds / 10
    answers = [answer for answer in load.answers if answer[0] >= start]
    statuses = collections.Counter(status for _, status, _ in answers)
    latencies = np.array([latency for _, _, latency in answers])
    fifth = (seconds - start) / 5
    first = statistics.mean(n for at, n in load.memory if start <= at < start + fifth)
    last = statistics.mean(n for at, n in load.memory if at >= seconds - fifth)
    shown = np.percentile(latencies * 1e3, (50, 90, 99, 100)).round(1).tolist()
    return {
        'requests': len(answers),
        'requests_per_second': round(len(answers) / (seconds - start), 1),
        'errors': {status: count for status, count in sorted(statuses.items()) if status != 200},
        'latency_ms': dict(zip(('p50', 'p90', 'p99', 'max'), shown, strict=True)),
        'memory_mb': {'first_fifth': round(first / 1e6, 1), 'last_fifth': round(last / 1e6, 1)},
        'memory_growth_bytes_per_request': round((last - first) / max(len(answers) * 0.8, 1), 1),
    }


def table(results: Sequence[Mapping]) -> str:
    """One row a run, path and number of clients."""
    head = ['run', 'asked', 'clients', 's', 'answers', 'answers/s', 'p50 ms', 'p90', 'p99', 'most']
    rows = [[*head, 'other than 200', 'memory MB, first and last fifth', 'note']]
    for r in results:
        errors = ', '.join(f'{count} x {status}' for status, count in r['errors'].items())
        memory = r['memory_mb']
        rows.append([
            f'{r["run"]}, {r["task"]}, {r["parameters"]:,}', r['path'], str(r['clients']),
            f'{r["seconds"]:g}', f'{r["requests"]:,}', str(r['requests_per_second']),
            *(f'{ms:,}' for ms in r['latency_ms'].values()), errors or 'none',
            f'{memory["first_fifth"]}, {memory["last_fifth"]}', r['note'] or '-',
        ])  # fmt: skip
    return measure.markdown(rows)


def main() -> None:
    """Measures, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--workdir', type=pathlib.Path, required=True)
    parser.add_argument('--seconds', type=float, default=60.0)
    parser.add_argument('--clients', type=int, default=48)
    parser.add_argument('--note', default='', help='for the table, such as: beside other work')
    parser.add_argument('--path', help='for example /v1/embeddings')
    parser.add_argument('--body', type=pathlib.Path, help='a file with the JSON that is asked')
    a = parser.parse_args()
    os.environ.pop('BIGMODELS_API_KEY', None)
    process, url = started(a.workdir.resolve())
    try:
        with urllib.request.urlopen(f'{url}/v1/models') as answer:
            [model] = json.load(answer)['data']
        if a.path:
            load = Load(a.path, a.body.read_bytes())
        else:
            path, body = asked(model)
            load = Load(path, json.dumps(body).encode())
        asyncio.run(ask(load, process.pid, url, a.clients, a.seconds))
    finally:
        process.terminate()
        status = process.wait(15)
    result = {
        'run': a.workdir.resolve().name,
        'task': model['task'],
        'parameters': model['parameters'],
        'path': load.path,
        'clients': a.clients,
        'seconds': a.seconds,
        **summary(load, a.seconds),
        'exit_status': status,
        'note': a.note,
    }
    print(json.dumps(result, indent=1))
    measure.keep('serve', result, lambda r: (r['run'], r['path'], r['clients']), table)


if __name__ == '__main__':
    main()
