"""Requests that share an engine against each one generated alone."""

import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors, sharding
from bigmodels.deploy import weights
from bigmodels.deploy.decoding import generate_tokens
from bigmodels.deploy.engine import Engine
from bigmodels.deploy.requests import Settings
from bigmodels.deploy.runner import QueueFull, Runner
from bigmodels.deploy.sampling import Sampling
from bigmodels.models import transformer
from tests.deploy.test_generate import forward, make_params, make_task

GREEDY = Sampling(temperature=0)
LENGTH, WIDTHS = 24, (4, 8)
rng = np.random.default_rng(0)
# Shorter and longer than a chunk, one token, and as long as there is room for.
PROMPTS = [rng.integers(97, 105, n).tolist() for n in (5, 1, 18, 4, 9, 2, 13, 18)]
COUNTS = [6, 6, 6, 3, 1, 6, 5, 4]


@functools.cache
def model_and_params(kept='float32'):
    task = make_task(tie_embeddings=False, num_kv_heads=2)
    return weights.packed(task.model, make_params(task), kept)


@functools.cache
def engine():
    """One for all tests: what a test leaves in its slots is no other's concern."""
    return Engine(*model_and_params(), slots=3, length=LENGTH, widths=WIDTHS)


def alone(prompt, count, sampling=GREEDY, seed=0, kept='float32'):
    """Tokens and log probabilities of `generate_tokens`, for this prompt alone."""
    padded = np.pad(prompt, (0, 18 - len(prompt)))[None]
    generated = generate_tokens(
        *model_and_params(kept), jnp.asarray(padded), jnp.array([len(prompt)]),
        jnp.zeros((0, 0), jnp.int32), jax.random.key(seed), max_new_tokens=6, sampling=sampling,
    )  # fmt: skip
    return generated.tokens[0, :count].tolist(), generated.log_probs[0, :count]


def finished(engine, requests=()):
    """Steps until nothing is left; each request's log probabilities and finish, by request."""
    log_probs, finishes = {request: [] for request in requests}, {}
    while engine.num_waiting + engine.num_active:
        for event in engine.step():
            assert event.request not in finishes
            if event.token is not None:
                log_probs.setdefault(event.request, []).append(event.log_prob)
            if event.finish is not None:
                finishes[event.request] = event.finish
    assert engine.step() == []
    return log_probs, finishes


def answers(engine, prompts, settings):
    requests = [engine.submit(*pair) for pair in zip(prompts, settings, strict=True)]
    _, finishes = finished(engine)
    assert [finishes[request] for request in requests] == ['length'] * len(requests)
    return [request.new_tokens for request in requests]


def test_greedy_tokens_are_those_of_one_at_a_time():
    requests = [
        engine().submit(prompt, Settings(count, GREEDY))
        for prompt, count in zip(PROMPTS, COUNTS, strict=True)
    ]
    log_probs, finishes = finished(engine())
    for request, prompt, count in zip(requests, PROMPTS, COUNTS, strict=True):
        tokens, expected = alone(prompt, count)
        assert request.new_tokens == tokens
        np.testing.assert_allclose(log_probs[request], expected, atol=1e-4)
        assert finishes[request] == 'length'


def test_each_request_is_sampled_by_its_own_settings_and_seed():
    """Greedy, hot, filtered and penalised ones beside each other, as each is alone."""
    samplings = [
        Sampling(1.5), GREEDY, Sampling(2.0, top_k=3), Sampling(1.2, top_p=0.8, min_p=0.01),
        Sampling(0, repetition_penalty=3.0, presence_penalty=0.5), Sampling(1.5), Sampling(1.5),
        Sampling(1.0, frequency_penalty=2.0),
    ]  # fmt: skip
    seeds = [0, 0, 7, 2**32 - 1, 0, 3, 4, 5]
    settings = [Settings(*rest) for rest in zip(COUNTS, samplings, [()] * 8, seeds, strict=True)]
    expected = [
        alone(prompt, s.max_new_tokens, s.sampling, s.seed)[0]
        for prompt, s in zip(PROMPTS, settings, strict=True)
    ]
    assert answers(engine(), PROMPTS, settings) == expected
    order = [3, 7, 0, 5, 2, 6, 4, 1]
    shuffled = answers(engine(), [PROMPTS[i] for i in order], [settings[i] for i in order])
    assert shuffled == [expected[i] for i in order]


