"""A run made smaller by the command is opened by everything else as any other."""

import json
import shutil
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from bigmodels import compress, errors, evaluate, rundir, runs, train, transfer, trees
from bigmodels.compress import __main__ as command
from bigmodels.deploy import export
from bigmodels.deploy.sampling import Sampling
from bigmodels.deploy.text import generate_text
from bigmodels.experiment import InitFrom
from tests import commands

RECIPE = 'units50,prune50,int8,a8_static,kv8'


@pytest.fixture(scope='module')
def large(tmp_path_factory):
    directory = tmp_path_factory.mktemp('large')
    workdir = directory / 'run'
    train.train(commands.tiny_text_config(directory, ['total_steps=4']), workdir)
    config = json.loads((workdir / rundir.CONFIG).read_text())
    # As of a run from before there were any.
    del config['compress'], config['prune'], config['model']['head_dim']
    (workdir / rundir.CONFIG).write_text(json.dumps(config))
    return workdir


def test_a_small_run_is_a_run(large, tmp_path, capsys):
    to = tmp_path / 'small'
    told = commands.printed(
        command, capsys, workdir=large, to=to, recipe=RECIPE, targets='kernel|embed', batches=2
    )
    kept = json.loads((to / rundir.COMPRESSED).read_text())
    assert kept['recipe'] == RECIPE
    before, after = kept['before'], kept['after']
    assert after['bytes of params'] < 0.3 * before['bytes of params']
    assert after['bytes on disk'] < 0.6 * before['bytes on disk']
    assert after['parameters'] < before['parameters']
    assert after['zeros'] > 0.3 * after['parameters']
    learned = np.log(256) - before['valid/loss']
    assert abs(after['valid/loss'] - before['valid/loss']) < 0.5 * learned
    assert f'{after["valid/loss"]:.5g}' in told

    figures = json.loads(commands.printed(evaluate, capsys, workdir=to))
    assert figures['valid/loss'] == pytest.approx(after['valid/loss'], rel=1e-5)
    run = runs.open_run(to)
    assert run.model.init_cache(1, 8)[0]['key'].dtype == np.int8
    [text] = generate_text(run.task, run.params, ['def '], 8, Sampling(0.0), seed=0)
    assert text

    export.export(run, 'safetensors', tmp_path / 'exported')
    tensors = safetensors.numpy.load_file(tmp_path / 'exported' / export.TENSORS)
    assert tensors['params/layers_0/mlp/up/kernel/multiplied/values'].dtype == np.int8

    shapes = run.program().variable_shapes
    put = transfer.make_transfer(InitFrom(workdir=str(to)), shapes)
    begun = put(jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), shapes))
    assert trees.first_difference(begun['params'], jax.jit(compress.plain)(run.params)) is None
    with pytest.raises(errors.UserError, match='holds a compressed model, without optimiser'):
        rundir.prepare(to, run.config, 'same')


def test_a_run_of_before_a_field_was_there_is_made_smaller_by_it(large, tmp_path):
    command.check(large, 'heads50')
    run = runs.open_run(large)
    command.compressed(run, 'heads50', tmp_path / 'small')
    smaller = runs.open_run(tmp_path / 'small').model
    assert smaller.num_heads == run.model.num_heads // 2
    assert smaller.head_dim == run.model.embed_dim // run.model.num_heads


def test_a_run_trained_in_few_bits_is_evaluated_and_made_smaller(tmp_path, capsys):
    workdir = tmp_path / 'run'
    asked = ['compress.weights=int8', 'compress.activations=int8', 'total_steps=20']
    figures = train.train(commands.tiny_text_config(tmp_path, asked), workdir)
    first = json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[0])
    assert figures['valid/loss'] < first['train/loss'] - 0.2
    to = tmp_path / 'small'
    commands.printed(command, capsys, workdir=workdir, to=to, recipe='int8,a8')
    after = json.loads((to / rundir.COMPRESSED).read_text())['after']
    # The rounding that training had is the one that is kept.
    assert after['valid/loss'] == pytest.approx(figures['valid/loss'], abs=1e-3)
    for setting, message in (
        ('compress.group_size=77', 'groups of 77'),
        ('compress.packed=True', 'packed is of runs that python -m bigmodels.compress makes'),
    ):
        config = commands.tiny_text_config(tmp_path, [*asked, setting])
        with pytest.raises(errors.UserError, match=message):
            train.train(config, tmp_path / 'refused')


def test_mistakes_are_told_before_anything_is_made(large, tmp_path, monkeypatch):
    def asked(recipe, **options):
        options = {'workdir': large, 'to': tmp_path / 'to', 'recipe': recipe, **options}
        monkeypatch.setattr(sys, 'argv', ['', *(f'--{key}={v}' for key, v in options.items())])
        monkeypatch.setattr(runs, 'open_run', None)  # nothing is read
        command.main()

    for recipe, message in (('int3', 'step of a recipe'), ('int8:5', 'groups of 5')):
        with pytest.raises(errors.UserError, match=message):
            asked(recipe)
    with pytest.raises(errors.UserError, match='exists already'):
        asked('int8', to=large)
    with pytest.raises(errors.UserError, match='--batches=0: at least 1'):
        asked('a8_static', batches=0)
    config = json.loads((large / rundir.CONFIG).read_text())
    config['privacy'] = dict(epsilon=8.0, delta=1e-5, clip=1.0, examples=100)
    config['batch_size'] = 64
    private = tmp_path / 'private'
    shutil.copytree(large, private)
    (private / rundir.CONFIG).write_text(json.dumps(config))
    with pytest.raises(errors.UserError, match='private, and a8_static keeps the largest inputs'):
        asked('a8_static', workdir=private)
    assert not (tmp_path / 'to').exists()
