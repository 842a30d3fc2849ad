"""Federated averaging (McMahan et al. 2017) as a gradient: what clients move the parameters by.

Step t is a round. Its batch holds the local batches of the clients that take part; each client
makes steps of its own from the round's parameters, and the mean of what they moved by is the
gradient that the config's optimiser, the server's, is given (Reddi et al. 2021, algorithm 1): plain
SGD of rate 1 is federated averaging, 'adam' is FedAdam. Clients are a mapped axis, split over the
mesh as the rows of every batch are.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors, sharding, steps
from bigmodels import metrics as metrics_lib
from bigmodels.privacy import dp_sgd, sampling, secure_sum
from bigmodels.privacy.budget import Budget
from bigmodels.tasks.base import columns_of

_PARTITION, _CLIENTS, _LOCAL = 0x46, 0x47, 0x48  # distinguish what is random here


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.federated.

    Of the rows of a batch each client has batch_size / (per_round * local_steps) for a local step.

    Fields:
      clients: among which the training records are divided; 0 for none.
      per_round: how many of them take part in a step of the run; with config.privacy each does by
        chance, so many are the places, and there must be more of them than are filled as a rule.
      local_steps: that each makes in a round.
      local_learning_rate: of these, by plain gradient descent.
      proximal: the weight of |params - params of the round|^2 / 2 in clients' losses (FedProx, Li
        et al. 2020).
      client_key: the field of a record that says whose it is; '' for clients that are made up.
      label_key, alpha: these have shares of the records of each value of the field that are drawn
        from a Dirichlet distribution of concentration alpha: the smaller, the less clients are
        alike. 0 divides the records evenly and at random.
      secure_sum: whether clients' updates are added up under masks, see `secure_sum`.
    """

    clients: int = 0
    per_round: int = 10
    local_steps: int = 1
    local_learning_rate: float = 0.1
    proximal: float = 0.0
    client_key: str = ''
    label_key: str = 'label'
    alpha: float = 0.0
    secure_sum: bool = False

    def __post_init__(self):
        if not self.on:
            return
        positive = ('clients', 'per_round', 'local_steps', 'local_learning_rate')
        least = {**dict.fromkeys(positive, 'over 0'), 'proximal': 'not negative',
                 'alpha': 'not negative'}  # fmt: skip
        for name, wanted in least.items():
            value = getattr(self, name)
            if value < 0 or (wanted == 'over 0' and not value):
                raise errors.UserError(f'config.federated.{name} = {value} must be {wanted}.')
        if self.per_round > self.clients:
            raise errors.UserError(
                f'config.federated.per_round = {self.per_round} is more than the clients that '
                f'there are: {self.clients}.'
            )

    @property
    def on(self) -> bool:
        """Whether clients learn."""
        return self.clients != 0

    def check_batch(self, batch_size: int, accumulate: int) -> None:
        """Raises UserError where a batch does not divide over clients and local steps."""
        local = self.per_round * self.local_steps
        if batch_size % local:
            raise errors.UserError(
                f'config.batch_size = {batch_size} must be a multiple of federated.per_round * '
                f'local_steps = {local}, whose local batches it holds.'
            )
        if self.per_round % accumulate:
            raise errors.UserError(
                f'config.accumulate = {accumulate} must divide federated.per_round = '
                f'{self.per_round}: so many parts of the clients are computed in turn.'
            )


NONE = Settings()


def partition(labels: np.ndarray, clients: int, alpha: float, seed: int) -> list[np.ndarray]:
    """The examples of each client, a function of the arguments alone; see `Settings`.

    Args:
      labels: [n], any values.

    Returns:
      For each client the ascending numbers of its examples, int64: each in [0, n) is of one client.
    """
    rng = sampling.generator(seed, _PARTITION)
    owners = np.empty(len(labels), np.int64)
    if not alpha:
        owners[rng.permutation(len(labels))] = np.arange(len(labels)) % clients
    else:
        values, kinds = np.unique(labels, return_inverse=True)  # of which NaN is one
        for kind in range(len(values)):
            numbers = rng.permutation(np.flatnonzero(kinds == kind))
            shares = rng.dirichlet(np.full(clients, alpha))
            ends = np.round(np.cumsum(shares) * len(numbers)).astype(np.int64)
            owners[numbers] = np.searchsorted(ends[:-1], np.arange(len(numbers)), side='right')
    return [np.flatnonzero(owners == client) for client in range(clients)]


