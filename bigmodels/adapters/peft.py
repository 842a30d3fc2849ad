"""Adapters in the files of Hugging Face's PEFT: adapter_config.json and adapter_model.safetensors.

Names are those of PEFT 0.10 and later for GPT-2 and for Llama and its kin: every tensor is
`base_model.model.MODULE.lora_A.weight` [R, D] or `lora_B.weight` [F, R], whatever the module is.
"""

import collections
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np
import safetensors
import safetensors.numpy

from bigmodels import adapters, errors, trees
from bigmodels.models import transformer

CONFIG, TENSORS = 'adapter_config.json', 'adapter_model.safetensors'
# Our kernel in a block -> the module there, and how PEFT's configs call it.
LLAMA = {
    **{f'attention/{ours}': ('self_attn.', f'{theirs}_proj')
       for ours, theirs in dict(query='q', key='k', value='v', out='o').items()},
    **{f'mlp/{name}': ('mlp.', f'{name}_proj') for name in ('gate', 'up', 'down')},
}  # fmt: skip
# Query, key and value are the thirds of one module's outputs.
GPT2 = {
    **dict.fromkeys(('attention/query', 'attention/key', 'attention/value'), ('', 'attn.c_attn')),
    'attention/out': ('', 'attn.c_proj'),
    'mlp/up': ('', 'mlp.c_fc'),
    'mlp/down': ('', 'mlp.c_proj'),
}
THIRDS = ('query', 'key', 'value')


def write(
    directory: pathlib.Path,
    model: transformer.Transformer,
    params: Mapping,
    settings: adapters.Settings,
    base: str = '',
) -> None:
    """Writes trained adapters as PEFT reads them.

    Args:
      params: of adapters alone, see `adapters.split`.
      base: the name of the model that they are for, kept in the config.

    Raises:
      UserError: for parameters that are trained whole, or kernels that PEFT's model has not.
    """
    parts = collections.defaultdict(dict)
    for name, adapter in _adapters(model, params).items():
        module, _, _ = _module(model, name)
        parts[module][name] = adapter
    tensors, ranks = {}, {}
    for module, several in parts.items():
        down, up = _fused(model, several) if module.endswith('c_attn') else _only(several)
        tensors[f'base_model.model.{module}.lora_A.weight'] = np.ascontiguousarray(down.T)
        tensors[f'base_model.model.{module}.lora_B.weight'] = np.ascontiguousarray(up.T)
        ranks[module] = down.shape[1]
    other = {module: rank for module, rank in ranks.items() if rank != settings.rank}
    config = {
        'peft_type': 'LORA',
        'task_type': 'CAUSAL_LM',
        'base_model_name_or_path': base or None,
        'inference_mode': True,
        'r': settings.rank,
        'lora_alpha': settings.alpha,
        'lora_dropout': 0.0,
        'bias': 'none',
        'fan_in_fan_out': model.positions == 'learned',
        'target_modules': _target_modules(model, parts),
        'rank_pattern': other,
        'alpha_pattern': {module: settings.scale * rank for module, rank in other.items()},
    }
    directory.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(tensors, directory / TENSORS, metadata={'format': 'pt'})
    (directory / CONFIG).write_text(json.dumps(config, indent=1) + '\n')


def read(
    directory: pathlib.Path, model: transformer.Transformer
) -> tuple[dict[str, Any], adapters.Settings]:
    """Adapters of a model from PEFT's files: (params of adapters alone, the settings of both).

    A module of another scale than alpha / r of the config has the ratio in its `up`.

    Raises:
      UserError: for files that are not there, another method than LoRA, other modules, or adapters
        of some layers alone, or of several ranks, where the model's layers are scanned.
    """
    config, tensors = _read(directory)
    settings = adapters.Settings(rank=config['r'], alpha=float(config['lora_alpha']))
    names = _names(model)
    flat, unknown = {}, set()
    for key, tensor in tensors.items():
        module, _, part = key.removeprefix('base_model.model.').rpartition('.lora_')
        if part not in ('A.weight', 'B.weight') or module not in names:
            unknown.add(key)
            continue
        kernels = [name if name == 'unembed' else f'{name}/kernel' for name in names[module]]
        tensor = tensor.astype(np.float32)
        if part == 'A.weight':
            flat |= {f'{kernel}/down': tensor.T for kernel in kernels}
        else:
            tensor *= np.float32(_scale(config, module, tensor.shape[1]) / settings.scale)
            outputs = np.split(tensor, len(kernels))
            flat |= {f'{kernel}/up': own.T for kernel, own in zip(kernels, outputs, strict=True)}
    if unknown:
        raise errors.UserError(
            f'{directory}: the model has no place for {errors.some(sorted(unknown))}.'
        )
    _check_pairs(directory, flat)
    if model.scan_layers:
        _check_alike(directory, model, flat)
    params = flax.traverse_util.unflatten_dict(flat, '/')
    scanned = model.scan_layers and any(name.startswith('layers_') for name in params)
    return transformer.stack_layers(params) if scanned else params, settings


def _check_pairs(directory: pathlib.Path, flat: Mapping[str, np.ndarray]) -> None:
    """Raises UserError for an adapter of one matrix."""
    kernels = {name.rpartition('/')[0] for name in flat}
    halves = [name for name in sorted(kernels) if not {f'{name}/down', f'{name}/up'} <= {*flat}]
    if halves:
        raise errors.UserError(
            f'{directory} has one of lora_A and lora_B alone for {errors.some(halves)}: the file '
            f'is not whole.'
        )


