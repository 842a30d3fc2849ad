"""Options of XLA: those that are known are kept."""

import jax
import pytest

from bigmodels import errors, sharding, xla_options
from bigmodels.deploy.decoding import CPU_OPTIONS


def test_unknown_options_are_left_out():
    options = {'xla_cpu_enable_fast_math': True, 'xla_cpu_make_it_fast': True}
    known = xla_options.known(options)
    assert known == {'xla_cpu_enable_fast_math': True}
    assert jax.jit(lambda x: 2 * x, compiler_options=known)(3.0) == 6


def test_an_option_has_one_value():
    mesh = sharding.make_mesh(sharding.MeshShape(), jax.devices()[:1])
    with pytest.raises(errors.UserError, match=r'config.xla.xla_dump_to = \[1, 2\] must be one'):
        xla_options.for_mesh(mesh, {'xla_dump_to': [1, 2]})


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='options of the CPU backend')
def test_the_options_of_decoding_are_known():
    """Without one of them decoding is right, but several times slower."""
    assert xla_options.known(CPU_OPTIONS) == CPU_OPTIONS
