"""Questions about images: rows of tokens, exact answers, and greedy decoding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors, losses
from bigmodels.data import pipeline, tokenizers
from bigmodels.models.vision_language import VisionLanguage
from bigmodels.tasks import VisualQuestions

IMAGE = dict(num_layers=1, embed_dim=8, num_heads=2, patch_size=4, pool='none')
TEXT = dict(vocab_size=12, num_layers=2, embed_dim=8, num_heads=2, max_length=32)
VOCABULARY = tokenizers.Characters('0123456789?')  # and '\n', the end, which is 0


def make_task(model=None, **fields):
    given = dict(
        question_length=6, answer_length=3, image_size=8, channels=1, mean=100.0, std=50.0,
        kinds=('a', 'b'), tokenizer=dict(name='characters'), vocabulary=VOCABULARY,
    )  # fmt: skip
    return VisualQuestions(model or VisionLanguage(IMAGE, TEXT), **given | fields)


def records(count=8):
    rng = np.random.default_rng(0)
    return [
        {
            'image': rng.integers(0, 256, (8, 8, 1), np.uint8),
            'question': '123?'[i % 4 :],
            'answer': str(i * i),
            'kind': np.int64(i % 2),
        }
        for i in range(count)
    ]


@pytest.fixture(scope='module')
def batch():
    return pipeline.stacked([make_task().preprocess(record) for record in records()])


@pytest.fixture(scope='module')
def params(batch):
    """Larger than at initialisation, so that answers differ."""
    params = make_task().init(jax.random.key(9), batch)['params']
    return jax.tree.map(lambda leaf: 5 * leaf, params)


@pytest.fixture(scope='module')
def found(batch, params):
    """What greedy decoding writes."""
    return np.asarray(jax.jit(make_task().predict)(params, {}, batch))


def test_a_row_is_question_end_answer_end_and_the_answer_counts(batch):
    ids = {character: int(VOCABULARY.encode(character)[0]) for character in '0123456789?'}
    q, end = ids['?'], VOCABULARY.encode('\n')[0]
    row = 4  # '123?' and 16
    one, two, three, six = (ids[c] for c in '1236')
    assert batch['tokens'][row].tolist() == [one, two, three, q, end, one, six, end]
    assert batch['targets'][row].tolist() == [two, three, q, end, one, six, end, end]
    assert batch['weights'][row].tolist() == [0, 0, 0, 0, 1, 1, 1, 0]
    assert batch['lengths'].tolist() == [4, 3, 2, 1] * 2
    image = records()[row]['image']
    np.testing.assert_allclose(batch['inputs'][row], (image - 100.0) / 50, rtol=1e-5)
    shapes = make_task().example_shapes()
    assert {key: (x.shape[1:], x.dtype) for key, x in batch.items()} == {
        key: (shape.shape, shape.dtype) for key, shape in shapes.items()
    }
    asked = {'image': np.zeros((9, 17, 3), np.uint8), 'question': '7?'}
    answered = make_task().preprocess(asked)
    assert answered.keys() == {'inputs', 'tokens', 'lengths'}
    assert answered['inputs'].shape == (8, 8, 1)


def test_greedy_answers_are_those_without_a_cache(batch, params, found):
    task = make_task()
    apply = jax.jit(task.model.apply)
    for row in range(8):
        question = records()[row]['question']
        tokens = [*VOCABULARY.encode(question), 0]
        for _ in range(3):
            padded = jnp.array([tokens + [0] * (9 - len(tokens))])
            length = batch['lengths'][row : row + 1]
            logits = apply({'params': params}, batch['inputs'][row : row + 1], padded, length)
            tokens.append(int(logits[0, len(tokens) - 1].argmax()))
            if tokens[-1] == 0:
                break
        answer = tokens[len(question) + 1 :]
        assert found[row].tolist() == answer + [0] * (3 - len(answer))
    assert len({task.postprocess(row) for row in found}) > 2


def test_exact_are_the_answers_that_decoding_writes(batch, params, found):
    """Some answers are made those that the model writes."""
    task = make_task()
    written = [task.postprocess(row) for row in found]
    known = [
        record | ({'answer': answer} if i != 3 and 0 < len(answer) < 3 else {})
        for i, (record, answer) in enumerate(zip(records(), written, strict=True))
    ]
    right = np.array([r['answer'] == w for r, w in zip(known, written, strict=True)])
    assert 3 <= right.sum() <= 6
    batch = pipeline.stacked([task.preprocess(record) for record in known])
    batch['weights'][5] = 0  # as padding has it
    assert right[5]
    right[5] = False
    loss_fn = jax.jit(functools.partial(task.loss_fn, train=False))
    loss, (pairs, _) = loss_fn(params, {}, batch, jax.random.key(0))
    for name, rows in (
        ('exact', slice(None)), ('exact_a', slice(0, None, 2)), ('exact_b', slice(1, None, 2)),
    ):  # fmt: skip
        total, count = pairs[name]
        assert (total, count) == (right[rows].sum(), (np.arange(8) != 5)[rows].sum())
    inputs = batch['inputs'], batch['tokens'], batch['lengths']
    logits = jax.jit(task.model.apply)({'params': params}, *inputs)
    each = losses.softmax_cross_entropy(logits, batch['targets'])
    mean = (each * batch['weights']).sum() / batch['weights'].sum()
    np.testing.assert_allclose(loss, mean, rtol=1e-5)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(question=' '), 'The question is empty'),
        (dict(question=3), "The field 'question' is int"),
        (
            dict(question='123456'),
            r"The question '123456'\.\.\. has 7 tokens .*question_length = 6",
        ),
        (dict(answer='123'), r'has 4 tokens with its end, more than task\.answer_length = 3'),
        (dict(kind=np.int64(2)), r'Label 2 is out of range: the number of task\.kinds is 2'),
        (dict(image=np.zeros((8, 8))), r'An image is uint8'),
    ],
)
def test_bad_records(change, message):
    with pytest.raises(errors.UserError, match=message):
        make_task().preprocess(records()[0] | change)


def test_a_record_without_its_answer_is_no_example():
    class Two(list):
        def describe(self):
            return 'two records'

    lacking = [{key: x for key, x in r.items() if key != 'answer'} for r in records(2)]
    with pytest.raises(errors.UserError, match=r'two records, record 1: .*task\.answer_key'):
        make_task().examples(Two(lacking), None, train=True)[1]


@pytest.mark.parametrize(
    ('image', 'text', 'fields', 'message'),
    [
        (dict(pool='mean'), {}, {}, r'model\.image\.pool must be none: the decoder sees'),
        ({}, dict(scan_layers=True), {}, r'model\.text\.scan_layers must be False'),
        ({}, dict(max_length=11), {}, r'The 4 patches .* are 12 states'),
        ({}, {}, dict(answer_length=1), r'answer_length = 1 must be at least 2'),
    ],
)
def test_what_cannot_be_is_said_at_once(image, text, fields, message):
    with pytest.raises(errors.UserError, match=message):
        make_task(VisionLanguage(IMAGE | image, TEXT | text), **fields)
