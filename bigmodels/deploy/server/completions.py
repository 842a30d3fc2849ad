"""Texts that go on, and chats: whole, or as a stream of server-sent events."""

import asyncio
import contextlib
import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from bigmodels.deploy.sampling import Sampling
from bigmodels.deploy.server import chats, forms
from bigmodels.deploy.server.answering import as_token_ids, check_model, parsed
from bigmodels.deploy.server.generation import Generation, Piece, Stream
from bigmodels.deploy.server.telemetry import Metrics


class Completions:
    """The endpoints of a run that continues texts."""

    def __init__(self, generation: Generation, task: Any, name: str, metrics: Metrics):
        self._generation, self._task, self._name = generation, task, name
        self._metrics = metrics

    async def complete(self, request: Request) -> Response:
        """Continuations of prompts, `n` of each."""
        asked = await parsed(request, forms.Completion)
        check_model(asked.model, self._name)
        end = [self._task.vocabulary.end_of_text]  # before a document that an empty prompt begins
        prompts = await asyncio.to_thread(
            as_token_ids, asked.prompt, self._task.vocabulary, 'prompt', empty=end
        )
        streams = self._submit(asked, prompts, asked.max_tokens, _stops(asked))
        answer = _Answer('text_completion', 'cmpl', self._name, _text_choice(self._generation))
        return await self._respond(asked, answer, prompts, streams, asked.logprobs is not None)

    async def chat(self, request: Request) -> Response:
        """The message that follows those given, `n` times."""
        asked = await parsed(request, forms.Chat)
        check_model(asked.model, self._name)
        ids, stops = await asyncio.to_thread(chats.prompt, self._task, asked.messages)
        room = max(self._generation.length - len(ids), 1)
        most = asked.max_completion_tokens or asked.max_tokens or room
        prompts = [ids]
        streams = self._submit(asked, prompts, most, [*_stops(asked), *stops])
        kind = 'chat.completion.chunk' if asked.stream else 'chat.completion'
        choice = _chat_chunk if asked.stream else _chat_choice
        answer = _Answer(kind, 'chatcmpl', self._name, choice(self._generation))
        return await self._respond(asked, answer, prompts, streams, asked.logprobs)

    def _submit(self, asked, prompts: Sequence, most: int, stop: Sequence[str]) -> list[Stream]:
        """A stream for each choice; the i-th of a prompt has the i-th seed from that given."""
        seed = secrets.randbits(32) if asked.seed is None else asked.seed
        sampling = Sampling(
            temperature=asked.temperature,
            top_k=asked.top_k,
            top_p=asked.top_p,
            min_p=asked.min_p,
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
        )
        streams = []
        try:
            for ids in prompts:
                for i in range(asked.n):
                    stream = self._generation.submit(
                        ids, max_new_tokens=most, sampling=sampling, seed=(seed + i) % 2**32,
                        stop=stop,
                    )  # fmt: skip
                    streams.append(stream)
        except Exception:
            for stream in streams:
                stream.cancel()
            raise
        return streams

    async def _respond(
        self, asked, answer: '_Answer', prompts, streams: Sequence[Stream], logprobs: bool
    ) -> Response:
        count = sum(map(len, prompts))
        self._metrics.tokens.labels('prompt').inc(count)
        counted = self._counted(_merged(streams))
        if asked.stream:
            shown = asked.stream_options is not None and asked.stream_options.include_usage
            events = _events(answer, counted, count if shown else None, logprobs)
            headers = {'Cache-Control': 'no-store', 'X-Accel-Buffering': 'no'}
            return StreamingResponse(events, media_type='text/event-stream', headers=headers)
        pieces: list[list[Piece]] = [[] for _ in streams]
        async for index, piece in counted:
            pieces[index].append(piece)
        choices = [answer.choice(i, parts, logprobs) for i, parts in enumerate(pieces)]
        return JSONResponse(answer.body(choices, _usage(count, sum(map(len, pieces)))))

    async def _counted(self, merged: AsyncIterator) -> AsyncIterator[tuple[int, Piece]]:
        async with contextlib.aclosing(merged):
            async for item in merged:
                self._metrics.tokens.labels('completion').inc()
                yield item


def _stops(asked) -> list[str]:
    return [asked.stop] if isinstance(asked.stop, str) else list(asked.stop or ())