def distribution(tokens):
    """Log probabilities of what follows, by the whole model again: float64 [V]."""
    model, params = model_and_params()
    padded = np.pad(tokens, (0, LENGTH - len(tokens)))[None]
    logits = forward(model)(params, padded)[0, len(tokens) - 1]
    return np.float64(jax.nn.log_softmax(logits))


def test_alternatives_are_the_most_probable_tokens_and_change_none():
    """Whatever was drawn, by the logits as they are; for those who ask, beside others."""
    settings = [
        Settings(3, GREEDY, alternatives=3),
        Settings(3, Sampling(2.0, top_k=2), seed=5, alternatives=20),
        Settings(3, GREEDY),
    ]
    requests = [engine().submit(*pair) for pair in zip(PROMPTS, settings, strict=False)]
    found = {request: [] for request in requests}
    while engine().num_waiting + engine().num_active:
        for event in engine().step():
            found[event.request].append(event)
    for request, prompt, asked in zip(requests, PROMPTS, settings, strict=False):
        assert request.new_tokens == alone(prompt, 3, asked.sampling, asked.seed)[0]
        for i, event in enumerate(found[request]):
            assert len(event.alternatives) == asked.alternatives
            log_probs = distribution((*prompt, *request.new_tokens[:i]))
            best = np.sort(log_probs)[::-1][: asked.alternatives]
            np.testing.assert_allclose([p for _, p in event.alternatives], best, atol=1e-4)
            for token, log_prob in event.alternatives:
                assert log_prob == pytest.approx(log_probs[token], abs=1e-4)


def test_nothing_is_compiled_under_load():
    compiled = []

    def listen(event, duration, **_):
        if 'compile' in event:
            compiled.append(event)

    first = engine()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for sampling in (GREEDY, Sampling(1.3, top_k=4), Sampling(1.0, presence_penalty=1.0)):
            settings = [Settings(count, sampling, alternatives=count - 1) for count in COUNTS]
            answers(first, PROMPTS, settings)
        cancelled = first.submit(PROMPTS[2], Settings(6))
        first.step()
        first.cancel(cancelled)
        finished(first)
        assert compiled == []
        jax.jit(lambda x: x + 41)(1)
        assert compiled  # the listener hears
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_a_prompt_that_begins_like_one_before_is_not_computed_again():
    def computed(prompt):
        before = engine().num_computed
        assert answers(engine(), [prompt], [Settings(4, GREEDY)]) == [alone(prompt, 4)[0]]
        return engine().num_computed - before

    first = [*range(120, 129)]  # of tokens that no other test has
    assert computed(first) == 8
    # Its next turn goes on where it ended: the last token of the answer, and all new but the last.
    turn = [*first, *alone(first, 4)[0], 99, 98]
    assert computed(turn) == 2
    # Copies of what is shared, beside what it was copied from; one token is computed at least.
    assert computed([*first, 100, 101]) == 1
    assert computed([*turn, 97]) == 1
    # Of one that is being answered.
    prompts = [*range(130, 143)], [*range(130, 140), 97]
    before = engine().num_computed
    requests = [engine().submit(prompts[0], Settings(4, GREEDY))]
    while not requests[0].new_tokens:
        engine().step()
    requests.append(engine().submit(prompts[1], Settings(4, GREEDY)))
    finished(engine())
    assert engine().num_computed - before == 12 + 1
    for request, prompt in zip(requests, prompts, strict=True):
        assert request.new_tokens == alone(prompt, 4)[0]


