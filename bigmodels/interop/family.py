"""What a family of published models is: a table of tensors, and its config.json as our fields.

What a family cannot say, in either direction, is a UserError that names it: nothing is dropped in
silence.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from bigmodels import errors
from bigmodels.interop.weights import Table
from bigmodels.models.clip import CLIP
from bigmodels.models.encoder_decoder import EncoderDecoder
from bigmodels.models.parts.settings import Settings
from bigmodels.models.transformer import Transformer

Entries = dict[str, Any]
# Fields of how a model is computed or regularised, of which published configs say nothing.
FREE = {
    'attention',
    'dropout_rate',
    'dtype',
    'init_scale',
    'kv_cache',
    'logits_dtype',
    'microbatches',
    'momentum',
    'name',
    'parent',
    'pipeline_rounds',
    'remat',
    'scan_layers',
    'stem_init',
    'vocab_multiple',
    'zero_init',
}
GELU = {'gelu': 'gelu_exact', 'gelu_pytorch_tanh': 'gelu', 'gelu_new': 'gelu'}
# Keys that are as good as missing where they are null.
UNSET = {
    'head_dim',
    'layer_types',
    'n_inner',
    'num_key_value_heads',
    'rope_parameters',
    'rope_scaling',
    'rope_theta',
    'tie_word_embeddings',
}


@dataclasses.dataclass(frozen=True)
class Family:
    """How one kind of config.json is read and written.

    Fields:
      model_type, architecture: what config.json calls it.
      model: our class of its models.
      table: of the tensors.
      names: their key -> our field, of equal values.
      defaults: values of keys that may be missing in config.json.
      only: keys with the one value that can be read; None of it stands for a missing key.
      fixed: fields that all models of the family have alike.
      activations: what the key `activation_key` says -> our activation; none where all models
        of the family have the same.
      read: further fields of a config.json with the defaults filled in.
      write: further entries of a model.
    """

    model_type: str
    architecture: str
    table: Table
    names: Mapping[str, str]
    defaults: Entries
    fixed: Entries
    activation_key: str = ''
    activations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    read: Callable[[Entries], Entries] = lambda config: {}
    write: Callable[[Any], Entries] = lambda model: {}
    only: Entries = dataclasses.field(default_factory=dict)
    model: type[nn.Module] = Transformer

    def fields(self, config: Mapping) -> Entries:
        """config.json -> fields of the model.

        Raises:
          UserError: for a key that is missing, or a value that no such model here has.
        """
        config = self.defaults | {
            key: value for key, value in config.items() if value is not None or key not in UNSET
        }
        if 'quantization_config' in config:
            raise errors.UserError(
                'config.json has a quantization_config: models are read in 16 or 32 bits only.'
            )
        lacking = [key for key in self.names if key not in config and key not in UNSET]
        if lacking:
            raise errors.UserError(f'config.json lacks {errors.some(lacking)}.')
        for key, value in self.only.items():
            if config.get(key) not in (value, None):
                raise errors.UserError(
                    f'config.json has {key} = {config[key]!r}; a {self.model_type} here has '
                    f'{value!r}.'
                )
        same = {ours: config[theirs] for theirs, ours in self.names.items() if theirs in config}
        if self.activations:
            activation = config[self.activation_key]
            if activation not in self.activations:
                raise errors.unknown(
                    f'{self.activation_key} of {self.model_type}', activation, self.activations
                )
            same['activation'] = self.activations[activation]
        return {**self.fixed, **same, **self.read(config)}

    def config(self, model: nn.Module) -> Entries:
        """The config.json of a model, which `fields` reads as the same model.

        Raises:
          UserError: if the family has no such model; it names what differs.
        """
        if not isinstance(model, self.model):
            raise errors.UserError(f'{self.model_type} is no {type(model).__name__}')
        entries = self.entries(model)
        own, read = described(model), described(self.model(**self.fields(entries)))
        different = [name for name in own if own[name] != read[name]]
        if different:
            raise errors.UserError(
                f'{self.model_type} has no such models: '
                + ', '.join(f'{name} = {own[name]!r}' for name in different)
            )
        return entries

    def entries(self, model: nn.Module) -> Entries:
        """The config.json that is most like a model; what it cannot say is left out."""
        own, activation = described(model), {}
        if self.activations:
            inverse = {ours: theirs for theirs, ours in reversed(self.activations.items())}
            activation = {self.activation_key: inverse.get(model.activation, model.activation)}
        return {
            'architectures': [self.architecture],
            'model_type': self.model_type,
            **self.only,
            **{theirs: own[ours] for theirs, ours in self.names.items()},
            **activation,
            **self.write(model),
        }


def described(model: nn.Module) -> Entries:
    """Every field that decides what a model computes, defaults filled in."""
    fields = {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.name not in FREE
    }
    if isinstance(model, CLIP):
        del fields['image'], fields['text']
        fields['init_bias'] = model.init_bias is not None
        for tower in (model.vit(), model.transformer()):
            prefix = type(tower).__name__
            fields |= {f'{prefix}.{name}': value for name, value in described(tower).items()}
    if 'mlp_dim' in fields:
        fields['mlp_dim'] = model.mlp_dim or 4 * model.embed_dim
    if isinstance(model, EncoderDecoder):
        fields['num_encoder_layers'] = model.num_encoder_layers or model.num_layers
        fields['max_source_length'] = model.max_source_length or model.max_length
    if not isinstance(model, Settings):
        return fields
    fields |= {
        'num_kv_heads': model.kv_heads,
        'head_dim': model.dim_per_head,
        'query_scalar': model.query_scalar or model.dim_per_head,
    }
    fields['attention_bias'] |= model.use_bias
    fields['qkv_bias'] |= fields['attention_bias']
    if model.experts is not None:
        experts = dataclasses.asdict(model.experts)
        experts['mlp_dim'] = experts['mlp_dim'] or fields['mlp_dim']
        for name in ('capacity_factor', 'load_balance_weight', 'router_z_weight'):
            del experts[name]  # of training
        fields |= {'moe': experts, 'mlp_dim': experts['mlp_dim']}
    return fields