async def _merged(streams: Sequence[Stream]) -> AsyncIterator[tuple[int, Piece]]:
    """The pieces of all streams as they come, each with its stream's place."""
    arrived: asyncio.Queue = asyncio.Queue()

    async def forward(index: int, stream: Stream) -> None:
        async with contextlib.aclosing(stream.pieces()) as pieces:
            async for piece in pieces:
                arrived.put_nowait((index, piece))

    async def forward_all() -> None:
        try:
            await asyncio.gather(*(forward(i, stream) for i, stream in enumerate(streams)))
        finally:
            arrived.put_nowait(None)

    forwarding = asyncio.ensure_future(forward_all())
    try:
        while (item := await arrived.get()) is not None:
            yield item
        await forwarding  # raises what it ended with
    finally:
        forwarding.cancel()
        for stream in streams:
            stream.cancel()


async def _events(
    answer: '_Answer', merged: AsyncIterator, prompt_tokens: int | None, logprobs: bool
) -> AsyncIterator[str]:
    """Server-sent events: a part of one choice each, the usage if it is asked for, and the end."""
    count, begun = 0, set()
    async with contextlib.aclosing(merged):
        async for index, piece in merged:
            count += 1
            if piece.text or piece.finish or logprobs:
                choice = answer.choice(index, [piece], logprobs, is_first=index not in begun)
                begun.add(index)
                yield _event(answer.body([choice]))
    if prompt_tokens is not None:
        yield _event(answer.body([], _usage(prompt_tokens, count)))
    yield 'data: [DONE]\n\n'


def _event(body: dict[str, Any]) -> str:
    return f'data: {json.dumps(body)}\n\n'


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {
        'prompt_tokens': prompt,
        'completion_tokens': completion,
        'total_tokens': prompt + completion,
    }


class _Answer:
    """What all parts of an answer have in common.

    Args:
      choice: (index, pieces, whether with logprobs, is_first) -> the choice, or a part of it.
    """

    def __init__(self, kind: str, prefix: str, name: str, choice):
        self._head = {
            'id': f'{prefix}-{uuid.uuid4().hex}',
            'object': kind,
            'created': int(time.time()),
            'model': name,
        }
        self.choice = choice

    def body(self, choices: Sequence[dict], usage: dict | None = None) -> dict[str, Any]:
        """An answer, or an event of a stream."""
        return {**self._head, 'choices': list(choices), 'usage': usage}


def _text_choice(generation: Generation):
    def choice(index: int, pieces: Sequence[Piece], logprobs: bool, is_first=True) -> dict:
        shown = None
        if logprobs:
            tokens = [generation.spelling[piece.token].decode(errors='replace') for piece in pieces]
            shown = {
                'tokens': tokens,
                'token_logprobs': [piece.log_prob for piece in pieces],
                'top_logprobs': None,
                'text_offset': [sum(map(len, tokens[:i])) for i in range(len(tokens))],
            }
        return {
            'index': index,
            'text': ''.join(piece.text for piece in pieces),
            'logprobs': shown,
            'finish_reason': pieces[-1].finish,
        }

    return choice


def _chat_logprobs(generation: Generation, pieces: Sequence[Piece]) -> dict[str, Any]:
    content = [
        {
            'token': generation.spelling[piece.token].decode(errors='replace'),
            'logprob': piece.log_prob,
            'bytes': list(generation.spelling[piece.token]),
            'top_logprobs': [],
        }
        for piece in pieces
    ]
    return {'content': content, 'refusal': None}


def _chat_choice(generation: Generation):
    def choice(index: int, pieces: Sequence[Piece], logprobs: bool) -> dict:
        content = ''.join(piece.text for piece in pieces)
        return {
            'index': index,
            'message': {'role': 'assistant', 'content': content, 'refusal': None},
            'logprobs': _chat_logprobs(generation, pieces) if logprobs else None,
            'finish_reason': pieces[-1].finish,
        }

    return choice


def _chat_chunk(generation: Generation):
    def choice(index: int, pieces: Sequence[Piece], logprobs: bool, is_first: bool) -> dict:
        [piece] = pieces
        role = {'role': 'assistant'} if is_first else {}
        return {
            'index': index,
            'delta': {**role, 'content': piece.text},
            'logprobs': _chat_logprobs(generation, pieces) if logprobs else None,
            'finish_reason': piece.finish,
        }

    return choice
