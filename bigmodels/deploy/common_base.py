"""Runs whose adapters have one frozen base, which is then in memory once."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from bigmodels import adapters, errors, runs, trees


def of_one_base(served: Mapping[str, runs.Run]) -> dict[str, runs.Run]:
    """The same runs by name, with the arrays of the first one's base in all of them.

    One may be the base itself; its adapter adds nothing, and its kernels are as the others keep
    them. Contexts may differ in length.

    Raises:
      UserError: for runs of which one adapter cannot take the place of another: of other models,
        tokenizers, settings of config.adapter or frozen arrays, or with parameters that are trained
        whole; and for none with adapters.
    """
    settings = next((s for s in map(_settings, served.values()) if s.rank), None)
    if settings is None:
        raise errors.UserError(
            'None of these runs has adapters: config.adapter.rank is 0 in all of them.'
        )
    if settings.trained:
        raise errors.UserError(
            f'config.adapter.trained = {settings.trained}: parameters that are trained whole are '
            'no part of an adapter. Serve such runs alone.'
        )
    name, first = next(iter(served.items()))
    _, base = _parts(settings, first)
    found = {}
    for other, run in served.items():
        _check(f'{other} ({run.workdir})', run, f'{name} ({first.workdir})', first, settings)
        trained, frozen = _parts(settings, run)
        difference = trees.first_difference(frozen, base)
        if difference is not None:
            raise errors.UserError(
                f'{other} ({run.workdir}) has another base than {name} ({first.workdir}): '
                f'{difference} differs.'
            )
        params = adapters.joined(settings, trained, base)
        found[other] = dataclasses.replace(run, params=params)
    return found


def _settings(run: runs.Run) -> adapters.Settings:
    return run.experiment.adapter


def _parts(settings: adapters.Settings, run: runs.Run) -> tuple[Any, Any]:
    """(adapters, frozen) of a run's params; of the base those of a run that has not begun."""
    if not _settings(run).rank:
        return adapters.split(settings, run.params, jax.random.key(0))
    return adapters.trained(settings, run.params), adapters.without(run.params)


def _check(
    name: str, run: runs.Run, first_name: str, first: runs.Run, settings: adapters.Settings
) -> None:
    """Whether two runs may differ in their adapters alone, by what is known of them as they are."""
    own = _settings(run)
    for field in dataclasses.fields(settings) if own.rank else ():
        one, other = getattr(own, field.name), getattr(settings, field.name)
        if one != other:
            raise errors.UserError(
                f'{name}: config.adapter.{field.name} = {one!r}, but {other!r} of another run: '
                'adapters that are served together have the same settings.'
            )
    if run.model.clone(max_length=first.model.max_length) != first.model:
        raise errors.UserError(f'{name} has another model than {first_name}:\n{run.model}')
    if run.task.vocabulary.fingerprint() != first.task.vocabulary.fingerprint():
        raise errors.UserError(f'{name} has another tokenizer than {first_name}.')
