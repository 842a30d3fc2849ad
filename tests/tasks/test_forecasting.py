"""Forecasting: which windows there are, and in what units."""

import jax
import numpy as np
import pytest

from bigmodels import config, errors, experiment, train
from bigmodels.data.series import Windows
from bigmodels.data.sources.table_sources import Columns
from bigmodels.models.forecasters import DLinear
from bigmodels.tasks.forecasting import Forecasting
from configs import forecast as forecast_config
from tests import commands
from tests.tasks import table_files

HOURS = np.arange(40)
COLUMNS = {'load': 10 + np.sin(HOURS), 'heat': 100 + 5 * np.cos(HOURS), 'hour': HOURS}


def task():
    return Forecasting(DLinear(horizon=3, window=3), columns=('load', 'heat'), input_length=8)


def table(**changes):
    return Columns({name: np.array(value) for name, value in (COLUMNS | changes).items()})


def test_every_window_is_an_example(tmp_path):
    fitted = task().fit(table())
    examples = fitted.examples(table(), tmp_path, train=True)
    assert len(examples) == 40 - 8 - 3 + 1
    rows = np.stack([COLUMNS['load'], COLUMNS['heat']], axis=1)
    standardised = (rows - rows.mean(0)) / rows.std(0)
    taken = examples.take(np.array([29, 0]))
    for i, start in enumerate((29, 0)):
        window = standardised[start : start + 11]
        np.testing.assert_allclose(taken['inputs'][i], window[:8], atol=1e-5)
        np.testing.assert_allclose(taken['targets'][i], window[8:], atol=1e-5)
        np.testing.assert_array_equal(examples[start]['inputs'], taken['inputs'][i])
    with pytest.raises(IndexError):
        examples[30]


def test_the_scale_is_that_of_training_also_restored(tmp_path):
    fitted = task().fit(table())
    fitted.save(tmp_path)
    again = task().restored(tmp_path)
    later = table(load=COLUMNS['load'] + 7)
    for one in (fitted, again):
        shifted = one.examples(later, tmp_path, train=False)[0]['inputs'][:, 0]
        expected = (COLUMNS['load'][:8] + 7 - COLUMNS['load'].mean()) / COLUMNS['load'].std()
        np.testing.assert_allclose(shifted, expected, rtol=1e-5)


def test_a_forecast_is_of_the_last_rows_and_in_their_units():
    fitted = task().fit(table())
    example = fitted.preprocess({name: list(value) for name, value in COLUMNS.items()})
    last = np.stack([COLUMNS['load'][-8:], COLUMNS['heat'][-8:]], axis=1)
    np.testing.assert_allclose(fitted.scale.restored(example['inputs']), last, rtol=1e-5)
    batch = {'inputs': example['inputs'][None]}
    params = fitted.init(jax.random.key(0), batch)[
        'params'
    ]  # DLinear begins with the mean of its input
    forecast = fitted.postprocess(np.asarray(fitted.predict(params, {}, batch)[0]))
    assert list(forecast) == ['load', 'heat']
    np.testing.assert_allclose(forecast['heat'], [last[:, 1].mean()] * 3, rtol=1e-5)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'load': np.where(HOURS == 5, np.nan, 1.0)}, "'load' has no value in record 5"),
        ({'load': np.array(['1', 'high'] * 20, object)}, "'load' has 'high' in record 1"),
        ({'load': np.where(HOURS == 5, np.inf, 1.0)}, "'load' has inf in record 5"),
    ],
)
def test_gaps_and_what_is_no_number_are_named(changes, message):
    with pytest.raises(errors.UserError, match=message):
        task().fit(table(**changes))


def test_too_short_and_missing_series_are_named():
    fitted = task().fit(table())
    with pytest.raises(errors.UserError, match='has 7 rows; the model forecasts from 8'):
        fitted.preprocess({'load': [1.0] * 7, 'heat': [1.0] * 7})
    with pytest.raises(errors.UserError, match="'heat'"):
        fitted.preprocess({'load': [1.0] * 8})
    with pytest.raises(errors.UserError, match=r"one length, got \{'load': 9, 'heat': 8\}"):
        fitted.preprocess({'load': [1.0] * 9, 'heat': [1.0] * 8})
    for value in ('12345678', 1.0, None, {'a': 1}):
        with pytest.raises(errors.UserError, match="column 'load' is .*, wanted several numbers"):
            fitted.preprocess({'load': value, 'heat': [1.0] * 8})
    with pytest.raises(errors.UserError, match='of 10 rows is too short for windows of 8'):
        Windows(np.zeros((10, 1)), 8, 3)


def write_hours(folder, count):
    rng = np.random.default_rng(0)
    hours = np.arange(count)
    series = np.sin(hours[:, None] / np.arange(2, 9)) + 0.05 * rng.normal(size=(count, 7))
    records = [[str(hour), *map(str, row)] for hour, row in zip(hours, series, strict=True)]
    path = folder / 'etth1' / 'ETTh1.csv.gz'
    table_files.write(path, records, ('date', *forecast_config.COLUMNS))


@pytest.mark.parametrize('model', ['patch_tst', 'dlinear'])
def test_a_tiny_run_forecasts(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('BIGMODELS_DATA', str(tmp_path))
    write_hours(tmp_path, 20 * 40)
    loaded = config.load(str(commands.ROOT / 'configs/forecast.py:tiny'))
    with loaded.unlocked():
        if model == 'dlinear':
            loaded.model = dict(name='dlinear', horizon=loaded.model.horizon, window=25)
        loaded.data.train.rows = f'0:{12 * 40}'
        loaded.data.evals = dict(test=dict(loaded.data.train) | dict(rows=f'{12 * 40}:'))
        loaded.update(total_steps=200, batch_size=32)
        loaded.optimizer.learning_rate = 5e-3
        loaded.checkpoint.update(best_metric='test/mse', every=100)
    figures = train.train(loaded, tmp_path / 'run')
    assert figures['test/mse'] < 0.5
    assert figures['test/r2'] == pytest.approx(1 - figures['test/mse'] / 0.97, abs=0.05)
    assert commands.resumed(tmp_path / 'run', tmp_path / 'resumed') == figures
    # A whole column of a table is one record: what follows it is told in the columns' own units.
    [answer] = commands.answered(capsys, tmp_path / 'run', tmp_path / 'etth1' / 'ETTh1.csv.gz')
    assert set(forecast_config.COLUMNS) <= set(answer)
    forecast = np.array([answer[name] for name in forecast_config.COLUMNS])
    assert forecast.shape == (7, loaded.model.horizon)
    hours = np.arange(800, 800 + loaded.model.horizon)
    assert np.square(forecast - np.sin(hours / np.arange(2, 9)[:, None])).mean() < 0.5


def test_the_customary_test_set_of_etth1(shared_data, monkeypatch):
    """2,880 hours and the 336 before them: every window with its horizon."""
    monkeypatch.setenv('BIGMODELS_DATA', str(shared_data))
    settings = experiment.from_config(config.load(str(commands.ROOT / 'configs/forecast.py')))
    [(source, _)] = experiment.training_sources(settings)
    fitted = experiment.make_task(settings).fit(source)
    sets = experiment.evaluation_sets(settings, fitted)
    counts = {
        name: int(sum(batches[i]['weights'].sum() for i in range(len(batches))))
        for name, batches in sets.items()
    }
    assert len(fitted.examples(source, None, train=True)) == 8640 - 336 - 96 + 1
    assert counts == {'valid': 2880 - 96 + 1, 'test': 2880 - 96 + 1}
