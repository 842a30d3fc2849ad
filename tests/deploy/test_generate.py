"""Generation with a cache against the model called again for every token."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors, runs
from bigmodels.data import tokenizers
from bigmodels.deploy import generate
from bigmodels.deploy import text as text_lib
from bigmodels.deploy.decoding import generate_tokens
from bigmodels.deploy.sampling import Sampling
from bigmodels.deploy.text import generate_text
from bigmodels.models import transformer
from bigmodels.tasks import LanguageModeling, MaskedLanguageModeling, NextItem

GREEDY = Sampling(temperature=0)
PROMPTS = ['def f(', 'a', 'import numpy', 'x = ']


def make_task(**changes):
    model = transformer.Transformer(
        **dict(vocab_size=256, num_layers=2, embed_dim=32, num_heads=4, max_length=32) | changes
    )
    return LanguageModeling(model, {'name': 'bytes'}, 16, vocabulary=tokenizers.Bytes())


def make_params(task, seed=0):
    """Random, but all bytes that are not one of a few letters next to impossible."""
    shapes = jax.eval_shape(task.model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda s: jnp.float32(rng.normal(size=s.shape) * 0.5), shapes['params'])
    params['final_norm']['bias'] = params['final_norm']['bias'].at[0].set(30)
    allowed = np.isin(np.arange(256), [*b'abcdefgh '])
    params['unembed'] = params['unembed'].at[0].set(np.where(allowed, 1, -1))
    return params


@functools.cache
def task_and_params(**changes):
    task = make_task(tie_embeddings=False, **changes)
    return task, make_params(task)


@functools.cache
def forward(model):
    return jax.jit(lambda params, inputs: model.apply({'params': params}, inputs))


def uncached_greedy(task, params, prompt, count):
    """Argmax of the whole sequence's logits, again for each token; up to the end of text."""
    ids, start = [*task.vocabulary.encode(prompt)], len(prompt)
    for _ in range(count):
        padded = np.pad(ids, (0, 32 - len(ids)))[None]
        token = int(forward(task.model)(params, padded)[0, len(ids) - 1].argmax())
        if token == task.vocabulary.end_of_text:
            break
        ids.append(token)
    return task.vocabulary.decode(ids[start:])


@pytest.mark.parametrize(
    'changes',
    [dict(positions='learned'), dict(num_kv_heads=2, sliding_window=5)],
    ids=['learned', 'rotary-grouped-window'],
)
def test_greedy_is_repeated_argmax(changes):
    task, params = task_and_params(**changes)
    texts = generate_text(task, params, PROMPTS, 9, GREEDY, seed=0)
    assert texts == [uncached_greedy(task, params, prompt, 9) for prompt in PROMPTS]
    assert len(set(texts)) > 1  # the prompts matter
    assert all(len(text) == 9 for text in texts)


def test_a_batch_is_each_prompt_alone():
    task, params = task_and_params(positions='learned')
    together = generate_text(task, params, PROMPTS, 9, GREEDY, seed=0)
    assert generate_text(task, params, PROMPTS[:1], 9, GREEDY, seed=0) == together[:1]
    # Sampled: a row's randomness depends on its index, not on its neighbours or its length.
    sampled = functools.partial(generate_text, task, params, sampling=Sampling(1.5), seed=4)
    texts = sampled(prompts=PROMPTS, max_new_tokens=9)
    others = sampled(prompts=['z' * 12, PROMPTS[1], 'q', PROMPTS[3]], max_new_tokens=9)
    assert texts[1] == others[1]
    assert texts[3] == others[3]
    assert sampled(prompts=PROMPTS, max_new_tokens=9) == texts
    assert generate_text(task, params, PROMPTS, 9, Sampling(1.5), seed=5) != texts


def test_equal_prompts_are_sampled_independently():
    task, params = task_and_params(positions='learned')
    texts = generate_text(task, params, ['a'] * 4, 9, Sampling(2.0), seed=0)
    assert len(set(texts)) == 4


def test_scanned_generates_the_same():
    task, params = task_and_params(positions='learned')
    scanned = dataclasses.replace(task, model=task.model.clone(scan_layers=True))
    stacked = transformer.stack_layers(params)
    arguments = PROMPTS, 9, GREEDY
    assert generate_text(scanned, stacked, *arguments, seed=0) == generate_text(
        task, params, *arguments, seed=0
    )


