"""Fixtures shared by all tests."""

import pathlib

import pytest


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
    """The data sets beside the checkout."""
    path = pathlib.Path(__file__).resolve().parents[2] / 'shared' / 'data'
    if not path.is_dir():
        pytest.skip(f'no data sets in {path}')
    return path
