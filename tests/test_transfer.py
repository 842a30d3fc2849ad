"""Runs that begin with the parameters of another one."""

import shutil
import types

import jax
import numpy as np
import pytest

from bigmodels import (
    config,
    errors,
    experiment,
    program,
    rundir,
    runs,
    sharding,
    transfer,
    trees,
)  # fmt: skip
from bigmodels import train as train_lib
from bigmodels.checkpoint import values
from bigmodels.data import pipeline
from bigmodels.data.sources.table_sources import Digits
from bigmodels.experiment import InitFrom
from bigmodels.privacy import dp_sgd, federated
from tests import commands, reviews, test_sharding

SPLIT = ['mesh.data=1', 'mesh.fsdp=-1']
QUICK = ['task.sequence_length=16', 'eval_every=0', 'xla.xla_backend_optimization_level=0']


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    """A run of configs/bert.py:tiny on this project's own pages, with a moving average."""
    directory = tmp_path_factory.mktemp('bert')
    overrides = [
        f'data.train.path={commands.ROOT}/CONTRIBUTING.md',
        f'data.evals.valid.path={commands.ROOT}/README.md',
        'checkpoint.every=10',
        'model.num_layers=1',
        'ema_decay=0.9',
        *QUICK,
    ]
    loaded = config.load(f'{commands.ROOT}/configs/bert.py:tiny', overrides)
    train_lib.train(loaded, directory / 'run')
    return directory / 'run'


@pytest.fixture(scope='module')
def sentences(tmp_path_factory):
    """Overrides of a config that reads labelled sentences."""
    return reviews.write(tmp_path_factory.mktemp('reviews'))


def fine_tuning(pretrained, sentences, *overrides):
    """configs/sst2_bert.py:tiny on them."""
    paths = [f'init_from.workdir={pretrained}', f'task.tokenizer.path={pretrained}/preprocessing']
    paths += ['model.encoder.num_layers=1', *QUICK]
    return config.load(
        f'{commands.ROOT}/configs/sst2_bert.py:tiny', [*sentences, *paths, *overrides]
    )


def pretrained_params(pretrained):
    """What the other run is evaluated with: its average."""
    return values.read(pretrained / rundir.CHECKPOINTS, 20, 'ema_params')


@pytest.fixture(scope='module')
def frozen(pretrained, sentences, tmp_path_factory):
    """A run that trains its head alone, with its parameters split over the devices."""
    settings = ["optimizer.freeze=('^encoder/',)", 'ema_decay=0.5', *SPLIT]
    workdir = tmp_path_factory.mktemp('frozen') / 'run'
    train_lib.train(fine_tuning(pretrained, sentences, *settings), workdir)
    return workdir


def test_a_pretrained_run_fills_in_what_is_hidden_and_resumes(pretrained, tmp_path, capsys):
    (tmp_path / 'hidden.txt').write_text('the [MASK] of the model\n')
    [answer] = commands.answered(capsys, pretrained, tmp_path / 'hidden.txt')
    assert answer['text'].startswith('the')
    assert answer['text'].endswith(' of the model')
    assert '[MASK]' not in answer['text']
    commands.resumed(pretrained, tmp_path / 'resumed')


def test_a_run_begins_with_the_others_arrays_bit_for_bit(pretrained, frozen):
    run = runs.open_run(frozen)
    assert run.config['init_from']['workdir'] == str(pretrained)
    program = run.program()
    state = program.init_state(0)
    for begun in (state.params, state.ema_params):
        encoder = jax.tree.map(np.asarray, begun['encoder'])
        assert trees.first_difference(encoder, pretrained_params(pretrained)) is None
    # The head begins as without another run.
    alone = program.init(jax.random.key(0)).params['head']
    heads = (jax.tree.map(np.asarray, head) for head in (state.params['head'], alone))
    assert trees.first_difference(*heads) is None


def test_a_frozen_encoder_stays_bit_for_bit_and_has_no_state(pretrained, frozen):
    directory = frozen / rundir.CHECKPOINTS
    params = values.read(directory, 20, 'params')
    assert trees.first_difference(params['encoder'], pretrained_params(pretrained)) is None
    state = trees.flatten_named(values.shapes(directory, 20, 'opt_state'))
    assert any('head' in name for name in state)
    assert not any('encoder' in name for name in state)


