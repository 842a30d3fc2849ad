"""Trees by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors, trees

TREE = {
    'layers': {'mlp': {'kernel': jnp.ones((2, 3, 4)), 'bias': jnp.ones((2, 4), jnp.bfloat16)}},
    'embed': [jnp.ones(5), jnp.ones(())],
}


def test_names_and_order():
    names = list(trees.flatten_named(TREE))
    assert names == ['embed/0', 'embed/1', 'layers/mlp/bias', 'layers/mlp/kernel']
    leaves = list(trees.flatten_named(TREE).values())
    assert all(a is b for a, b in zip(leaves, jax.tree.leaves(TREE), strict=True))
    named = trees.map_named(lambda name, leaf, other: (name, leaf is other), TREE, TREE)
    assert named['embed'][0] == ('embed/0', True)


def test_the_first_rule_found_decides():
    rules = [(r'kernel$', 1), (r'^embed', 2), (r'.*', 3)]
    matched = trees.match_rules(rules, TREE, 'x')
    assert matched == {'layers': {'mlp': {'kernel': 1, 'bias': 3}}, 'embed': [2, 2]}


def test_rules_must_cover_and_be_regexes():
    with pytest.raises(errors.UserError, match=r'The table.*embed/0, embed/1, layers/mlp/bias'):
        trees.match_rules([('kernel', True)], TREE, 'The table')
    many = {f'p{i}': np.zeros(1) for i in range(9)}
    with pytest.raises(errors.UserError, match='p4 and more'):
        trees.match_rules([], many, 'x')
    with pytest.raises(errors.UserError, match='no regular expression'):
        trees.match_rules([('(', 1)], TREE, 'x')


def test_counts_and_bytes():
    assert trees.count(TREE) == 24 + 8 + 5 + 1
    assert trees.size_bytes(TREE) == 4 * (24 + 5 + 1) + 2 * 8
    assert trees.count(jax.eval_shape(lambda: TREE)) == trees.count(TREE)
    assert trees.count({}) == 0


def test_first_difference_is_bitwise():
    assert trees.first_difference(TREE, jax.tree.map(jnp.copy, TREE)) is None
    for change in (
        lambda x: x.at[0, 0, 0].add(1e-7),
        lambda x: x.astype(jnp.float16),
        lambda x: x.reshape(2, 12),
    ):
        other = jax.tree.map(jnp.copy, TREE)
        other['layers']['mlp']['kernel'] = change(other['layers']['mlp']['kernel'])
        assert trees.first_difference(TREE, other) == 'layers/mlp/kernel'
    assert trees.first_difference({'a': jnp.zeros(1)}, {'a': -jnp.zeros(1)}) == 'a'
    nan = {'a': jnp.full(1, jnp.nan)}
    assert trees.first_difference(nan, nan) is None
    assert trees.first_difference({'a': 1, 'b': 2}, {'a': 1}) == 'b'


def test_leaves_of_scanned_layers_and_of_experts_are_stacked():
    assert trees.num_stacked('layers/mlp/experts/up/kernel') == 2
    assert trees.num_stacked('layers/mlp/up/kernel') == 1
    assert trees.num_stacked('layers_0/mlp/experts/up/kernel') == 1
    assert trees.num_stacked('layers_0/mlp/up/kernel') == 0
    assert trees.num_stacked('embed/embedding') == 0
