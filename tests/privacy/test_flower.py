"""Clients in processes of their own by Flower, against the same clients in one program."""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import types

import pytest

from bigmodels import config as config_lib
from bigmodels import errors, experiment, rundir, runs, writers
from bigmodels import train as train_lib
from tests import commands, test_sharding

pytest.importorskip('flwr', reason="needs pip install 'bigmodels[flower]'")

from flwr import app as flower_app
from flwr.supercore.task_identity import TaskIdentity

from bigmodels.privacy.flower import client, records, server

DIGITS = f'{commands.ROOT}/configs/digits_mlp.py:tiny'
OVERRIDES = [
    'federated.clients=3', 'federated.per_round=3', 'federated.local_steps=2',
    'federated.alpha=0.5', 'batch_size=48', 'total_steps=1', 'log_every=1',
    'model.hidden_dims=(16,)', 'optimizer.learning_rate=1.0', 'optimizer.algorithm.name=sgd',
    'optimizer.schedule.name=constant', 'optimizer.weight_decay=0.0', 'optimizer.clip_norm=None',
]  # fmt: skip


def digits(*overrides):
    return config_lib.load(DIGITS, [*OVERRIDES, *overrides])


class Here:
    """A grid whose nodes, by their settings, answer in this process."""

    def __init__(self, *nodes: dict):
        self._nodes = nodes
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # messages have them

    def get_node_ids(self):
        return range(len(self._nodes))

    def send_and_receive(self, messages, timeout):
        for message in messages:
            node = self._nodes[message.metadata.dst_node_id]
            context = types.SimpleNamespace(node_config=node)
            try:
                yield client.app(message, context)
            except errors.UserError as error:
                yield flower_app.Message(flower_app.Error(1, str(error)), reply_to=message)


def node(number, **settings):
    return {'client': number, 'share': True, **settings}


def test_rounds_by_messages_are_those_of_one_program_and_go_on_after_a_stop(tmp_path):
    config = digits(
        'total_steps=2', 'optimizer.algorithm.momentum=0.9', 'ema_decay=0.5', 'checkpoint.every=1'
    )  # fmt: skip
    one, several = tmp_path / 'one', tmp_path / 'several'
    figures = train_lib.train(config, one)
    found = server.serve(Here(*map(node, range(3))), config, several, 1.0)
    assert found == pytest.approx(figures, rel=1e-4)
    for there, here in zip(*(writers.read_metrics(workdir / 'metrics.jsonl')
                             for workdir in (one, several)), strict=True):  # fmt: skip
        for key in {'train/loss', 'grad_norm', 'param_norm'} & there.keys():
            assert here[key] == pytest.approx(there[key], rel=1e-4)
    params = runs.open_run(several).params
    test_sharding.assert_close(params, runs.open_run(one).params, 1e-5)
    shutil.rmtree(several / rundir.CHECKPOINTS / '2')
    server.serve(Here(*map(node, range(3))), config, several, 1.0)
    test_sharding.assert_close(params, runs.open_run(several).params, 1e-6)


def test_a_client_that_fails_is_left_out_and_told_of_if_none_is_left(tmp_path):
    narrow = node(2, overrides='model.hidden_dims=(8,)')
    server.serve(Here(node(0), node(1), narrow), digits(), tmp_path, 1.0)
    assert writers.read_metrics(tmp_path / 'metrics.jsonl')[0]['param_norm'] < 10
    opened = runs.open_run(tmp_path)
    for nodes, message in (
        ([narrow] * 3, r'No client has answered in round 0: The parameter .* came as .*16'),
        ([node(7)] * 3, 'client = 7, wanted is its number, from 0 to 2'),
        ([{}] * 3, 'client = None'),
        ([node(0), node(1), node(1)], 'clients 0, 1, 1 have answered'),
        ([node(0, overrides='data.train.split=test')] * 3, "config.data.train.split: 'test'"),
        ([node(0, overrides='optimiser.x')] * 3, 'is not KEY=VALUE'),
    ):
        with pytest.raises(errors.UserError, match=message):
            server.ask_clients(
                opened.params, 0, Here(*nodes), opened.experiment.federated, tmp_path, 1.0
            )


