"""Several runs with adapters of one base behind one engine, against each of them alone."""

import concurrent.futures
import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from starlette.testclient import TestClient

from bigmodels import adapters, errors, runs
from bigmodels.data import tokenizers
from bigmodels.deploy import common_base, serve
from bigmodels.deploy.sampling import Sampling
from bigmodels.deploy.server import app, limits
from bigmodels.deploy.text import generate_text
from tests.deploy.test_generate import forward, make_params, make_task

LORA = adapters.Settings(rank=2, alpha=4.0)
# Longer than a chunk of what was said before, the same for all models: keys are not shared by them.
PROMPTS = ['abcdefgh abc', 'abcdefgh abcd', 'b']


def make_run(folder, seed, settings=LORA, base_seed=0, **changes):
    """A run that moved its adapters at random; of the base where there is no seed."""
    task = make_task(**dict(tie_embeddings=False, num_kv_heads=2) | changes)
    params = make_params(task, base_seed)
    if seed is None:
        settings = adapters.NONE
    else:
        trained, frozen = adapters.split(settings, params, jax.random.key(seed))
        rng = np.random.default_rng(seed)
        moved = jax.tree.map(
            lambda leaf: leaf + jnp.float32(0.5 * rng.normal(size=leaf.shape)), trained
        )
        params = adapters.joined(settings, moved, frozen)
    (folder / 'config.json').touch()
    return runs.Run(
        folder, {'task': {'name': 'language_modeling'}}, types.SimpleNamespace(adapter=settings),
        task, None, params, {}, 1,
    )  # fmt: skip


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    """(runs by name, a client of a server of all of them)."""
    folder = tmp_path_factory.mktemp('runs')
    found = {
        'base': make_run(folder, None, max_length=40),
        'a': make_run(folder, 1),
        'b': make_run(folder, 2),
    }
    shared = common_base.of_one_base(found)
    server = app.Server(
        shared.pop('base'), app.Settings('base', batch_size=4), limits.Limits(), None, shared
    )
    server.warm()
    yield found, TestClient(server.app)
    server.close()


def test_each_model_answers_as_it_does_alone(served):
    """Greedily, all at once and twice, in any order."""
    found, client = served

    def ask(name, prompt):
        asked = {'model': name, 'prompt': prompt, 'max_tokens': 8, 'temperature': 0}
        answer = client.post('/v1/completions', json=asked).json()
        assert answer['model'] == name
        return answer['choices'][0]['text']

    pairs = [(name, prompt) for prompt in PROMPTS for name in found]
    with concurrent.futures.ThreadPoolExecutor(9) as threads:
        answers = [*threads.map(ask, *zip(*pairs, strict=True))]
        again = [*threads.map(ask, *zip(*reversed(pairs), strict=True))]
    assert again[::-1] == answers
    by_name = {name: [] for name in found}
    for (name, _), answer in zip(pairs, answers, strict=True):
        by_name[name].append(answer)
    for name, run in found.items():
        alone = generate_text(run.task, run.params, PROMPTS, 8, Sampling(0), seed=0)
        assert by_name[name] == alone
    assert len({tuple(texts) for texts in by_name.values()}) == 3


def test_all_are_listed_and_what_they_say_is_their_own(served):
    found, client = served
    listed = client.get('/v1/models').json()['data']
    assert [model['id'] for model in listed] == ['base', 'a', 'b']
    assert ['/v1/embeddings' in model['endpoints'] for model in listed] == [True, False, False]
    assert client.get('/v1/models/b').json() == listed[2]
    for path, body in (('completions', {}), ('embeddings', {'input': 'a'})):
        name = 'c' if path == 'completions' else 'a'
        answer = client.post(f'/v1/{path}', json={'model': name, **body})
        assert (answer.status_code, answer.json()['error']['code']) == (404, 'model_not_found')
    asked = {'prompt': 'abc', 'max_tokens': 1, 'logprobs': 0, 'echo': True}
    ids = np.array([[*b'abc']])
    for name, run in found.items():
        answer = client.post('/v1/completions', json={'model': name, **asked}).json()
        logits = forward(run.model)(run.params, ids)[0]
        wanted = np.asarray(jax.nn.log_softmax(logits))[[0, 1], ids[0, 1:]]
        given = answer['choices'][0]['logprobs']['token_logprobs'][1:3]
        np.testing.assert_allclose(given, wanted, atol=1e-4)


def test_the_client_of_lm_eval_gets_what_it_needs(served):
    """What it asks, as its `_create_payload` does, and how it reads the answer."""
    reason = "needs pip install 'bigmodels[evaluation]'"
    client_of = pytest.importorskip('lm_eval.models.openai_completions', reason=reason)
    found, client = served
    ids = [*b'abcab']
    asked = {
        'model': 'a', 'prompt': [ids], 'temperature': 0, 'max_tokens': 1, 'logprobs': 1,
        'seed': 1234, 'echo': True,
    }  # fmt: skip
    answer = client.post('/v1/completions', json=asked).json()
    [(nats, greedy)] = client_of.LocalCompletionsAPI.parse_logprobs(answer, ctxlens=[2])
    logits = forward(found['a'].model)(found['a'].params, np.array([ids]))[0]
    log_probs = np.asarray(jax.nn.log_softmax(logits))[1:4]
    assert nats == pytest.approx(log_probs[np.arange(3), ids[2:]].sum(), rel=1e-4)
    assert greedy == (log_probs.argmax(-1) == ids[2:]).all()


def test_what_cannot_be_served_together_is_told_by_what_differs(tmp_path):
    first = make_run(tmp_path, 1)
    other = tokenizers.Characters('ab')

    def together(run):
        return common_base.of_one_base({'one': first, 'two': run})

    for run, message in [
        (make_run(tmp_path, 2, dataclasses.replace(LORA, rank=3)), r'rank = 3, but 2'),
        (make_run(tmp_path, 2, dataclasses.replace(LORA, weights='int8')), "weights = 'int8'"),
        (make_run(tmp_path, 2, base_seed=1), r'two .* another base than one .*: embed/embedding'),
        (make_run(tmp_path, None, base_seed=1), 'another base than one'),
        (make_run(tmp_path, 2, activation='relu'), 'another model than one'),
        (dataclasses.replace(first, task=dataclasses.replace(first.task, vocabulary=other)),
         'another tokenizer'),
    ]:  # fmt: skip
        with pytest.raises(errors.UserError, match=message):
            together(run)
    base = make_run(tmp_path, None)
    with pytest.raises(errors.UserError, match='None of these runs has adapters'):
        common_base.of_one_base({'one': base, 'two': base})
    whole = make_run(tmp_path, 1, dataclasses.replace(LORA, trained=('unembed',)))
    with pytest.raises(errors.UserError, match='trained whole'):
        common_base.of_one_base({'one': whole})


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--adapter=a'], 'must be NAME=WORKDIR'),
        (['--adapter=a=b', '--adapter=a=c'], 'Two models have one name, among: run, a'),
        (['--adapter=run=b'], 'Two models have one name'),
    ],
)
def test_names_of_adapters(options, message, monkeypatch):
    monkeypatch.setattr('sys.argv', ['serve', '--workdir=runs/run', *options])
    with pytest.raises(errors.UserError, match=message):
        serve.main()
