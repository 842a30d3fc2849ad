"""Recommending items: what is learnt, saved, left out and answered; the rows' tiny variants."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bigmodels import config as config_lib
from bigmodels import errors, evaluate, experiment, explain, predict, program, runs, sharding, train
from bigmodels.data import inputs, pipeline, sources
from bigmodels.data.sources import interaction_sources
from bigmodels.deploy import recommend
from bigmodels.models.transformer import Transformer
from bigmodels.models.two_tower import TwoTower
from bigmodels.tasks.next_item import NextItem
from bigmodels.tasks.retrieval import Retrieval
from tests import commands
from tests.data import interaction_files

RECORDS = [
    {'user': 'a', 'items': np.array(['x', 'y', 'z'], object)},
    {'user': 'b', 'items': np.array(['y'], object)},
    {'user': 'a', 'items': np.array(['y', 'z', 'x', 'w'], object)},
]


def tasks(length=4, **fields):
    model = Transformer(
        vocab_size=8, num_layers=1, embed_dim=8, num_heads=1, max_length=length, positions='learned'
    )
    towers = TwoTower(num_items=8, num_users=3, embed_dim=8)
    return [
        NextItem(model, length, **fields),
        Retrieval(towers, length, min_user_count=2, **fields),
    ]


def initialised(task, records=RECORDS):
    """The fitted task and random parameters."""
    task = task.fit(records)
    example = pipeline.take(task.examples(records, None, train=True), np.array([0]))
    return task, task.init(jax.random.key(0), example)['params']


def batch_of(task, raws):
    return pipeline.stacked([task.preprocess(raw) for raw in raws])


def test_held_out_items_have_the_same_loss_by_chunks_of_a_split_sequence():
    task, params = initialised(tasks()[0])
    batch = pipeline.stacked([task.held_out({'items': items}) for items in (['x', 'y'], ['z'])])
    batch['weights'] = np.ones_like(batch['weights'])
    chunked = dataclasses.replace(task, loss_chunk=2)
    mesh = sharding.make_mesh(sharding.MeshShape(data=1, sequence=2), jax.devices()[:2])
    losses = []
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    for other in (task, chunked):
        with jax.set_mesh(mesh):
            losses.append(other.loss_fn(params, {}, batch, jax.random.key(0), train=False)[0])
    assert losses[0] == losses[1]


@pytest.mark.parametrize('task', tasks(), ids=['next_item', 'retrieval'])
def test_what_is_learnt_is_saved_and_restored(task, tmp_path):
    fitted = task.fit(RECORDS)
    assert fitted.item_ids.names == ('y', 'x', 'z', 'w')
    fitted.save(tmp_path)
    restored = task.restored(tmp_path)
    raw = {'items': ['w', 'q', 'x'], 'user': 'a'}
    for key, value in fitted.preprocess(raw).items():
        np.testing.assert_array_equal(restored.preprocess(raw)[key], value)


def test_examples_of_next_items():
    """Row 0 begins a history; unknown items are left out, as are those that are too long ago."""
    [task, _] = tasks()
    task = task.fit(RECORDS)
    example = task.preprocess({'items': ['q', 'w', 'x']})
    assert example['inputs'].tolist() == [0, 4, 2, 0]
    assert example['weights'].tolist() == [0, 0, 1, 0]
    assert task.preprocess({'items': 'y, x z w y'})['inputs'].tolist() == [2, 3, 4, 1]
    held_out = task.held_out({'items': ['x', 'y', 'z']})
    assert held_out['inputs'].tolist() == [0, 2, 1, 0]
    assert held_out['targets'].tolist() == [0, 0, 3, 0]
    rows = pipeline.take(examples := task.examples(RECORDS, None, train=True), np.arange(3))
    assert len(examples) == 3
    told = rows['weights'] > 0  # every item of every history once, after the one before it
    pairs = zip(rows['inputs'][told], rows['targets'][told], strict=True)
    assert sorted(pairs) == [(0, 1), (0, 1), (0, 2), (1, 3), (1, 3), (2, 1), (2, 4), (3, 2)]


@pytest.mark.parametrize('task', tasks(), ids=['next_item', 'retrieval'])
def test_a_history_may_be_a_list_a_text_or_one_number(task):
    records = [{'user': 7, 'items': np.array([31, 4, 9, 31])}, {'user': 7, 'items': np.array([9])}]
    task = task.fit(records)
    expected = task.history_rows(['31', '4', '9']).tolist()
    assert len(set(expected)) == 3
    for items in ('31,4,9', '31 4, 9', np.str_('31 4 9'), [31, 4, 9], np.array([31, 4, 9])):
        assert task.history_rows(items).tolist() == expected
    for items in (4, np.int64(4), '4'):
        assert task.history_rows(items).tolist() == expected[1:2]
    for items in (None, '', []):
        assert task.history_rows(items).tolist() == []


@pytest.mark.parametrize('task', tasks(), ids=['next_item', 'retrieval'])
def test_large_ids_are_not_rounded(task, tmp_path):
    """Beside a user without items, and beside ids of 2**63 and above."""
    given = [(2**63 + 1, [2**53 + 1, 2**53, 4]), (2**53 + 1, [2**63 + 1, 4]), (5, [])]
    lines = [json.dumps(dict(user=user, items=items)) for user, items in given]
    (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
    task = task.fit(sources.JsonLines(str(tmp_path / 'a.jsonl')))
    expected = {str(item) for _, items in given for item in items}
    assert set(task.item_ids.names) == expected
    if isinstance(task, Retrieval):
        assert task.user_ids.names == (str(2**63 + 1), str(2**53 + 1))


@pytest.mark.parametrize('task', tasks(), ids=['next_item', 'retrieval'])
def test_records_of_another_source_are_refused(task):
    ratings = [{'user': 'a', 'item': 'x'}]
    with pytest.raises(errors.UserError, match="Unknown record field 'items'. Did you mean 'item'"):
        task.fit(ratings)
    with pytest.raises(errors.UserError, match="Unknown record field 'items'"):
        task.fit(RECORDS).examples(ratings, None, train=False)[0]


def test_retrieval_needs_users():
    [_, task] = tasks()
    with pytest.raises(errors.UserError, match="Unknown record field 'user'.*Allowed: items"):
        task.fit([{'items': np.array(['x', 'y'], object)}])


def test_examples_of_retrieval():
    [_, task] = tasks(length=2)
    task = task.fit(RECORDS)
    example = task.preprocess({'items': ['y', 'q', 'w', 'x'], 'user': 'a'})
    assert example['inputs'].tolist() == [2, 4]  # the latest first
    assert example['users'] == 1
    assert task.preprocess({'items': [], 'user': 'b'})['users'] == 0  # one training interaction
    examples = task.examples(RECORDS, None, train=True)
    batch = examples.take(np.arange(len(examples)))
    assert batch['targets'].tolist() == [2, 1, 3, 1, 1, 3, 2, 4]
    assert batch['inputs'].tolist() == [
        [0, 0], [2, 0], [1, 2], [0, 0], [0, 0], [1, 0], [3, 1], [2, 3]
    ]  # fmt: skip
    assert batch['users'].tolist() == [1, 1, 1, 0, 1, 1, 1, 1]


@pytest.mark.parametrize('task', tasks(), ids=['next_item', 'retrieval'])
def test_nothing_seen_or_unknown_is_recommended(task):
    task, params = initialised(task)
    raws = [{'items': items} for items in ([], ['x'], ['x', 'w'], ['q'], ['x', 'y', 'z', 'w'])]
    predictions = jax.device_get(task.predict(params, {}, batch_of(task, raws)))
    for i, raw in enumerate(raws):
        answers = task.postprocess({key: value[i] for key, value in predictions.items()})
        assert {answer['item'] for answer in answers} == set('xyzw') - set(raw['items'])
        scores = [answer['score'] for answer in answers]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize('task', tasks(), ids=['next_item', 'retrieval'])
def test_the_place_of_a_held_out_item_is_its_place_in_the_answer(task):
    """An item that training has not seen has none, and does not count in the loss."""
    task, params = initialised(task)
    records = [{'user': 'a', 'items': ['x', item]} for item in ('y', 'z', 'w', 'new')]
    batch = pipeline.stacked([task.held_out(record) for record in records])
    batch['weights'] = batch.get('weights', np.ones(4, np.float32))
    places = task.outcomes(params, {}, batch)['place'].tolist()
    predictions = jax.device_get(task.predict(params, {}, batch))
    answers = task.postprocess({key: value[0] for key, value in predictions.items()})
    order = [answer['item'] for answer in answers]
    assert places == [1 + order.index(item) for item in 'yzw'] + [0]
    _, (pairs, _) = task.loss_fn(params, {}, batch, jax.random.key(0), train=False)
    assert pairs['loss'][1] == 3
    assert np.isfinite(pairs['loss'][0])


@pytest.mark.parametrize('loss', ['softmax', 'bpr'])
def test_retrieval_s_losses_leave_padding_out(loss):
    [_, task] = tasks()
    task = Retrieval(task.model, 4, loss=loss, min_user_count=2)
    task, params = initialised(task)
    batch = task.examples(RECORDS, None, train=True).take(np.arange(8))
    padded = {key: np.concatenate([value, value[:3]]) for key, value in batch.items()}
    whole, (pairs, _) = task.loss_fn(
        params, {}, batch | {'weights': np.ones(8)}, jax.random.key(0), train=True
    )
    weights = np.array([1] * 8 + [0] * 3)
    same, _ = task.loss_fn(params, {}, padded | {'weights': weights}, jax.random.key(0), train=True)
    assert pairs['loss'][1] == 8
    np.testing.assert_allclose(whole, same, rtol=1e-5)


@pytest.mark.parametrize(
    ('devices', 'overrides', 'refused'),
    [
        (1, ['accumulate=2'], 'accumulate = 2'),
        (8, ['accumulate=2'], 'accumulate = 2'),
        (8, ['parallel=pmap'], 'parallel = "pmap"'),
        (1, ['parallel=pmap'], None),
        (8, [], None),
    ],
)
def test_retrieval_is_trained_on_whole_batches_only(devices, overrides, refused):
    """Parts of a batch would have other items beside each one: another loss."""
    spec = str(commands.ROOT / 'configs/recommend_retrieval.py:tiny')
    settings = experiment.from_config(config_lib.load(spec, overrides))
    [_, task] = tasks()
    task = task.fit(RECORDS)
    examples = pipeline.take(task.examples(RECORDS, None, train=True), np.arange(8))
    shapes = program.shapes_of_batch(examples | {'weights': np.ones(8, np.float32)}, 16)
    mesh = sharding.make_mesh(sharding.MeshShape(), jax.devices()[:devices])
    if refused is None:
        program.make_program(settings, task, mesh, shapes)
        return
    with pytest.raises(errors.UserError, match=f'of Retrieval compares .*config.{refused} would'):
        program.make_program(settings, task, mesh, shapes)


@pytest.mark.parametrize('index', [0, 1])
def test_records_without_a_history_are_named(index):
    task = tasks()[index]
    fitted = task.fit(RECORDS)
    records = [*RECORDS, {'user': 'a', 'films': ['x']}]
    for call in (
        lambda: task.fit(records),
        lambda: fitted.examples(records, None, train=True),
        lambda: fitted.examples(records, None, train=False)[3],
    ):
        with pytest.raises(errors.UserError, match="Unknown record field 'items'"):
            call()
    with pytest.raises(errors.UserError, match='record 0: There is no item to hold out'):
        fitted.examples([{'user': 'a', 'items': []}], None, train=False)[0]


@pytest.mark.parametrize(
    ('length', 'changes', 'message'),
    [
        (5, {}, r'task.history_length = 5 is longer than config.model.max_length = 4'),
        (0, {}, r'task.history_length = 0 must be at least 1'),
        (4, dict(causal=False), 'config.model.causal must be True'),
        (4, dict(moe=dict(num_experts=2, experts_per_token=1)), 'config.model.moe must be None'),
    ],
)
def test_a_decoder_that_does_not_fit_is_refused(length, changes, message):
    model = tasks()[0].model.clone(**changes)
    with pytest.raises(errors.UserError, match=message):
        NextItem(model, length)


def test_a_model_with_too_few_rows_is_refused():
    small = TwoTower(num_items=4, num_users=3, embed_dim=8)
    with pytest.raises(errors.UserError, match='config.model.num_items is 4: .* at least 5'):
        Retrieval(small, 4, min_user_count=2).fit(RECORDS)
    small = TwoTower(num_items=8, num_users=1, embed_dim=8)
    with pytest.raises(errors.UserError, match='config.model.num_users is 1: .* at least 2'):
        Retrieval(small, 4, min_user_count=2).fit(RECORDS)


def tiny_run(name: str, tmp_path, *overrides: str):
    """Trains a row's tiny variant on users who go round in a circle; (workdir, figures)."""
    rows = interaction_files.circular()
    path = interaction_files.write(tmp_path / 'ratings.csv', rows)
    titles = [(f'{i:03d}', f'Film {i}') for i in range(interaction_files.NUM_ITEMS)]
    titles = interaction_files.write(tmp_path / 'movies.csv', titles, ('movie_id', 'title'))
    sources = [f'data.{part}.path={path}' for part in ('train', 'evals.valid', 'evals.test')]
    if name == 'recommend_retrieval':
        overrides = ('task.min_user_count=1', *overrides)
    if name != 'recommend_ranking':
        overrides = (f'task.titles={titles}', *overrides)
    spec = str(commands.ROOT / f'configs/{name}.py:tiny')
    config = config_lib.load(spec, [*sources, *overrides])
    return tmp_path / 'run', train.train(config, tmp_path / 'run')