def test_rotary_scaling_generates():
    scaling = {'name': 'linear', 'factor': 2.0}
    task = make_task(tie_embeddings=False, rotary_scaling=scaling)
    [text] = generate_text(task, make_params(task), ['a'], 2, GREEDY, seed=0)
    assert len(text) == 2


def run_tokens(task, params, stops, count=9):
    return generate_tokens(
        task.model,
        params,
        jnp.array([[97, 98, 99], [100, 0, 0]]),
        jnp.array([3, 1]),
        jnp.asarray(stops, jnp.int32),
        jax.random.key(0),
        max_new_tokens=count,
        sampling=GREEDY,
    )


def test_log_probs_are_those_of_the_whole_text():
    task, params = task_and_params(positions='learned')
    tokens, _, log_probs = run_tokens(task, params, np.zeros((0, 0)))
    whole = np.concatenate([[[97, 98, 99]], tokens[:1]], axis=1)
    logits = forward(task.model)(params, np.pad(whole, ((0, 0), (0, 20))))
    expected = jax.nn.log_softmax(logits)[0, np.arange(2, 11), tokens[0]]
    np.testing.assert_allclose(log_probs[0], expected, atol=1e-4)


def test_a_penalty_on_repetition_leaves_no_token_twice():
    task, params = task_and_params(positions='learned')
    [free] = generate_text(task, params, ['b'], 6, GREEDY, seed=0)
    far = Sampling(temperature=0, repetition_penalty=1e4)
    [text] = generate_text(task, params, ['b'], 6, far, seed=0)
    assert len(set(free)) < 6
    assert len({*text, 'b'}) == 7


def test_stop_sequences_and_counts():
    task, params = task_and_params(positions='learned')
    free, counts, _ = run_tokens(task, params, np.zeros((0, 0)))
    assert counts.tolist() == [9, 9]
    row = free[0].tolist()
    # A stop of two tokens, which spans two steps, beside one of one token that never comes.
    stop = [[row[3], row[4]], [-1, 255]]
    ends = next(i + 1 for i in range(1, 9) if row[i - 1 : i + 1] == stop[0])
    tokens, counts, log_probs = run_tokens(task, params, stop)
    assert (log_probs[0, ends:] == 0).all()
    assert counts[0] == ends
    assert tokens[0, :ends].tolist() == row[:ends]
    assert (tokens[0, ends:] == 0).all()
    other = free[1].tolist()
    expected = next((i + 1 for i in range(1, 9) if other[i - 1 : i + 1] == stop[0]), 9)
    assert counts[1] == expected
    assert tokens[1, :expected].tolist() == other[:expected]
    # The prompt's last token does not count towards a stop.
    assert run_tokens(task, params, [[99, row[0]]]).counts[0] > 1


def test_stop_strings_are_left_out():
    task, params = task_and_params(positions='learned')
    prompts = PROMPTS[:2]
    free = generate_text(task, params, prompts, 9, GREEDY, seed=0)
    for stop in ([free[0][3:6]], ['never', free[0][4:], free[0][2]]):
        texts = generate_text(task, params, prompts, 9, GREEDY, seed=0, stop=stop)
        for text, whole in zip(texts, free, strict=True):
            ends = [whole.index(word) for word in stop if word in whole]
            assert text == whole[: min(ends, default=9)]


def renamed(params, one, other):
    """The params of the model that says token `one` where it said `other`, and the reverse."""
    swap = np.arange(256)
    swap[one], swap[other] = other, one
    embedding = params['embed']['embedding'][swap]
    return params | {'unembed': params['unembed'][:, swap], 'embed': {'embedding': embedding}}


class WithPair(tokenizers.Bytes):
    """Token 200 spells 'xy', which this tokenizer encodes as two others."""

    def token_bytes(self):
        texts = super().token_bytes()
        texts[200] = b'xy'
        return texts


