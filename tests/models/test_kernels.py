"""Products with kernels as decoding keeps them, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import xla_options
from bigmodels.compress.quantize import Format, quantize
from bigmodels.deploy.decoding import CPU_OPTIONS
from bigmodels.models.parts import kernels, layers

rng = np.random.default_rng(0)
X = rng.normal(size=(2, 9, 48)).astype(np.float32)
MATRIX = rng.normal(size=(48, 20)).astype(np.float32)
FORMS = {
    'float32': lambda rows: kernels.Kernel(rows),
    'bfloat16': lambda rows: kernels.Kernel(rows.astype(jnp.bfloat16)),
    'int8': lambda rows: quantize(rows, Format('int8')),
    'int8 in groups': lambda rows: quantize(rows, Format('int8', 16)),
    'int4 in groups': lambda rows: quantize(rows, Format('int4', 8)),
    'fp8': lambda rows: quantize(rows, Format('fp8')),
}


@pytest.mark.parametrize('length', [1, 3, 9], ids='{} of 9'.format)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('form', FORMS)
def test_a_product_with_a_kernel_is_one_with_its_matrix(form, dtype, length):
    """Few rows, which are reduced, and many, which are multiplied; as compiled for decoding."""
    kernel = FORMS[form](jnp.asarray(MATRIX.T))
    x = jnp.asarray(X[:, :length], dtype)
    assert (x.size // 48 <= kernels.THIN) == (length < 9)
    multiply = jax.jit(layers.matmul, compiler_options=xla_options.known(CPU_OPTIONS))
    given = multiply(x, kernel)
    assert given.dtype == x.dtype
    expected = np.float64(x) @ np.float64(kernels.widened(kernel))
    tolerance = 1e-5 if dtype == 'float32' else 2e-2
    np.testing.assert_allclose(np.float64(given), expected, rtol=tolerance, atol=20 * tolerance)


def test_rows_are_those_of_the_transpose():
    kernel = FORMS['int8 in groups'](jnp.asarray(MATRIX.T))
    ids = jnp.array([[3, 3, 19], [0, 7, 1]])
    np.testing.assert_array_equal(kernel.rows(ids), np.asarray(kernels.widened(kernel).T)[ids])