def _check_alike(
    directory: pathlib.Path, model: transformer.Transformer, flat: Mapping[str, np.ndarray]
) -> None:
    """Raises UserError for adapters that do not stack: each is to be of one shape in all layers."""
    shapes = collections.defaultdict(list)
    for name, leaf in flat.items():
        layer, _, within = name.partition('/')
        if layer.startswith('layers_'):
            shapes[within].append(leaf.shape)
    odd = [name for name, of in shapes.items() if len(of) < model.num_layers or len({*of}) > 1]
    if odd:
        kernels = sorted({name.rpartition('/')[0] for name in odd})
        raise errors.UserError(
            f'{directory} has not the same adapters in all {model.num_layers} layers: '
            f'{errors.some(kernels)} differ in rank, or some layers have none. Layers that are '
            f'scanned are alike: read them with config.model.scan_layers = False.'
        )


def _read(directory: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        config = json.loads((directory / CONFIG).read_text())
        tensors = safetensors.numpy.load_file(directory / TENSORS)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise errors.UserError(f'{directory} holds no adapter of PEFT: {error}.') from error
    if config.get('peft_type') != 'LORA' or config.get('use_dora'):
        method = 'DoRA' if config.get('use_dora') else config.get('peft_type')
        raise errors.UserError(f'{directory} is an adapter by {method}; only LoRA is read.')
    return config, tensors


def _scale(config: Mapping, module: str, rank: int) -> float:
    """alpha / r of a module; alpha / sqrt(r) by rank-stabilised LoRA."""
    patterns = config.get('alpha_pattern') or {}
    alpha = next(
        (alpha for name, alpha in patterns.items() if f'.{module}'.endswith(f'.{name}')),
        config['lora_alpha'],
    )
    return alpha / (math.sqrt(rank) if config.get('use_rslora') else rank)


def _table(model: transformer.Transformer) -> tuple[str, Mapping[str, tuple[str, str]]]:
    return ('transformer.h', GPT2) if model.positions == 'learned' else ('model.layers', LLAMA)


def _module(model: transformer.Transformer, name: str) -> tuple[str, str, str]:
    """The module of a kernel 'layers_0/attention/query', its name in configs, and its layer."""
    if name == 'unembed':
        return 'lm_head', 'lm_head', ''
    layers, table = _table(model)
    layer, _, within = name.partition('/')
    if not layer.startswith('layers_') or within not in table:
        raise errors.UserError(f'PEFT has no module for the adapter of {name}.')
    prefix, target = table[within]
    number = layer.removeprefix('layers_')
    return f'{layers}.{number}.{prefix}{target}', target, number


def _names(model: transformer.Transformer) -> dict[str, list[str]]:
    """Every module that may have an adapter, and the kernels that it is."""
    names = collections.defaultdict(list)
    for i in range(model.num_layers):
        for within in _table(model)[1]:
            names[_module(model, f'layers_{i}/{within}')[0]].append(f'layers_{i}/{within}')
    return names if model.tie_embeddings else names | {'lm_head': ['unembed']}


def _adapters(model: transformer.Transformer, params: Mapping) -> dict[str, dict[str, np.ndarray]]:
    """{'layers_0/attention/query': {'down', 'up'}} of trained params."""
    found = collections.defaultdict(dict)
    whole = []
    if 'layers' in params:  # scanned ones; the unembedding may have the only adapter
        params = transformer.unstack_layers(params)
    for name, leaf in trees.flatten_named(params).items():
        kernel, _, part = name.rpartition('/')
        if part in ('down', 'up') and re.search('/kernel$|^unembed$', kernel):
            found[kernel.removesuffix('/kernel')][part] = np.asarray(leaf)
        else:
            whole.append(name)
    if whole:
        raise errors.UserError(
            f'{errors.some(whole)} are trained whole, which is no adapter: merge the run instead.'
        )
    return found


def _only(several: Mapping[str, Mapping]) -> tuple[np.ndarray, np.ndarray]:
    [adapter] = several.values()
    return adapter['down'], adapter['up']


def _fused(model: transformer.Transformer, several: Mapping) -> tuple[np.ndarray, np.ndarray]:
    """Adapters of query, key and value as one of their sum of ranks, each in its own outputs."""
    width = model.num_heads * model.dim_per_head
    downs, ups = [], []
    for name, adapter in several.items():
        third = THIRDS.index(name.rpartition('/')[2]) * width
        up = np.zeros((adapter['up'].shape[0], 3 * width), np.float32)
        up[:, third : third + width] = adapter['up']
        downs.append(adapter['down'])
        ups.append(up)
    return np.concatenate(downs, axis=1), np.concatenate(ups)


def _target_modules(model: transformer.Transformer, parts: Mapping[str, Mapping]) -> list[str]:
    """Short names where every layer has them, which all readers know; else whole ones."""
    found = [_module(model, name) for several in parts.values() for name in several]
    short = sorted({target for _, target, _ in found})
    layers = {number for _, _, number in found if number}
    every = {(target, number) for target in short for number in layers if target != 'lm_head'}
    there = {(target, number) for _, target, number in found if number}
    return short if len(layers) == model.num_layers and every == there else sorted(parts)