def test_stop_strings_may_straddle_tokens():
    """One that the model spells with other tokens than the tokenizer does is cut too."""
    task, params = task_and_params(positions='learned')
    [free] = generate_text(task, params, ['q'], 9, GREEDY, seed=0)
    task = dataclasses.replace(task, vocabulary=WithPair())
    params = renamed(params, 200, ord(free[4]))
    [text] = generate_text(task, params, ['q'], 9, GREEDY, seed=0)
    assert text == free.replace(free[4], 'xy')
    for stop in ('xy', 'y', text[text.index('xy') - 1] + 'x'):
        [cut] = generate_text(task, params, ['q'], 9, GREEDY, seed=0, stop=[stop])
        assert cut == text[: text.index(stop)]


class WithoutBlanks(tokenizers.Bytes):
    """Encodes no blanks, and every capital as byte 200, which spells nothing."""

    def encode(self, text):
        ids = super().encode(text.replace(' ', ''))
        return np.where((ids >= 65) & (ids <= 90), 200, ids)

    def token_bytes(self):
        texts = super().token_bytes()
        texts[200] = b''
        return texts


def test_stop_strings_that_tokens_do_not_spell_end_no_other_text():
    task, params = task_and_params(positions='learned')
    [free] = generate_text(task, params, ['q'], 9, GREEDY, seed=0)
    task = dataclasses.replace(task, vocabulary=WithoutBlanks())
    for changed, whole in (
        (renamed(params, 32, ord(free[4])), free.replace(free[4], ' ')),
        (renamed(params, 200, ord(free[4])), free.replace(free[4], '')),
    ):
        for stop in ([' '], [' ', 'never'], ['N', 'never']):
            [answer] = text_lib.generate(task, changed, ['q'], 9, GREEDY, seed=0, stop=stop)
            assert answer.text == whole.split(stop[0])[0]
            assert len(answer.tokens) == 9
    task = dataclasses.replace(task, vocabulary=tokenizers.Characters('\n q'))
    with pytest.raises(errors.UserError, match="The stop string 'é': The character 'é'"):
        generate_text(task, params, ['q'], 1, GREEDY, seed=0, stop=['é'])


def test_end_of_text_ends_a_row():
    task, params = task_and_params(positions='learned')
    free = generate_text(task, params, ['q', 'r'], 9, GREEDY, seed=0)
    params = renamed(params, 0, ord(free[0][4]))
    texts = generate_text(task, params, ['q', 'r'], 9, GREEDY, seed=0)
    assert texts == [text.split(free[0][4])[0] for text in free]


def test_the_number_of_new_tokens():
    task, params = task_and_params(positions='learned')
    whole = generate_text(task, params, PROMPTS[:2], 9, GREEDY, seed=0)
    texts = generate_text(task, params, PROMPTS[:2], 1, GREEDY, seed=0)
    assert texts == [text[:1] for text in whole]
    with pytest.raises(errors.UserError, match='max_new_tokens = 0'):
        generate_text(task, params, PROMPTS, 0, GREEDY, seed=0)


def test_an_empty_prompt_begins_a_document():
    task, params = task_and_params(positions='learned')
    [text] = generate_text(task, params, [''], 9, GREEDY, seed=0)
    tokens, *_ = generate_tokens(
        task.model, params, jnp.zeros((1, 1), jnp.int32), jnp.ones(1, jnp.int32),
        jnp.zeros((1, 1), jnp.int32), jax.random.key(0), max_new_tokens=9, sampling=GREEDY,
    )  # fmt: skip
    assert text == task.vocabulary.decode(tokens[0])


def test_a_run_ends_with_a_sample():
    """With the defaults of the task, and without room or wish for one."""
    task, params = task_and_params(positions='learned')
    demonstrate = lambda **k: dataclasses.replace(task, **k).demonstrate(params, {})
    assert len(demonstrate()['sample.txt']) == 31
    assert demonstrate(sample_prompt='abc', sample_tokens=2)['sample.txt'].startswith('abc')
    assert demonstrate(sample_tokens=0) == demonstrate(sample_prompt='a' * 40) == {}