def test_cancelled_requests_end_and_leave_the_others_alone():
    waits, fills, decodes = (PROMPTS[i] for i in (0, 2, 3))
    kept, cancelled = engine().submit(PROMPTS[6], Settings(5, GREEDY)), []
    for prompt in (decodes, PROMPTS[0]):
        cancelled.append(engine().submit(prompt, Settings(6, GREEDY)))
    while not cancelled[1].new_tokens:
        engine().step()
    engine().cancel(cancelled[1])
    cancelled.append(engine().submit(fills, Settings(6, Sampling(1.0))))
    while engine().num_active < 3 or engine()._filling is None:
        engine().step()
    cancelled.append(engine().submit(waits, Settings(6)))
    for request in cancelled:
        engine().cancel(request)
    _, finishes = finished(engine(), cancelled)
    assert finishes.pop(kept) == 'length'
    assert set(finishes.values()) == {'cancelled'}
    assert kept.new_tokens == alone(PROMPTS[6], 5)[0]
    assert cancelled[-1].new_tokens == cancelled[-2].new_tokens == []
    engine().cancel(kept)  # has ended: nothing happens
    assert engine().step() == []


def test_stop_sequences():
    tokens, _ = alone(PROMPTS[0], 6)
    stop = tokens[2:4]
    ends = next(i + 2 for i in range(5) if tokens[i : i + 2] == stop)
    request = engine().submit(PROMPTS[0], Settings(6, GREEDY, stops=[[255], stop]))
    across = engine().submit(
        PROMPTS[0], Settings(6, GREEDY, stops=[[PROMPTS[0][-1], tokens[0]]])
    )  # the prompt does not count
    _, finishes = finished(engine())
    assert finishes[request] == 'stop'
    assert request.new_tokens == tokens[:ends]
    assert len(across.new_tokens) > 1


@pytest.mark.parametrize('kept', ['bfloat16', 'int8'])
def test_narrow_weights_give_what_they_give_alone(kept):
    own = Engine(*model_and_params(kept), slots=4, length=LENGTH, widths=[8])
    given = answers(own, PROMPTS, [Settings(count, GREEDY) for count in COUNTS])
    assert given == [
        alone(prompt, count, kept=kept)[0] for prompt, count in zip(PROMPTS, COUNTS, strict=True)
    ]


def test_a_mesh_gives_what_one_device_gives():
    task = make_task(tie_embeddings=False, num_kv_heads=2)
    mesh = sharding.make_mesh(sharding.MeshShape(data=1, tensor=2), jax.devices()[:2])
    plain = make_params(task)
    specs, _ = sharding.param_specs(plain, transformer.SHARDING_RULES, mesh)
    placed = jax.tree.map(
        lambda leaf, spec: jax.device_put(leaf, jax.sharding.NamedSharding(mesh, spec)),
        plain,
        specs,
    )
    own = Engine(*weights.packed(task.model, placed), slots=3, length=LENGTH, widths=[8], mesh=mesh)
    [layer, *_] = own._programs.cache
    assert layer['key'].addressable_shards[0].data.shape == (3, 1, LENGTH, 8)
    given = answers(own, PROMPTS, [Settings(count, GREEDY) for count in COUNTS])
    assert given == [alone(*pair)[0] for pair in zip(PROMPTS, COUNTS, strict=True)]


