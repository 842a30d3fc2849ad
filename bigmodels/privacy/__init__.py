"""Privacy of those whose data a model learns from: transformations of the step, and measurements.

`config.privacy` makes a run differentially private: its batches are drawn as the guarantee wants
(`sampling`), the gradient of each example is clipped and their sum gets noise (`dp_sgd`), and what
the run has spent follows from the number of its steps (`budget`). Everything that the guarantee
does not cover is refused before anything is compiled, or is a note on the start screen.

`config.federated` lets clients make steps of their own, of which the run takes the mean; with both,
the guarantee is of clients.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bigmodels import errors, steps
from bigmodels.privacy import dp_sgd, federated, sampling
from bigmodels.privacy.budget import NONE, Budget, Settings
from bigmodels.tasks.base import Defaults
from bigmodels.tasks.classes import NamedClasses

__all__ = [
    'NONE',
    'Budget',
    'Settings',
    'Transformation',
    'batch_order',
    'budget_of',
    'transformation',
]


@dataclasses.dataclass(frozen=True)
class Transformation:
    """What takes the place of the plain gradient in `steps.train_step`.

    Fields:
      gradients, spent: its arguments.
      notes: for the start screen.
    """

    gradients: Callable = steps.accumulated_gradients
    spent: Callable = lambda step: {}
    notes: Sequence[str] = ()


def budget_of(settings: Any) -> Budget | None:
    """What an experiment may spend; None where it is not private.

    Raises:
      UserError: if its batches are too small, or the number of units is missing.
    """
    privacy, clients = settings.privacy, settings.federated
    if not privacy.on:
        return None
    if clients.on:
        return Budget(privacy, clients.clients, clients.per_round, settings.total_steps)
    return Budget(privacy, privacy.examples, settings.batch_size, settings.total_steps)


def batch_order(settings: Any, parts: Sequence[tuple[Sequence, float]]) -> sampling.Order | None:
    """Which examples an experiment's batches hold; None for those of shuffled epochs.

    Raises:
      UserError: if the examples are not as many as the config says.
    """
    budget, clients = budget_of(settings), settings.federated
    if budget is None and not clients.on:
        return None
    if len(parts) > 1:
        raise errors.UserError(
            'config.privacy and config.federated need one source in config.data.train: in a '
            'mixture the examples of one would be drawn more often than those of another.'
        )
    [(examples, _)] = parts
    count = len(examples)
    if clients.on:
        return federated.Rounds(
            clients,
            federated.members(clients, examples, settings.seed),
            count,
            settings.batch_size,
            settings.seed,
            budget and budget.rate,
        )
    if count != budget.units:
        raise errors.UserError(
            f'There are {count:,} training examples, but config.privacy.examples = '
            f'{budget.units}, of which the guarantee would be: set it to {count}.'
        )
    return sampling.Poisson(count, budget.rate, settings.batch_size, settings.seed)


def transformation(settings: Any, task: Any, variables: Mapping[str, Any]) -> Transformation:
    """The gradient of an experiment's steps.

    Args:
      variables: the task's, as shapes.

    Raises:
      UserError: for what would break the guarantee.
    """
    budget, clients = budget_of(settings), settings.federated
    if budget is None and not clients.on:
        return Transformation()
    _check_alone(settings, variables)
    given = dict(budget=budget, most_counts=getattr(task, 'most_counts', dp_sgd.num_weights))
    gradients = functools.partial(dp_sgd.private_gradients, **given)
    if clients.on:
        gradients = functools.partial(federated.federated_gradients, settings=clients, **given)
    if budget is None:
        return Transformation(gradients)
    _check_private(settings, task)
    spent = lambda step: {'epsilon': budget.spent(step)}
    return Transformation(gradients, spent, _notes(settings, task, budget))


def _check_alone(settings: Any, variables: Mapping[str, Any]) -> None:
    """Raises UserError for what no part of a batch can do by itself."""
    state = [name for name in variables if name != 'params']
    found = {
        f'The model keeps {" and ".join(state)} of its batches, as BatchNorm does: take a model '
        'without, such as one with norm "none".': state,
        'config.parallel = "pmap" would take the part of each device for a batch: set it to '
        '"jit".': settings.parallel == 'pmap',
    }
    for problem, there in found.items():
        if there:
            raise errors.UserError(f'Not with config.privacy or config.federated. {problem}')


def _check_private(settings: Any, task: Any) -> None:
    """Raises UserError for what would break the guarantee."""
    of_clients = settings.federated.on
    augment = getattr(task, 'augment', None) or {}
    mixing = [name for name in ('mixup', 'cutmix') if augment.get(name)]
    found = {
        f'The loss of {type(task).__name__} compares the examples of a batch, so that none has a '
        'gradient of its own: take another task.': (
            getattr(task, 'compares_examples', False) and not of_clients
        ),
        f'config.task.augment.{" and ".join(mixing)} mixes examples: leave it out.': (
            mixing and not of_clients
        ),
        f'config.guard.spike_sigma = {settings.guard.spike_sigma:g} lets the losses of examples '
        'decide which steps count, without noise: set it to 0.': settings.guard.spike_sigma,
    }
    for problem, there in found.items():
        if there:
            raise errors.UserError(f'Not with config.privacy. {problem}')


def _notes(settings: Any, task: Any, budget: Budget) -> list[str]:
    notes = [
        budget.describe('client' if settings.federated.on else 'training example'),
        'losses and other metrics of training batches are NOT private, nor is config.seed, from '
        'which the noise follows: publish neither metrics.jsonl, tensorboard/ and curves.png nor '
        'config.json. It is one of 2**32, which who has much time can try one by one',
    ]
    if budget.settings.delta >= 1 / budget.units:
        notes.append(
            f'WARNING: delta {budget.settings.delta:g} is not under 1 / {budget.units}: a run that '
            'publishes the data of one unit whole would keep to it'
        )
    if type(task).fit not in (Defaults.fit, NamedClasses.fit):
        notes.append(
            'what preprocessing learns from training records, such as a vocabulary or the mean of '
            'a column, is not covered: if it is of private records, it is published as it is'
        )
    if getattr(task, 'packing', None) and not settings.federated.on:
        notes.append(
            'the unit of privacy is an example of packed or cut text, not a document or a person: '
            'who is in several of them is protected less'
        )
    if settings.init_from.workdir:
        notes.append('what the other run has learnt, which this one begins with, is not covered')
    return notes
