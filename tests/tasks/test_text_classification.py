"""Labelled texts to examples, losses and answers."""

import jax
import numpy as np
import pytest

from bigmodels import config, errors, train
from bigmodels.data.sources import table_sources
from bigmodels.models.recurrent import Recurrent
from bigmodels.tasks.text_classification import Labelled, TextClassification
from tests import commands, reviews

TEXTS = ['good film', 'bad', 'a film that is very good indeed', 'meh']
LABELS = [1, 0, 1, 0]


class Source(table_sources.Columns):
    """Texts and labels in memory."""

    def __init__(self, texts=TEXTS, labels=LABELS, kind=object):
        super().__init__({'text': np.array(texts, object), 'label': np.array(labels, kind)})

    def fingerprint(self):
        return table_sources.arrays_digest('test', {'text': self._columns['text'].astype(str)})

    def describe(self):
        return 'four texts'


def make(**settings):
    model = Recurrent(num_classes=2, vocab_size=400, embed_dim=8, hidden_dim=8)
    fields = dict(tokenizer={'name': 'bpe', 'vocab_size': 300}, sequence_length=12)
    return TextClassification(model, **fields | dict(classes=('negative', 'positive')) | settings)


def test_examples_are_those_that_serving_makes(tmp_path):
    task = make(sequence_length=5).fit(Source())
    examples = task.examples(Source(), tmp_path, train=True)
    together = examples.take(np.arange(4))
    for i in range(4):
        served = task.preprocess(Source()[i])
        assert served.keys() == examples[i].keys() == together.keys()
        for name, value in served.items():
            np.testing.assert_array_equal(examples[i][name], value)
            np.testing.assert_array_equal(together[name][i], value)
            assert examples[i][name].dtype == value.dtype == np.int32
    assert together['segment_ids'].sum(1).max() == 5  # the longest is cut
    without_label = task.preprocess({'text': 'good'})
    assert without_label.keys() == {'inputs', 'segment_ids'}
    shapes = task.example_shapes()
    assert {name: shapes[name].shape for name in served} == {
        name: value.shape for name, value in served.items()
    }


@pytest.mark.parametrize('tokenizer', [{'name': 'characters'}, {'name': 'bpe', 'vocab_size': 300}])
def test_a_record_that_no_tokenizer_can_be_fitted_to_is_named(tokenizer):
    texts = ['good', 'half \ud800', '', '']
    with pytest.raises(errors.UserError, match='four texts, record 1: The character .* surrogate'):
        make(tokenizer=tokenizer).fit(Source(texts))


def test_the_vocabulary_is_of_the_training_texts_and_goes_with_the_run(tmp_path):
    task = make().fit(Source())
    task.save(tmp_path)
    restored = make().restored(tmp_path)
    assert restored.vocabulary.fingerprint() == task.vocabulary.fingerprint()
    other = make().fit(Source(['other words'] * 4))
    assert other.vocabulary.fingerprint() != task.vocabulary.fingerprint()


def test_names_that_are_numbers_are_names(tmp_path):
    """As stars are, which a table has as numbers from 1."""
    task = make(classes=('1', '2')).fit(Source())
    for kind in (object, np.int64):
        examples = task.examples(Source(labels=[2, 1, 2, 1], kind=kind), tmp_path, train=True)
        np.testing.assert_array_equal(examples.take(np.arange(4))['targets'], LABELS)
    with pytest.raises(errors.UserError, match='Label 3 is out of range'):
        task.examples(Source(labels=[1, 2, 3, 1], kind=np.int64), tmp_path, train=True)


def test_numbers_from_0_are_not_taken_for_names_that_are_numbers_from_1(tmp_path):
    task = make(classes=('1', '2')).fit(Source())
    with pytest.raises(
        errors.UserError, match=r"Labels \[1\] are names .*'2'\), and \[0\] are none"
    ):
        task.examples(Source(labels=[0, 1, 0, 1], kind=np.int64), tmp_path, train=True)
    task = make(classes=('0', 'one')).fit(Source())  # a name that is its own place
    for labels in ([0, 1, 0, 1], ['0', 1, 0, 'one']):
        examples = task.examples(Source(labels=labels, kind=object), tmp_path, train=True)
        assert [example['targets'] for example in examples] == [0, 1, 0, 1]