LEARNING = {
    'recommend_sequence': ('optimizer.learning_rate=0.02', 'total_steps=60', 'batch_size=16'),
    'recommend_retrieval': ('optimizer.learning_rate=0.02', 'total_steps=120', 'batch_size=64'),
}


@pytest.mark.parametrize('name', LEARNING)
def test_a_row_learns_what_comes_next_serves_it_and_resumes(name, tmp_path):
    workdir, figures = tiny_run(name, tmp_path, *LEARNING[name])
    assert figures['test/hit_rate@10'] > 0.9
    assert figures['test/ndcg@10'] > 0.8  # by chance, of twelve items less those seen: 0.5
    run = runs.open_run(workdir)
    answer = recommend.make_recommender(run)(['003', 'never seen', '004', '005'])
    assert len(answer) == interaction_files.NUM_ITEMS - 3
    assert answer[0]['item'] == '006'
    assert answer[0]['title'] == 'Film 6'
    # The command for raw input gives the same, from a record as a user may write it.
    record = {'items': '003,never seen 004,005', 'user': 'u1', 'age': 30}
    stdin = io.BytesIO(json.dumps(record).encode())
    given = inputs.read_inputs('-', run.task.record_fields, stdin=stdin)
    [(_, predicted)] = predict.predict(run, given)
    expected = recommend.make_recommender(run)(['003', '004', '005'], 'u1')
    assert [found['item'] for found in predicted] == [found['item'] for found in expected]
    np.testing.assert_allclose(
        [found['score'] for found in predicted], [found['score'] for found in expected], rtol=1e-5
    )
    assert commands.resumed(workdir, tmp_path / 'resumed') == figures


