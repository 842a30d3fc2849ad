"""What spoke for the answer to a record, by each method, for classifiers and language models.

Axes: B batch, L length, H height, W width, M mel bands, C classes, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodels import errors, predict, runs
from bigmodels.data import inputs, tokenizers
from bigmodels.interpret import activations, attribution
from bigmodels.tasks.classes import names_of
from bigmodels.tasks.classification import Classification
from bigmodels.tasks.language_modeling import LanguageModeling
from bigmodels.tasks.multi_label import MultiLabel
from bigmodels.tasks.node_classification import NodeClassification
from bigmodels.tasks.sound_classification import SoundClassification
from bigmodels.tasks.tables import Table, TableRegression
from bigmodels.tasks.text_classification import TextClassification

Array = jax.Array

# What can be explained, and what it is explained on.
KINDS = {
    Classification: 'image',
    SoundClassification: 'sound',
    TextClassification: 'text',
    Table: 'table',
    LanguageModeling: 'language',
}
SMOOTHING_SEED = 0
# Of values by path and baselines; whether places are told by a norm, as a gradient has no direction
# of its own.
GRADIENTS: dict[str, tuple[Callable, bool]] = {
    'gradient': (lambda f, x, _: attribution.gradient(f, x), True),
    'smooth_grad': (
        lambda f, x, _: attribution.smooth_grad(f, x, jax.random.key(SMOOTHING_SEED)),
        True,
    ),
    'input_x_gradient': (lambda f, x, _: attribution.input_x_gradient(f, x), False),
    'integrated_gradients': (attribution.integrated_gradients, False),
}
METHODS = (*GRADIENTS, 'occlusion', 'grad_cam', 'attention_rollout')
CELLS = 8  # along a side of a picture that is covered part by part
MOST = 5  # classes or tokens that are told of


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What is known of the answer to one record.

    Fields:
      where: the record was found.
      kind: of KINDS.
      answer: as plain data.
      likely: the most probable classes or next tokens, with their probabilities.
      shown: the input as a picture [H, W] or [H, W, C], log-mel features [L, M], or texts: of
        tokens, or of columns with their values.
      maps: method -> one number for each pixel, frame and band, or text.
      lens: of a language model, what each layer says the next token is: (token, probability) for
        each token, by layer.
    """

    where: str
    kind: str
    answer: Mapping[str, Any]
    likely: Sequence[tuple[str, float]]
    shown: Any
    maps: Mapping[str, np.ndarray]
    lens: Sequence[Sequence[tuple[str, float]]] = ()


def kind_of(task: Any) -> str:
    """The kind of a task among KINDS.

    Raises:
      UserError: for a task that is not explained.
    """
    found = [kind for known, kind in KINDS.items() if isinstance(task, known)]
    several = isinstance(task, MultiLabel | NodeClassification)
    if not found or several or (found == ['image'] and task.num_frames):
        raise errors.UserError(
            f'A {type(task).__name__} is not explained: there are explanations for classifiers of '
            'images, recordings, texts and tables, regression of tables, and language models.'
        )
    return found[0]


def check_methods(methods: Sequence[str]) -> None:
    """Raises UserError for a method that is none, or where there is none."""
    for method in methods or ('',):
        if method not in METHODS:
            raise errors.unknown('method', method, METHODS)


def explain(
    run: runs.Run, records: Iterable[inputs.Record], methods: Sequence[str], layer: str = ''
) -> Iterator[Explanation]:
    """The explanation of each record, in their order.

    Args:
      methods: of METHODS.
      layer: the path of the module that Grad-CAM is of; by default the last convolution, or what
        the last attention reads.

    Raises:
      UserError: naming the record, for one that cannot be explained.
    """
    explainer = Explainer(run, methods, layer)
    for where, record in records:
        with errors.told_of(where):
            explanation = explainer(where, record)
        yield explanation


