"""From a ConfigDict to typed constructors: every key is checked, none is ignored.

A section of a config is unpacked into the function or class that it configures, so a key that
nothing reads cannot exist: it would be an argument that its constructor does not take.
"""

import argparse
import ast
import dataclasses
import importlib
import importlib.util
import inspect
import json
import math
import pathlib
import sys
import traceback
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from bigmodels import errors


def load(spec: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Loads `path/to/file.py` or `path/to/file.py:variant`, and sets fields in it.

    A config file is Python and is executed: load only files that you would run.

    Args:
      overrides: 'model.num_layers=2' each. A value is a Python literal, or else a string; it is
        checked against what the field configures when that is built, so a field that the file
        leaves at its default can be set too.

    Raises:
      UserError: for a file that is not there or fails, and an override that names no section.
    """
    path, _, variant = spec.partition(':')
    if not pathlib.Path(path).is_file() or not path.endswith('.py'):
        raise errors.UserError(f'The config file {path!r} does not exist or is no .py file.')
    make_neighbours_importable(path)
    module_spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        config = module.get_config(variant)
    except Exception as error:  # a config file is code, and may fail as any code
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise errors.UserError(
            f'{spec}: {type(error).__name__}: {error} ({where.filename}, line {where.lineno}).'
        ) from error
    set_fields(config, overrides)
    return config


def set_fields(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> None:
    """Sets fields in place, each as 'model.num_layers=2', see `load`."""
    for override in overrides:
        if '=' not in override:
            raise errors.UserError(f'The override {override!r} is not KEY=VALUE.')
    pairs = [override.split('=', 1) for override in overrides]
    # A new name drops the arguments of the former one: names come first, of outer sections too.
    depth = lambda key: key.count('.') if key.endswith('.name') else math.inf
    with config.unlocked():
        for key, value in sorted(pairs, key=lambda pair: depth(pair[0])):
            _set(config, key, value)


def parse_arguments(
    parser: argparse.ArgumentParser, arguments: list[str] | None
) -> tuple[argparse.Namespace, list[str]]:
    """The parser's options, and each --config.KEY=VALUE beside them as 'KEY=VALUE'."""
    options, rest = parser.parse_known_args(arguments)
    for argument in rest:
        if not argument.startswith('--config.') or '=' not in argument:
            parser.error(
                f'cannot read the argument {argument!r}: it is none of the options above, and '
                'fields of the config are set by --config.SECTION.FIELD=VALUE, with the equals sign'
            )
    return options, [argument.removeprefix('--config.') for argument in rest]


def _set(config: ml_collections.ConfigDict, key: str, text: str) -> None:
    section = config
    *sections, field = key.split('.')
    for i, name in enumerate(sections):
        section = section.get(name)
        if not isinstance(section, ml_collections.ConfigDict):
            where = '.'.join(['config', *sections[: i + 1]])
            raise errors.UserError(f'There is no section {where} to set {key} in.')
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(section.get(field), str):
        value = text
    if isinstance(section.get(field), ml_collections.ConfigDict):
        raise errors.UserError(
            f'config.{key} is a section: set a field in it, one of: {", ".join(section[field])}.'
        )
    if field == 'name' and section.get('name') != value:
        for other in list(section):  # they were the arguments of the former choice
            del section[other]
    if field in section:
        del section[field]  # a ConfigDict insists on the type of the value it has
    section[field] = value


def with_defaults(factory: Callable, section: Mapping, path: str = '') -> dict[str, Any]:
    """The section with the constructor's default for every key it leaves out.

    Likewise for the sections within it, whose constructors the class variable `sections` names.

    Raises:
      UserError: for what is to be one of these and is no section.
    """
    allowed, _ = _parameters(factory, {})
    defaults = {
        key: to_plain(parameter.default)
        for key, parameter in inspect.signature(factory).parameters.items()
        if key in allowed and isinstance(parameter.default, int | float | str | tuple | None)
    }
    plain = defaults | to_plain(section)
    for key, nested in getattr(factory, 'sections', {}).items():
        if plain.get(key) is not None:
            inner = f'{path}.{key}'
            check_has(plain[key], (), inner)
            plain[key] = with_defaults(nested, plain[key], inner)
    return plain


def make_neighbours_importable(path: str) -> None:
    """Lets `configs/x.py` do `from configs import common` from any working directory."""
    root = str(pathlib.Path(path).absolute().parent.parent)
    if root not in sys.path:
        sys.path.append(root)


def to_plain(value: Any) -> Any:
    """A ConfigDict as plain dicts, lists and scalars: what its JSON file holds."""
    if isinstance(value, ml_collections.ConfigDict | Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def read(path) -> ml_collections.ConfigDict:
    """Reads a config written by `json.dumps(to_plain(config))`: data, nothing is executed."""
    return ml_collections.ConfigDict(json.loads(pathlib.Path(path).read_text()))


def flatten(config: Mapping, prefix: str = '') -> dict[str, Any]:
    """`{'model': {'num_layers': 2}}` as `{'model.num_layers': 2}`."""
    flat = {}
    for key, value in to_plain(config).items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f'{prefix}{key}.')
        else:
            flat[prefix + key] = value
    return flat


def differences(old: Mapping, new: Mapping) -> dict[str, tuple[Any, Any]]:
    """The dotted keys whose values differ, each with (old, new); an absent one is None."""
    old, new = flatten(old), flatten(new)
    return {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }


def choose(choices: Mapping[str, Callable], section: Mapping, path: str, **given) -> Any:
    """Builds what `section['name']` names, from `choices` or by a dotted import path.

    The other keys of the section are the constructor's arguments, beside those `given`.
    """
    factory = chosen(choices, section, path)
    rest = {key: value for key, value in section.items() if key != 'name'}
    return build(factory, rest, path, **given)


def chosen(choices: Mapping[str, Callable], section: Mapping, path: str) -> Callable:
    """What `section['name']` names."""
    check_has(section, (), path)
    if 'name' not in section:
        raise errors.UserError(f'config.{path} needs a name, one of: {", ".join(sorted(choices))}.')
    return lookup(choices, section['name'], path)


def lookup(choices: Mapping[str, Callable], name: str, path: str) -> Callable:
    """The entry `name` of `choices`, or the object that a dotted name imports."""
    if name in choices:
        return choices[name]
    module, _, attribute = str(name).rpartition('.')
    if module:
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise errors.UserError(f'config.{path}.name = {name!r}: {error}.') from error
    raise errors.unknown(f'config.{path}.name', name, choices)


def check_trusted(config: Mapping, trust: Sequence[str], origin: str) -> None:
    """Refuses a config that is data but names code: `lookup` would import and call it.

    Args:
      trust: top-level packages that may be named nevertheless.
      origin: where the config was found, for the message.

    Raises:
      UserError: if a name at any depth has a dot, and its package is not trusted; likewise a
        package that the config itself says to trust.
    """
    if isinstance(trust, str):
        trust = (trust,)  # else each part of the word would be trusted
    for key, name in _names(to_plain(config), ''):
        package = str(name).partition('.')[0]
        if '.' in str(name) and package not in trust:
            raise errors.UserError(
                f'{origin}: config.{key} = {name!r} would import and run code. If you know and '
                f'trust the package {package}, allow it: --trust={package}, in Python '
                f'open_run(..., trust=({package!r},)), of a teacher config.distill.trust.'
            )


def _names(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Each entry `name` in plain data, with its dotted key; of `trust` what it would allow."""
    entries = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        entries = enumerate(value)
    for key, item in entries:
        if key == 'name':
            yield f'{path}{key}', item
        if key == 'trust':
            packages = item if isinstance(item, list) else [item]
            yield from ((f'{path}{key}', f'{package}.*') for package in packages)
        yield from _names(item, f'{path}{key}.')


def build(factory: Callable, section: Mapping, path: str, **given) -> Any:
    """`factory(**section, **given)`, after every key and type of the section was checked."""
    return factory(**checked(factory, section, path, given), **given)


def checked(
    factory: Callable, section: Mapping, path: str, given: Collection[str] = ()
) -> dict[str, Any]:
    """The section as arguments of `factory`, which is given others besides.

    Raises:
      UserError: for an unknown key, a wrong type, and what lacks.
    """
    allowed, required = _parameters(factory, given)
    where = f'config.{path}' if path else 'config'
    values = {}
    for key, value in section.items():
        if key not in allowed:
            raise errors.unknown(f'key in {where}', key, allowed)
        hint = allowed[key]
        if isinstance(value, list):
            value = tuple(value)
        if not _matches(value, hint):
            if typing.get_origin(hint) is typing.Literal:
                raise errors.unknown(f'value of {where}.{key}:', value, typing.get_args(hint))
            raise errors.UserError(
                f'{where}.{key} = {value!r} has the wrong type: it is {type(value).__name__}, '
                f'wanted {hint.__name__ if inspect.isclass(hint) else hint}.'
            )
        values[key] = float(value) if hint is float else value
    check_has(values, required, path)
    return values


def check_has(section: Any, keys: Iterable[str], path: str) -> None:
    """Raises UserError for what is no section of a config, or one that lacks some keys."""
    where = f'config.{path}' if path else 'config'
    if not isinstance(section, Mapping | ml_collections.ConfigDict):
        raise errors.UserError(f'{where} = {section!r} must be a section.')
    missing = [key for key in keys if key not in section]
    if missing:
        raise errors.UserError(f'{where} lacks: {", ".join(missing)}.')


def _parameters(factory: Callable, given: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """The settable parameters of `factory` with their type hints, and the required ones."""
    hints = typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    if dataclasses.is_dataclass(factory):
        hints = typing.get_type_hints(factory)
    taken = {'parent', 'name', *given}  # the first two are Linen's own fields
    allowed, required = {}, []
    for key, parameter in inspect.signature(factory).parameters.items():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if key in taken or variadic or not _is_plain(hints.get(key, Any)):
            continue
        allowed[key] = hints.get(key, Any)
        if parameter.default is parameter.empty:
            required.append(key)
    return allowed, required


def _is_plain(hint: Any) -> bool:
    """Whether a config can hold such a value; objects are for code to give."""
    origin = typing.get_origin(hint) or hint
    if origin in (typing.Union, types.UnionType):
        return all(map(_is_plain, typing.get_args(hint)))
    return origin in (
        Any,
        int,
        float,
        str,
        bool,
        type(None),
        typing.Literal,
        tuple,
        list,
        Sequence,
        Mapping,
    )


def _matches(value: Any, hint: Any) -> bool:
    """Whether a config value fits a type hint; an int is a float, a bool is not an int."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, option) for option in typing.get_args(hint))
    if hint is type(None):
        return value is None
    if hint in (int, float):
        return (
            isinstance(value, (int, float) if hint is float else int)
            and value is not True
            and value is not False
        )
    if origin in (tuple, list, Sequence):
        return isinstance(value, tuple | list) and _elements_match(value, hint)
    if origin is Mapping or hint is Mapping:
        return isinstance(value, Mapping | ml_collections.ConfigDict)
    return isinstance(value, origin or hint)


def _elements_match(value: Sequence, hint: Any) -> bool:
    hints = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and hints[-1] is not Ellipsis:
        return len(value) == len(hints) and all(map(_matches, value, hints))
    return all(_matches(item, hints[0]) for item in value)
