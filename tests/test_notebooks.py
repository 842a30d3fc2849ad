"""The notebooks run from top to bottom on a run made here."""

import nbclient
import nbformat
import pytest

from bigmodels import train as train_lib
from tests import commands


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('notebooks')
    train_lib.train(commands.tiny_text_config(folder), folder / 'run')
    return folder / 'run'


def executed(name, monkeypatch):
    """What a notebook prints, and how many pictures it draws."""
    monkeypatch.setenv('JAX_NUM_CPU_DEVICES', '1')
    notebook = nbformat.read(commands.ROOT / 'experiments' / name, as_version=4)
    assert any(cell.get('outputs') for cell in notebook.cells)
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={'metadata': {'path': str(commands.ROOT / 'experiments')}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
    printed = ''.join(output.get('text', '') for output in outputs)
    return printed, sum('image/png' in output.get('data', {}) for output in outputs)


@pytest.mark.slow
def test_opening_a_run(run, monkeypatch):
    monkeypatch.setenv('RUN', str(run))
    printed, pictures = executed('open_a_run.ipynb', monkeypatch)
    assert 'parameters at step 20' in printed
    assert '\nloss ' in printed
    assert pictures == 2


@pytest.mark.slow
def test_private_training(monkeypatch):
    printed, pictures = executed('private_training.ipynb', monkeypatch)
    assert 'epsilon 3 and delta 1e-05 for the whole run' in printed
    assert "'epsilon': 3.0} private" in printed
    assert '<IBAN:6991a3f23388>' in printed
    assert 'copy: original {1: 0}' in printed
    assert 'rows alike [3 3 3 1 1]' in printed
    assert pictures == 2


@pytest.mark.slow
def test_interpreting_a_run(run, monkeypatch):
    monkeypatch.setenv('RUN', str(run))
    printed, pictures = executed('interpret_a_run.ipynb', monkeypatch)
    assert 'layers_1/attention' in printed
    assert 'without layers_1/mlp' in printed
    assert pictures == 3


@pytest.mark.slow
@pytest.mark.shared_data
def test_probing_a_run(run, shared_data, monkeypatch):
    monkeypatch.setenv('RUN', str(run))
    monkeypatch.setenv('BIGMODELS_DATA', str(shared_data))
    printed, pictures = executed('probe_a_run.ipynb', monkeypatch)
    assert 'layers_1   probe 0.' in printed
    assert 'layers_1: explained 0.' in printed
    assert "reweighed {'demographic_parity_difference': 0." in printed
    assert "FLOPs, by the task's formula" in printed
    assert pictures == 3


@pytest.mark.slow
def test_smaller_models(monkeypatch):
    printed, pictures = executed('compress_a_run.ipynb', monkeypatch)
    assert 'int4:32' in printed
    assert 'in training 0.9' in printed
    assert '2,440 bytes: alone 0.9' in printed
    assert pictures == 1
