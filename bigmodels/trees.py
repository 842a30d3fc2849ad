"""Trees of arrays by name: 'layers/attention/query/kernel' -> leaf."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bigmodels import errors


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator='/')


def flatten_named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by slash-separated path, in the tree's order."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_named(
    function: Callable, tree: Any, *rest: Any, is_leaf: Callable[[Any], bool] | None = None
) -> Any:
    """`jax.tree.map` whose function gets the leaf's name first."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(_name(path), *leaves), tree, *rest, is_leaf=is_leaf
    )


def match_rules(
    rules: Sequence[tuple[str, Any]],
    tree: Any,
    what: str,
    called: Callable[[str], str] = lambda name: name,
) -> Any:
    """A tree with, for each leaf, the value of the first rule whose regex is found in its name.

    Args:
      what: the rules are, for errors.
      called: a leaf's name -> the one that rules are looked for in.

    Raises:
      UserError: if a leaf is matched by no rule, so that nothing is left out by accident.
    """
    uncovered = []

    def first_match(name: str, _):
        for pattern, value in rules:
            if re.search(pattern, called(name)):
                return value
        uncovered.append(name)
        return None

    try:
        matched = map_named(first_match, tree)
    except re.error as error:
        raise errors.UserError(
            f'{what}: {error.pattern!r} is no regular expression: {error}.'
        ) from error
    if uncovered:
        raise errors.UserError(
            f'{what} covers no rule for: {", ".join(uncovered[:5])}'
            f'{" and more" if len(uncovered) > 5 else ""}. End the rules with (".*", default).'
        )
    return matched


def found(patterns: Sequence[str], name: str, what: str) -> set[str]:
    """The regexes that are found in a name; UserError for one that is none, `what` says whose."""
    matching = set()
    for pattern in patterns:
        try:
            if re.search(pattern, name):
                matching.add(pattern)
        except re.error as error:
            raise errors.UserError(
                f'{what}: {pattern!r} is no regular expression: {error}.'
            ) from error
    return matching


def count(tree: Any) -> int:
    """The number of elements in all leaves."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def size_bytes(tree: Any) -> int:
    """The bytes of all leaves, before any sharding; two of int4 are one, as on accelerators."""
    bits = sum(
        int(np.prod(leaf.shape)) * (4 if leaf.dtype.name == 'int4' else 8 * leaf.dtype.itemsize)
        for leaf in jax.tree.leaves(tree)
    )
    return -(-bits // 8)


def first_difference(one: Mapping, other: Mapping) -> str | None:
    """The name of the first leaf that is not bitwise equal in both trees, or None."""
    one, other = flatten_named(one), flatten_named(other)
    for name in sorted(one.keys() | other.keys()):
        if name not in one or name not in other:
            return name
        a, b = np.asarray(one[name]), np.asarray(other[name])
        if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
            return name
    return None


def is_scanned(name: str) -> bool:
    """Whether a leaf is one of scanned layers, stacked along its first axis."""
    return 'layers' in name.split('/')


def num_stacked(name: str) -> int:
    """Along how many leading axes a leaf is stacked: those of scanned layers, those of experts."""
    return is_scanned(name) + ('experts' in name.split('/'))