def test_mistakes():
    for tokens, message in (
        ([], 'at least one token'),
        ([256], 'outside of the vocabulary, 0 to 255'),
        ([97] * 20, r'20 tokens and 5 new ones exceed the context of 24'),
        ([256] * 20, '20 tokens and 5'),  # before any is looked at
    ):
        with pytest.raises(errors.UserError, match=message):
            engine().submit(tokens, Settings(5))
    for settings, message in (
        (dict(max_new_tokens=0), 'max_new_tokens = 0'),
        (dict(seed=-1), 'seed = -1'),
        (dict(alternatives=21), 'alternatives = 21 must be from 0 to 20'),
        (dict(adapter=-1), 'adapter = -1'),
        (dict(stops=[[1], []]), 'stop sequence is empty'),
    ):
        with pytest.raises(errors.UserError, match=message):
            Settings(**settings)
    with pytest.raises(errors.UserError, match='adapter = 1 must be under 1'):
        engine().submit([97], Settings(5, adapter=1))
    model, params = model_and_params()
    for options, message in (
        (dict(length=64), 'length = 64 must be from 1 to 32'),
        (dict(slots=0), r'slots = 0'),
        (dict(widths=()), r'widths = \(\)'),
    ):
        with pytest.raises(errors.UserError, match=message):
            Engine(model, params, **options)
    with pytest.raises(errors.UserError, match=r'weights\.packed'):
        Engine(model.clone(scan_layers=True), params)


def test_a_runner_answers_many_threads():
    expected = [alone(*pair)[0] for pair in zip(PROMPTS, COUNTS, strict=True)]
    given = {}

    def client(runner, number):
        events, ended = [], threading.Event()

        def listen(event):
            events.append(event)
            if event.finish is not None:
                ended.set()

        settings = Settings(COUNTS[number], GREEDY)
        runner.submit(PROMPTS[number], settings, listener=listen)
        assert ended.wait(60)
        given[number] = [event.token for event in events]

    with Runner(engine()) as runner:
        threads = [threading.Thread(target=client, args=(runner, i)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [given[i] for i in range(8)] == expected


def test_a_runner_drains_closes_and_refuses():
    finishes = []
    listen = lambda event: event.finish and finishes.append(event.finish)
    runner = Runner(engine())
    for prompt in PROMPTS:
        runner.submit(prompt, Settings(6, GREEDY), listener=listen)
    runner.drain()
    assert finishes == ['length'] * 8
    with pytest.raises(errors.UserError, match='takes no more requests'):
        runner.submit(PROMPTS[0], Settings(6), listener=listen)

    finishes.clear()
    busy, go_on = threading.Event(), threading.Event()

    def block(event):
        busy.set()
        assert go_on.wait(60)

    with Runner(engine(), most_waiting=2) as runner:
        runner.submit(PROMPTS[2], Settings(6), listener=block)
        assert busy.wait(60)  # the engine stands still, so that these two wait
        for _ in range(2):
            runner.submit(PROMPTS[2], Settings(6), listener=listen)
        with pytest.raises(QueueFull, match='2 requests are waiting'):
            runner.submit(PROMPTS[2], Settings(6), listener=listen)
        threading.Timer(0.2, go_on.set).start()
    assert finishes == ['cancelled'] * 2
    assert engine().num_active == engine().num_waiting == 0


def test_a_failure_is_told_to_all(monkeypatch):
    finishes = []
    runner = Runner(engine())
    with monkeypatch.context() as patch:
        patch.setattr(engine(), 'step', lambda: 1 / 0)
        request = runner.submit(
            PROMPTS[0], Settings(6), listener=lambda event: finishes.append(event.finish)
        )
        with pytest.raises(RuntimeError, match='engine has failed') as raised:
            runner.drain()
        assert isinstance(raised.value.__cause__, ZeroDivisionError)
        assert finishes == ['failed']
        assert runner.has_failed
        with pytest.raises(RuntimeError, match='engine has failed'):
            runner.submit(PROMPTS[0], Settings(6), listener=print)
    engine().cancel(request)
    finished(engine())


def test_a_listener_that_raises_ends_the_runner():
    finishes, go_on = [], threading.Event()
    runner = Runner(engine())
    runner.submit(PROMPTS[0], Settings(6), listener=lambda event: go_on.wait(60) / 0)
    requests = [
        runner.submit(prompt, Settings(6), listener=lambda event: finishes.append(event.finish))
        for prompt in PROMPTS[1:3]
    ]
    go_on.set()
    with pytest.raises(RuntimeError, match='engine has failed'):
        runner.drain()
    assert finishes == ['failed'] * len(requests)
    finished(engine())
