"""What is traced and compiled follows the devices that it is for, not those of this process."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from bigmodels import config as config_lib
from bigmodels import errors, experiment, losses, program, sharding, xla_options
from bigmodels.data import tokenizers
from bigmodels.models import transformer
from bigmodels.models.parts.attention import choose_implementation
from bigmodels.tasks import LanguageModeling
from tests import commands, tpus


def mesh_of(kind: str, platform: str, **sizes: int) -> AbstractMesh:
    """A mesh of devices that are not here."""
    shape = tuple(sizes.get(axis, 1) for axis in sharding.AXES)
    types = (AxisType.Auto,) * len(shape)
    device = AbstractDevice(kind, 1, platform=platform)
    return AbstractMesh(shape, sharding.AXES, types, abstract_device=device)


H200 = 'NVIDIA H200', 'gpu'
V5E = 'TPU v5 lite', 'tpu'


def test_the_platform_is_that_of_the_mesh():
    seen = []

    def traced(x):
        seen.append((sharding.platform(), sharding.axis_size('data')))
        return x

    gpus = mesh_of(*H200, data=4)
    for context in (
        jax.set_mesh(sharding.make_mesh(sharding.MeshShape())),
        jax.sharding.use_abstract_mesh(gpus),
        sharding.without_axes(gpus),
    ):
        with context:
            jax.eval_shape(traced, 1.0)
    jax.eval_shape(traced, 1.0)
    assert seen == [('cpu', 8), ('gpu', 4), ('gpu', 1), ('cpu', 1)]


def test_a_mesh_without_devices_is_taken_for_this_process():
    axes = tuple(sharding.AXES)
    mesh = AbstractMesh((1,) * len(axes), axes, (AxisType.Auto,) * len(axes))
    with jax.sharding.use_abstract_mesh(mesh):
        assert sharding.platform() == 'cpu'
    with sharding.without_axes(mesh):
        assert sharding.platform() == 'cpu'


@pytest.mark.parametrize(('device', 'kernel'), [(H200, 'cudnn'), (V5E, 'splash')])
def test_attention_is_chosen_for_the_devices_of_the_mesh(device, kernel):
    with jax.sharding.use_abstract_mesh(mesh_of(*device)):
        assert choose_implementation('auto', jnp.bfloat16, 64, 1024)[0] == kernel
    assert choose_implementation('auto', jnp.bfloat16, 64, 1024)[0] == 'xla'


def test_on_gpus_passes_over_memory_are_spared():
    """Products are rounded at once, except where a mesh splits what they sum; barriers keep apart
    what XLA would keep in float32."""
    model = transformer.Transformer(
        vocab_size=40, num_layers=1, embed_dim=16, num_heads=2, mlp_dim=32, attention='xla',
        dtype='bfloat16', logits_dtype='bfloat16',
    )  # fmt: skip
    tokens = jnp.zeros((2, 8), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)['params']

    def loss(params):
        logits = model.apply({'params': params}, tokens)
        return losses.softmax_cross_entropy(logits, tokens).mean()

    def traced(mesh) -> str:
        with jax.sharding.use_abstract_mesh(mesh):
            return str(jax.make_jaxpr(jax.grad(loss))(params))

    rounded = 'preferred_element_type=bfloat16'
    alone, split = traced(mesh_of(*H200)), traced(mesh_of(*H200, tensor=2))
    tpu = traced(mesh_of(*V5E))
    assert alone.count(rounded) > split.count(rounded) == tpu.count(rounded)
    # Of the activation the arguments and their gradient, of the loss the logits.
    assert alone.count('optimization_barrier') == split.count('optimization_barrier') == 3
    assert 'optimization_barrier' not in tpu


def language_model(**fields) -> LanguageModeling:
    sizes = dict(vocab_size=256, num_layers=1, embed_dim=16, num_heads=2, max_length=128)
    model = transformer.Transformer(**sizes | fields)
    return LanguageModeling(model, {'name': 'bytes'}, 128, vocabulary=tokenizers.Bytes())


def make_program(task, mesh, **changes) -> program.Program:
    """The program of a task on a mesh, for batches of 8 sequences."""
    settings = experiment.Experiment(
        model={},
        task={},
        optimizer=dict(
            learning_rate=0.01, algorithm=dict(name='adamw'), schedule=dict(name='constant')
        ),
        data=experiment.Data({}, {}),
        total_steps=3,
        batch_size=8,
        **changes,
    )
    shapes = {
        name: jax.ShapeDtypeStruct((8, *shape.shape), shape.dtype)
        for name, shape in task.example_shapes().items()
    }
    return program.make_program(settings, task, mesh, shapes)


def test_a_kernel_of_other_devices_can_be_asked_for():
    """A model is initialised without axes, but for the platform that it will run on."""
    task = language_model(attention='splash')
    made = make_program(task, mesh_of(*V5E, fsdp=4))
    assert made.state_shapes.params['embed']['embedding'].shape == (256, 16)
    with pytest.raises(errors.UserError, match='"splash" cannot run: it needs a TPU'):
        make_program(task, sharding.make_mesh(sharding.MeshShape()))


def test_options_of_xla_are_those_of_the_table_and_of_the_config(monkeypatch):
    table = {
        'cpu': {'xla_cpu_enable_fast_math': (False, ''), 'xla_unheard_of': (1, '')},
        'gpu': {'xla_gpu_autotune_level': (0, '')},
    }
    monkeypatch.setattr(xla_options, 'TABLE', table)
    mesh = sharding.make_mesh(sharding.MeshShape())
    options, notes = xla_options.for_mesh(mesh, {'xla_disable_hlo_passes': 'dce,cse'})
    assert options == {'xla_cpu_enable_fast_math': False, 'xla_disable_hlo_passes': 'dce,cse'}
    assert notes == [
        'XLA compiles with xla_cpu_enable_fast_math = False, xla_disable_hlo_passes = dce,cse',
        'this XLA does not know xla_unheard_of',
    ]
    assert xla_options.for_mesh(mesh, dict.fromkeys(table['cpu'])) == ({}, [])


@pytest.mark.parametrize(
    ('name', 'value', 'said'),
    [
        ('xla_cpu_fast', True, 'No such compile option'),
        ('xla_gpu_autotune_level', 'a', 'not a valid int32 value'),
    ],
)
def test_an_option_that_xla_does_not_take(name, value, said):
    mesh = sharding.make_mesh(sharding.MeshShape())
    with pytest.raises(errors.UserError, match=rf'config\.xla\.{name} = .*{said}'):
        xla_options.for_mesh(mesh, {name: value})


def test_no_options_on_cpus_cost_nothing(monkeypatch):
    monkeypatch.setattr(xla_options, 'TABLE', {'cpu': {}})
    monkeypatch.setattr(xla_options, '_refusal', None)  # is not asked
    assert xla_options.for_mesh(sharding.make_mesh(sharding.MeshShape()), {}) == ({}, [])


@pytest.mark.parametrize('platform', ['gpu', 'cpu'])
def test_this_xla_knows_the_table(platform):
    """XLA's own options are of all platforms; those of TPUs are libtpu's."""
    mesh = sharding.make_mesh(sharding.MeshShape())
    wanted = {name: value for name, (value, _) in xla_options.TABLE[platform].items()}
    assert xla_options.for_mesh(mesh, wanted)[0] == wanted


@pytest.mark.parametrize('topology', ['v5e:2x2', 'v6e:2x2', 'v5p:2x2x1'])
def test_libtpu_knows_the_table(topology):
    mesh = sharding.make_mesh(sharding.MeshShape(), tpus.devices(topology))
    options, notes = xla_options.for_mesh(mesh, {})
    assert options.keys() >= xla_options.TABLE['tpu'].keys()
    assert ('xla_tpu_scoped_vmem_limit_kib' in options) == topology.startswith('v6e')
    assert len(notes) == 1


def test_the_train_step_is_compiled_with_the_options_of_the_config(tmp_path):
    """Without the pass that fuses, other programs are left of the step."""
    overrides = ['xla.xla_backend_optimization_level=0', 'xla.xla_disable_hlo_passes=fusion']
    loaded = commands.tiny_text_config(tmp_path, overrides)
    settings = experiment.from_config(loaded)
    assert settings.xla['xla_disable_hlo_passes'] == 'fusion'
    plain = experiment.resolved(commands.tiny_text_config(tmp_path))
    changed = experiment.resolved(loaded)
    assert experiment.blocking_differences(plain, changed) == {}
    assert config_lib.differences(plain, changed)
    mesh = sharding.make_mesh(sharding.MeshShape(data=1), jax.devices()[:1])
    task = language_model()
    joined = {}
    for name, changes in (('plain', {}), ('changed', settings.xla)):
        text = make_program(task, mesh, xla=changes).compile_train_step('jit').as_text()
        # A CPU wraps what stands alone into a fusion of its own.
        joined[name] = re.findall(r'%(?!wrapped_)\S* = \S+ fusion\(.*kind=kLoop', text)
    assert len(joined['changed']) < len(joined['plain']) / 2
