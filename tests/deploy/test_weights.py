"""Params as decoding reads them against those that were trained."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import adapters, errors, trees
from bigmodels.deploy import decoding, weights
from bigmodels.deploy.sampling import Sampling
from bigmodels.deploy.text import generate_text
from bigmodels.models import transformer
from bigmodels.models.parts.kernels import Kernel
from tests.deploy.test_generate import GREEDY, PROMPTS, task_and_params

TOKENS = np.random.default_rng(0).integers(0, 256, (2, 12))
SMALL = dict(vocab_size=256, num_layers=2, embed_dim=32, num_heads=4, max_length=32)


def make(**changes):
    model = transformer.Transformer(**SMALL | changes)
    params = model.init(jax.random.key(0), TOKENS)['params']
    return model, jax.tree.map(lambda leaf: 2 * leaf, params)


def logits(model, params):
    return np.asarray(model.apply({'params': params}, TOKENS))


SETTINGS = {
    'tied': dict(positions='learned'),
    'untied, gated, grouped': dict(
        tie_embeddings=False, activation='swiglu', use_bias=False, num_kv_heads=2
    ),
    'scanned': dict(scan_layers=True),
    'experts': dict(moe=dict(num_experts=4, experts_per_token=2, num_shared_experts=1)),
}


@pytest.mark.parametrize('changes', SETTINGS.values(), ids=SETTINGS)
def test_packed_computes_the_same(changes):
    model, params = make(**changes)
    packed_model, packed = weights.packed(model, params)
    assert not packed_model.scan_layers
    np.testing.assert_allclose(
        logits(packed_model, packed), logits(model, params), rtol=1e-4, atol=1e-4
    )
    kernels = [leaf for leaf in jax.tree.leaves(packed, is_leaf=is_kernel) if is_kernel(leaf)]
    dense = 0 if 'moe' in changes else 3 if 'activation' in changes else 2
    assert len(kernels) == 2 * (4 + dense) + 1 + (not model.tie_embeddings)


def is_kernel(leaf):
    return isinstance(leaf, Kernel)


def test_a_bfloat16_model_loses_nothing_by_bfloat16_kernels():
    """It would round them to that at every token."""
    model, params = make(dtype='bfloat16', positions='none')
    _, packed = weights.packed(model, params)
    assert packed['layers_0']['mlp']['up']['kernel'].values.dtype == jnp.bfloat16
    np.testing.assert_allclose(logits(model, packed), logits(model, params), atol=0.02)


@pytest.mark.parametrize(('kept', 'size', 'nats'), [('int8', 0.27, 0.01), ('fp8', 0.27, 0.05)])
def test_quantised_kernels_are_small_and_near(kept, size, nats):
    model, params = make(embed_dim=128)
    _, packed = weights.packed(model, params, kept)
    assert trees.size_bytes(packed) < size * trees.size_bytes(params) + 4096
    one, other = (jax.nn.log_softmax(logits(model, tree)) for tree in (params, packed))
    divergence = (jnp.exp(one) * (one - other)).sum(-1).mean()
    assert 0 < divergence < nats


def test_packing_twice_changes_nothing():
    model, params = make(scan_layers=True)
    once = weights.packed(model, params, 'int8')
    assert trees.first_difference(once[1], weights.packed(*once)[1]) is None


def test_text_from_quantised_kernels():
    task, params = task_and_params(positions='learned')
    exact = generate_text(task, params, PROMPTS, 9, GREEDY, seed=0)
    near = generate_text(task, params, PROMPTS, 9, GREEDY, seed=0, weights='int8')
    assert sum(a == b for a, b in zip(''.join(exact), ''.join(near), strict=True)) > 18
    with pytest.raises(errors.UserError, match=r"weights = 'int2'.*float32, .*int8"):
        generate_text(task, params, PROMPTS, 9, Sampling(), seed=0, weights='int2')


@pytest.mark.skipif(not decoding.KEEPS_BARRIERS, reason='this XLA expands barriers before fusion')
@pytest.mark.parametrize('batch', [1, 4])
@pytest.mark.parametrize('kept', ['bfloat16', 'int8'])
def test_a_token_reads_kernels_as_they_are_kept(kept, batch):
    """The compiled loop writes no widened kernel, no copy of one and no copy of the cache."""
    model, params = make(dtype='bfloat16', mlp_dim=80)
    packed = weights.packed(model, params, kept)
    arrays = (
        packed[1], TOKENS[:1].repeat(batch, 0), jnp.full(batch, 12), jnp.zeros((0, 0), jnp.int32),
        jax.random.key(0), GREEDY.rows(batch, only_used=True),
    )  # fmt: skip
    lowered = decoding.program().lower(packed[0], *arrays, max_new_tokens=4)
    as_for_users = {'xla_cpu_use_fusion_emitters': True}  # which conftest.py turns off
    computations = lowered.compile(as_for_users).as_text().split('\n}')
    [loop] = [c for c in computations if 'opt-barrier(' in c and 'ENTRY' not in c]
    large = rf'\[256,32\]|\[80,32\]|\[32,80\]|\[{batch},4,16,8\]'
    written = re.findall(rf'%(\S+) = \w+(?:{large})\S* (?:copy|convert|fusion)\(', loop)
    # The new slots of keys and values in two layers, in place.
    assert len(written) == 4
    assert all('scatter' in name or 'dynamic-update' in name for name in written), written


@pytest.mark.parametrize('kept', ['float32', 'int8'])
def test_adapters_beside_a_packed_base_compute_what_they_do_merged(kept):
    """A base that was quantised for training stays as it was; each row has its own adapter."""
    model, params = make(scan_layers=True)
    settings = adapters.Settings(rank=2, weights=kept)
    several = []
    for seed in (1, 2):
        trained, frozen = adapters.split(settings, params, jax.random.key(seed))
        trained = jax.tree.map(lambda leaf: leaf + 0.1, trained)
        several.append(adapters.joined(settings, trained, frozen))
    decoding_model, packed = weights.packed_together(model, several)
    rows = adapters.by_row(packed, jnp.array([1, 0]))
    assert packed['layers_0']['mlp']['up']['kernel'].kernel.values.dtype == kept
    expected = [logits(*weights.packed(model, one)) for one in several]
    np.testing.assert_allclose(
        logits(decoding_model, rows), [expected[1][0], expected[0][1]], rtol=1e-4, atol=1e-4
    )
