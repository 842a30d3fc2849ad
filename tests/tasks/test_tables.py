"""Tasks on tables: preprocessing learns from training alone, and is the same when restored."""

import json

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from bigmodels import config, errors, train
from bigmodels.data.sources import JsonLines
from bigmodels.data.sources.table_sources import Columns, Csv
from bigmodels.models.tabular import TabularMLP
from bigmodels.tasks.tables import TableClassification, TableRegression
from tests import commands
from tests.tasks import table_files

MODEL = TabularMLP(2, num_categories=8, hidden_dims=(8,))
COLUMNS = {
    'age': np.arange(20.0),
    'town': np.array(['A', 'B'] * 10, object),
    'rich': np.array(['no', 'yes', 'yes', 'no'] * 5, object),
    'price': np.linspace(100, 200, 20),
}


def classifier(**fields):
    options = dict(label_key='rich', numeric=('age',), categorical=('town',)) | fields
    return TableClassification(MODEL, **options)


def regressor(**fields):
    model = MODEL.clone(num_outputs=1)
    return TableRegression(model, label_key='price', numeric=('age',), categorical=('town',))


def table(**changes):
    return Columns({name: value.copy() for name, value in (COLUMNS | changes).items()})


def test_evaluation_records_are_encoded_by_what_training_has(tmp_path):
    task = classifier().fit(table())
    other = table(age=np.arange(20.0) + 100, town=np.array(['C'] * 20, object))
    examples = task.examples(other, tmp_path, train=False)
    top = task.examples(table(), tmp_path, train=True)[19]['inputs']
    for i in (0, 19):
        np.testing.assert_array_equal(examples[i]['inputs'], top)
        assert examples[i]['categories'] == 0
    assert examples.take(np.arange(4))['targets'].tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize('other', [7, 0.5])
