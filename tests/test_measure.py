"""The experiments find the data sets where the configs do."""

import importlib
import pathlib

import pytest

from configs import common
from tests import commands


@pytest.mark.parametrize('folder', ['', 'elsewhere'])
def test_data_sets_are_where_the_configs_look_for_them(folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(commands.ROOT / 'experiments')
    measure = importlib.import_module('measure')
    monkeypatch.setenv('BIGMODELS_DATA', str(tmp_path / folder) if folder else '')
    monkeypatch.chdir(commands.ROOT)
    for name in ('mnist', 'tinyshakespeare/input.txt'):
        assert measure.data_path(name) == pathlib.Path(common.data_path(name)).resolve()