@pytest.mark.parametrize(
    ('task', 'message'),
    [
        (
            NextItem(make_task().model, 4),
            r"task 'other', which does not continue text; .*"
            r'bigmodels\.predict --workdir=runs/a\.$',
        ),
        (
            MaskedLanguageModeling(make_task(causal=False).model, {}, 4),
            r"task 'other', which does not continue text; .*\.predict --workdir=runs/a\.$",
        ),
        (
            types.SimpleNamespace(model=make_task(causal=False).model, vocabulary=None),
            r'holds a Transformer; only a causal Transformer generates text\.$',
        ),
    ],
)
def test_the_command_is_for_language_models_alone(task, message, monkeypatch):
    run = types.SimpleNamespace(
        workdir='runs/a', task=task, model=task.model, config={'task': {'name': 'other'}}
    )
    monkeypatch.setattr(runs, 'open_run', lambda *_, **__: run)
    monkeypatch.setattr('sys.argv', ['generate', '--workdir=runs/a', '--prompt=a'])
    with pytest.raises(errors.UserError, match=message):
        generate.main()


def test_the_context_may_be_filled_but_not_exceeded():
    task, params = task_and_params(positions='learned')
    prompts = ['a' * 23, 'b']
    texts = generate_text(task, params, prompts, 9, GREEDY, seed=0)
    assert texts == [uncached_greedy(task, params, prompt, 9) for prompt in prompts]
    with pytest.raises(
        errors.UserError, match=r'24 tokens and 9 new ones exceed the context of 32'
    ):
        generate_text(task, params, ['b', 'a' * 24], 9, GREEDY, seed=0)


def test_the_command_by_every_method(monkeypatch, capsys, tmp_path):
    """Greedy, a draft and an engine that may say anything are the same; a beam ends the best."""
    task, params = task_and_params(positions='learned')
    run = types.SimpleNamespace(
        workdir='runs/a', task=task, model=task.model, params=params, config={}
    )
    monkeypatch.setattr(runs, 'open_run', lambda *_, **__: run)

    def said(*options):
        monkeypatch.setattr(
            'sys.argv',
            ['generate', '--workdir=a', '--prompt=ab', '--max_new_tokens=5', '--temperature=0',
             *options],
        )  # fmt: skip
        generate.main()
        return capsys.readouterr().out

    greedy = said()
    assert greedy == 'ab' + generate_text(task, params, ['ab'], 5, GREEDY, seed=0)[0] + '\n'
    assert said('--draft_workdir=b', '--draft_tokens=2') == greedy
    assert said('--regex=[a-z ]*') == greedy
    assert said('--beam_size=1') == greedy
    listed = said('--log_probs').splitlines()
    assert len(listed) == 6
    assert ''.join(line[-2] for line in listed[1:]) == greedy[2:7]
    (tmp_path / 'schema').write_text('{"enum": [7, 8]}')
    assert said(f'--json_schema={tmp_path / "schema"}') in ('ab7\n', 'ab8\n')
    assert len({*said('--repetition_penalty=1e4')}) == 8
    for options, message in (
        (['--beam_size=2', '--log_probs'], 'leave --log_probs'),
        (['--beam_size=0'], 'beam_size = 0'),
        (['--json_schema=absent'], "no file 'absent'"),
    ):
        with pytest.raises(errors.UserError, match=message):
            said(*options)


def test_a_draft_must_be_of_the_same_tokenizer_and_context(monkeypatch):
    task, params = task_and_params(positions='learned')
    other = dataclasses.replace(task, vocabulary=tokenizers.Characters('abc'))
    runs_by_name = {
        name: types.SimpleNamespace(workdir=name, task=of, model=of.model, params=params, config={})
        for name, of in (('a', task), ('b', other))
    }
    monkeypatch.setattr(runs, 'open_run', lambda workdir, *_, **__: runs_by_name[str(workdir)])
    monkeypatch.setattr('sys.argv', ['generate', '--workdir=a', '--prompt=a', '--draft_workdir=b'])
    with pytest.raises(errors.UserError, match='b has another tokenizer than a'):
        generate.main()
    short = functools.partial(text_lib.drafted, draft=(task.model.clone(max_length=8), params))
    with pytest.raises(errors.UserError, match='10 tokens exceed the context of the draft, 8'):
        text_lib.generate(task, params, ['a'], 9, GREEDY, seed=0, method=short)
