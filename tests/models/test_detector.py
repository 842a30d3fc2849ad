"""The detector: sizes that its stages do not divide, whose precision it has, who trains what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors, optimizers, trees
from bigmodels.models.detector import PRIOR, Detector

BACKBONE = dict(block='basic', stage_sizes=(1, 1, 1), stage_widths=(8, 8, 16))


def make(**backbone) -> Detector:
    return Detector(num_classes=3, width=8, backbone=BACKBONE | backbone)


@pytest.mark.slow
@pytest.mark.parametrize(('stem', 'stride'), [('imagenet', 4), ('cifar', 1)])
def test_it_answers_for_every_cell_of_any_size(stem, stride):
    """Stages of 9 x 11, 5 x 6 and 3 x 3 cells; at first hardly anything is an object."""
    model = make(stem=stem)
    assert model.stride == stride
    images = jax.random.normal(jax.random.key(0), (2, 9 * stride, 11 * stride, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    heat, codes = model.apply(variables, images)
    assert (heat.shape, codes.shape) == ((2, 9, 11, 3), (2, 9, 11, 4))
    assert heat.dtype == codes.dtype == jnp.float32
    assert abs(float(jax.nn.sigmoid(heat).mean()) - PRIOR) < PRIOR


def test_precision_and_statistics_are_those_of_the_backbone():
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    model = make(dtype='bfloat16', momentum=0.5)
    variables = jax.jit(model.init)(jax.random.key(1), images)
    _, seen = model.apply(
        variables, images, capture_intermediates=lambda module, _: module.name == 'joined'
    )
    assert seen['intermediates']['joined']['__call__'][0].dtype == jnp.bfloat16

    def means(momentum):
        _, changed = make(momentum=momentum).apply(
            variables, images, train=True, mutable=['batch_stats']
        )
        named = trees.flatten_named(changed['batch_stats'])
        return {name: value for name, value in named.items() if name.endswith('mean')}

    quick, slow = means(0.5), means(0.9)
    assert {'backbone/stem_norm/mean', 'joined_norm/mean', 'heat_hidden_norm/mean'} <= quick.keys()
    for name, moved in quick.items():  # from 0, by a half and by a tenth of the batch's
        np.testing.assert_allclose(moved, 5 * slow[name], rtol=1e-4, atol=1e-6)
    with pytest.raises(errors.UserError, match=r"config\.model\.backbone.*'widths'"):
        make(widths=(8,))


def test_muon_leaves_its_answers_to_adam():
    images = jnp.zeros((1, 32, 32, 3))
    params = jax.eval_shape(make().init, jax.random.key(1), images)['params']
    muons = trees.flatten_named(trees.match_rules(optimizers.HIDDEN_MATRICES, params, 'muon'))
    by_muon = {name for name, yes in muons.items() if yes}
    assert {'heat_hidden/kernel', 'backbone/stage0_0/first/kernel'} <= by_muon
    assert not {'heat_head/kernel', 'box_head/kernel'} & by_muon