class Explainer:
    """Explains records of a run one by one; programs are compiled for each shape that comes."""

    def __init__(self, run: runs.Run, methods: Sequence[str], layer: str = ''):
        check_methods(methods)
        self._task, self.kind, self._methods = run.task, kind_of(run.task), methods
        self._predictor = predict.Predictor(run)
        function = attributions(run.task, methods, layer)
        self._program = predict.Program(function, run.params, run.model_state)

    def example(self, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """What a record is to the task."""
        if self.kind != 'language':
            return self._predictor.example(record)
        ids = tokenizers.document(self._task.vocabulary, record[self._task.text_field])
        if not len(ids):
            raise errors.UserError('There is no text: nothing comes before the next token.')
        return self._task.text_example(ids)

    def attributions(self, examples: Sequence[Mapping[str, np.ndarray]], size: int) -> list[dict]:
        """Of at most `size` examples of equal shapes, what `attributions` gives of each."""
        return self._program(examples, size)

    def __call__(self, where: str, record: Mapping[str, Any]) -> Explanation:
        """The explanation of a record."""
        example = self.example(record)
        [found] = self.attributions([example], 1)
        task, kind = self._task, self.kind
        shown, lens = found['shown'], ()
        maps = {method: found['maps'][method] for method in self._methods}
        if kind in ('text', 'language'):
            ids = example['inputs'][: int(example['segment_ids'].sum())]
            shown = [task.vocabulary.decode([int(id)]) for id in ids]
            maps = {method: x[: len(ids)] for method, x in maps.items()}
        if kind == 'table':
            shown = columns_of(task, record)
        if kind == 'sound':
            frames = max(int(task.front_end.num_frames(int(example['lengths']))), 1)
            shown, maps = shown[:frames], {method: x[:frames] for method, x in maps.items()}
        if kind == 'language':
            lens = [
                [
                    (task.vocabulary.decode([int(id)]), float(p))
                    for id, p in zip(*layer, strict=True)
                ]
                for layer in zip(*(x[:, : len(ids)] for x in found['lens']), strict=True)
            ]
        answer = _answer(task, kind, found['prediction'])
        likely = _likely(task, kind, found['prediction'])
        return Explanation(where, kind, answer, likely, shown, maps, lens)


def columns_of(task: Table, record: Mapping[str, Any]) -> list[str]:
    """The columns of a table that have an attribution, with the values that a record has there."""
    columns = [*task.numeric, *task.categorical]
    texts = [f'{name} = {record[name]}' for name in columns]
    missing = task.numeric if task.missing == 'impute' else ()
    return [*texts, *(f'{name} is missing' for name in missing)]


def _answer(task: Any, kind: str, prediction: np.ndarray) -> dict[str, Any]:
    if kind != 'language':
        return dict(task.postprocess(prediction))
    [(token, probability), *_] = _likely(task, kind, prediction)
    return {'next token': repr(token), 'probability': probability}


def _likely(task: Any, kind: str, prediction: np.ndarray) -> list[tuple[str, float]]:
    if isinstance(task, TableRegression):
        return []
    order = np.argsort(-prediction)[:MOST].tolist()
    if kind == 'language':
        return [(task.vocabulary.decode([i]), float(prediction[i])) for i in order]
    names = names_of(task, order)
    return [(str(name), float(prediction[i])) for name, i in zip(names, order, strict=True)]


def attributions(task: Any, methods: Sequence[str], layer: str = '') -> Callable:
    """(params, model_state, batch) -> what `methods` say of a batch, as arrays.

    'prediction' is [B, C], of a language model the probabilities of the next token; 'maps' has for
    each method [B, ...], in the places of 'shown', the model's own input; 'lens' of a language
    model the most probable next token and its probability by layer, both [B, layers, L].
    """
    kind = kind_of(task)

    def attribute(params: Any, model_state: Any, batch: Any) -> dict[str, Any]:
        variables = params, model_state, batch
        predictions, given = activations.capture(task, *variables, [activations.INPUT])
        score = _score(task, kind, predictions, batch)
        function = attribution.answer(task, *variables, score)
        found = {'prediction': predictions, 'shown': given[activations.INPUT]}
        if kind == 'language':
            found['prediction'] = jax.nn.softmax(_at(predictions, _last(batch)))
            lens = jax.nn.softmax(activations.logit_lens(task, *variables))
            found['lens'] = lens.argmax(-1).swapaxes(0, 1), lens.max(-1).swapaxes(0, 1)
        values = attribution.inputs_of(task, *variables)
        found['maps'] = {
            method: _map(method, task, kind, variables, function, values, layer)
            for method in methods
        }
        return found

    return attribute


def _score(task: Any, kind: str, predictions: Array, batch: Any) -> Callable[[Array], Array]:
    """Of what was predicted."""
    if isinstance(task, TableRegression):
        return lambda predictions: predictions[:, 0]
    if kind == 'language':
        last = _last(batch)
        return attribution.token_score(_at(predictions, last).argmax(-1), last)
    return attribution.class_score(predictions.argmax(-1))


def _last(batch: Any) -> Array:
    return (batch['segment_ids'] > 0).sum(1) - 1


def _at(x: Array, positions: Array) -> Array:
    return jnp.take_along_axis(x, positions[:, None, None], axis=1)[:, 0]


def _map(method, task, kind, variables, function, values, layer) -> Array:
    """One method's [B, ...], in the places of the input."""
    if method == 'grad_cam':
        return _grad_cam(task, kind, variables, function, values, layer)
    if method == 'attention_rollout':
        return _rollout(task, kind, variables, values)
    baselines = None
    if kind in ('text', 'language'):
        baselines = attribution.mean_embeddings(values, variables[-1]['segment_ids'] > 0)
    if method == 'occlusion':
        sizes = _part_sizes(kind, values)
        places = attribution.occlusion(function, values, sizes, baselines)
    else:
        make, norm = GRADIENTS[method]
        places = attribution.by_place(make(function, values, baselines), norm)
    # A table's numeric columns come before the categorical ones.
    return jnp.concatenate(list(places.values()), axis=1)


def _part_sizes(kind: str, values: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """What occlusion covers at a time: a token or column, or a CELLS-th of each side."""
    along = {'image': 2, 'sound': 2}.get(kind, 1)
    cells = {'image': CELLS, 'sound': CELLS}.get(kind, 10**9)
    return {
        path: tuple(-(-n // cells) for n in x.shape[1 : 1 + along]) for path, x in values.items()
    }


def _grad_cam(task, kind, variables, function, values, layer: str) -> Array:
    paths = [layer or default_layer(task, *variables)]
    _, found = activations.capture(task, *variables, paths)
    cam = attribution.grad_cam(function, found)
    places = attribution.by_place(values)
    whole = places.get(activations.INPUT, cam)
    if kind == 'image' and cam.ndim == 2:
        cam = _as_grid(cam, task, whole.shape)
    if cam.ndim != whole.ndim or kind == 'table':
        raise errors.UserError(
            f'Grad-CAM of {paths[0]!r} is {list(cam.shape[1:])}, which has no place in an input of '
            f'{list(whole.shape[1:])}.'
        )
    return jax.image.resize(cam, whole.shape, 'linear')


def default_layer(task: Any, params: Any, model_state: Any, batch: Any) -> str:
    """The layer that Grad-CAM is of where none is named.

    Raises:
      UserError: for a model that has no convolution and no block with attention.
    """
    shapes = {}

    def find(params):
        _, found = activations.capture(task, params, model_state, batch, ['.+'])
        shapes.update({path: x.shape for path, x in found.items()})  # in the order of their calls

    jax.eval_shape(find, params)
    maps = [path for path, s in shapes.items() if len(s) == 4 and min(s[1:3]) > 1]
    tokens = [path for path in shapes if path.endswith('/attention_norm')]
    if not maps + tokens:
        raise errors.UserError(
            f'{type(task.model).__name__} has no layer of places for Grad-CAM: take another '
            'method, or name a layer.'
        )
    return (maps or tokens)[-1]


def _as_grid(tokens: Array, task: Any, shape: Sequence[int]) -> Array:
    """Patches [B, L] behind a class token, or not, as [B, H / patch, W / patch]."""
    size = getattr(task.model, 'patch_size', 0)
    if not size:
        raise errors.UserError(f'{type(task.model).__name__} has no patches to show tokens on.')
    rows, columns = shape[1] // size, shape[2] // size
    return tokens[:, tokens.shape[1] - rows * columns :].reshape(-1, rows, columns)


def _rollout(task, kind, variables, values) -> Array:
    """What of each place reaches that which is classified."""
    maps = activations.stacked(activations.attention_maps(task, *variables))
    reached = attribution.attention_rollout(maps)  # [B, L, S]
    batch = variables[-1]
    if kind == 'language':
        return _at(reached, _last(batch))
    if kind == 'text':
        real = batch['segment_ids'] > 0
        return (reached * real[..., None]).sum(1) / real.sum(1, keepdims=True)
    if kind == 'table':
        return reached[:, 0, 1:]  # of the class token
    whole = attribution.by_place(values)[activations.INPUT].shape
    of_all = reached[:, 0] if getattr(task.model, 'pool', '') == 'token' else reached.mean(1)
    if kind == 'image':
        return jax.image.resize(_as_grid(of_all, task, whole), whole, 'nearest')
    frames = jax.image.resize(of_all, whole[:2], 'nearest')
    return jnp.broadcast_to(frames[..., None], whole)
