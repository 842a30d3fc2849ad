"""Records to examples: one at a time, several at once, and labels that cannot be."""

import numpy as np
import pytest

from bigmodels import errors
from bigmodels.data import table_sources
from bigmodels.models.mlp import MLP
from bigmodels.tasks.classification import Classification


@pytest.fixture
def source():
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 4), np.uint8)
    return table_sources.Columns({'image': images, 'label': np.arange(9) % 3})


@pytest.mark.parametrize('stacked', [True, False])
def test_examples_taken_together_are_those_taken_alone(source, stacked, tmp_path):
    task = Classification(MLP(num_classes=3), mean=4.9, std=6.1)
    records = source if stacked else [source[i] for i in range(9)]
    examples = task.examples(records, tmp_path, train=True)
    indices = np.array([4, 8, 0, 4])
    batch = examples.take(indices)
    assert {key: value.dtype.name for key, value in batch.items()} == {
        'inputs': 'float32', 'targets': 'int32',
    }  # fmt: skip
    for row, i in enumerate(indices):
        expected = (source[i]['image'].astype(np.float32) - np.float32(4.9)) / np.float32(6.1)
        np.testing.assert_array_equal(batch['inputs'][row], expected)
        np.testing.assert_array_equal(examples[i]['inputs'], expected)
        assert batch['targets'][row] == examples[i]['targets'] == i % 3


def test_a_label_out_of_range_is_named(source, tmp_path):
    examples = Classification(MLP(num_classes=2)).examples(source, tmp_path, train=True)
    for call in (lambda: examples.take(np.array([0, 5, 1])), lambda: examples[5]):
        with pytest.raises(errors.UserError, match='Label 2 is out of range: model.num_classes is'):
            call()