def test_labels_are_numbers_or_names(tmp_path):
    task = make().fit(Source())
    named = Source(labels=['positive', 'negative', 'positive', 'negative'])
    for source in (Source(kind=np.int64), named):
        examples = task.examples(source, tmp_path, train=True)
        np.testing.assert_array_equal(examples.take(np.arange(4))['targets'], LABELS)
    assert task.postprocess(np.array([0.2, 0.8])) == {'label': 'positive', 'probability': 0.8}


def test_loss_and_accuracy_are_those_of_the_probabilities(tmp_path):
    task = make(token_dropout=0.5, label_smoothing=0.3).fit(Source())
    batch = task.examples(Source(), tmp_path, train=True).take(np.arange(4))
    batch['weights'] = np.array([1, 1, 1, 0], np.float32)
    params = task.init(jax.random.key(0), batch)['params']
    loss_fn = jax.jit(task.loss_fn, static_argnames='train')
    loss, (pairs, _) = loss_fn(params, {}, batch, jax.random.key(1), train=False)
    probabilities = np.asarray(task.predict(params, {}, batch))
    np.testing.assert_allclose(
        loss, -np.log(probabilities[np.arange(3), LABELS[:3]]).mean(), rtol=1e-5
    )
    right = (probabilities.argmax(1) == LABELS)[:3]
    assert (float(pairs['accuracy'][0]), float(pairs['accuracy'][1])) == (right.sum(), 3)
    in_training, _ = loss_fn(params, {}, batch, jax.random.key(1), train=True)
    assert abs(in_training - loss) > 1e-4


def test_records_that_cannot_be_are_named(tmp_path):
    task = make().fit(Source())
    for source, message in (
        (
            Source(labels=[1, 0, 2, 0]),
            'Record 2 of four texts: Label 2 is out of range: model.num_classes is 2',
        ),
        (Source(labels=[1, 'posit', 0, 0]), "Record 1 of four texts: Unknown class 'posit'.*posi"),
        (
            Source(labels=[1.5, 0, 0, 0], kind=float),
            "Record 0 .* task.label_field = 'label' is of float64: labels are integers",
        ),
        (Source(['one', 'two', '', 'four']), 'four texts: Record 2 has no text'),
    ):
        with pytest.raises(errors.UserError, match=message):
            task.examples(source, tmp_path, train=True)
    with pytest.raises(errors.UserError, match="Unknown field 'sentence'"):
        make(text_field='sentence').fit(Source())
    with pytest.raises(
        errors.UserError, match="Record 0 of four texts: Unknown .* task.label_field = 'klass'"
    ):
        make(label_field='klass').fit(Source()).examples(Source(), tmp_path, train=True)
    with pytest.raises(errors.UserError, match="field 'text' is empty"):
        task.preprocess({'text': ''})


def test_as_many_labels_as_texts(tmp_path):
    task = make().fit(Source())
    texts = task.examples(Source(), tmp_path, train=True).texts
    with pytest.raises(errors.UserError, match='4 texts in the cache of tokens, but 3 labels'):
        Labelled(texts, np.zeros(3, np.int32))


def test_settings_that_cannot_be():
    with pytest.raises(errors.UserError, match='names 3 classes, but model.num_classes is 2'):
        make(classes=('a', 'b', 'c'))
    with pytest.raises(errors.UserError, match=r'token_dropout = 1\.0'):
        make(token_dropout=1.0)
    small = Recurrent(num_classes=2, vocab_size=100)
    with pytest.raises(errors.UserError, match='model.vocab_size to at least'):
        TextClassification(small, {'name': 'bpe', 'vocab_size': 300}, 12, ('a', 'b')).fit(Source())


def test_the_tiny_row_trains_resumes_and_answers(tmp_path, capsys):
    overrides = [*reviews.write(tmp_path), 'optimizer.learning_rate=2e-2', 'ema_decay=0.0']
    overrides += ['task.sequence_length=16', 'eval_every=0']
    loaded = config.load(f'{commands.ROOT}/configs/sst2_lstm.py:tiny', overrides)
    figures = train.train(loaded, tmp_path / 'run')
    assert figures['test/accuracy'] > 0.9
    assert commands.resumed(tmp_path / 'run', tmp_path / 'resumed') == figures
    (tmp_path / 'films.txt').write_text('a charming film\na tedious film\n')
    answers = commands.answered(capsys, tmp_path / 'run', tmp_path / 'films.txt')
    assert [answer['label'] for answer in answers] == ['positive', 'negative']
