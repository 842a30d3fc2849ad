"""Simple classifiers on the features of a frozen network: what it knows of classes already.

Features are what the model's layer `head` gets, so that any classifier with such a layer has them.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from bigmodels import errors
from bigmodels.data import pipeline
from bigmodels.tasks import base


def features(
    task: Any, params: Any, model_state: Any, examples: Sequence, batch_size: int = 128
) -> tuple[np.ndarray, np.ndarray]:
    """What the head gets of each example, float [n, D], and the targets [n].

    Args:
      task: whose `predict` calls a model with a layer `head`.
      examples: of the task, with targets.

    Raises:
      UserError: if the model has no such layer.
    """
    inputs_of_head = jax.jit(functools.partial(_inputs_of_head, task))
    found, targets = [], []
    for batch in pipeline.evaluation_batches(examples, batch_size):
        real = batch['weights'] > 0
        found.append(np.asarray(inputs_of_head(params, model_state, batch))[real])
        targets.append(batch['targets'][real])
    return np.concatenate(found), np.concatenate(targets)


def _inputs_of_head(task: Any, params: Any, model_state: Any, batch: Any) -> jax.Array:
    seen = []

    def watch(call, args, kwargs, context):
        if context.module.name == 'head' and context.method_name == '__call__':
            seen.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        base.calling_once(task).predict(params, model_state, batch)
    if not seen:
        raise errors.UserError(
            f'{type(task.model).__name__} has no layer `head`, whose inputs are its features.'
        )
    return seen[0].reshape(len(batch['weights']), -1)


def linear_probe(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], seed: int = 0
) -> float:
    """Test accuracy of logistic regression on (features [n, D], targets [n]).

    Features are standardised by those for training; the penalty is the best of five folds of them.
    """
    sklearn = _sklearn()
    model = sklearn.pipeline.make_pipeline(
        sklearn.preprocessing.StandardScaler(),
        sklearn.model_selection.GridSearchCV(
            sklearn.linear_model.LogisticRegression(max_iter=1000),
            {'C': list(np.logspace(-4, 1, 6))},
            cv=sklearn.model_selection.StratifiedKFold(5, shuffle=True, random_state=seed),
        ),
    )
    return float(model.fit(*train).score(*test))


def control_targets(kinds: np.ndarray, num_classes: int, seed: int = 0) -> np.ndarray:
    """Targets int [n] of a control task: each kind of input has a class drawn at random.

    Who learns it has memory, but has not found it in the features (Hewitt and Liang 2019,
    arXiv:1909.03368, section 2).

    Args:
      kinds: [n], what the inputs are, such as the ids of tokens.
    """
    names, place = np.unique(kinds, return_inverse=True)
    return np.random.default_rng(seed).integers(0, num_classes, len(names))[place]


def selectivity(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    train_kinds: np.ndarray,
    test_kinds: np.ndarray,
    seed: int = 0,
) -> tuple[float, float]:
    """The linear probe's test accuracy, and by how much it is over that of a control task.

    Args:
      train, test: (features [n, D], targets [n]).
      train_kinds, test_kinds: [n], see `control_targets`.
    """
    classes = len(np.unique(train[1]))
    count = len(train_kinds)
    control = control_targets(np.concatenate([train_kinds, test_kinds]), classes, seed)
    accuracy = linear_probe(train, test, seed)
    learnt = linear_probe((train[0], control[:count]), (test[0], control[count:]), seed)
    return accuracy, accuracy - learnt


def nearest_neighbours_probe(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], neighbours: int = 20
) -> float:
    """Test accuracy of the vote of the nearest training features by cosine similarity.

    A neighbour's vote weighs exp(similarity / 0.07) (Wu et al. 2018, section 3.4).
    """
    sklearn = _sklearn()
    model = sklearn.neighbors.KNeighborsClassifier(
        min(neighbours, len(train[0])),
        metric='cosine',
        weights=lambda distances: np.exp((1 - distances) / 0.07),
    )
    return float(model.fit(*train).score(*test))


def _sklearn() -> Any:
    try:
        import sklearn.linear_model
        import sklearn.model_selection
        import sklearn.neighbors
        import sklearn.pipeline
        import sklearn.preprocessing
    except ImportError as error:
        raise errors.UserError(
            "Probes need scikit-learn: pip install 'bigmodels[tables]'."
        ) from error
    return sklearn