def test_large_integers_are_the_same_categories_in_training_and_serving(tmp_path, other):
    """As unsigned hashes in JSON lines are, of which some fit into int64."""
    towns = [2**63 + 1, 2**63 + 2, other, 2**53 + 1]
    rows = [dict(age=i, town=town, rich='ny'[i % 2]) for i, town in enumerate(towns)]
    (tmp_path / 'a.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    source = JsonLines(str(tmp_path / 'a.jsonl'))
    task = classifier(min_count=1).fit(source)
    trained = task.examples(source, tmp_path, train=True).take(np.arange(4))['categories']
    served = [task.preprocess(source[i])['categories'] for i in range(4)]
    assert trained.tolist() == np.stack(served).tolist()
    assert sorted(trained.ravel().tolist()) == [1, 2, 3, 4]


@pytest.mark.parametrize('make', [classifier, regressor])
def test_a_restored_task_is_the_same_and_one_record_as_many(make, tmp_path):
    task = make().fit(table())
    task.save(tmp_path)
    again = make().restored(tmp_path)
    examples = task.examples(table(), tmp_path, train=True)
    for i in (0, 7):
        one = again.preprocess(table()[i])
        assert {name: (value.shape, value.dtype) for name, value in one.items()} == {
            name: (shape.shape, shape.dtype)
            for name, shape in task.example_shapes().items()
            if name != 'weights'
        }
        for name, value in one.items():
            np.testing.assert_array_equal(value, examples[i][name])
    without = {name: value for name, value in table()[0].items() if name not in ('rich', 'price')}
    assert again.preprocess(without).keys() == {'inputs', 'categories'}


def test_answers_are_labels_and_numbers_in_their_own_units(tmp_path):
    task = classifier().fit(table())
    assert task.postprocess(np.float32([0.25, 0.75])) == {'label': 'yes', 'probability': 0.75}
    ordered = classifier(classes=('yes', 'no')).fit(table())
    assert ordered.postprocess(np.float32([0.75, 0.25]))['label'] == 'yes'
    task = regressor().fit(table())
    standardised = task.targets(COLUMNS['price'])
    np.testing.assert_allclose(task.scale.restored(standardised)[:, 0], COLUMNS['price'], rtol=1e-5)
    assert task.postprocess(np.float32([150])) == {'value': 150.0}


def test_the_area_under_the_curve_is_scikit_learns():
    task = classifier()
    rng = np.random.default_rng(0)
    targets, positive = rng.integers(0, 2, 50), rng.random(50)
    outcomes = {'targets': targets, 'probabilities': np.stack([1 - positive, positive], 1)}
    expected = sklearn_metrics.roc_auc_score(targets, positive)
    assert task.scores(outcomes) == {'roc_auc': pytest.approx(expected)}
    assert task.score_names == ('roc_auc',)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (
            lambda: classifier(numeric=('agee',)).fit(table()),
            "task.numeric = 'agee'. Did you mean 'age'",
        ),
        (lambda: classifier(label_key='x').fit(table()), "task.label_key = 'x'"),
        (lambda: classifier(label_key='age'), 'each once: got age, town, age'),
        (lambda: classifier(numeric=(), categorical=()), 'at least two columns'),
        (lambda: classifier(report=('auc',)), "'auc'.*roc_auc"),
        (lambda: classifier(classes=('no',)).fit(table()), 'num_outputs = 2, but there are 1'),
        (
            lambda: classifier(categorical=('town', 'price'), min_count=1).fit(table()),
            'has 24 categories, unknown ones included, but model.num_categories is 8',
        ),
        (
            lambda: (
                classifier()
                .fit(table(age=np.array([1.0, np.nan] * 10)))
                .examples(table(age=np.array([1.0, np.nan] * 10)), None, train=True)
            ),
            "The training records. .*'age' has no value in record 1",
        ),
        (
            lambda: regressor().fit(table(price=np.array([1.0, np.nan] * 10))),
            "target 'price' is missing in record 1",
        ),
        (
            lambda: classifier(label_key='town', categorical=()).fit(
                table(town=np.array(['A', ''] * 10, object))
            ),
            "label 'town' is missing in record 1",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(errors.UserError, match=message):
        call()


def test_an_unknown_label_names_file_and_record(tmp_path):
    task = classifier().fit(table())
    path = tmp_path / 'valid.csv'
    path.write_text('age,town,rich\n1,A,no\n2,A,maybe\n')
    with pytest.raises(errors.UserError, match=r"valid\.csv.*'maybe' of record 1 is none of the 2"):
        task.examples(Csv(str(path)), tmp_path, train=False)


FT_TRANSFORMER = (
    'model.name=ft_transformer',
    'model.num_outputs=2',
    'model.num_categories=128',
    'model.embed_dim=16',
    'model.num_layers=1',
    'model.num_heads=2',
    'optimizer.learning_rate=5e-3',
)


@pytest.mark.parametrize('changes', [(), FT_TRANSFORMER], ids=['tabular_mlp', 'ft_transformer'])
def test_a_tiny_run_learns_the_table(changes, tmp_path, monkeypatch):
    monkeypatch.setenv('BIGMODELS_DATA', str(tmp_path))
    table_files.write_adult(tmp_path)
    overrides = ['total_steps=60', 'checkpoint.every=30', 'batch_size=64', *changes]
    loaded = config.load(str(commands.ROOT / 'configs/adult.py:tiny'), overrides)
    figures = train.train(loaded, tmp_path / 'run')
    assert figures['test/roc_auc'] > 0.9
    assert figures == train.train(loaded, tmp_path / 'run')  # complete: told, not trained again
    assert commands.resumed(tmp_path / 'run', tmp_path / 'resumed') == figures


def test_a_tiny_run_finds_who_will_default(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('BIGMODELS_DATA', str(tmp_path))
    table_files.write_credit_default(tmp_path)
    overrides = ['total_steps=150', 'checkpoint.every=75', 'batch_size=64']
    loaded = config.load(str(commands.ROOT / 'configs/credit_default.py:tiny'), overrides)
    figures = train.train(loaded, tmp_path / 'run')
    assert figures['test/roc_auc'] > 0.9
    assert commands.resumed(tmp_path / 'run', tmp_path / 'resumed') == figures
    [path] = (tmp_path / 'credit_default').iterdir()
    answers = commands.answered(capsys, tmp_path / 'run', path)
    assert len(answers) > 50
    assert all(answer['label'] in ('0', '1') for answer in answers)


def test_a_regression_learns_the_table(tmp_path):
    rng = np.random.default_rng(0)
    records = [
        [str(x), town, f'{3 * x + 50 * (town == "B")}']
        for x, town in zip(rng.uniform(0, 100, 300), rng.choice(['A', 'B'], 300), strict=True)
    ]
    path = tmp_path / 'prices.csv'
    table_files.write(path, records, ('size', 'town', 'price'))
    loaded = config.load(str(commands.ROOT / 'configs/adult.py:tiny'))
    with loaded.unlocked():
        loaded.task = dict(
            name='table_regression',
            label_key='price',
            numeric=('size',),
            categorical=('town',),
            loss='huber',
        )
        loaded.model.update(num_outputs=1, dropout_rate=0.0)
        loaded.data.train = dict(name='csv', path=str(path), rows='60:')
        loaded.data.evals = dict(valid=dict(name='csv', path=str(path), rows=':60'))
        loaded.update(total_steps=100, batch_size=64)
        loaded.optimizer.learning_rate = 3e-3
        loaded.checkpoint.update(best_metric='valid/r2', every=100)
    assert train.train(loaded, tmp_path / 'run')['valid/r2'] > 0.9
