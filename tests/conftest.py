"""Eight simulated devices for every test, and the data sets beside the checkout.

Programs are compiled without most of XLA's optimisation, also in the processes that tests start:
compiling is most of what tests take. JAX_DISABLE_MOST_OPTIMIZATIONS=0 has it. On JAX 0.10 what is
fused is lowered by XLA's older emitters too, in half the time; later versions do not have them.
"""

import gc
import os
import pathlib

import jax
import pytest

from bigmodels import runs

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_threefry_partitionable', True)

unoptimized = os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
jax.config.update('jax_disable_most_optimizations', unoptimized != '0')
# In place of the caller's flags, which the processes that tests start would inherit too.
older = unoptimized != '0' and jax.__version_info__ < (0, 11)
os.environ['XLA_FLAGS'] = '--xla_cpu_use_fusion_emitters=false' if older else ''

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope='session', autouse=True)
def compile_cache(tmp_path_factory):
    """One cache of compiled programs and tokenised corpora for all tests of a session."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get('PYTEST_XDIST_WORKER') else base
    os.environ['BIGMODELS_CACHE'] = str(shared / 'cache')
    runs.configure_process()


@pytest.fixture(scope='module', autouse=True)
def programs_end_with_their_file():
    """Drops compiled programs, of which a whole suite has more than a process may map.

    Each takes three memory maps; Linux gives a process 65,530 and ends it at the next.
    """
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def shared_data() -> pathlib.Path:
    """The folder of real data sets; skips where the machine has none."""
    directory = ROOT.parent / 'shared' / 'data'
    if not directory.is_dir():
        pytest.skip('needs the data sets beside the checkout, in ../shared/data')
    return directory