def test_records_of_a_clients_own_are_all_drawn_from(tmp_path):
    settings = experiment.from_config(digits('data.train.split=valid', 'federated.local_steps=1'))
    task = experiment.make_task(settings)
    batches = client.own_batches(settings, task, {'client': 2})
    assert len({batches[t]['inputs'].tobytes() for t in range(2)}) == 2
    images = {bytes(image) for t in range(200) for image in batches[t]['inputs']}
    assert len(batches[0]['inputs']) == 16
    assert 340 < len(images) <= 360  # of 360


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('federated.clients=0', 'there are none'),
        ('federated.secure_sum=True', 'one program'),
        ('adapter.rank=2', 'frozen base'),
        ('privacy.epsilon=2.0', 'Flower chooses them'),
    ],
)
def test_what_clients_elsewhere_cannot_do_is_refused(tmp_path, override, message):
    config = digits(override, 'privacy.examples=3')
    with pytest.raises(errors.UserError, match=message):
        server.serve(Here(), config, tmp_path, 1.0)


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


@contextlib.contextmanager
def federation(directory: pathlib.Path, clients: int):
    """A SuperLink and its nodes; yields a function that runs the app."""
    address = f'127.0.0.1:{free_port()}'
    (directory / 'config.toml').write_text(
        f'[superlink]\ndefault = "test"\n[superlink.test]\naddress = "{address}"\ninsecure = true\n'
    )
    bin_ = pathlib.Path(sys.executable).parent
    environment = {
        **os.environ, 'FLWR_HOME': str(directory), 'FLWR_TELEMETRY_ENABLED': '0',
        'FLWR_DISABLE_UPDATE_CHECK': '1', 'JAX_PLATFORMS': 'cpu',
        'PATH': f'{bin_}:{os.environ["PATH"]}',
    }  # fmt: skip
    with (directory / 'log').open('w') as log, contextlib.ExitStack() as stack:

        def start(name, *options):
            process = subprocess.Popen(
                [bin_ / name, '--insecure', *options], env=environment, cwd=directory,
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.terminate)

        start(
            'flower-superlink', f'--port={address.split(":")[1]}',
            '--disable-runtime-dependency-installation',
        )  # fmt: skip
        for number in range(clients):
            start(
                'flower-supernode', f'--superlink={address}', f'--port={free_port()}',
                f'--node-config=client={number} share=true',
            )  # fmt: skip

        def run(**settings):
            given = ' '.join(f'{name}="{value}"' for name, value in settings.items())
            try:
                subprocess.run(
                    [bin_ / 'flwr', 'run', commands.ROOT / 'bigmodels/privacy/flower', 'test',
                     '--stream', f'--run-config={given}'],
                    env=environment, check=True, timeout=600,
                )  # fmt: skip
            finally:
                print((directory / 'log').read_text())  # of use if the test fails

        yield run


@pytest.mark.slow
def test_three_processes_learn_what_one_program_does(tmp_path):
    train_lib.train(digits(), tmp_path / 'one')
    (tmp_path / 'home').mkdir()
    with federation(tmp_path / 'home', clients=3) as run:
        run(config=DIGITS, overrides=' '.join(OVERRIDES), workdir=tmp_path / 'several')
    assert (tmp_path / 'several' / rundir.SUMMARY).is_file()
    one, several = (runs.open_run(tmp_path / name) for name in ('one', 'several'))
    test_sharding.assert_close(several.params, one.params, 1e-5)


@pytest.mark.parametrize('name', ['/etc/passwd', '../beside', 'preprocessing/../../beside'])
def test_a_server_writes_no_files_but_those_of_a_run(name, tmp_path):
    with pytest.raises(errors.UserError, match='no run has'):
        records.to_run({'server-round': 1, name: b'here'}, tmp_path / 'run')
    assert not list(tmp_path.iterdir())
