"""The choices of completions and chats, as the OpenAI API has them, of the pieces of streams."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from bigmodels.deploy.server.generation import Piece

# (index, pieces, whether with logprobs, the characters before them or None where they begin it) ->
# the choice, or a part of it.
Choice = Callable[[int, Sequence[Piece], bool, int | None], dict[str, Any]]


class Choices:
    """Of a model whose tokens are spelt like this, see `tokenizers.Tokenizer.token_bytes`."""

    def __init__(self, spelling: Sequence[bytes]):
        self._spelling = spelling

    def text(self, index: int, pieces: Sequence[Piece], logprobs: bool, before: int | None) -> dict:
        """Of a completion, and a part of it alike."""
        return {
            'index': index,
            'text': _text(pieces),
            'logprobs': self._text_logprobs(pieces, before or 0) if logprobs else None,
            'finish_reason': pieces[-1].finish,
        }

    def message(
        self, index: int, pieces: Sequence[Piece], logprobs: bool, before: int | None
    ) -> dict:
        """Of a chat."""
        return {
            'index': index,
            'message': {'role': 'assistant', 'content': _text(pieces), 'refusal': None},
            'logprobs': self._chat_logprobs(pieces) if logprobs else None,
            'finish_reason': pieces[-1].finish,
        }

    def delta(
        self, index: int, pieces: Sequence[Piece], logprobs: bool, before: int | None
    ) -> dict:
        """Of a chat, a part."""
        role = {'role': 'assistant'} if before is None else {}
        return {
            'index': index,
            'delta': {**role, 'content': _text(pieces)},
            'logprobs': self._chat_logprobs(pieces) if logprobs else None,
            'finish_reason': pieces[-1].finish,
        }

    def _text_logprobs(self, pieces: Sequence[Piece], before: int) -> dict[str, Any]:
        texts = [piece.text for piece in pieces]
        return {
            'tokens': [self._name(piece.token) for piece in pieces],
            'token_logprobs': [piece.log_prob for piece in pieces],
            'top_logprobs': [
                {self._name(token): log_prob for token, log_prob in piece.alternatives} or None
                for piece in pieces
            ],
            'text_offset': list(itertools.accumulate(map(len, texts[:-1]), initial=before)),
        }

    def _chat_logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        def described(token: int, log_prob: float | None) -> dict[str, Any]:
            spelt = list(self._spelling[token])
            return {'token': self._name(token), 'logprob': log_prob, 'bytes': spelt}

        content = [
            {
                **described(piece.token, piece.log_prob),
                'top_logprobs': [described(*pair) for pair in piece.alternatives],
            }
            for piece in pieces
        ]
        return {'content': content, 'refusal': None}

    def _name(self, token: int) -> str:
        """What a token spells; its bytes where they are no text, its id where there are none."""
        spelt = self._spelling[token]
        if not spelt:
            return f'<|{token}|>'
        try:
            return spelt.decode()
        except UnicodeDecodeError:
            return 'bytes:' + ''.join(f'\\x{byte:02x}' for byte in spelt)


def _text(pieces: Sequence[Piece]) -> str:
    return ''.join(piece.text for piece in pieces)
