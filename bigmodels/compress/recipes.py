"""A recipe in words, 'prune50,int8', as pure functions from a finished model to a smaller one.

Its steps are taken in order, each a name of STEPS and, for some, a number behind it:

int8, int4, fp8    kernels and tables of tokens in this format, a scale for each output;
                   int4:32 with one for every 32 inputs
a8, a8_static      inputs of kernels rounded to int8, by the largest of each row, or by scales that
                   training batches are measured for
prune50            the smallest half of each kernel's weights is 0; prune_global50 that of all
2:4                of four neighbouring inputs of an output the smallest two are 0
heads50, units50, channels50
                   the weakest half of attention's heads, of feed-forward layers' hidden units, of
                   the channels of a ConvNet or in a ResNet's blocks is taken out: the model itself
                   is smaller
kv8                generation keeps keys and values in int8, a scale for each head and position

New arrays are made of others alone, so that a recipe is tried on shapes before anything is read.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from bigmodels import compress, errors
from bigmodels import config as config_lib
from bigmodels.compress import prune, shrink
from bigmodels.models import MODELS


@dataclasses.dataclass(frozen=True)
class Model:
    """What a recipe changes.

    Fields:
      config: of the run, resolved; plain data.
      params: as they are trained.
      model_state: the model's other collections.
    """

    config: Mapping[str, Any]
    params: Mapping
    model_state: Mapping

    def settings(self, section: str, **fields) -> 'Model':
        """With fields of a section of the config set."""
        changed = {**self.config.get(section, {}), **fields}
        return dataclasses.replace(self, config={**self.config, section: changed})


Step = Callable[[Model], Model]


def parse(recipe: str, targets: str = '') -> list[Step]:
    """The steps of a recipe.

    Args:
      targets: a regex of the kernels that are rounded and pruned; '' for all that can be.

    Raises:
      UserError: for an unknown name, a number that is out of range, missing or one too many, and
        two formats of weights or of their inputs.
    """
    steps, kinds = [], []
    for text in recipe.split(','):
        name, number = _read(text.strip())
        kind, make = STEPS[name]
        if kind in kinds:
            raise errors.UserError(f'The recipe {recipe!r} has two steps of {kind}: leave one.')
        kinds += [kind] if kind else []
        steps.append(make(text, name, number, targets))
    return steps


def applied(steps: Sequence[Step], model: Model) -> Model:
    """The smaller model, its params as a packed run keeps them; one compiled program."""
    return _run(steps, model, jax.jit)


def tried(steps: Sequence[Step], model: Model) -> Model:
    """`applied`, of arrays or shapes, as shapes.

    Raises:
      UserError: for what a step cannot do with this model.
    """
    return _run(steps, model, lambda arrays: functools.partial(jax.eval_shape, arrays))


def _run(steps: Sequence[Step], model: Model, way: Callable[[Callable], Callable]) -> Model:
    config = {}

    def arrays(params: Mapping, model_state: Mapping) -> tuple[Mapping, Mapping]:
        smaller = dataclasses.replace(model, params=params, model_state=model_state)
        for step in steps:
            smaller = step(smaller)
        config.update(smaller.config)
        settings = compress.Settings(**config['compress'])
        return compress.kept(settings, smaller.params), smaller.model_state

    params, model_state = way(arrays)(model.params, model.model_state)
    return Model(config, params, model_state)


def _read(text: str) -> tuple[str, float | None]:
    """A step's name and number."""
    name, colon, number = (text, '', '') if text in STEPS else text.partition(':')
    if name not in STEPS and not colon and (split := re.fullmatch(r'(.*?)([0-9.]+)', text)):
        name, number = split.groups()
    if name not in STEPS:
        raise errors.unknown('step of a recipe', text, STEPS)
    try:
        return name, float(number) if number else None
    except ValueError as error:
        raise errors.UserError(f'The step {text!r} of a recipe has no number behind it.') from error


# Each makes a step of (text, name, number, targets); the text is for errors.


def _weights(text: str, name: str, number: float | None, targets: str) -> Step:
    if number is not None and (number < 1 or number % 1):
        raise errors.UserError(f'The groups of {text!r} must be of a whole number of inputs.')
    fields = {'weights': name, 'group_size': int(number or 0), 'packed': True}
    return lambda model: model.settings('compress', **fields, **_of_targets(targets))


def _activations(text: str, name: str, number: float | None, targets: str) -> Step:
    _check_no_number(text, number)
    fields = {'activations': {'a8': 'int8', 'a8_static': 'int8_static'}[name], 'packed': True}
    return lambda model: model.settings('compress', **fields, **_of_targets(targets))


def _cache(text: str, name: str, number: float | None, targets: str) -> Step:
    _check_no_number(text, number)

    def step(model: Model) -> Model:
        kind = config_lib.chosen(MODELS, model.config['model'], 'model')
        if not (hasattr(kind, 'init_cache') and hasattr(kind, 'kv_cache')):
            raise errors.UserError(
                f'The model {model.config["model"]["name"]!r} keeps no keys and values: leave the '
                f'step {text!r} out.'
            )
        return model.settings('model', kv_cache='int8')

    return step


def _pruned(text: str, name: str, number: float | None, targets: str) -> Step:
    if name == '2:4':
        _check_no_number(text, number)
        settings = prune.Settings(0.5, pattern=name)
    else:
        scope = 'global' if name == 'prune_global' else 'layer'
        settings = prune.Settings(_share(text, number), scope=scope)
    if targets:
        settings = dataclasses.replace(settings, targets=targets)
    return lambda model: dataclasses.replace(model, params=prune.pruned(settings, model.params))


def _shrunk(text: str, name: str, number: float | None, targets: str) -> Step:
    share = _share(text, number)

    def step(model: Model) -> Model:
        fields, params, state = shrink.PARTS[name](
            model.config['model'], model.params, model.model_state, share
        )
        smaller = dataclasses.replace(model, params=params, model_state=state)
        return smaller.settings('model', **fields)

    return step


def _of_targets(targets: str) -> dict[str, str]:
    return {'targets': targets} if targets else {}


def _share(text: str, number: float | None) -> float:
    if number is None or not 0 < number < 100:
        raise errors.UserError(
            f'The step {text!r} needs a number over 0 and under 100 behind it, the percentage that '
            'is taken out: of a model without all of it nothing is left.'
        )
    return number / 100


def _check_no_number(text: str, number: float | None) -> None:
    if number is not None:
        raise errors.UserError(f'The step {text!r} takes no number behind it.')


# Name -> what no other step of a recipe may be, and the function that makes it.
STEPS = {
    **dict.fromkeys(('int8', 'int4', 'fp8'), ('weights', _weights)),
    **dict.fromkeys(('a8', 'a8_static'), ('activations', _activations)),
    'kv8': ('', _cache),
    **dict.fromkeys(('prune', 'prune_global', '2:4'), ('', _pruned)),
    **dict.fromkeys(shrink.PARTS, ('', _shrunk)),
}
