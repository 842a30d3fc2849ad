"""What a trained model gives away of who was in its data: attacks, and the epsilon they prove.

The attack is by the loss (Yeom et al. 2018): an example of which the model has a low loss is taken
for one of its training examples. Reference models, which have not seen it, tell how low its loss
would be anyway (Carlini et al. 2022, "LiRA", with a common variance).
"""

from collections.abc import Sequence

import jax
import numpy as np
import scipy.stats

from bigmodels import metrics, runs
from bigmodels.data import pipeline
from bigmodels.scores.classification import roc_auc


def example_losses(run: runs.Run, source: Sequence, batch_size: int = 256) -> np.ndarray:
    """The loss of each record of a source, as in evaluation, float64 [n]; 0 without a weight.

    Args:
      run: opened.
      source: of the run's kind of records; one example is made of each, or more.
    """
    examples = run.task.examples(source, pipeline.cache_dir(), train=False)
    batches = pipeline.evaluation_batches(examples, batch_size)

    def loss(params, model_state, example):
        alone, key = jax.tree.map(lambda x: x[None], example), jax.random.key(0)
        _, (pairs, _) = run.task.loss_fn(params, model_state, alone, key, train=False)
        return metrics.mean(pairs['loss'])

    each = jax.jit(jax.vmap(loss, in_axes=(None, None, 0)))
    losses = [each(run.params, run.model_state, batches[i]) for i in range(len(batches))]
    return np.concatenate(losses)[: len(examples)].astype(np.float64)


def membership_scores(losses: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
    """How much each of n examples looks like one that the model was trained on, [n].

    Args:
      losses: [n], of the model that is attacked.
      reference: [models, n], of models that have not been trained on them; None for none.
    """
    return -losses if reference is None else reference.mean(0) - losses


def membership(scores: np.ndarray, members: np.ndarray) -> dict[str, float]:
    """How well scores [n] tell members, bool [n], from others.

    Returns:
      'auc', the area under the curve, 0.5 for guesses; and 'true_positives_at_1_percent', the share
      of members that are found when 1 % of the others are taken for such (Carlini et al. 2022).
    """
    limit = np.quantile(scores[~members], 0.99, method='higher')
    found = float((scores[members] > limit).mean())
    return {'auc': roc_auc(members, scores), 'true_positives_at_1_percent': found}


def epsilon_of_one_run(
    scores: np.ndarray,
    members: np.ndarray,
    guesses: int,
    delta: float,
    confidence: float = 0.95,
) -> float:
    """The epsilon that one model proves its training to have at least.

    Each of n examples was in its data with probability 1/2, independently. The `guesses` highest
    scores are taken for members and as many lowest for others. If training is (epsilon, 0)-private,
    the right ones among m guesses are no more than Binomial(m, exp(epsilon) / (1 + exp(epsilon))),
    stochastically; what delta adds is in `_p_value` (Steinke et al. 2023, arXiv:2305.08846).

    Args:
      scores, members: [n], as in `membership`.
      guesses: of either kind, settled before; at most n / 2.
    """
    order = np.argsort(scores)
    right = int(members[order[-guesses:]].sum() + (~members[order[:guesses]]).sum())
    low, high = 0.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        p = _p_value(right, 2 * guesses, len(scores), middle, delta)
        low, high = (middle, high) if p < 1 - confidence else (low, middle)
    return low


def _p_value(right: int, guesses: int, count: int, epsilon: float, delta: float) -> float:
    """How probable so many right guesses are at most, if training is (epsilon, delta)-private.

    (ibid., appendix D)
    """
    binomial = scipy.stats.binom(guesses, 1 / (1 + np.exp(-epsilon)))
    fewer = np.arange(1, right + 1)
    between = np.cumsum(binomial.pmf(right - fewer))  # P(right - i <= X < right)
    worst = (between / fewer).max() if right else 0.0
    return min(1.0, binomial.sf(right - 1) + 2 * count * delta * worst)
