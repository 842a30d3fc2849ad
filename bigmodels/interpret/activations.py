"""What is inside a network while it answers: captured, put in another's place, and read.

A path names a module as parameters' names do, `layers_0/attention`, and stands for what its
`__call__` returns, of a tuple the first; INPUT is the model's own first argument. Of scanned
layers, `layers/attention`, all are one array [layers, ...]. Works under scan, remat and jit.

Axes: B batch, L length, S key length, D embed, H heads, N key/value heads, K head_dim, V vocab.
"""

import collections
import contextlib
import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels import errors, trees
from bigmodels.models.parts import blocks, layers
from bigmodels.models.parts.attention import scores
from bigmodels.tasks import base

Array = jax.Array
Activations = dict[str, Array]

INPUT = ''  # the path of the model's first argument
LAYERS = r'(.*/)?layers(_\d+)?'  # the paths of a Transformer's blocks
# Collections of what modules gave, and of what is put in its place; `blocks.run` scans both.
SEEN, EDITS = 'intermediates', 'edits'
_OUTPUT, _WEIGHTS = '__call__', '__weights__'  # names that no module has


class Edit(NamedTuple):
    """What an output becomes: `value`, plus the output where it is kept.

    Fields:
      value: broadcasts against the output; of scanned layers [layers, ...].
      keep: bool, likewise.
    """

    value: Array
    keep: Array | bool = False


Edits = Mapping[str, Edit]


def capture(
    task: Any,
    params: Any,
    model_state: Any,
    batch: Any,
    paths: Sequence[str],
    edits: Edits | None = None,
) -> tuple[Any, Activations]:
    """What a task predicts of a batch, and the outputs of the modules that `paths` name.

    Args:
      task: whose `predict` calls its model.
      paths: whole paths, or regular expressions of whole ones.
      edits: path -> Edit, see `edited`; what is captured is what they leave.

    Returns:
      (predictions, {path: array}), in the order of their calls; of a module that is called several
      times it is the first call.

    Raises:
      UserError: for a path that no module has; names near ones.
    """
    task, seen = base.calling_once(task), Watched(task.model, edits or {}, paths)
    predictions = dataclasses.replace(task, model=seen).predict(params, model_state, batch)
    return predictions, seen.captured()


def edited(task: Any, edits: Edits) -> Any:
    """The task with a model in which modules give what `edits` make of their outputs.

    Whatever the task does with its model is so edited: `predict`, `loss_fn`, `embed_texts`. Of
    images their mirror images are not asked too.
    """
    return dataclasses.replace(base.calling_once(task), model=Watched(task.model, edits))


def ablated(activations: Mapping[str, Array], by: str = 'zero') -> dict[str, Edit]:
    """Edits that take away what modules say.

    Args:
      activations: of `capture`; for means those of a batch that represents the data.
      by: 'zero', or 'mean' for each feature's mean over examples and positions.

    Raises:
      UserError: for another word.
    """
    if by not in ('zero', 'mean'):
        raise errors.unknown('ablation', by, ('zero', 'mean'))

    def value(path: str, x: Array) -> Array:
        first = trees.is_scanned(path)  # that axis is of layers
        mean = x.mean(tuple(range(first, x.ndim - 1)), keepdims=True)
        return mean if by == 'mean' else jnp.zeros_like(mean)

    return {path: Edit(value(path, x)) for path, x in activations.items()}


def replaced(path: str, value: Array, positions: Array | None = None) -> dict[str, Edit]:
    """An edit that gives `value` in the place of an output.

    Args:
      value: in the output's shape, [B, L, ...] or of scanned layers [layers, B, L, ...].
      positions: bool [L], where it is so; by default everywhere.
    """
    if positions is None:
        return {path: Edit(value)}
    axis = 1 + trees.is_scanned(path)
    at = jnp.asarray(positions).reshape(-1, *[1] * (value.ndim - axis - 1))
    at = jnp.broadcast_to(at, (*[1] * axis, *at.shape))
    if trees.is_scanned(path):
        at = jnp.broadcast_to(at, (len(value), *at.shape[1:]))
    return {path: Edit(jnp.where(at, value, 0), ~at)}


def attention_maps(task: Any, params: Any, model_state: Any, batch: Any) -> Activations:
    """The weights of every self-attention, by its path: float32 [B, H, L, S], rows sum to 1.

    They are computed again from queries and keys, so it does not matter by which implementation
    the model attends.

    Raises:
      UserError: for a model without `blocks.Attention`.
    """
    seen = Watched(task.model, {}, weights=True)
    dataclasses.replace(task, model=seen).predict(params, model_state, batch)
    maps = seen.captured()
    if not maps:
        raise errors.UserError(f'{type(task.model).__name__} has no attention to show.')
    return maps


