"""Structured pruning: heads, hidden units and channels are taken out, and the model is smaller.

What is taken is what weighs least: the product of the norms of what leads to it, as it is
normalised, and of what it leads to. The result has no trace of it: other sizes in its config, and
parameters of their shapes.
"""

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from bigmodels import errors, trees
from bigmodels.models.parts.batch_norm import BatchNorm

Array = jax.Array
Shrunk = tuple[dict[str, Any], Mapping, Mapping]  # fields of the model, params, model state


def heads(model: Mapping, params: Mapping, state: Mapping, share: float) -> Shrunk:
    """The share of every attention layer's heads; of grouped ones, with their keys and values."""
    groups = model.get('num_kv_heads') or model.get('num_heads')
    leaves = trees.flatten_named(params)
    layers = _modules(leaves, r'attention/out/kernel$', 'attention layers', 'heads')
    if 'head_dim' not in model or any('cross_attention' in layer for layer in layers):
        raise errors.UserError(
            f'The heads of the model {model["name"]!r} cannot be taken out: it has no field '
            'head_dim, or attention to another sequence.'
        )
    left = _left(groups, share, 'groups of heads')
    for layer in layers:
        module = layer.removesuffix('/out/kernel')
        inward = jnp.square(leaves[f'{module}/value/kernel']).sum(-2)
        outward = jnp.square(leaves[layer]).sum(-1)
        in_groups = lambda x: x.reshape(*x.shape[:-1], groups, -1).sum(-1)
        strength = in_groups(inward) * in_groups(outward)
        best = _best(strength, left)
        for name in ('query', 'key', 'value'):
            for part in ('kernel', 'bias'):
                _take(leaves, f'{module}/{name}/{part}', best, groups, -1)
        _take(leaves, layer, best, groups, -2)
    fields = {
        'num_heads': model['num_heads'] // groups * left,
        'head_dim': model.get('head_dim') or model['embed_dim'] // model['num_heads'],
    }
    if model.get('num_kv_heads'):
        fields['num_kv_heads'] = left
    return fields, _tree(leaves), state


def units(model: Mapping, params: Mapping, state: Mapping, share: float) -> Shrunk:
    """The share of every feed-forward layer's hidden units."""
    if model.get('moe') is not None or 'mlp_dim' not in model:
        raise errors.UserError(
            f'The hidden units of the model {model["name"]!r} cannot be taken out: it has experts, '
            'or no field mlp_dim.'
        )
    leaves = trees.flatten_named(params)
    found = _modules(leaves, r'mlp/down/kernel$', 'feed-forward layers', 'units')
    width = leaves[found[0]].shape[-2]
    left = _left(width, share, 'hidden units')
    for layer in found:
        module = layer.removesuffix('/down/kernel')
        strength = jnp.square(leaves[layer]).sum(-1)
        for name in ('up', 'gate'):
            if f'{module}/{name}/kernel' in leaves:
                strength *= jnp.square(leaves[f'{module}/{name}/kernel']).sum(-2)
        best = _best(strength, left)
        for name in ('up', 'gate'):
            for part in ('kernel', 'bias'):
                _take(leaves, f'{module}/{name}/{part}', best, width, -1)
        _take(leaves, layer, best, width, -2)
    return {'mlp_dim': left}, _tree(leaves), state


def channels(model: Mapping, params: Mapping, state: Mapping, share: float) -> Shrunk:
    """The share of every convolution's channels, where no other layer's are added to them.

    Of a ConvNet these are all, and the units of its dense layers; of a ResNet those in its blocks.
    """
    if model['name'] not in CHANNELS:
        raise errors.UserError(
            f'Channels are taken out of {" and ".join(CHANNELS)}, not of the model '
            f'{model["name"]!r}.'
        )
    leaves, stats = trees.flatten_named(params), trees.flatten_named(state)
    thin = lambda layer, norm, after: _thin(leaves, stats, layer, norm, after, share)
    fields = CHANNELS[model['name']](model, thin)
    return fields, _tree(leaves), _tree(stats)


def _of_convnet(model: Mapping, thin: Callable[[str, str, str], int]) -> dict[str, Any]:
    convolutions = sum(map(len, model['stages']))
    dense = len(model['dense_widths'])
    order = [f'conv_{i}' for i in range(convolutions)] + [f'dense_{i}' for i in range(dense)]
    widths = iter([
        thin(layer, layer.replace('conv', 'norm'), after)
        for layer, after in zip(order, [*order[1:], 'head'], strict=True)
    ])  # fmt: skip
    return {
        'stages': [[next(widths) for _ in stage] for stage in model['stages']],
        'dense_widths': list(widths),
    }


