"""Attacks and what they prove, against scikit-learn and mechanisms whose epsilon is known."""

import json
import math

import numpy as np
import pytest
from sklearn import metrics as reference

from bigmodels import runs
from bigmodels.data.sources.table_sources import Digits
from bigmodels.privacy import audit

rng = np.random.default_rng(0)


def test_membership_is_scikit_learn_s_area_and_the_rate_at_one_percent():
    members = rng.random(3000) < 0.4
    scores = np.round(rng.normal(size=3000) + members, 1)  # with ties
    figures = audit.membership(scores, members)
    np.testing.assert_allclose(figures['auc'], reference.roc_auc_score(members, scores))
    mistaken, found, _ = reference.roc_curve(members, scores, drop_intermediate=False)
    expected = found[mistaken <= 0.01].max()
    assert figures['true_positives_at_1_percent'] == pytest.approx(expected, abs=0.02)
    nothing = audit.membership(rng.normal(size=3000), members)
    assert abs(nothing['auc'] - 0.5) < 0.04
    assert nothing['true_positives_at_1_percent'] < 0.03


def randomised_response(members, epsilon, generator):
    """Each bit is told rightly with probability e^epsilon / (1 + e^epsilon)."""
    right = generator.random(len(members)) < 1 / (1 + math.exp(-epsilon))
    return np.where(right, members, ~members)


@pytest.mark.parametrize('epsilon', [0.5, 2.0])
def test_the_proved_epsilon_is_below_the_true_one_and_near_it(epsilon):
    """The bound may fail in 5 of 100 cases; randomised response is the worst that there is."""
    proved = []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        members = generator.random(4000) < 0.5
        said = randomised_response(members, epsilon, generator)
        scores = said + generator.random(4000) / 2
        proved.append(audit.epsilon_of_one_run(scores, members, 1000, delta=0.0))
    assert (np.array(proved) > epsilon).mean() <= 0.1
    assert epsilon - 0.35 < np.median(proved) < epsilon


def test_delta_and_confidence_make_the_bound_weaker():
    members = np.arange(1000) % 2 == 0
    scores = members + rng.normal(size=1000) / 2
    one = audit.epsilon_of_one_run(scores, members, 200, delta=0.0)
    assert audit.epsilon_of_one_run(scores, members, 200, delta=1e-3) < one
    assert audit.epsilon_of_one_run(scores, members, 200, 0.0, confidence=0.999) < one


def test_losses_of_examples_are_those_of_the_evaluation(finished_digits):
    figures = json.loads((finished_digits / 'summary.json').read_text())['final']
    losses = audit.example_losses(runs.open_run(finished_digits), Digits('valid'), batch_size=100)
    assert losses.shape == (360,)
    np.testing.assert_allclose(losses.mean(), figures['valid/loss'], rtol=1e-5)
    references = np.stack([losses + 1, losses + 3])
    np.testing.assert_allclose(audit.membership_scores(losses, references), 2)
