"""The notebooks run from top to bottom on a run made here."""

import nbclient
import nbformat
import pytest

from bigmodels import train as train_lib
from tests import commands


@pytest.mark.slow
def test_opening_a_run(tmp_path, monkeypatch):
    train_lib.train(commands.tiny_text_config(tmp_path), tmp_path / 'run')
    monkeypatch.setenv('RUN', str(tmp_path / 'run'))
    monkeypatch.setenv('JAX_NUM_CPU_DEVICES', '1')
    notebook = nbformat.read(commands.ROOT / 'experiments' / 'open_a_run.ipynb', as_version=4)
    assert any(cell.get('outputs') for cell in notebook.cells)
    client = nbclient.NotebookClient(
        notebook, timeout=200, resources={'metadata': {'path': str(commands.ROOT / 'experiments')}}
    )
    client.execute()
    printed = ''.join(
        output.get('text', '') for cell in notebook.cells for output in cell.get('outputs', ())
    )
    assert 'parameters at step 20' in printed
    assert '\nloss ' in printed
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get('outputs', ())
        if 'image/png' in output.get('data', {})
    ]
    assert len(pictures) == 2