def attention_weights(
    settings: blocks.Settings,
    query: Array,
    key: Array,
    positions: Array,
    segment_ids: Array | None = None,
    slots: Array | None = None,
    bias: Array | None = None,
) -> Array:
    """softmax(query key^T / sqrt(K) + bias + mask) of `blocks.Attention`: float32 [B, H, L, S].

    Args:
      query, key: [B, L, H * K] and [B, S, N * K], or with heads as an axis: of the projections.
      positions, segment_ids, slots, bias: those of `blocks.Attention`.
    """
    c = settings
    query = query.reshape(*query.shape[:2], c.num_heads, c.dim_per_head).astype(jnp.float32)
    key = key.reshape(*key.shape[:2], c.kv_heads, c.dim_per_head).astype(jnp.float32)
    if c.query_scalar is not None:
        query *= jnp.sqrt(c.dim_per_head / c.query_scalar)
    if c.positions == 'rotary':
        turns = layers.rotary_frequencies(c.dim_per_head, c.rotary_theta, c.rotary_scaling)
        query, key = (layers.rotate(x, positions, *turns) for x in (query, key))
    mask = scores.visible(
        jnp.arange(query.shape[1]),
        jnp.arange(key.shape[1]),
        causal=c.causal,
        window=c.sliding_window,
        segment_ids=segment_ids,
        query_slots=slots,
    )
    raw = scores.products(
        scores.scaled(scores.fold(query, c.kv_heads)), scores.heads_first(key)
    )  # [B, N, G, L, S]
    if bias is not None:
        raw += bias.reshape(len(bias), *raw.shape[1:])
    weights = jax.nn.softmax(scores.bounded(raw, mask, c.attention_softcap))
    return weights.reshape(len(query), c.num_heads, *raw.shape[3:])


def stacked(activations: Mapping[str, Array]) -> Array:
    """Activations of layers as one array [layers, ...], be they scanned or one by one."""
    if len(activations) == 1 and trees.is_scanned(next(iter(activations))):
        return next(iter(activations.values()))
    return jnp.stack([activations[path] for path in sorted(activations, key=_by_number)])


def logit_lens(task: Any, params: Any, model_state: Any, batch: Any, paths: str = LAYERS) -> Array:
    """What the task would predict if the network ended after each layer: [layers, B, ...].

    What the last block says is that of the earlier one, for the final norm and the head to read
    (nostalgebraist 2020, "interpreting GPT: the logit lens").

    Args:
      paths: of the blocks.
    """
    _, states = capture(task, params, model_state, batch, [paths])
    depth = len(stacked(states))

    def predict(state: Array) -> Array:
        last = jnp.arange(depth) == depth - 1
        edits = _of_layers(states, jnp.broadcast_to(state, (depth, *state.shape)), last)
        return edited(task, edits).predict(params, model_state, batch)

    return jax.lax.map(predict, stacked(states))


class Tracing(NamedTuple):
    """What `causal_tracing` found.

    Fields:
      clean, corrupted: the score of either input.
      effects: float32 [layers, L], by how much the corrupted input's score rises where one state
        is that of the clean one: the indirect effect.
    """

    clean: Array
    corrupted: Array
    effects: Array


def causal_tracing(
    task: Any,
    params: Any,
    model_state: Any,
    clean: Any,
    corrupted: Any,
    score: Callable[[Any], Array],
    paths: str = LAYERS,
    edits: Edits | None = None,
) -> Tracing:
    """Which states carry what makes the answer (Meng et al. 2022, arXiv:2202.05262, section 2.1).

    The network answers the corrupted input, with the state of one layer at one position put in
    from its answer to the clean one; so for every layer and position.

    Args:
      clean, corrupted: batches of one example each, of the same shapes.
      score: predictions -> a number, such as the probability of the right answer.
      paths: of the modules whose outputs [1, L, D] are put in: blocks, or r'layers_\\d+/mlp'.
      edits: what else corrupts: Meng et al. add noise to the embeddings of the subject.
    """
    right, states = capture(task, params, model_state, clean, [paths])
    all_states = stacked(states)
    depth, _, length = all_states.shape[:3]

    def score_of(layer: Array, position: Array) -> Array:
        put = (jnp.arange(depth) == layer)[:, None] & (jnp.arange(length) == position)
        restored = {**(edits or {}), **_of_layers(states, all_states, put)}
        return score(edited(task, restored).predict(params, model_state, corrupted))

    of_layer = jax.vmap(score_of, (None, 0))
    found = jax.lax.map(
        lambda layer: of_layer(layer, jnp.arange(length)), jnp.arange(-1, depth)
    )  # of layer -1 nothing is put in
    return Tracing(jnp.float32(score(right)), found[0, 0], found[1:] - found[0, 0])


def _of_layers(states: Mapping[str, Array], values: Array, put: Array) -> dict[str, Edit]:
    """Edits that put values [layers, B, L, ...] in where `put`, bool [layers] or [layers, L]."""
    axes = values.ndim - 1 - put.ndim  # behind those of layers, B and, where it has it, L
    where = put[:, None].reshape(len(put), 1, *put.shape[1:], *[1] * axes)
    value, keep = jnp.where(where, values, 0), ~where
    if len(states) == 1 and trees.is_scanned(path := next(iter(states))):
        return {path: Edit(value, keep)}
    paths = sorted(states, key=_by_number)
    return {path: Edit(value[i], keep[i]) for i, path in enumerate(paths)}


