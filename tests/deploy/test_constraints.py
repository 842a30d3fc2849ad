"""Answers under a grammar, whatever the model would say."""

import dataclasses
import functools
import json
import re
import sys

import numpy as np
import pytest

from bigmodels import errors
from bigmodels.data import tokenizers
from bigmodels.deploy import text as text_lib
from bigmodels.deploy import weights
from bigmodels.deploy.constraints import Grammars
from bigmodels.deploy.engine import Engine
from bigmodels.deploy.requests import Settings
from bigmodels.deploy.sampling import Sampling
from tests.data.test_tokenizers import texts
from tests.deploy.test_generate import task_and_params

HOT = Sampling(2.0)
SCHEMA = {
    'type': 'object',
    'properties': {'a': {'type': 'integer', 'maximum': 9, 'minimum': 0}, 'b': {'enum': ['x', 'y']}},
    'required': ['a', 'b'],
    'additionalProperties': False,
}


@functools.cache
def grammars():
    return Grammars(tokenizers.Bytes())


def answers(matcher, prompts, sampling, count=25):
    task, params = task_and_params(positions='learned')
    method = functools.partial(text_lib.matched, matcher=matcher, end=task.vocabulary.end_of_text)
    return text_lib.generate(task, params, prompts, count, sampling, seed=3, method=method)


def test_json_is_what_its_schema_says():
    """Of a model that knows neither; each request has its own state, greedy or not."""
    matcher = grammars().json_schema(SCHEMA | {'x-guidance': {'whitespace_flexible': False}})
    for sampling in (HOT, Sampling(0)):
        for answer in answers(matcher, ['a', 'b', 'cd'], sampling):
            value = json.loads(answer.text)
            assert set(value) == {'a', 'b'}
            assert value['a'] in range(10)
            assert value['b'] in ('x', 'y')
            assert np.isfinite(answer.log_probs).all()


def test_an_expression_is_matched_whole():
    pattern = '(cat|dog){2}-[0-9]{3}'
    for answer in answers(grammars().regex(pattern), ['a', 'b', 'c', 'd', 'e'], HOT):
        assert re.fullmatch(pattern, answer.text)


def test_an_answer_may_end_where_the_grammar_may():
    """By the token that ends a document, which this model never says unless it must."""
    [answer] = answers(grammars().regex('a{3,}'), ['b'], HOT, count=6)
    assert answer.text == 'a' * 6


def test_masks_are_of_the_tokens_that_go_on():
    """Those of several bytes too, and none of a tokenizer's special ones."""
    bpe = tokenizers.fit({'name': 'bpe', 'vocab_size': 400}, texts)
    spelt = bpe.token_bytes()
    free, only = (Grammars(bpe).regex(pattern)() for pattern in ('[a-z ]{3}', 'return x'))
    fitting = [id for id, part in enumerate(spelt) if re.fullmatch(b'[a-z ]{1,3}', part)]
    assert np.flatnonzero(free.allowed()).tolist() == fitting
    assert max(len(spelt[id]) for id in fitting) == 3
    said = b''
    while not only.is_complete:
        allowed = np.flatnonzero(only.allowed()).tolist()
        assert allowed
        assert all(spelt[id] and b'return x'[len(said) :].startswith(spelt[id]) for id in allowed)
        said += spelt[allowed[0]]
        only.advance(allowed[0])
    assert said == b'return x'
    only.advance(fitting[0])
    assert not only.allowed().any()
    assert not only.is_complete


def test_what_the_tokens_cannot_spell_ends_its_request_alone():
    """At once where they begin no such text; later, as no text that they do begin can end."""
    few = Grammars(tokenizers.Characters('abc \n'))
    with pytest.raises(errors.UserError, match='no token of the model begins a text'):
        few.regex('x')
    matcher = few.regex('a(b|c)x?z')
    task, params = task_and_params(positions='learned')
    own = Engine(*weights.packed(task.model, params), slots=2, length=16, widths=[8])
    # Ids of another tokenizer, all of which this model has.
    stuck = own.submit([1, 2], Settings(9, Sampling(0), matcher=matcher))
    beside = own.submit([97, 98], Settings(9, Sampling(0)))
    events = []
    while own.num_waiting + own.num_active:
        events += own.step()
    assert {event.request: event.finish for event in events} == {
        stuck: 'unmatched', beside: 'length'
    }  # fmt: skip
    assert len(stuck.new_tokens) == 2
    assert len(beside.new_tokens) == 9


def test_what_ends_a_text_of_a_grammar_is_no_part_of_it():
    """Where the model ends no text itself, and the token that does is a character."""
    task, params = task_and_params(positions='learned')
    letters = tokenizers.Characters('abc')
    task = dataclasses.replace(task, vocabulary=letters, append_end_of_text=False)

    def answer(pattern):
        method = functools.partial(
            text_lib.matched, matcher=Grammars(letters).regex(pattern), end=letters.end_of_text
        )
        [found] = text_lib.generate(task, params, ['a'], 9, HOT, seed=0, method=method)
        assert len(found.tokens) == len(found.log_probs) == len(found.text)
        return found.text

    assert answer('abc') == 'abc'
    assert re.fullmatch('[ab]+', answer('[ab]{1,3}'))
    with pytest.raises(errors.UserError, match='No token of the model goes on .* after 2 tokens'):
        answer('a(b|c)x')


def test_ids_beyond_those_of_the_tokenizer_spell_nothing():
    task, params = task_and_params(positions='learned')
    task = dataclasses.replace(task, vocabulary=tokenizers.Characters('abc'))
    [answer] = text_lib.generate(task, params, ['a'], 9, HOT, seed=0)
    assert answer.tokens.max() > 3
    assert set(answer.text) <= set('abc\n')
    assert task.vocabulary.decode([0, 77, 1]) == '\na'
    assert tokenizers.Bytes().decode([97, 300]) == 'a'


def test_mistakes(monkeypatch):
    with pytest.raises(errors.UserError, match='not JSON'):
        grammars().json_schema('{')
    with pytest.raises(errors.UserError, match=r'is an object, not \[\]'):
        grammars().json_schema('[]')
    with pytest.raises(errors.UserError, match='JSON schema cannot be matched'):
        grammars().json_schema({'type': 'number', 'not': {'const': 3}})
    with pytest.raises(errors.UserError, match='JSON schema cannot be matched: Value is not'):
        grammars().json_schema({'type': 'integer', 'minimum': 10**400})
    with pytest.raises(errors.UserError, match='expression cannot be matched'):
        grammars().regex('(a')
    monkeypatch.setitem(sys.modules, 'llguidance', None)
    with pytest.raises(errors.UserError, match=r"pip install 'bigmodels\[constraints\]'"):
        Grammars(tokenizers.Bytes())
