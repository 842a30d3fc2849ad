"""Answers within passages: the likeliest span by enumeration, scores by record, a task learnt."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import config as config_lib
from bigmodels import errors
from bigmodels import train as train_lib
from bigmodels.data import pipeline, question_windows, tokenizers
from bigmodels.models.transformer_classifier import TransformerClassifier
from bigmodels.tasks.span_extraction import SpanExtraction
from tests import commands

rng = np.random.default_rng(0)
RECORDS = [
    {
        'question': 'What?',
        'context': 'It is a blue ball, which rolls.',
        'answers': ['blue ball', 'ball'],
        'starts': np.array([8, 13]),
    },
    {'question': 'Who?', 'context': 'Bo.', 'answers': ['Bo'], 'starts': np.array([0])},
]


class Fixed(nn.Module):
    """A model of given logits [B, L, 2]."""

    num_classes: int = 2
    vocab_size: int = 256

    @nn.compact
    def __call__(self, inputs, *, segment_ids=None, train=False):
        shape = (*inputs.shape, 2)
        return self.param('logits', nn.initializers.zeros, shape)


def make(model=None, **changes) -> SpanExtraction:
    model = model or Fixed()
    fields = dict(
        sequence_length=20, question_length=5, stride=10, answer_length=9, max_references=2
    )
    task = SpanExtraction(model, dict(name='bytes'), **fields | changes)
    return dataclasses.replace(task, vocabulary=tokenizers.Bytes())


class Records(list):
    def describe(self) -> str:
        return 'the records'


def batch_of(task, directory):
    examples = task.examples(Records(RECORDS), directory, train=True)
    batch = pipeline.evaluation_batches(examples, len(examples))[0]
    return jax.tree.map(jnp.asarray, batch)


def test_shapes_are_known_without_data(tmp_path):
    batch = batch_of(make(), tmp_path)
    shapes = {name: (value.shape[1:], value.dtype) for name, value in batch.items()}
    assert shapes == {k: (v.shape, v.dtype) for k, v in make().example_shapes().items()}


def test_an_empty_passage_has_no_answer():
    example = make().preprocess({'question': 'Who?', 'context': ''})
    batch = {name: jnp.asarray(value)[None] for name, value in example.items()}
    logits = rng.normal(size=(1, len(example['inputs']), 2)).astype(np.float32)
    found = make().predict({'logits': logits}, {}, batch)
    assert make().postprocess({name: value[0] for name, value in found.items()}) == ''


def test_the_likeliest_span_is_that_of_all_allowed_ones(tmp_path):
    task = make(answer_length=4)
    examples = question_windows.Windows(tokenizers.Bytes(), 20, 5, 10, 9, 2).of(RECORDS[0])
    batch = jax.tree.map(jnp.asarray, pipeline.stacked(examples))
    logits = rng.normal(size=(len(examples), 20, 2)).astype(np.float32)
    found = task.predict({'logits': logits}, {}, batch)
    for row, window in enumerate(examples):
        first, length = int(window['context_start']), int(window['segment_ids'].sum())
        spans = [
            (logits[row, i, 0] + logits[row, j, 1], i, j)
            for i in range(first, length)
            for j in range(i, min(i + 4, length))
        ]
        score, i, j = max(spans)
        np.testing.assert_allclose(found['scores'][row], score, rtol=1e-6)
        expected = np.full(4, -1)
        expected[: j - i + 1] = window['inputs'][i : j + 1]
        np.testing.assert_array_equal(found['answers'][row], expected)


def test_the_loss_is_that_of_both_ends(tmp_path):
    task = make()
    batch = batch_of(task, tmp_path)
    logits = rng.normal(size=(*batch['inputs'].shape, 2)).astype(np.float32)
    given, (pairs, _) = task.loss_fn({'logits': logits}, {}, batch, jax.random.key(0), train=True)
    expected = []
    for row, values in enumerate(logits):
        at, length = batch['context_start'][row] - 1, batch['segment_ids'][row].sum()
        ends = values[at:length].astype(np.float64)
        log_probs = ends - np.log(np.exp(ends).sum(0))
        targets = batch['targets'][row] - at
        expected.append(-(log_probs[targets[0], 0] + log_probs[targets[1], 1]) / 2)
    np.testing.assert_allclose(given, np.mean(expected), rtol=1e-5)
    assert pairs['loss'][1] == len(logits)


def test_a_record_is_scored_by_its_likeliest_window():
    row = lambda text, length: np.pad(
        np.frombuffer(text, np.uint8).astype(int), (0, length - len(text)), constant_values=-1
    )
    outcomes = {
        'answers': np.stack([row(a, 6) for a in (b'wrong', b' a cat', b'wrong', b'dog')]),
        'scores': np.array([1.0, 3.0, 2.0, -5.0]),
        'record': np.array([0, 0, 0, 7]),
        'references': np.stack([[row(b'cat', 9), row(b'', 9)]] * 3
                               + [[row(b'big dog', 9), row(b'bird', 9)]]),
    }  # fmt: skip
    scores = make().scores(outcomes)
    assert scores == {'exact_match': 50, 'token_f1': pytest.approx(100 * (1 + 2 / 3) / 2)}


def test_mistakes_are_told():
    with pytest.raises(errors.UserError, match='must be 2: the first and the last'):
        make(Fixed(num_classes=3))
    with pytest.raises(errors.UserError, match='takes 2 windows of 20 tokens: shorten it'):
        make().preprocess({'question': 'Who?', 'context': 'A longer context.'})


def test_a_token_classifier_gives_logits_for_every_token():
    encoder = dict(vocab_size=256, num_layers=1, embed_dim=8, num_heads=2, causal=False)
    model = TransformerClassifier(num_classes=2, encoder=encoder, pool='none')
    out, _ = model.init_with_output(jax.random.key(0), jnp.zeros((3, 7), int))
    assert out.shape == (3, 7, 2)


def numbers(path, count, seed):
    """SQuAD's format: a passage of letters and one number, which is the answer."""
    rng = np.random.default_rng(seed)
    paragraphs = []
    for number in range(count):
        words = [''.join(rng.choice(list('abcd'), 3)) for _ in range(6)]
        answer = str(rng.integers(10, 1000))
        words.insert(rng.integers(0, 7), answer)
        context = ' '.join(words)
        answers = [{'text': answer, 'answer_start': context.index(answer)}]
        asked = [{'id': number, 'question': 'How many?', 'answers': answers}]
        paragraphs.append({'context': context, 'qas': asked})
    path.write_text(json.dumps({'data': [{'paragraphs': paragraphs}]}))
    return dict(name='squad', path=str(path))


@pytest.mark.slow
def test_the_tiny_variant_learns_to_find_the_number(tmp_path, capsys):
    config = config_lib.load(f'{commands.ROOT}/configs/question_answering.py:tiny')
    with config.unlocked():
        config.data.train = numbers(tmp_path / 'train.json', 1000, seed=0)
        config.data.evals = dict(test=numbers(tmp_path / 'test.json', 40, seed=1))
        config.batch_size, config.total_steps = 32, 150
        config.checkpoint.every = 75
    figures = train_lib.train(config, tmp_path / 'run')
    assert figures['test/exact_match'] > 90
    assert figures['test/token_f1'] >= figures['test/exact_match']
    assert commands.resumed(tmp_path / 'run', tmp_path / 'resumed') == figures
    asked = {'question': 'How many?', 'context': 'abc dca 417 bab cda'}
    (tmp_path / 'asked.jsonl').write_text(json.dumps(asked))
    [answer] = commands.answered(capsys, tmp_path / 'run', tmp_path / 'asked.jsonl')
    assert '417' in answer['answer']
