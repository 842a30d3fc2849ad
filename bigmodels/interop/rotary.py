"""Rotary positions as config.json tells them: `rope_theta` with `rope_scaling`, as most files have
it, or both in `rope_parameters`, as newer files do.
"""

from collections.abc import Mapping
from typing import Any

from bigmodels import errors
from bigmodels.models.transformer import Transformer

Entries = dict[str, Any]
# Their kind -> (our name, {their argument: ours}).
KINDS = {
    'linear': ('linear', {'factor': 'factor'}),
    'llama3': (
        'llama3',
        {
            'factor': 'factor',
            'low_freq_factor': 'low_frequency_factor',
            'high_freq_factor': 'high_frequency_factor',
            'original_max_position_embeddings': 'original_length',
        },
    ),
    'yarn': (
        'yarn',
        {
            'factor': 'factor',
            'original_max_position_embeddings': 'original_length',
            'beta_fast': 'beta_fast',
            'beta_slow': 'beta_slow',
            'truncate': 'truncate',
            'attention_factor': 'length',
        },
    ),
}
_OTHER = {'rope_type', 'type', 'rope_theta', 'partial_rotary_factor'}


def read(config: Entries) -> Entries:
    """The fields of rotary positions, for a config.json with a `rope_theta` filled in."""
    given = config.get('rope_parameters') or config.get('rope_scaling') or {}
    return _fields(config, given, config['rope_theta'])


def read_by_type(config: Entries, kind: str) -> Entries:
    """The same of the layers of one type, which have their own (Gemma 3)."""
    windowed = kind == 'sliding_attention'
    theta = config['rope_local_base_freq' if windowed else 'rope_theta']
    given = (config.get('rope_parameters') or {}).get(kind)
    if given is None:
        given = {} if windowed else config.get('rope_scaling') or {}
    return _fields(config, given, theta)


def write(model: Transformer) -> Entries:
    """The entries of a model's rotary positions."""
    entries = {'rope_theta': model.rotary_theta, 'rope_scaling': None}
    if model.rotary_scaling is not None:
        kinds = {ours: (theirs, names) for theirs, (ours, names) in KINDS.items()}
        kind, names = kinds[model.rotary_scaling['name']]
        entries['rope_scaling'] = {
            'rope_type': kind,
            **{
                theirs: model.rotary_scaling[ours]
                for theirs, ours in names.items()
                if ours in model.rotary_scaling
            },
        }
    return entries


def _fields(config: Entries, given: Mapping, theta: float) -> Entries:
    theta = given.get('rope_theta', theta)
    share = given.get('partial_rotary_factor', config.get('partial_rotary_factor'))
    if share not in (None, 1, 1.0):
        raise errors.UserError(
            f'config.json turns a share of {share} of each head only (partial_rotary_factor); here '
            f'all of it is turned.'
        )
    return {'rotary_theta': float(theta), 'rotary_scaling': _scaling(config, given)}


def _scaling(config: Entries, given: Mapping) -> Entries | None:
    kind = given.get('rope_type', given.get('type', 'default'))
    if kind == 'default':
        return None
    if kind not in KINDS:
        raise errors.unknown('kind of rope_scaling in config.json', kind, ('default', *KINDS))
    name, names = KINDS[kind]
    given = {key: value for key, value in given.items() if value is not None and key not in _OTHER}
    if kind == 'yarn' and {'mscale', 'mscale_all_dim'} <= given.keys():
        raise errors.UserError(
            'config.json scales rotary positions by mscale and mscale_all_dim, as DeepSeek does; '
            'here that is said by attention_factor.'
        )
    if 'original_max_position_embeddings' in names:
        given.setdefault('original_max_position_embeddings', config['max_position_embeddings'])
    unknown = sorted(given.keys() - names.keys())
    if unknown:
        raise errors.unknown(f'argument of rope_scaling {kind!r}', unknown[0], names)
    return {'name': name} | {names[key]: value for key, value in given.items()}
