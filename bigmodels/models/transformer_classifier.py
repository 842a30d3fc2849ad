"""A Transformer that classifies texts: BERT (Devlin et al. 2019) where it is bidirectional.

Axes: B batch, L length, D embed.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels import config, errors
from bigmodels.models.parts import layers, pooling
from bigmodels.models.parts.settings import check_fixed
from bigmodels.models.transformer import FIXED_WITHOUT_LOGITS, STATE_RULES, Transformer

Array = jax.Array


class TransformerClassifier(nn.Module):
    """Texts to class logits: a Transformer, pooling over its tokens' states, a linear layer.

    Fields:
      encoder: the fields of a `Transformer`; with `causal = False` each token sees its whole text.
        Those of `transformer.FIXED_WITHOUT_LOGITS` have no other value here.
      pool: a key of `pooling.POOLS`.
      dropout_rate: on what is pooled.
    """

    num_classes: int
    encoder: Mapping[str, Any]
    pool: pooling.Pool = 'mean'
    dropout_rate: float = 0.0

    sections: ClassVar = {'encoder': Transformer}
    # The Transformer's names begin with 'encoder/' here.
    sharding_rules: ClassVar = (
        (r'^head/kernel$', ('fsdp', None)),
        *((rule.replace('^', '^encoder/'), axes) for rule, axes in STATE_RULES),
        (r'(scale|bias)$', ()),
    )

    def __post_init__(self):
        self.encoder = nn.FrozenDict(self.encoder)  # a model is hashable
        transformer = self._transformer(parent=None)  # building it checks its fields
        check_fixed(transformer, FIXED_WITHOUT_LOGITS, 'model.encoder')
        super().__post_init__()

    def _transformer(self, **given) -> Transformer:
        return config.build(Transformer, self.encoder, 'model.encoder', **given)

    @property
    def vocab_size(self) -> int:
        return self.encoder['vocab_size']

    @nn.compact
    def __call__(
        self, inputs: Array, *, segment_ids: Array | None = None, train: bool = False
    ) -> Array:
        """inputs int [B, L], segment_ids int [B, L] with 0 for padding -> float32 [B, classes].

        Or [B, L, classes] where nothing is pooled.
        """
        encoder = self._transformer(name='encoder')
        if inputs.shape[1] > encoder.max_length:
            raise errors.UserError(
                f'Texts of {inputs.shape[1]} tokens are longer than model.encoder.max_length = '
                f'{encoder.max_length}.'
            )
        real = jnp.ones(inputs.shape, bool) if segment_ids is None else segment_ids > 0
        x = encoder(inputs, segment_ids=segment_ids, train=train, return_hidden=True)
        pooled = pooling.POOLS[self.pool](x, real)
        pooled = nn.Dropout(self.dropout_rate, deterministic=not train)(pooled)
        return layers.Linear(self.num_classes, name='head')(pooled).astype(jnp.float32)
