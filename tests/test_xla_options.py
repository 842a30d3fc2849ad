"""Options of XLA: those that are known are kept."""

import jax
import pytest

from bigmodels import xla_options
from bigmodels.deploy.decoding import CPU_OPTIONS


def test_unknown_options_are_left_out():
    options = {'xla_cpu_enable_fast_math': True, 'xla_cpu_make_it_fast': True}
    known = xla_options.known(options)
    assert known == {'xla_cpu_enable_fast_math': True}
    assert jax.jit(lambda x: 2 * x, compiler_options=known)(3.0) == 6


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='options of the CPU backend')
def test_the_options_of_decoding_are_known():
    """Without one of them decoding is right, but several times slower."""
    assert xla_options.known(CPU_OPTIONS) == CPU_OPTIONS
