"""One class for each node of a graph."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from bigmodels import errors
from bigmodels.augmentation import Augmentation
from bigmodels.data.sources.graph_sources import checked_edges
from bigmodels.tasks.base import Examples, field_of
from bigmodels.tasks.classification import Classification

NOT_OF_NODES = ('image_size', 'augment', 'top_k', 'mirror', 'shift', 'report', 'classes')


@dataclasses.dataclass(frozen=True)
class NodeClassification(Classification):
    """Graphs -> one of the model's `num_classes` for each node; a whole graph is one example.

    Its 'weights' are those of its nodes: what is trained and measured is where they are not 0.

    Fields:
      model: maps features [B, N, F] and edges [B, E, 2] to logits [B, N, classes].
      normalize_rows: the features of a node are divided by their sum, as is the custom for bags of
        words; nodes without any stay 0.

    Fields of `Classification` that are of images or of whole examples, NOT_OF_NODES, are refused.
    """

    input_key: str = 'features'
    normalize_rows: bool = True

    answer_fields: ClassVar = ()
    alike_in_teacher: ClassVar = ('normalize_rows',)

    def __post_init__(self):
        for name in NOT_OF_NODES:
            if name == 'augment' and self._augmentation() == Augmentation():
                continue
            if getattr(self, name):
                raise errors.UserError(
                    f'config.task.{name} = {getattr(self, name)} is not for node_classification: '
                    'leave it out.'
                )
        super().__post_init__()

    @property
    def record_fields(self) -> dict[str, str]:
        """What `preprocess` needs of a record, see `data.inputs`."""
        return {self.input_key: 'array', 'edges': 'array'}

    def preprocess(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A graph -> {'inputs' float32 [N, F], 'edges' int32 [E, 2], 'weights' float32 [N], 1
        where it has none, and 'targets' int32 [N] where it is labelled}.

        Raises:
          UserError: for what is not there, an edge to no node, a label out of range, or labels or
            weights that are not one for each node.
        """
        example = super().preprocess(raw)
        inputs = example['inputs']
        if inputs.ndim != 2:
            raise errors.UserError(f'The features of a graph are [N, F], got {list(inputs.shape)}.')
        example['edges'] = checked_edges(field_of(raw, 'edges'), len(inputs), 'the graph')
        if self.normalize_rows:
            sums = inputs.sum(1, keepdims=True)
            example['inputs'] = np.divide(inputs, sums, out=np.zeros_like(inputs), where=sums != 0)
        # A batch gives examples without weights one each: nodes would be counted as graphs.
        example['weights'] = np.asarray(raw.get('weights', np.ones(len(inputs))), np.float32)
        for name in ('weights', 'targets'):
            if name in example and example[name].shape != inputs.shape[:1]:
                raise errors.UserError(
                    f'The graph has {len(inputs)} nodes and {name} of the shape '
                    f'{list(example[name].shape)}: one is wanted for each node.'
                )
        return example

    def examples(self, source: Sequence, cache_dir: Path, train: bool) -> Sequence:
        """One example for each graph, all prepared here: they are few and large."""
        examples = Examples(source, self)
        return [examples[i] for i in range(len(source))]

    def model_inputs(self, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Features and edges."""
        return batch['inputs'], batch['edges']

    def postprocess(self, prediction: np.ndarray) -> dict[str, list]:
        """Probabilities [N, classes] -> {'labels', 'probabilities'} of the nodes."""
        return {
            'labels': prediction.argmax(1).tolist(),
            'probabilities': prediction.max(1).tolist(),
        }

    def items(self, shapes: Mapping[str, Any]) -> tuple[int, str]:
        """The number of nodes in a batch, and their unit."""
        graphs, nodes, _ = shapes['inputs'].shape
        return graphs * nodes, 'nodes'
