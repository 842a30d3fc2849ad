"""Answers that match a JSON schema or a regular expression: masks of the tokens that may follow.

The library llguidance keeps track of a grammar over the bytes of tokens (`pip install
'bigmodels[constraints]'`); a mask takes it microseconds to a millisecond.
"""

import json
from collections.abc import Callable, Mapping

import numpy as np

from bigmodels import errors
from bigmodels.data.tokenizers import Tokenizer
from bigmodels.deploy.requests import Matcher


class Grammars:
    """Makes matchers of grammars over the tokens of a tokenizer, which are read once.

    The token that ends a document ends an answer, where it may, and matches no text.
    """

    def __init__(self, vocabulary: Tokenizer):
        self._library = _llguidance()
        self._tokens = self._library.LLTokenizer(
            self._library.TokenizerWrapper(_Vocabulary(vocabulary))
        )

    def json_schema(self, schema: str | Mapping) -> Callable[[], Matcher]:
        """Of one JSON value that a schema, text or its dict, describes; see `Settings.matcher`.

        Raises:
          UserError: if it is no schema, or has what the library does not know.
        """
        try:
            parsed = json.loads(schema) if isinstance(schema, str) else dict(schema)
        except json.JSONDecodeError as error:
            raise errors.UserError(f'The JSON schema is not JSON: {error}.') from error
        if not isinstance(parsed, dict):
            raise errors.UserError(f'A JSON schema is an object, not {parsed!r}.')
        try:
            grammar = self._library.LLMatcher.grammar_from_json_schema(parsed)
        except ValueError as error:  # as of a number with hundreds of digits
            raise errors.UserError(f'The JSON schema cannot be matched: {error}'[:300]) from error
        return self._checked(grammar, 'JSON schema')

    def regex(self, pattern: str) -> Callable[[], Matcher]:
        """Of texts that a regular expression (of Rust's kind, without look-around) matches whole.

        Raises:
          UserError: if it is none.
        """
        return self._checked(self._library.LLMatcher.grammar_from_regex(pattern), 'expression')

    def _checked(self, grammar: str, kind: str) -> Callable[[], Matcher]:
        first = self._library.LLMatcher(self._tokens, grammar, log_level=0)
        if first.is_error():
            raise errors.UserError(f'The {kind} cannot be matched: {first.get_error().strip()}')
        if not GrammarMatcher(first.deep_copy(), self._tokens.vocab_size).allowed().any():
            raise errors.UserError(
                f'The {kind} cannot be matched: no token of the model begins a text that is of it.'
            )
        return lambda: GrammarMatcher(first.deep_copy(), self._tokens.vocab_size)


class GrammarMatcher:
    """A `Matcher` of what llguidance's matcher allows."""

    def __init__(self, matcher, vocab_size: int):
        self._matcher = matcher
        self._vocab_size = vocab_size

    @property
    def is_complete(self) -> bool:
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed(self) -> np.ndarray:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():  # as where its limits do not suffice; it is told by no other
            return np.zeros(self._vocab_size, bool)
        return np.unpackbits(bits, count=self._vocab_size, bitorder='little').astype(bool)

    def advance(self, token: int) -> None:
        self._matcher.consume_token(token)  # after another one than may follow nothing is allowed


class _Vocabulary:
    """A tokenizer as llguidance takes one."""

    bos_token_id = None

    def __init__(self, vocabulary: Tokenizer):
        self._vocabulary = vocabulary
        self.eos_token_id = vocabulary.end_of_text
        self.tokens = vocabulary.token_bytes()
        # Tokens without text must have a name; they are never matched.
        self.special_token_ids = [
            id for id, text in enumerate(self.tokens) if not text or id == self.eos_token_id
        ]
        for id in self.special_token_ids:
            self.tokens[id] = b'<|%d|>' % id

    def __call__(self, text: str) -> list[int]:
        return self._vocabulary.encode(text).tolist()


def _llguidance():
    try:
        import llguidance
    except ImportError as error:
        raise errors.UserError(
            "Constraints need the library 'llguidance': pip install 'bigmodels[constraints]'."
        ) from error
    return llguidance
