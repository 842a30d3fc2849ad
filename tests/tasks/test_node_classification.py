"""Node classification: what counts of a graph, and what is refused."""

import jax
import numpy as np
import pytest

from bigmodels import config, errors, evaluate, metrics, program, sharding, train
from bigmodels.data import pipeline
from bigmodels.models.gnn import GCN
from bigmodels.tasks.node_classification import NodeClassification
from tests import commands

TASK = NodeClassification(GCN(num_classes=2, hidden_dims=(4,)))


def graph(count=40, seed=0, share=0.5):
    """Two groups with edges within each; a word tells a share of one's nodes apart."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 2
    features = rng.integers(0, 2, (count, 5)).astype(np.float32)
    features[:, 0] = label * (rng.random(count) < share)
    edges = np.array([[i, (i + 2 * k) % count] for i in range(count) for k in (1, 2)])
    return {'features': features, 'edges': np.concatenate([edges, edges[:, ::-1]]), 'label': label}


def test_rows_are_divided_by_their_sums_and_empty_ones_stay():
    raw = graph() | {'weights': np.ones(40)}
    raw['features'][3] = 0
    example = TASK.preprocess(raw)
    assert {name: value.dtype.name for name, value in example.items()} == {
        'inputs': 'float32', 'targets': 'int32', 'edges': 'int32', 'weights': 'float32',
    }  # fmt: skip
    sums = raw['features'].sum(1)
    np.testing.assert_allclose(example['inputs'].sum(1), sums > 0, atol=1e-6)
    np.testing.assert_array_equal(example['inputs'][3], 0)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'edges': np.array([[0, 40]])}, 'Edge 0 of the graph, 0 to 40, is out of range'),
        ({'label': np.zeros(39, int)}, r'has 40 nodes and targets of the shape \[39\]'),
        ({'weights': np.ones(1)}, r'has 40 nodes and weights of the shape \[1\]'),
        ({'label': np.full(40, 2)}, 'Label 2 is out of range: model.num_classes is 2'),
        ({'edges': None}, "'edges'"),
        ({'features': None}, "'features'"),
    ],
)
def test_what_a_graph_lacks_or_may_not_have_is_named(changes, message):
    raw = {name: value for name, value in (graph() | changes).items() if value is not None}
    with pytest.raises(errors.UserError, match=message):
        TASK.preprocess(raw)


def test_only_weighted_nodes_count_and_padding_graphs_do_not(tmp_path):
    """Three graphs in batches of eight over eight devices, as each graph by itself."""
    rng = np.random.default_rng(1)
    graphs = [graph(seed=s) | {'weights': rng.random(40) < 0.3} for s in range(3)]
    examples = TASK.examples(graphs, tmp_path, train=False)
    params = jax.jit(TASK.init)(jax.random.key(0), pipeline.stacked(examples))['params']
    step = jax.jit(program.evaluation_step(TASK))
    pairs = [step(params, {}, pipeline.stacked([one]))[0] for one in examples]
    alone = metrics.means_of_all(pairs)
    counted = [float(pair['accuracy'][1]) for pair in pairs]
    assert counted == [one['weights'].sum() for one in examples]
    mesh = sharding.make_mesh(sharding.MeshShape(data=8), jax.devices())
    batches = pipeline.evaluation_batches(examples, 8)
    together = evaluate.evaluate(step, TASK, params, {}, {'set': batches}, mesh)
    assert together == {f'set/{name}': pytest.approx(value) for name, value in alone.items()}


def test_without_weights_every_node_counts_once(tmp_path):
    """The figures of a graph are those of the same one with weights of 1, and are shares."""
    raw = graph()
    figures = []
    for given in (raw, raw | {'weights': np.ones(40)}):
        batch = pipeline.evaluation_batches(TASK.examples([given], tmp_path, train=False), 1)[0]
        params = jax.jit(TASK.init)(jax.random.key(0), batch)['params']
        loss, (pairs, _) = TASK.loss_fn(params, {}, batch, jax.random.key(0), train=False)
        assert pairs['loss'][1] == pairs['accuracy'][1] == 40
        np.testing.assert_allclose(loss, metrics.mean(pairs['loss']), rtol=1e-6)
        figures.append(metrics.means_of_all([pairs]))
    assert figures[0] == figures[1]
    probabilities = np.asarray(TASK.predict(params, {}, batch))[0]
    assert figures[0]['accuracy'] == pytest.approx((probabilities.argmax(1) == raw['label']).mean())
    expected = -np.log(probabilities[np.arange(40), raw['label']]).mean()
    assert figures[0]['loss'] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    'field',
    [
        dict(image_size=8),
        dict(augment=dict(flip=0.5)),
        dict(top_k=1),
        dict(mirror=True),
        dict(shift=1),
        dict(report=('f1',)),
    ],
)
def test_what_is_of_images_or_whole_examples_is_refused(field):
    [name] = field
    with pytest.raises(errors.UserError, match=f'config.task.{name} = .* leave it out'):
        NodeClassification(TASK.model, **field)


@pytest.mark.parametrize('variant', ['tiny', 'gat'])
def test_a_tiny_run_learns_from_a_few_nodes(variant, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('BIGMODELS_DATA', str(tmp_path))
    (tmp_path / 'cora').mkdir()
    few = np.arange(120) < 30
    masks = {'is_train': few, 'is_valid': ~few, 'is_test': ~few}
    whole = graph(120, share=0.8)
    np.savez(tmp_path / 'cora' / 'cora.npz', **whole, **masks)
    spec = str(commands.ROOT / f'configs/graph.py:{variant}')
    overrides = ['total_steps=150', 'checkpoint.every=75', 'model.num_classes=2', 'batch_size=8']
    # As eight devices have it, which do not divide one graph: the same graph eight times.
    loaded = config.load(spec, overrides)
    figures = train.train(loaded, tmp_path / 'run')
    assert figures['test/accuracy'] > 0.9
    assert commands.resumed(tmp_path / 'run', tmp_path / 'resumed') == figures
    unlabelled = {name: whole[name] for name in ('features', 'edges')}
    np.savez(tmp_path / 'new.npz', **unlabelled)
    [answer] = commands.answered(capsys, tmp_path / 'run', tmp_path / 'new.npz')
    assert np.mean(np.asarray(answer['labels']) == whole['label']) > 0.9
