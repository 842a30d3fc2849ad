"""Two towers that meet in a product: queries and items are vectors, so items can be indexed.

Axes: B batch, L length, D embed, V items.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels.models.parts import layers, pooling

Array = jax.Array


class TwoTower(nn.Module):
    """Queries, of users and their histories, and items as vectors [D] (Yi et al. 2019).

    Fields:
      num_items, num_users: rows of the tables; row 0 is of unknown ids.
      embed_dim: D.
      hidden_dims: of each tower between its embeddings and its vector.
      temperature: what scores, cosines of the two vectors, are divided by.
      dropout_rate: on the inputs of the towers and their hidden layers.
    """

    num_items: int
    num_users: int
    embed_dim: int
    hidden_dims: Sequence[int] = ()
    temperature: float = 0.05
    dropout_rate: float = 0.0

    def setup(self):
        self.item_embed = nn.Embed(self.num_items, self.embed_dim)
        self.user_embed = nn.Embed(self.num_users, self.embed_dim)
        towers = [
            [layers.Linear(width) for width in (*self.hidden_dims, self.embed_dim)]
            for _ in range(2)
        ]
        self.query_layers, self.item_layers = towers
        self.dropout = nn.Dropout(self.dropout_rate)

    def __call__(
        self, users: Array, history: Array, items: Array, *, train: bool = False
    ) -> tuple[Array, Array]:
        """The vectors of queries and of items, see `queries` and `items`."""
        return self.queries(users, history, train=train), self.items(items, train=train)

    def queries(self, users: Array, history: Array, *, train: bool = False) -> Array:
        """users int [B], history int [B, L], the latest first and 0 behind the end -> [B, D].

        A history is told by its mean and its latest item.
        """
        seen = self.item_embed(history)
        mean = pooling.mean(seen, history > 0)
        features = jnp.concatenate([self.user_embed(users), mean, seen[:, 0]], axis=-1)
        # Scores are cosines over the temperature; one side carries the division.
        return self._tower(self.query_layers, features, train) / self.temperature

    def items(self, items: Array, *, train: bool = False) -> Array:
        """items int [N] -> [N, D]."""
        return self._tower(self.item_layers, self.item_embed(items), train)

    def _tower(self, tower: Sequence[nn.Module], x: Array, train: bool) -> Array:
        *hidden, last = tower
        x = self.dropout(x, deterministic=not train)
        for layer in hidden:
            x = self.dropout(nn.relu(layer(x)), deterministic=not train)
        return layers.rms_norm(last(x), None, 1e-6) * self.embed_dim**-0.5
