"""Eight simulated devices, of which the runs of some folders take one; and the shared data sets.

Programs are compiled without most of XLA's optimisation, also in the processes that tests start:
compiling is most of what tests take. JAX_DISABLE_MOST_OPTIMIZATIONS=0 has it. On JAX 0.10 what is
fused is lowered by XLA's older emitters too, in half the time; later versions do not have them.
"""

import gc
import os
import pathlib
import shutil

import jax
import pytest

from bigmodels import config, runs, sharding, train

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_threefry_partitionable', True)

unoptimized = os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
jax.config.update('jax_disable_most_optimizations', unoptimized != '0')
# In place of the caller's flags, which the processes that tests start would inherit too.
older = unoptimized != '0' and jax.__version_info__ < (0, 11)
os.environ['XLA_FLAGS'] = '--xla_cpu_use_fusion_emitters=false' if older else ''

ROOT = pathlib.Path(__file__).parent.parent
ON_ONE_DEVICE = ('deploy', 'rows', 'tasks')


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


@pytest.fixture(scope='module', autouse=True)
def runs_on_one_device(request):
    """Training and evaluation take the first device where the number of them is not the point.

    It is in test_sharding, test_placements and others beside it. Eight on a few cores take longer.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name in ON_ONE_DEVICE:
            make = sharding.make_mesh
            first = jax.devices()[:1]
            patch.setattr(sharding, 'make_mesh', lambda shape, of=first: make(shape, of))
        yield


@pytest.fixture(scope='session')
def finished_digits(tmp_path_factory) -> pathlib.Path:
    """A run of configs/digits_mlp.py:tiny, 20 steps with 10 and 20 saved; for reading only."""
    workdir = tmp_path_factory.mktemp('finished_digits')
    train.train(config.load(f'{ROOT}/configs/digits_mlp.py:tiny', ['log_every=1']), workdir)
    return workdir


@pytest.fixture
def digits_run(finished_digits, tmp_path) -> pathlib.Path:
    """A copy of it."""
    return shutil.copytree(finished_digits, tmp_path / 'run')


@pytest.fixture
def shared_data() -> pathlib.Path:
    """The folder of real data sets; skips where the machine has none."""
    directory = ROOT.parent / 'shared' / 'data'
    if not directory.is_dir():
        pytest.skip('needs the data sets beside the checkout, in ../shared/data')
    return directory