def _of_resnet(model: Mapping, thin: Callable[[str, str, str], int]) -> dict[str, Any]:
    branch = {'basic': ('first', 'last'), 'bottleneck': ('reduce', 'middle', 'last')}
    widths = []
    for stage, size in enumerate(model['stage_sizes']):
        width = model['stage_widths'][stage]
        for i in range(size):
            names = [f'stage{stage}_{i}/{name}' for name in branch[model['block']]]
            for layer, after in itertools.pairwise(names):
                width = thin(layer, f'{layer}_norm', after)
        widths.append(width)
    return {'inner_widths': widths}


# Model -> its fields, thinned by (a layer, its normalisation, the layer behind it) -> its width.
CHANNELS: dict[str, Callable[[Mapping, Callable], dict[str, Any]]] = {
    'convnet': _of_convnet,
    'resnet': _of_resnet,
}


def _thin(leaves: dict, stats: dict, layer: str, norm: str, after: str, share: float) -> int:
    """Takes the share of a layer's channels out of it and of what surrounds it; those left."""
    kernel, behind = leaves[f'{layer}/kernel'], leaves[f'{after}/kernel']
    width = kernel.shape[-1]
    left = _left(width, share, f'channels of {layer}')
    # Behind the last convolution of a ConvNet each pixel's channels follow one another.
    into = behind.reshape(-1, width, behind.shape[-1])
    strength = jnp.square(kernel).sum(tuple(range(kernel.ndim - 1)))
    strength *= jnp.square(into).sum((0, 2))
    if f'{norm}/scale' in leaves:
        variance = stats[f'batch_stats/{norm}/variance'] + BatchNorm.epsilon
        strength *= jnp.square(leaves[f'{norm}/scale']) / variance
    best = _best(strength, left)
    for name in {f'{layer}/kernel', f'{layer}/bias', f'{norm}/scale', f'{norm}/bias'}:
        _take(leaves, name, best, width, -1)
    for name in stats:
        if f'/{norm}/' in name:
            _take(stats, name, best, width, -1)
    taken = jnp.take(into, best, axis=1)
    leaves[f'{after}/kernel'] = taken.reshape(*behind.shape[:-2], -1, behind.shape[-1])
    return left


PARTS: dict[str, Callable[[Mapping, Mapping, Mapping, float], Shrunk]] = {
    'heads': heads,
    'units': units,
    'channels': channels,
}


def _modules(leaves: Mapping, pattern: str, what: str, step: str) -> list[str]:
    found = [name for name in leaves if re.search(pattern, name)]
    if not found:
        raise errors.UserError(f'The model has no {what} that the step {step!r} could shrink.')
    return found


def _left(count: int, share: float, what: str) -> int:
    left = round(count * (1 - share))
    if not 0 < left < count:
        raise errors.UserError(
            f'{share:.0%} of {count} {what} leaves {left}: take a share that leaves some, and '
            'takes one at least.'
        )
    return left


def _best(strength: Array, left: int) -> Array:
    """strength [..., n] -> the places of the `left` strongest in their order, [..., left]."""
    return jnp.sort(jnp.argsort(strength, axis=-1)[..., -left:], axis=-1)


def _take(leaves: dict, name: str, best: Array, count: int, axis: int) -> None:
    """Keeps, of a parameter's `count` blocks along an axis from its end, the best; if it is one.

    `best` is [left], or [L, left] of scanned layers.
    """
    if name not in leaves:
        return

    def of_one(leaf: Array, best: Array) -> Array:
        blocks = jnp.moveaxis(leaf, axis, 0)
        blocks = blocks.reshape(count, -1, *blocks.shape[1:])
        blocks = jnp.take(blocks, best, axis=0)
        return jnp.moveaxis(blocks.reshape(-1, *blocks.shape[2:]), 0, axis)

    leaves[name] = (jax.vmap(of_one) if best.ndim == 2 else of_one)(leaves[name], best)


def _tree(leaves: Mapping) -> dict:
    return flax.traverse_util.unflatten_dict(leaves, '/')
