"""Opening a run: config as data, parameters, preprocessing; and what its directory refuses."""

import argparse
import json
import os
import pathlib

import jax
import numpy as np
import pytest

from bigmodels import config as config_lib
from bigmodels import errors, experiment, rundir, runs, sharding, trees
from bigmodels import train as train_lib
from tests import commands


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('run')
    train_lib.train(
        commands.tiny_text_config(
            tmp_path_factory.mktemp('text'),
            [
                'ema_decay=0.5',
                'checkpoint.every=5',
                'eval_every=5',
                'checkpoint.keep_last=4',
                'checkpoint.best_metric=valid/loss',
            ],
        ),
        workdir,
    )
    return workdir


def test_gives_the_averaged_params_of_a_step(finished):
    run = runs.open_run(finished)
    assert run.step == 20
    assert run.experiment.total_steps == 20
    assert run.task.vocabulary.decode(run.task.preprocess({'text': 'def f'})['inputs']) == 'def f'
    earlier = runs.open_run(finished, 5)
    assert earlier.step == 5
    assert trees.first_difference(run.params, earlier.params)
    program = run.program()
    assert trees.count(program.state_shapes.params) == trees.count(run.params)
    assert jax.tree.structure(program.state_shapes.ema_params) == jax.tree.structure(run.params)
    assert runs.open_run(finished, 'best').step in (5, 10, 15, 20)


def test_the_options_of_a_command_that_opens_a_run():
    parser = argparse.ArgumentParser()
    runs.add_run(parser)
    given = parser.parse_args(['--workdir=runs/a', '--trust=one', '--trust=two'])
    assert vars(given) == dict(workdir=pathlib.Path('runs/a'), step='last', trust=['one', 'two'])
    for text, step in (('7', 7), ('last', 'last'), ('best', 'best')):
        assert parser.parse_args(['--workdir=a', f'--step={text}']).step == step
    with pytest.raises(SystemExit):
        parser.parse_args([])


def test_opens_onto_a_mesh(finished):
    mesh = sharding.make_mesh(sharding.MeshShape(data=1, fsdp=8))
    split, whole = runs.open_run(finished, mesh=mesh), runs.open_run(finished)
    assert trees.first_difference(split.params, whole.params) is None
    kernel = split.params['layers_0']['mlp']['up']['kernel']
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size


def test_its_batches_are_those_of_the_training(finished):
    run = runs.open_run(finished)
    settings = experiment.from_config(config_lib.read(finished / 'config.json'))
    batches, _ = experiment.training_batches(
        settings, run.task, experiment.training_sources(settings)
    )
    np.testing.assert_array_equal(run.batches[7]['inputs'], batches[7]['inputs'])


def test_the_kept_config_is_complete(finished):
    kept = config_lib.read(finished / 'config.json').to_dict()
    assert kept['model']['rotary_theta'] == 10_000.0  # a default that the file leaves out
    assert kept['optimizer']['algorithm']['eps'] == 1e-8
    assert experiment.resolved(kept) == kept


@pytest.mark.parametrize('step', [7, 'bets', 'best'])
def test_a_step_that_is_not_there(finished, tmp_path, step):
    if step == 'best':
        kept = config_lib.read(finished / 'config.json').to_dict()
        os.symlink(finished / 'checkpoints', tmp_path / 'checkpoints')
        os.symlink(finished / 'preprocessing', tmp_path / 'preprocessing')
        kept['checkpoint']['best_metric'] = 'valid/nothing'
        rundir.write_json(tmp_path / 'config.json', kept)
        workdir = tmp_path
    else:
        workdir = finished
    by = (
        " with a value of config.checkpoint.best_metric = 'valid/nothing'" if step == 'best' else ''
    )
    with pytest.raises(errors.UserError, match=f'such checkpoint{by}; it has steps: 5, 10, 15, 20'):
        runs.open_run(workdir, step)


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(errors.UserError, match='cannot be written'):
        rundir.held(tmp_path / 'file' / 'run', 'same').__enter__()


def test_a_directory_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('pathlib.Path.touch', refuse)  # root may write anywhere
    with pytest.raises(errors.UserError, match='cannot be written: Permission denied'):
        rundir.held(tmp_path, 'same').__enter__()


def test_a_tokenizer_that_does_not_fit_the_model(finished, tmp_path):
    kept = config_lib.read(finished / 'config.json').to_dict()
    kept['model']['vocab_size'] = 100
    for name in ('checkpoints', 'preprocessing', 'data.json'):
        os.symlink(finished / name, tmp_path / name)
    rundir.write_json(tmp_path / 'config.json', kept)
    with pytest.raises(errors.UserError, match=r'tokenizer has 256 tokens .*vocab_size is 100'):
        runs.open_run(tmp_path)


def test_where_a_run_is_kept_if_nobody_says():
    names = ('configs/chat.py', 'configs/chat.py:full', 'chat.py:runs/published', 'a.py:b/c.txt')
    kept = [str(rundir.default(name)) for name in names]
    assert kept == ['runs/chat', 'runs/chat_full', 'runs/chat_published', 'runs/a_c.txt']


def test_a_figure_without_a_value_is_null_in_a_summary(tmp_path):
    rundir.write_summary(tmp_path, 3, {'a': 1.5, 'b': float('nan')}, {}, {})
    summary = json.loads((tmp_path / rundir.SUMMARY).read_text(), parse_constant=pytest.fail)
    assert summary['final'] == {'a': 1.5, 'b': None}
    figures = rundir.final_figures(tmp_path, 3, 3)
    assert figures['a'] == 1.5
    assert np.isnan(figures['b'])
    assert rundir.final_figures(tmp_path, 2, 3) is None
    with pytest.raises(errors.UserError, match='at step 4, beyond config.total_steps = 3'):
        rundir.final_figures(tmp_path, 4, 3)
