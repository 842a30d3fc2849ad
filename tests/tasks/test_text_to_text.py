"""Pairs of texts to examples, losses and scores, and a small task that is learnt."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import config as config_lib
from bigmodels import errors, predict, runs
from bigmodels import train as train_lib
from bigmodels.data import pipeline, tokenizers
from bigmodels.data.sources import pair_sources
from bigmodels.models.encoder_decoder import EncoderDecoder
from bigmodels.scores import text as text_scores
from bigmodels.tasks.text_to_text import TextToText
from tests import commands
from tests.tasks.test_span_extraction import numbers

# Compiles in half the time, and computes the same.
jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
END = tokenizers.Bytes.end_of_text
SOURCES = ['three', 'a', 'fours', 'hello you', '']
TARGETS = ['drei', 'ein', 'vier', 'du', 'nichts']


class Records(tuple):
    """Records in memory as a source."""

    def fingerprint(self) -> str:
        return 'records'

    def describe(self) -> str:
        return 'the records'


RECORDS = Records(dict(source=s, target=t) for s, t in zip(SOURCES, TARGETS, strict=True))


def make(**changes) -> TextToText:
    model = EncoderDecoder(vocab_size=256, num_layers=1, embed_dim=16, num_heads=2, max_length=32)
    fields = dict(source_length=12, target_length=8, score_names=('exact_match',))
    task = TextToText(model, dict(name='bytes'), **fields | changes)
    return task.fit(RECORDS)


def batch_of(task, directory, train=True):
    examples = task.examples(RECORDS, directory, train)
    batch = pipeline.take(examples, np.arange(len(examples)))
    return jax.tree.map(jnp.asarray, batch)


def loss_of(task, params, batch, train):
    return jit(functools.partial(task.loss_fn, train=train))(params, {}, batch, jax.random.key(1))


def test_a_target_may_not_hold_the_token_at_which_writing_stops(tmp_path):
    pairs = [('a\nb', 'ab'), ('b', 'a\nb')]
    lines = Records({'source': source, 'target': target} for source, target in pairs)
    model = EncoderDecoder(vocab_size=8, num_layers=1, embed_dim=16, num_heads=2, max_length=32)
    fields = dict(source_length=12, target_length=8)
    for row_length in (0, 24):
        task = TextToText(model, dict(name='characters'), row_length=row_length, **fields)
        task = task.fit(lines)
        assert task.preprocess(lines[0])['weights'].sum() == 3  # sources may
        with pytest.raises(errors.UserError, match=r"ecord 1.*: The target .* has '.n' within it"):
            pipeline.take(task.examples(lines, tmp_path, train=True), np.arange(2))


def test_a_record_becomes_padded_tokens_and_is_text_again():
    example = make().preprocess({'source': 'hello you', 'target': 'du'})
    assert bytes(example['inputs'].tolist()) == b'hello you\0\0\0'
    assert example['input_segment_ids'].tolist() == [1] * 10 + [0] * 2
    assert example['weights'].tolist() == [1] * 3 + [0] * 5
    assert make().postprocess(example['targets']) == 'du'
    assert make().preprocess({'source': 'hello you'}).keys() == {'inputs', 'input_segment_ids'}
    cut = make(source_length=5, cut_sources=True).preprocess({'source': 'hello you'})
    assert bytes(cut['inputs'].tolist()) == b'hell\0'


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            dict(source_length=9),
            "the records, record 3: The source 'hello you'... has 10 tokens with",
        ),
        (dict(target_length=5), "the records, record 4: The target 'nichts'... has 7 tokens"),
        (
            dict(target_field='goal'),
            "the records, record 0: Unknown record field task.target_field = 'goal'",
        ),
        (
            dict(references_field='right'),
            "the records, record 0: Unknown record field task.references_field = 'right'",
        ),
    ],
)
def test_what_is_wrong_with_a_record_names_it(changes, message, tmp_path):
    task = dataclasses.replace(make(), **changes)
    with pytest.raises(errors.UserError, match=message):
        batch_of(task, tmp_path, train=False)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(source_length=33), 'at most model.max_length = 32'),
        (dict(row_length=11), 'must be 0, or at least 12'),
        (dict(beam_size=0), 'beam_size = 0 must be at least 1'),
        (dict(score_names=('blue',)), 'Did you mean'),
    ],
)
def test_a_mistake_in_the_config_is_told_at_once(changes, message):
    with pytest.raises(errors.UserError, match=message):
        make(**changes)


def test_rows_of_several_pairs_have_the_loss_of_the_pairs(tmp_path):
    apart, packed = make(), make(row_length=24)
    one, other = batch_of(apart, tmp_path), batch_of(packed, tmp_path)
    assert len(other['inputs']) < len(one['inputs'])
    for task, batch in ((apart, one), (packed, other)):
        shapes = {name: (value.shape[1:], value.dtype) for name, value in batch.items()}
        assert shapes == {k: (v.shape, v.dtype) for k, v in task.example_shapes().items()}
    params = jit(apart.init)(jax.random.key(0), one)['params']
    for train in (True, False):
        values = [
            loss_of(task, params, batch, train)[1][0]
            for task, batch in ((apart, one), (packed, other))
        ]
        np.testing.assert_allclose(values[0]['loss'], values[1]['loss'], rtol=1e-5)
        np.testing.assert_allclose(values[0]['accuracy'], values[1]['accuracy'])
        assert values[0]['loss'][1] == sum(len(text) + 1 for text in TARGETS)


def test_the_loss_is_smoothed_in_training_only(tmp_path):
    task = make(label_smoothing=0.2)
    batch = batch_of(task, tmp_path)
    params = jit(task.init)(jax.random.key(0), batch)['params']
    before = np.pad(batch['targets'][:, :-1], ((0, 0), (1, 0)), constant_values=END)
    logits = jit(task.model.apply)(
        {'params': params}, batch['inputs'], before, input_segment_ids=batch['input_segment_ids']
    )
    log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    of_targets = np.take_along_axis(log_probs, np.asarray(batch['targets'])[..., None], -1)[..., 0]
    for train, loss in (
        (False, -of_targets),
        (True, -(0.8 * of_targets + 0.2 * log_probs.mean(-1))),
    ):
        expected = (loss * batch['weights']).sum() / batch['weights'].sum()
        given, _ = loss_of(task, params, batch, train)
        np.testing.assert_allclose(given, expected, rtol=1e-5)


def test_answers_are_scored_by_the_nearest_of_several_references():
    task = make(
        references_field='answers', max_references=3, score_names=('exact_match', 'token_f1')
    )
    records = [
        {'source': 'a', 'target': 'x', 'answers': ['x', 'a cat']},
        {'source': 'b', 'target': 'y', 'answers': ['', 'big dog', 'z']},
    ]
    references = np.stack([task.preprocess(record)['references'] for record in records])
    answers = np.stack([task.preprocess({'source': '', 'target': t})['targets']
                        for t in ('cat', 'big')])  # fmt: skip
    scores = task.scores({'answers': answers, 'references': references})
    assert scores == {'exact_match': 50, 'token_f1': pytest.approx(100 * (1 + 2 / 3) / 2)}
    with pytest.raises(errors.UserError, match="'answers' has 4 texts, wanted 1 to"):
        task.preprocess(records[0] | {'answers': list('abcd')})


def test_rows_of_pairs_begin_as_pairs_do(tmp_path):
    """Which is without the token that begins documents, where a tokenizer has one."""

    class Begun(tokenizers.Bytes):
        begin_of_text = 1

    task = dataclasses.replace(make(row_length=24), vocabulary=Begun())
    assert not (batch_of(task, tmp_path)['inputs'] == 1).any()
    assert not (batch_of(task, tmp_path, train=False)['inputs'] == 1).any()


def test_only_held_out_examples_have_references(tmp_path):
    task = make(references_field='answers', max_references=2)
    records = Records([{'source': 'a', 'target': 'x', 'answers': ['x', 'y']}])
    [training] = task.examples(records, tmp_path, train=True)
    assert {name: (v.shape, v.dtype) for name, v in training.items()} == {
        name: (v.shape, v.dtype) for name, v in task.example_shapes().items()
    }
    [held_out] = task.examples(records, tmp_path, train=False)
    assert held_out.keys() - training.keys() == {'references'}
    assert held_out['references'].shape == (2, task.target_length)
    [without] = task.examples(Records([{'source': 'a', 'target': 'x'}]), tmp_path, train=True)
    np.testing.assert_array_equal(without['targets'], training['targets'])


def reversals(path, count, seed):
    """JSONL of words of three to five letters, and the same backwards."""
    rng = np.random.default_rng(seed)
    words = (''.join(rng.choice(list('abcdef'), rng.integers(3, 6))) for _ in range(count))
    path.write_text(''.join(json.dumps({'source': w, 'target': w[::-1]}) + '\n' for w in words))
    return dict(name='jsonl', path=str(path))


@pytest.mark.slow
def test_the_tiny_variant_learns_to_turn_words_around_and_its_answers_are_a_data_set(
    tmp_path, capsys
):
    config = config_lib.load(f'{commands.ROOT}/configs/translate.py:tiny')
    with config.unlocked():
        config.data.train = reversals(tmp_path / 'train.jsonl', 2000, seed=0)
        config.data.evals = dict(test=reversals(tmp_path / 'test.jsonl', 50, seed=1))
        config.task.update(source_length=8, target_length=8, row_length=32, samples=('abc',))
        config.task.score_names = ('exact_match', 'bleu')
        config.batch_size, config.total_steps = 16, 900
        config.checkpoint.every = 900
    figures = train_lib.train(config, tmp_path / 'run')
    assert figures['test/exact_match'] > 95
    run = runs.open_run(tmp_path / 'run')
    assert (tmp_path / 'run' / 'samples.txt').read_text() == 'abc\n    cba\n'
    raw = run.task.preprocess({'source': 'fade'})
    [answer] = jax.jit(run.task.predict)(run.params, {}, jax.tree.map(lambda x: x[None], raw))
    assert run.task.postprocess(np.asarray(answer)) == 'edaf'

    records = [json.loads(line) for line in (tmp_path / 'test.jsonl').read_text().splitlines()]
    told = commands.printed(
        predict, capsys, workdir=tmp_path / 'run', input=tmp_path / 'test.jsonl'
    )
    lines = {
        'sources': [record['source'] for record in records],
        'answers': [json.loads(line)['answer'] for line in told.splitlines()],
    }
    for name, texts in lines.items():
        (tmp_path / name).write_text('\n'.join(texts))
    taught = pair_sources.ParallelText(str(tmp_path / 'sources'), str(tmp_path / 'answers'))
    right = [pair == record for pair, record in zip(taught, records, strict=True)]
    assert sum(right) == figures['test/exact_match'] / 2  # of 50


def first_words(path, count, seed):
    """JSONL of texts and their first two words, which summarise them."""
    rng = np.random.default_rng(seed)
    texts = [[''.join(rng.choice(list('abcd'), 4)) for _ in range(6)] for _ in range(count)]
    records = ({'text': ' '.join(words), 'summary': ' '.join(words[:2])} for words in texts)
    path.parent.mkdir(exist_ok=True)
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))


@pytest.mark.slow
def test_the_row_of_summaries_trains_resumes_and_answers(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('BIGMODELS_DATA', str(tmp_path))
    for number, name in enumerate(('train', 'test')):
        first_words(tmp_path / 'summaries' / f'{name}.jsonl', 100 - 60 * number, number)
    config = config_lib.load(f'{commands.ROOT}/configs/summarize.py:tiny', ['log_every=1'])
    figures = train_lib.train(config, tmp_path / 'run')
    assert {'test/rouge1', 'test/rouge2', 'test/rouge_l'} < set(figures)
    losses = commands.losses(tmp_path / 'run')
    assert losses[-1] < losses[0]
    assert commands.resumed(tmp_path / 'run', tmp_path / 'resumed') == figures
    test = tmp_path / 'summaries' / 'test.jsonl'
    answers = [answer['answer'] for answer in commands.answered(capsys, tmp_path / 'run', test)]
    references = [json.loads(line)['summary'] for line in test.read_text().splitlines()]
    found = text_scores.SCORES['rouge1'](answers, [[text] for text in references])
    assert found == pytest.approx(figures['test/rouge1'], abs=1e-6)


@pytest.mark.slow
def test_questions_are_answered_by_texts_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('BIGMODELS_DATA', str(tmp_path))
    (tmp_path / 'squad').mkdir()
    for number, name in enumerate(('train', 'dev')):
        numbers(tmp_path / 'squad' / f'{name}-v1.1.json', 200 - 160 * number, number)
    spec = f'{commands.ROOT}/configs/question_answering.py:tiny_text'
    figures = train_lib.train(config_lib.load(spec, ['log_every=1']), tmp_path / 'run')
    assert figures['dev/token_f1'] >= figures['dev/exact_match'] >= 0
    losses = commands.losses(tmp_path / 'run')
    assert losses[-1] < losses[0]
    asked = tmp_path / 'asked.jsonl'
    asked.write_text(json.dumps({'source': 'question: How many? context: a 417 d'}))
    [answer] = commands.answered(capsys, tmp_path / 'run', asked)
    assert isinstance(answer['answer'], str)