def members(settings: Settings, examples: Sequence, seed: int) -> list[np.ndarray]:
    """The examples of each client.

    Raises:
      UserError: if examples are no records, a field is missing, or there are other clients.
    """
    if not hasattr(examples, 'source'):
        raise errors.UserError(
            'config.federated needs a task that makes one example of each record: those of this '
            'task are cut or packed.'
        )
    if not settings.client_key:
        if not settings.alpha:
            return partition(np.zeros(len(examples)), settings.clients, 0.0, seed)
        labels = _column(examples.source, 'label_key', settings.label_key)
        return partition(labels, settings.clients, settings.alpha, seed)
    owners = _column(examples.source, 'client_key', settings.client_key)
    names, numbers = np.unique(owners, return_inverse=True)
    if len(names) != settings.clients:
        raise errors.UserError(
            f'The field {settings.client_key!r} names {len(names)} clients, but config.federated.'
            f'clients = {settings.clients}.'
        )
    return [np.flatnonzero(numbers == client) for client in range(len(names))]


def _column(source: Sequence, key: str, field: str) -> np.ndarray:
    return columns_of(source, {f'federated.{key}': [field]})[field]


@dataclasses.dataclass(frozen=True)
class Rounds(sampling.Order):
    """Batch t: for each client of round t, for each of its local steps, its local batch.

    A local batch is drawn without replacement from the client's examples; where it has fewer than
    rows, the rest is padding.

    Fields:
      members: client -> its examples.
      length: the number of all examples.
      rate: the probability with which a client takes part; None for `per_round` of them, drawn
        without replacement.
    """

    settings: Settings
    members: Sequence[np.ndarray] | Mapping[int, np.ndarray]
    length: int
    batch_size: int
    seed: int
    rate: float | None = None

    def clients(self, t: int) -> np.ndarray:
        """Those that take part in round t, ascending, at most `per_round`."""
        count, most = self.settings.clients, self.settings.per_round
        if self.rate is not None:
            return sampling.poisson(count, self.rate, self.seed, t)[:most]
        rng = sampling.generator(self.seed, _CLIENTS, t)
        return np.sort(rng.permutation(count)[:most])

    @property
    def local_rows(self) -> int:
        """Those that a client has in a batch, all its local steps together."""
        return self.batch_size // self.settings.per_round

    def batch(self, t: int) -> np.ndarray:
        """Numbers of examples, int64 [batch_size]."""
        numbers = np.full((self.settings.per_round, self.local_rows), self.length)
        for place, client in enumerate(self.clients(t)):
            numbers[place] = self.of_client(t, int(client))
        return numbers.ravel()

    def of_client(self, t: int, client: int) -> np.ndarray:
        """The rows of a client that takes part in round t, int64 [local_rows]."""
        numbers = np.full(self.local_rows, self.length)
        own = self.members[client]
        rng = sampling.generator(self.seed, _LOCAL, t, client)
        for batch in np.split(numbers, self.settings.local_steps):  # views
            drawn = rng.permutation(len(own))[: len(batch)]
            batch[: len(drawn)] = own[drawn]
        return numbers


@dataclasses.dataclass(frozen=True)
class OneClient(sampling.Order):
    """Batch t: the rows of one client in round t, as `Rounds` has them, whoever else takes part."""

    rounds: Rounds
    client: int

    @property
    def batch_size(self) -> int:
        """As many rows as are the client's."""
        return self.rounds.local_rows

    def batch(self, t: int) -> np.ndarray:
        """Numbers of examples, int64 [batch_size]."""
        return self.rounds.of_client(t, self.client)


