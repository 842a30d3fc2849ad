"""Ranking: features and what they are fitted on, bad records, and the row's tiny variant."""

import json

import jax
import numpy as np
import pytest
from sklearn import metrics

from bigmodels import errors
from bigmodels.data.sources import interaction_sources
from bigmodels.models.feature_crosses import DLRM
from bigmodels.tasks.ranking import Ranking
from tests import commands
from tests.data import interaction_files
from tests.tasks.test_recommendation import tiny_run


@pytest.fixture
def source(tmp_path):
    path = interaction_files.write(tmp_path / 'a.csv', interaction_files.circular())
    return interaction_sources.Interactions(path, columns=interaction_files.COLUMNS)


def test_features_are_those_of_training_and_the_same_when_restored(source, tmp_path):
    task = Ranking(DLRM((80, 20)), min_count=3)
    fitted = task.fit(source)
    records = source.take(np.arange(len(source)))
    examples = fitted.examples(source, tmp_path, train=True).take(np.arange(len(source)))
    np.testing.assert_allclose(examples['inputs'].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(examples['inputs'].std(0), 1, rtol=1e-4)
    np.testing.assert_array_equal(examples['targets'], records['rating'] >= 8)
    for place, name in enumerate(('user', 'item')):
        seen, counts = np.unique(records[name].astype(str), return_counts=True)
        kept = set(seen[counts >= 3])
        rows = examples['categories'][:, place]
        assert [row > 0 for row in rows] == [name in kept for name in records[name]]
        assert len(set(rows[rows > 0])) == len(kept)
    fitted.save(tmp_path)
    restored = task.restored(tmp_path)
    for i in (0, 5):
        one = restored.preprocess(source[i])
        for key, value in examples.items():
            np.testing.assert_allclose(one[key], value[i], rtol=1e-6)


def test_what_training_has_not_seen_is_row_0_and_no_rating_no_target(source):
    task = Ranking(DLRM((80, 20)), min_count=1).fit(source)
    record = source[0] | {'user': 'new', 'item': 'newer'}
    del record['rating']
    example = task.preprocess(record)
    assert example['categories'].tolist() == [0, 0]
    assert 'targets' not in example


def test_a_task_without_numbers_is_refused():
    with pytest.raises(errors.UserError, match=r'task\.counts and task\.numbers are both empty'):
        Ranking(DLRM((80, 20)), counts=(), numbers=())


def test_bad_records_and_sizes(source):
    task = Ranking(DLRM((80, 20)), min_count=1).fit(source)
    record = source[0]
    with pytest.raises(errors.UserError, match="Unknown record field 'item_mean'"):
        task.preprocess({key: value for key, value in record.items() if key != 'item_mean'})
    with pytest.raises(errors.UserError, match='user_mean has a value that is not finite'):
        task.preprocess(record | {'user_mean': np.float32('nan')})
    for changes, message in (
        ({'item_count': -0.5}, 'item_count, a count, has a negative value'),
        ({'user_mean': {'a': 1}}, "'user_mean' is not an array of numbers"),
        ({'user_mean': [1.0, 2.0]}, 'must have one value each'),
        ({'user': [1, 2]}, 'must have one value each'),
    ):
        with pytest.raises(errors.UserError, match=message):
            task.preprocess(record | changes)
    for missing in (np.float32('nan'), '', None):
        with pytest.raises(errors.UserError, match='The field rating has no value'):
            task.preprocess(record | {'rating': missing})
    with pytest.raises(errors.UserError, match=r'category_sizes\[1\] is 9: .* at least 13'):
        Ranking(DLRM((80, 9)), min_count=1).fit(source)
    with pytest.raises(errors.UserError, match='category_sizes has 1 sizes'):
        Ranking(DLRM((80,)))


def test_fields_that_are_not_there_are_named_with_their_key_of_the_config(source, tmp_path):
    one_by_one = [source[i] for i in range(len(source))]
    for records in (source, one_by_one):
        for key in ('categories', 'counts', 'numbers'):
            task = Ranking(DLRM((80, 20)), **{key: ('item', 'of_none')})
            with pytest.raises(errors.UserError, match=f"record field task.{key} = 'of_none'"):
                task.fit(records)
        task = Ranking(DLRM((80, 20)), min_count=1, rating='stars').fit(records)
        examples = task.examples(records, tmp_path, train=True)
        for read in (examples.__getitem__, lambda i, rows=examples: rows.take(np.array([i]))):
            with pytest.raises(errors.UserError, match="record 3: .*task.rating = 'stars'"):
                read(3)
    one_by_one[4] = one_by_one[4] | {'user_mean': np.ones(2)}
    with pytest.raises(errors.UserError, match=r"'user_mean' is \[2\] in record 4, and \[\] in"):
        Ranking(DLRM((80, 20))).fit(one_by_one)


@pytest.mark.parametrize('model', ['dlrm', 'dcn'])
def test_the_row_learns_who_likes_what(model, tmp_path, capsys):
    """Ratings depend on the item alone; its earlier ratings tell them."""
    overrides = [
        f'model.name={model}',
        'model.category_sizes=(80, 20)',
        'optimizer.learning_rate=0.02',
        'total_steps=60',
    ]
    workdir, figures = tiny_run('recommend_ranking', tmp_path, *overrides)
    assert figures['test/auc'] > 0.95
    assert figures['test/accuracy'] > 0.9
    assert commands.resumed(workdir, tmp_path / 'resumed') == figures
    path = str(tmp_path / 'ratings.csv')
    rated = interaction_sources.Interactions(path, columns=interaction_files.COLUMNS)
    records = [{name: np.asarray(rated[i][name]).item() for name in rated[i]} for i in range(40)]
    lines = tmp_path / 'asked.jsonl'
    lines.write_text('\n'.join(map(json.dumps, records)))
    answers = commands.answered(capsys, workdir, lines)
    liked = [record['rating'] >= 8 for record in records]
    right = [(a['probability'] > 0.5) == yes for a, yes in zip(answers, liked, strict=True)]
    assert np.mean(right) > 0.8


def test_the_score_is_scikit_learn_s():
    rng = np.random.default_rng(0)
    targets, logits = rng.integers(0, 2, 100), rng.normal(size=100).round(1)
    score = Ranking(DLRM((2, 2))).scores({'targets': targets, 'logits': logits})
    assert score['auc'] == pytest.approx(metrics.roc_auc_score(targets, logits))


def test_probabilities_answer_a_record(source):
    task = Ranking(DLRM((80, 20)), min_count=1).fit(source)
    example = {key: value[None] for key, value in task.preprocess(source[0]).items()}
    params = task.init(jax.random.key(0), example)['params']
    [probability] = task.predict(params, {}, example)
    assert task.postprocess(probability) == {'probability': pytest.approx(float(probability))}
    assert 0 < probability < 1