def _by_number(path: str) -> list:
    """A key that sorts layers_2 before layers_10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r'(\d+)', path))]


class Watched:
    """A model whose `apply` edits and captures what its modules give; all else is the model's."""

    def __init__(self, model: Any, edits: Edits, paths: Sequence[str] = (), weights: bool = False):
        self._model, self._edits, self._paths, self._weights = model, edits, paths, weights
        self._called = collections.Counter()
        self._found: Activations = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def apply(
        self, variables: Mapping, first: Any, *rest: Any, mutable: Any = False, **given
    ) -> Any:
        """As the model's."""
        if INPUT in self._edits:
            first = _after(self._edits[INPUT], first)
        if self._asks_for(INPUT):
            self._found.setdefault(INPUT, first)
        kept = [] if mutable is False else [*mutable]
        with contextlib.ExitStack() as stack:
            stack.enter_context(nn.intercept_methods(self._watch))
            if self._weights:
                stack.enter_context(nn.intercept_methods(self._weigh([])))
            answer, state = self._model.apply(
                {**variables, EDITS: _nested(self._edits)}, first, *rest,
                mutable=[*kept, SEEN], **given,
            )  # fmt: skip
        for path in self._edits:
            self._check(path, path in (INPUT, *self._called))
        for name, value in trees.flatten_named(state.get(SEEN, {})).items():
            self._found.setdefault(name.rpartition('/')[0], value)
        if mutable is False:
            return answer
        return answer, {name: value for name, value in state.items() if name != SEEN}

    def captured(self) -> Activations:
        """What was found; UserError for a path that is nowhere."""
        for path in self._paths:
            self._check(path, any(re.fullmatch(path, name) for name in self._found))
        ordered = [INPUT, *self._called]
        return {path: self._found[path] for path in ordered if path in self._found}

    def _check(self, path: str, found: bool) -> None:
        if not found:
            there = [name for name in self._called if name]
            near = difflib.get_close_matches(path, there, n=3, cutoff=0.3) or there
            raise errors.UserError(
                f'No module of {type(self._model).__name__} has the path {path!r}. Near ones: '
                f'{errors.some(near)}.'
            )

    def _asks_for(self, path: str) -> bool:
        try:
            return any(re.fullmatch(pattern, path) for pattern in self._paths)
        except re.error as error:
            raise errors.UserError(
                f'The path {error.pattern!r} is no regular expression: {error}.'
            ) from error

    def _watch(self, call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        module, path = context.module, '/'.join(context.module.path)
        before = self._called[path]
        output = call(*args, **kwargs)
        # A module that scan or remat makes calls itself within: there is where its arrays live.
        if context.method_name != '__call__' or self._called[path] > before or not path:
            return output
        self._called[path] += 1
        first = output[0] if isinstance(output, tuple) else output
        if path in self._edits:
            first = _after(module.get_variable(EDITS, _OUTPUT), first)
            output = (first, *output[1:]) if isinstance(output, tuple) else first
        if self._asks_for(path):
            _sow(module, _OUTPUT, first)
        return output

    def _weigh(self, open_: list[dict]) -> Callable:
        """An interceptor of attention's projections, which makes weights of them."""

        def weigh(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
            module = context.module
            if not isinstance(module, blocks.Attention) or context.method_name != '__call__':
                output = call(*args, **kwargs)
                if open_ and isinstance(module.parent, blocks.Attention):
                    open_[-1][module.name] = output
                return output
            open_.append({})
            output = call(*args, **kwargs)
            made = open_.pop()
            query, key = (made.get(f'{name}_norm', made[name]) for name in ('query', 'key'))
            _, positions, segment_ids, _, *rest = args
            weights = attention_weights(module.settings, query, key, positions, segment_ids, *rest)
            _sow(module, _WEIGHTS, weights)
            return output

        return weigh


def _sow(module: nn.Module, name: str, value: Array) -> None:
    keep_first = lambda kept, new: new if kept is None else kept
    module.sow(SEEN, name, value, init_fn=lambda: None, reduce_fn=keep_first)


def _after(edit: Edit, output: Array) -> Array:
    value = jnp.asarray(edit.value, output.dtype)
    return jnp.broadcast_to(jnp.where(edit.keep, output, 0) + value, output.shape)


def _nested(edits: Edits) -> dict:
    """Edits by path -> variables of their modules."""
    tree: dict = {}
    for path, edit in edits.items():
        if path == INPUT:
            continue
        keep = edit.keep
        if trees.is_scanned(path):
            keep = jnp.broadcast_to(keep, (len(edit.value), *jnp.shape(keep)[1:]))
        node = tree
        for part in path.split('/'):
            node = node.setdefault(part, {})
        node[_OUTPUT] = Edit(jnp.asarray(edit.value), jnp.asarray(keep))
    return tree