def test_a_resumed_run_reads_nothing_and_is_the_same(pretrained, sentences, tmp_path, capsys):
    other = tmp_path / 'other'
    shutil.copytree(pretrained, other)
    overrides = [f'init_from.workdir={other}', f'task.tokenizer.path={other}/preprocessing']
    loaded = fine_tuning(pretrained, sentences, *overrides)
    figures = train_lib.train(loaded, tmp_path / 'whole')
    shutil.rmtree(other)
    assert commands.resumed(tmp_path / 'whole', tmp_path / 'resumed') == figures
    (tmp_path / 'films.txt').write_text('a charming film\n')
    [answer] = commands.answered(capsys, tmp_path / 'whole', tmp_path / 'films.txt')
    assert answer['label'] in ('positive', 'negative')


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        (["init_from.new=()"], r"params/head/bias is under no prefix, params/head/kernel is under"),
        (["init_from.prefixes=(('',''),)"], 'encoder/embed/embedding has no counterpart'),
        (['model.encoder.mlp_dim=48'], r'up/kernel is float32\[32, 48\], but .*\[32, 128\]'),
        (["init_from.new=('^head/','^haed/')"], r"no parameter is covered by '\^haed/'"),
        (["init_from.new=('(',)"], r"'\(' is no regular expression"),
        (['init_from.step=7'], 'has no such checkpoint; it has steps: 10, 20'),
        (['init_from.workdir=nowhere'], 'nowhere holds no run'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_before_compilation(
    pretrained, sentences, tmp_path, monkeypatch, overrides, message
):
    def compile_train_step(self, parallel):
        raise AssertionError('compiled')

    monkeypatch.setattr('bigmodels.program.Program.compile_train_step', compile_train_step)
    with pytest.raises(errors.UserError, match=message):
        train_lib.train(fine_tuning(pretrained, sentences, *overrides), tmp_path / 'run')


def test_a_damaged_run_is_not_begun_with(pretrained, sentences, tmp_path):
    other = tmp_path / 'other'
    shutil.copytree(pretrained, other)
    shutil.rmtree(other / 'checkpoints' / '10')
    largest = max(
        (other / 'checkpoints').rglob('ema_params/**/d/*'), key=lambda p: p.stat().st_size
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    loaded = fine_tuning(pretrained, sentences, f'init_from.workdir={other}')
    with pytest.raises(errors.UserError, match='Every checkpoint in .* is damaged'):
        train_lib.train(loaded, tmp_path / 'run')


SHAPES = {name: jax.ShapeDtypeStruct(shape, 'float32')
          for name, shape in {'params/a/k': (2,), 'params/b/k': (2,), 'batch_stats/a/mean': (3,),
                              'params/head': (4,)}.items()}  # fmt: skip


def test_model_state_is_taken_under_the_same_names_and_two_may_begin_as_one():
    settings = InitFrom('x', prefixes=(('a', 'old/tower'), ('b', 'old/tower')), new=('head',))
    saved = {
        'params/old/tower/k': SHAPES['params/a/k'],
        'batch_stats/old/tower/mean': SHAPES['batch_stats/a/mean'],
        'params/more': SHAPES['params/head'],
    }
    assert transfer.sources(settings, SHAPES, saved) == {
        'params/a/k': 'params/old/tower/k',
        'params/b/k': 'params/old/tower/k',
        'batch_stats/a/mean': 'batch_stats/old/tower/mean',
    }
    del saved['batch_stats/old/tower/mean']
    with pytest.raises(errors.UserError, match='batch_stats/a/mean has no counterpart'):
        transfer.sources(settings, SHAPES, saved)


def test_frozen_parameters_count_neither_in_private_norms_nor_in_local_steps(tmp_path):
    overrides = ["optimizer.freeze=('^Linear',)", 'batch_size=8', 'model.dropout_rate=0.0']
    loaded = config.load(f'{commands.ROOT}/configs/digits_mlp.py:tiny', overrides)
    settings = experiment.from_config(experiment.resolved(loaded))
    task = experiment.make_task(settings)
    batch = dict(pipeline.take(task.examples(Digits('valid'), tmp_path, train=True), np.arange(8)))
    batch['weights'] = np.ones(8, np.float32)
    mesh = sharding.make_mesh(sharding.MeshShape(), jax.devices()[:1])
    run = program.make_program(settings, task, mesh, program.shapes_of_batch(batch, 8))
    params = run.init_state(0).params

    def loss_fn(params, *rest, **options):
        return task.loss_fn(run.join(params, None), *rest, **options)

    def of_head(head, *rest, **options):
        return task.loss_fn({**params, 'head': head}, *rest, **options)

    others = params.keys() - {'head'}
    assert others
    local = federated.Settings(clients=1, per_round=1, local_steps=2, local_learning_rate=0.5)
    steps = jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), batch)
    bounded = types.SimpleNamespace(
        settings=types.SimpleNamespace(clip=0.1), noise_multiplier=0.0, expected=8
    )
    for update in (
        lambda loss, p: federated.local_update(p, {}, steps, jax.random.key(0), loss, local)[0],
        lambda loss, p: dp_sgd.private_gradients(
            p, {}, batch, jax.random.key(0), loss, 1, budget=bounded
        )[0],
    ):
        moved, alone = update(loss_fn, params), update(of_head, params['head'])
        assert not any(leaf.any() for leaf in jax.tree.leaves([moved[x] for x in others]))
        test_sharding.assert_close(moved['head'], alone, 1e-6)


def test_frozen_batch_norm_keeps_its_averages_in_a_run(tmp_path):
    overrides = [
        'model.name=convnet', 'model.num_classes=10', 'model.stages=((4,),(4,))',
        'model.norm=batch_norm', "optimizer.freeze=('^conv_0','^norm_0')", 'total_steps=3',
    ]  # fmt: skip
    loaded = config.load(f'{commands.ROOT}/configs/digits_mlp.py:tiny', overrides)
    train_lib.train(loaded, tmp_path / 'run')
    begun = runs.open_run(tmp_path / 'run').program().init_state(0).model_state['batch_stats']
    ended = commands.arrays(tmp_path / 'run', 3)['model_state']['batch_stats']
    for name in ('mean', 'variance'):
        np.testing.assert_array_equal(ended['norm_0'][name], begun['norm_0'][name])
        assert (ended['norm_1'][name] != begun['norm_1'][name]).all()
