"""The settings that a Transformer's blocks are made by.

Axes: D embed, H heads, N key/value heads, K head_dim, F mlp, V vocab.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn

from bigmodels import config, errors
from bigmodels.models.parts import layers
from bigmodels.models.parts import moe as moe_lib
from bigmodels.models.parts.attention import Implementation

Activation = Literal[
    'relu', 'relu_squared', 'gelu', 'gelu_exact', 'quick_gelu', 'silu', 'swiglu', 'geglu'
]
Remat = Literal['none', 'full', 'dots', 'attention']


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Settings:
    """What a Transformer is made of; the fields of `Transformer` and the keys of `config.model`.

    Fields:
      vocab_multiple: the tables have rows up to a multiple of this, as tensor cores are fastest on
        multiples of 128; logits of these rows are -inf, and parameters, counted, are never trained.
      num_kv_heads: fewer than num_heads is grouped-query, one is multi-query attention.
      head_dim: default embed_dim / num_heads.
      mlp_dim: default 4 * embed_dim.
      moe: makes the feed-forward layers mixtures of experts, see `moe.Settings`.
      causal: a token sees none after it.
      max_length: the longest context; the size of learned positions.
      positions: 'learned' (GPT-2), 'rotary' (Llama), 'relative' (T5, see `relative`) or 'none'.
      relative_buckets, relative_distance: see `relative.buckets_of`, `count` and `farthest`.
      rotary_scaling: see `layers.rotary_frequencies`.
      local_rotary_theta: of layers that have the window where others do not, in place of
        rotary_theta and rotary_scaling (Gemma 3).
      norm_placement: before each branch, after the sum ('post', as in BERT), or before and after
        each branch ('both', as in Gemma 2).
      norm_offset: see `layers.Norm`; 1 in Gemma.
      use_bias: in projections and norms; `qkv_bias` in query, key and value only (Qwen 2),
        `attention_bias` in these and in attention's output. With key_bias = False keys have none
        of these (Whisper).
      sliding_window: a token sees this many latest tokens, itself included.
      global_layers: numbers of the layers without the window, from 0; they are not scanned.
      query_scalar: scores are divided by its square root; default head_dim (Gemma has others,
        T5 has 1).
      dropout_rate: on the embeddings and on the output of each branch.
      scale_embeddings: multiply embeddings by sqrt(embed_dim) (Gemma).
      attention: see `attention.attend`.
      kv_cache: how generation keeps keys and values: in the type of the computation, or in int8
        with a scale for each head and position.
      scan_layers: one compiled block scanned over stacked parameters: compiles large models in
        constant time. `stack_layers` and `unstack_layers` convert.
      remat: 'none' or a key of `blocks.REMAT_POLICIES`; 'dots' keeps the results of all
        projections, experts' included.
      microbatches, pipeline_rounds: see `pipeline`; used where the mesh has stages.
      logits_dtype: of the logits in training and evaluation: 'bfloat16' halves what a large
        vocabulary costs there, as PyTorch's autocast does; generation has float32.
      dtype: of the computation; parameters, norms and softmax are float32.
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    vocab_multiple: int = 1
    num_kv_heads: int | None = None
    head_dim: int | None = None
    mlp_dim: int | None = None
    moe: Mapping[str, Any] | None = None
    causal: bool = True
    max_length: int = 1024
    positions: Literal['learned', 'rotary', 'relative', 'none'] = 'rotary'
    relative_buckets: int = 32
    relative_distance: int = 128
    rotary_theta: float = 10_000.0
    rotary_scaling: Mapping[str, Any] | None = None
    local_rotary_theta: float | None = None
    norm: Literal['layer_norm', 'rms_norm'] = 'layer_norm'
    norm_placement: Literal['pre', 'post', 'both'] = 'pre'
    norm_epsilon: float = 1e-5
    norm_offset: float = 0.0
    qk_norm: bool = False
    activation: Activation = 'gelu'
    use_bias: bool = True
    qkv_bias: bool = False
    key_bias: bool = True
    attention_bias: bool = False
    tie_embeddings: bool = True
    scale_embeddings: bool = False
    dropout_rate: float = 0.0
    sliding_window: int | None = None
    global_layers: Sequence[int] = ()
    query_scalar: int | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    logits_dtype: layers.Dtype = 'float32'
    attention: Implementation = 'auto'
    kv_cache: Literal['compute', 'int8'] = 'compute'
    scan_layers: bool = False
    remat: Remat = 'none'
    microbatches: int = 0
    pipeline_rounds: int = 1
    dtype: layers.Dtype = 'float32'

    def __post_init__(self):
        if self.rotary_scaling is not None:
            self.rotary_scaling = nn.FrozenDict(self.rotary_scaling)  # a model is hashable
        if self.moe is not None:
            self.moe = nn.FrozenDict(self.moe)
            _ = self.experts  # building them checks them
        sizes = self.num_layers, self.embed_dim, self.num_heads, self.vocab_size
        if min(*sizes, self.vocab_multiple) < 1:
            raise errors.UserError('The sizes of a Transformer must be at least 1.')
        if self.sliding_window is not None and self.sliding_window < 1:
            raise errors.UserError(
                f'sliding_window = {self.sliding_window} must be at least 1, or None for none.'
            )
        if self.head_dim is None and self.embed_dim % self.num_heads:
            raise errors.UserError(
                f'embed_dim = {self.embed_dim} is not divisible by num_heads = {self.num_heads}: '
                f'choose others or set head_dim.'
            )
        if self.num_heads % self.kv_heads:
            raise errors.UserError(
                f'num_heads = {self.num_heads} must be a multiple of num_kv_heads = '
                f'{self.kv_heads}.'
            )
        if self.positions == 'rotary':
            if self.dim_per_head % 2:
                raise errors.UserError(
                    f'Rotary positions need an even head_dim, not {self.dim_per_head}.'
                )
            layers.rotary_frequencies(self.dim_per_head, self.rotary_theta, self.rotary_scaling)
        if not 4 <= self.relative_buckets < 2 * self.relative_distance:
            raise errors.UserError(
                f'relative_buckets = {self.relative_buckets} must be at least 4, and '
                f'relative_distance = {self.relative_distance} over half of it.'
            )
        self._check_layers_that_differ()

    def _check_layers_that_differ(self) -> None:
        self.global_layers = tuple(self.global_layers)
        if not self.global_layers:
            if self.local_rotary_theta is not None:
                raise errors.UserError('local_rotary_theta is for a model with global_layers.')
            return
        if self.sliding_window is None:
            raise errors.UserError('global_layers have no window that others have: set it.')
        if not all(0 <= i < self.num_layers for i in self.global_layers):
            raise errors.UserError(
                f'global_layers = {self.global_layers} must be from 0 to {self.num_layers - 1}.'
            )
        if self.scan_layers:
            raise errors.UserError(
                'Layers that differ are not scanned: set scan_layers to False, or leave out '
                'global_layers.'
            )

    def of_layer(self, i: int) -> 'Settings':
        """The settings of layer i, alike in all where there are no `global_layers`."""
        if not self.global_layers:
            return self
        alike = dataclasses.replace(self, global_layers=(), local_rotary_theta=None)
        if i in self.global_layers:
            return dataclasses.replace(alike, sliding_window=None)
        if self.local_rotary_theta is None:
            return alike
        return dataclasses.replace(alike, rotary_theta=self.local_rotary_theta, rotary_scaling=None)

    @property
    def vocab_rows(self) -> int:
        """Rows of the tables: the vocabulary and its padding."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def kv_heads(self) -> int:
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def dim_per_head(self) -> int:
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def experts(self) -> moe_lib.Settings | None:
        return None if self.moe is None else config.build(moe_lib.Settings, self.moe, 'model.moe')

    def residual_init(self, fan_in: int):
        """Kernels that write to the residual stream shrink with depth (GPT-2, section 2.3)."""
        return scaled_normal(1 / (2 * self.num_layers * fan_in))


def settings_of(module: nn.Module, **given) -> Settings:
    """The settings that a module has as fields of the same names, and those that are given."""
    own, settings = (
        {field.name for field in dataclasses.fields(owner)} for owner in (module, Settings)
    )
    return Settings(**{name: getattr(module, name) for name in own & settings} | given)


def check_fixed(model: nn.Module, fixed: Mapping[str, tuple[Any, str]], path: str) -> None:
    """Raises UserError for a field that has another value than the only one that it may have.

    Args:
      fixed: the value of each such field, and why.
      path: of the model's section, for the error.
    """
    for field, (value, reason) in fixed.items():
        if getattr(model, field) != value:
            raise errors.UserError(f'config.{path}.{field} must be {value}: {reason}.')


def scaled_normal(variance: float):
    """An initialiser of normal values of this variance."""
    return nn.initializers.normal(math.sqrt(variance))