@pytest.mark.slow
def test_the_command_recommends_and_tells_of_unknown_items(tmp_path, capsys):
    workdir, _ = tiny_run('recommend_sequence', tmp_path)
    command = ('bigmodels.deploy.recommend', f'--workdir={workdir}', '--items=003,new')
    status, out, err = commands.called(capsys, *command)
    assert status == 0, err
    assert len(out.splitlines()) == 10
    assert json.loads(out.splitlines()[0]).keys() == {'item', 'title', 'score'}
    assert 'left out, not in the training data: new' in err


def test_a_run_of_another_task_recommends_nothing(tmp_path):
    workdir, _ = tiny_run('recommend_ranking', tmp_path, 'task.min_count=1')
    with pytest.raises(errors.UserError, match="of the task 'ranking', which recommends no items"):
        recommend.make_recommender(runs.open_run(workdir))


def test_a_sequence_row_is_planned_without_its_data():
    config = config_lib.load(str(commands.ROOT / 'configs/recommend_sequence.py'))
    settings = experiment.from_config(config)
    _, run = explain.abstract_program(settings, sharding.make_mesh(sharding.MeshShape()))
    state, _ = jax.eval_shape(run.train_step, run.state_shapes, run.batch_shapes)
    assert jax.tree.structure(state) == jax.tree.structure(run.state_shapes)
    [task, _] = tasks()
    examples = task.fit(RECORDS).examples(RECORDS, None, train=True)
    assert task.example_shapes() == {
        key: jax.ShapeDtypeStruct(value.shape, value.dtype) for key, value in examples[0].items()
    }


def test_figures_do_not_depend_on_the_batch(tmp_path):
    workdir, figures = tiny_run('recommend_retrieval', tmp_path)
    run = runs.open_run(workdir)
    eval_step = jax.jit(program.evaluation_step(run.task))
    for size in (7, 60):
        source = interaction_sources.Histories(
            str(tmp_path / 'ratings.csv'), 'test', columns=interaction_files.COLUMNS
        )
        examples = run.task.examples(source, None, train=False)
        sets = {'test': pipeline.evaluation_batches(examples, size)}
        found = evaluate.evaluate(eval_step, run.task, run.params, run.model_state, sets, run.mesh)
        for name, value in found.items():
            np.testing.assert_allclose(value, figures[name], rtol=1e-5)
    # A plan of it fits the task to the same data, without which it knows no items.
    task, planned = explain.abstract_program(run.experiment, run.mesh)
    assert task.catalogue.ids.names == run.task.catalogue.ids.names
    arguments = planned.state_shapes, planned.batch_shapes
    assert jax.eval_shape(planned.train_step, *arguments)[1]['loss'][0].shape == ()
