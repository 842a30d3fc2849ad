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


def executed(name, run, monkeypatch):
    """What a notebook prints on a run, and the number of its pictures."""
    monkeypatch.setenv('RUN', str(run))
    monkeypatch.setenv('JAX_NUM_CPU_DEVICES', '1')
    notebook = nbformat.read(commands.ROOT / 'experiments' / name, as_version=4)
    assert any(cell.get('outputs') for cell in notebook.cells)
    client = nbclient.NotebookClient(
        notebook, timeout=200, resources={'metadata': {'path': str(commands.ROOT / 'experiments')}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
    printed = ''.join(output.get('text', '') for output in outputs)
    return printed, sum('image/png' in output.get('data', {}) for output in outputs)


@pytest.mark.slow
def test_opening_a_run(run, monkeypatch):
    printed, pictures = executed('open_a_run.ipynb', run, monkeypatch)
    assert 'parameters at step 20' in printed
    assert '\nloss ' in printed
    assert pictures == 2


@pytest.mark.slow
def test_interpreting_a_run(run, monkeypatch):
    printed, pictures = executed('interpret_a_run.ipynb', run, monkeypatch)
    assert 'layers_1/attention' in printed
    assert 'without layers_1/mlp' in printed
    assert pictures == 3
