"""Texts that go on, and chats: whole, or as a stream of server-sent events."""

import asyncio
import contextlib
import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from bigmodels import errors
from bigmodels.deploy.requests import Matcher, Settings
from bigmodels.deploy.sampling import Sampling
from bigmodels.deploy.server import chats, forms
from bigmodels.deploy.server.answering import as_token_ids, check_model, parsed
from bigmodels.deploy.server.choices import Choice, Choices
from bigmodels.deploy.server.failures import Failure
from bigmodels.deploy.server.generation import Generation, Piece, Stream
from bigmodels.deploy.server.scoring import Scoring
from bigmodels.deploy.server.telemetry import Metrics


class Completions:
    """The endpoints of runs that continue texts, by the names of their models."""

    def __init__(self, generation: Generation, scoring: Scoring, metrics: Metrics):
        self._generation, self._scoring, self._metrics = generation, scoring, metrics
        self._choices = Choices(generation.spelling)

    async def complete(self, request: Request) -> Response:
        """Continuations of prompts, `n` of each."""
        asked = await parsed(request, forms.Completion)
        task = self._task(asked.model)
        end = [task.vocabulary.end_of_text]  # before a document that an empty prompt begins
        prompts = await asyncio.to_thread(
            as_token_ids, asked.prompt, task.vocabulary, 'prompt', empty=end
        )
        echoed = None
        if asked.echo and asked.stream:
            raise Failure(400, 'A stream has no echo: leave one of them out.', param='echo')
        self._check_room(prompts, asked.max_tokens, 'prompt')
        if asked.echo:
            echoed = await self._scoring.pieces(prompts, asked.model, asked.logprobs)
        streams = await self._submit(
            asked, prompts, asked.max_tokens, _stops(asked), asked.logprobs or 0
        )
        answer = _Answer('text_completion', 'cmpl', asked.model, self._choices.text)
        shown = asked.logprobs is not None
        return await self._respond(asked, answer, prompts, streams, shown, echoed)

    async def chat(self, request: Request) -> Response:
        """The message that follows those given, `n` times."""
        asked = await parsed(request, forms.Chat)
        task = self._task(asked.model)
        if asked.top_logprobs and not asked.logprobs:
            raise Failure(400, 'top_logprobs needs logprobs: true.', param='top_logprobs')
        ids, stops, ends = await asyncio.to_thread(chats.prompt, task, asked.messages)
        room = max(self._generation.length - len(ids), 1)
        most = asked.max_completion_tokens or asked.max_tokens or room
        self._check_room([ids], most, 'messages')
        streams = await self._submit(
            asked, [ids], most, [*_stops(asked), *stops], asked.top_logprobs or 0, ends
        )
        kind = 'chat.completion.chunk' if asked.stream else 'chat.completion'
        choice = self._choices.delta if asked.stream else self._choices.message
        answer = _Answer(kind, 'chatcmpl', asked.model, choice)
        return await self._respond(asked, answer, [ids], streams, asked.logprobs)

    def _task(self, model: str) -> Any:
        check_model(model, self._generation.tasks)
        return self._generation.tasks[model]

    def _check_room(self, prompts: Sequence, most: int, param: str) -> None:
        """Refuses what `_submit` would, before it waits for the engine or computes anything."""
        longest = max(map(len, prompts))
        if longest + most > self._generation.length:
            raise Failure(
                400, f'A prompt of {longest} tokens and {most} new ones exceed the context of '
                f'{self._generation.length}: shorten it or ask for fewer.', param=param,
            )  # fmt: skip

    async def _submit(
        self,
        asked,
        prompts: Sequence,
        most: int,
        stop: Sequence[str],
        alternatives: int,
        ends: Sequence[Sequence[int]] = (),
    ) -> list[Stream]:
        """A stream for each choice; the i-th of a prompt has the i-th seed from that given."""
        matcher = await self._matcher(asked.response_format)
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
                    settings = Settings(
                        most, sampling, ends, (seed + i) % 2**32, matcher, alternatives
                    )  # fmt: skip
                    streams.append(self._generation.submit(ids, asked.model, settings, stop))
        except Exception:
            for stream in streams:
                stream.cancel()
            raise
        return streams

    async def _matcher(self, asked: forms.AnyFormat | None) -> Callable[[], Matcher] | None:
        if asked is None or isinstance(asked, forms.TextFormat):
            return None
        try:
            return await asyncio.to_thread(self._generation.matcher, asked)
        except errors.UserError as error:
            raise Failure(400, str(error), param='response_format') from error

    async def _respond(
        self,
        asked,
        answer: '_Answer',
        prompts: Sequence,
        streams: Sequence[Stream],
        logprobs: bool,
        echoed: Sequence[Sequence[Piece]] | None = None,
    ) -> Response:
        """`echoed`: the pieces of each prompt, which its choices begin with."""
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
        usage = _usage(count, sum(map(len, pieces)))
        if echoed is not None:
            pieces = [[*echoed[i // asked.n], *parts] for i, parts in enumerate(pieces)]
        choices = [answer.choice(i, parts, logprobs, None) for i, parts in enumerate(pieces)]
        return JSONResponse(answer.body(choices, usage))

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
    count, lengths = 0, {}
    async with contextlib.aclosing(merged):
        async for index, piece in merged:
            count += 1
            if piece.text or piece.finish or logprobs:
                choice = answer.choice(index, [piece], logprobs, lengths.get(index))
                lengths[index] = lengths.get(index, 0) + len(piece.text)
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
    """What all parts of an answer have in common."""

    def __init__(self, kind: str, prefix: str, name: str, choice: Choice):
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
