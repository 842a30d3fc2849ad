"""Features are what the head gets; probes against scikit-learn's and NumPy's own results."""

import dataclasses

import jax
import numpy as np
import pytest
from sklearn import datasets

from bigmodels import errors
from bigmodels.data.sources import table_sources
from bigmodels.interpret import probes
from bigmodels.models.mlp import MLP
from bigmodels.tasks.classification import Classification


def test_features_are_the_inputs_of_the_head(tmp_path):
    rng = np.random.default_rng(0)
    columns = {'image': rng.normal(size=(11, 6)), 'label': np.arange(11) % 3}
    task = Classification(MLP(num_classes=3, hidden_dims=(5,)))
    params = task.init(jax.random.key(0), {'inputs': columns['image'][:1]})['params']
    examples = task.examples(table_sources.Columns(columns), tmp_path, train=False)
    found, targets = probes.features(task, params, {}, examples, batch_size=4)
    layer = params['Linear_0']
    expected = np.maximum(columns['image'] @ layer['kernel'] + layer['bias'], 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(targets, columns['label'])


def test_features_are_those_of_the_images_where_answers_are_of_their_views_too(tmp_path):
    images = np.random.default_rng(0).normal(size=(5, 4, 4)).astype(np.float32)
    columns = {'image': images, 'label': np.arange(5) % 3}
    plain = Classification(MLP(num_classes=3, hidden_dims=(5,)))
    params = plain.init(jax.random.key(0), {'inputs': images})['params']
    examples = plain.examples(table_sources.Columns(columns), tmp_path, train=False)
    expected, _ = probes.features(plain, params, {}, examples)
    averaged = dataclasses.replace(plain, mirror=True, shift=1)
    found, _ = probes.features(averaged, params, {}, examples)
    np.testing.assert_array_equal(found, expected)


def test_a_model_without_a_head_is_named(tmp_path):
    class Headless(MLP):
        def __call__(self, inputs, *, train=False):
            return inputs

    task = Classification(Headless(num_classes=6))
    columns = {'image': np.ones((2, 6)), 'label': np.arange(2)}
    examples = task.examples(table_sources.Columns(columns), tmp_path, train=False)
    with pytest.raises(errors.UserError, match='Headless has no layer `head`'):
        probes.features(task, {}, {}, examples)


def test_probes_tell_digits_apart_and_cannot_tell_noise():
    images, labels = datasets.load_digits(return_X_y=True)
    train, test = (images[:300], labels[:300]), (images[300:600], labels[300:600])
    assert probes.linear_probe(train, test) > 0.8
    assert probes.nearest_neighbours_probe(train, test) > 0.8
    noise = np.random.default_rng(0).normal(size=images.shape)
    noisy = (noise[:300], labels[:300]), (noise[300:600], labels[300:600])
    assert probes.linear_probe(*noisy) < 0.25
    assert probes.nearest_neighbours_probe(*noisy) < 0.25


def test_neighbours_vote_by_similarity():
    rng = np.random.default_rng(1)
    train = rng.normal(size=(40, 3)), rng.integers(0, 3, 40)
    test = rng.normal(size=(25, 3)), rng.integers(0, 3, 25)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    similarity = unit(test[0]) @ unit(train[0]).T
    votes = np.zeros((25, 3))
    for row, similar in enumerate(similarity):
        for i in np.argsort(-similar)[:7]:
            votes[row, train[1][i]] += np.exp(similar[i] / 0.07)
    expected = (votes.argmax(1) == test[1]).mean()
    assert probes.nearest_neighbours_probe(train, test, neighbours=7) == pytest.approx(expected)


def test_selectivity_tells_what_is_in_features_from_what_a_probe_remembers():
    rng = np.random.default_rng(2)
    kinds = rng.integers(0, 30, 600)
    control = probes.control_targets(kinds, 3)
    assert set(control) == {0, 1, 2}
    assert all(len(set(control[kinds == kind])) == 1 for kind in range(30))
    targets = kinds % 3
    direct = np.eye(3)[targets] + 0.1 * rng.normal(size=(600, 3))  # the class alone
    names = np.eye(30)[kinds]  # of which anything can be learnt by heart
    for features, least, most in ((direct, 0.4, 1), (names, -0.05, 0.05)):
        accuracy, selectivity = probes.selectivity(
            (features[:400], targets[:400]), (features[400:], targets[400:]),
            kinds[:400], kinds[400:],
        )  # fmt: skip
        assert accuracy > 0.95
        assert least < selectivity <= most