def client_rng(rng: jax.Array, place: jax.Array | int) -> jax.Array:
    """The key of what is random in a client's local steps, by its place among those of a round.

    Args:
      rng: of the round.
    """
    _, _, of_clients = jax.random.split(rng, 3)
    return jax.random.fold_in(of_clients, place)


def federated_gradients(
    params: Any,
    model_state: Any,
    batch: Mapping[str, jax.Array],
    rng: jax.Array,
    loss_fn: Callable,
    parts: int,
    *,
    settings: Settings,
    budget: Budget | None,
    most_counts: Callable[[jax.Array], int] = dp_sgd.num_weights,
) -> tuple[Any, Mapping[str, metrics_lib.Pair], Any]:
    """As `steps.accumulated_gradients`: the mean of what clients moved by, with its sign turned.

    Clients count by the weights that metrics['loss'] has of them, all local steps together. With a
    budget each counts the same, is clipped, and the sum gets noise: the round is private for one
    client added or removed with all it has.

    Args:
      batch: as `Rounds` has it.
      most_counts: of the batch's weights, see `tasks`.
      parts: so many parts of the clients are computed in turn.
    """
    places = settings.per_round
    noise_rng, mask_rng, _ = jax.random.split(rng, 3)
    most = most_counts(batch['weights']) * len(batch['weights']) / places

    def contribution(row):
        place, batches = row
        key = client_rng(rng, place)
        moved, pairs = local_update(params, model_state, batches, key, loss_fn, settings)
        count = pairs['loss'][1]
        share = count / most
        if budget is not None:
            moved, norm = dp_sgd.clipped(moved, budget.settings.clip, count > 0)
            share = jnp.float32(1)
            pairs = {**pairs, 'clipped': (1.0 * (norm > budget.settings.clip), 1.0 * (count > 0))}
            pairs = jax.tree.map(lambda x: jnp.where(jnp.isfinite(norm + x), x, 0), pairs)
        moved = jax.tree.map(lambda x: x * share / places, moved)
        if settings.secure_sum:  # whole numbers know no NaN: it goes with the share
            finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(moved)]).all()
            share = jnp.where(finite, share, jnp.nan)
            moved = secure_sum.masked(secure_sum.encoded(moved), place, places, mask_rng)
        return moved, share / places, pairs

    rows = jax.tree.map(
        lambda x: x.reshape(places, settings.local_steps, -1, *x.shape[1:]), dict(batch)
    )
    # A client is not split over devices; clients are.
    with sharding.without_axes(jax.sharding.get_abstract_mesh()):
        total, shares, pairs = steps.sum_over_rows(contribution, (jnp.arange(places), rows), parts)
    if settings.secure_sum:
        total = secure_sum.decoded(total)
    if budget is not None:
        total = jax.tree.map(lambda x: x * places, total)
        return dp_sgd.noisy_mean(total, noise_rng, budget), pairs, model_state
    return jax.tree.map(lambda x: x / jnp.maximum(shares, 1e-9), total), pairs, model_state


def local_update(
    params: Any,
    model_state: Any,
    batches: Mapping[str, jax.Array],
    rng: jax.Array,
    loss_fn: Callable,
    settings: Settings,
) -> tuple[Any, Mapping[str, metrics_lib.Pair]]:
    """(params - those after a client's local steps, its summed metrics).

    Args:
      batches: arrays [local_steps, rows, ...].
    """
    gradient = jax.grad(functools.partial(loss_fn, train=True), has_aux=True)

    def step(own, inputs):
        index, batch = inputs
        grads, (pairs, _) = gradient(own, model_state, batch, jax.random.fold_in(rng, index))
        descend = lambda p, g, start: (
            p - settings.local_learning_rate * (g + settings.proximal * (p - start))
        )
        return jax.tree.map(descend, own, grads, params), pairs

    indices = jnp.arange(settings.local_steps)
    own, pairs = jax.lax.scan(step, params, (indices, batches))
    return jax.tree.map(jnp.subtract, params, own), jax.tree.map(lambda x: x.sum(0), pairs)
