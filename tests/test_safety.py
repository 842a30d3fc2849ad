"""What others made is read as data: no pickles, no code, no files outside a folder."""

import ast
import io
import json
import pathlib
import tarfile
import zipfile

import numpy as np
import pytest
from tensorflow_datasets.core.download import extractor, resource

from bigmodels import config as config_lib
from bigmodels import errors, runs
from bigmodels import train as train_lib
from bigmodels.data.sources.tfds_source import Tfds
from tests import commands

PACKAGE = commands.ROOT / 'bigmodels'
DIGITS = str(commands.ROOT / 'configs/digits_mlp.py:tiny')
UNPICKLERS = {'pickle', 'cPickle', 'cloudpickle', 'dill', 'joblib', 'marshal', 'shelve'}
# What runs code or writes where an archive says, and the only functions that may call it.
GUARDED_CALLS = {
    'eval': set(),
    'exec': set(),
    '__import__': set(),
    'system': set(),
    'extract': set(),
    'extractall': set(),
    'unpack_archive': set(),
    'exec_module': {'config.load'},
    'import_module': {'config.lookup', 'data.sources.tfds_source._find_builder'},
    'lookup': {'config.chosen'},
}
OWN_MODEL = """
import flax.linen as nn

class Wide(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, inputs, *, train: bool = False):
        return nn.Dense(self.num_classes)(inputs.reshape(len(inputs), -1))
"""


def faults(source: str, module: str) -> list[str]:
    """The lines of a module that could run what they read."""
    found = []

    def visit(node, function):
        if isinstance(node, ast.FunctionDef):
            function = node.name
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, 'module', None) or '']
            found.extend(
                f'{module}:{node.lineno}: imports {name}'
                for name in names
                if name.partition('.')[0] in UNPICKLERS
            )
        if isinstance(node, ast.Call):
            name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
            owner = getattr(getattr(node.func, 'value', None), 'id', '')
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if f'{module}.{function}' not in GUARDED_CALLS.get(name, {f'{module}.{function}'}):
                found.append(f'{module}:{node.lineno}: calls {name}')
            if (owner, name) == ('np', 'load') and options.get('allow_pickle') != 'False':
                found.append(f'{module}:{node.lineno}: np.load without allow_pickle=False')
            if options.get('allow_pickle', 'False') != 'False' or options.get('shell') == 'True':
                found.append(f'{module}:{node.lineno}: {ast.unparse(node)}')
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(ast.parse(source), '')
    return found


def test_the_package_runs_nothing_that_it_reads():
    files = sorted(PACKAGE.rglob('*.py'))
    assert len(files) > 30
    for path in files:
        module = '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)
        assert faults(path.read_text(), module) == []


@pytest.mark.parametrize(
    'line',
    [
        'import pickle',
        'from joblib import load',
        'eval("1")',
        'np.load("x")',
        'np.load("x", allow_pickle=True)',
        'other.load("x", allow_pickle=flag)',
        'importlib.import_module(name)',
        'tar.extractall(folder)',
        'subprocess.run(command, shell=True)',
    ],
)
def test_the_scan_finds(line):
    assert len(faults(f'def function():\n    {line}\n', 'a.module')) >= 1


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('run')
    train_lib.train(config_lib.load(DIGITS, ['total_steps=4']), workdir)
    return workdir


@pytest.mark.parametrize(
    'section',
    [
        ['model'],
        ['task'],
        ['optimizer', 'algorithm'],
        ['optimizer', 'schedule'],
        ['data', 'train'],
        ['data', 'evals', 'valid'],
        ['task', 'tokenizer'],
        ['data', 'train', 'sources', 'one'],
    ],
    ids='.'.join,
)
def test_a_malicious_config_runs_nothing(finished, tmp_path, section, monkeypatch):
    """Opening, evaluating, generating and looking: refused before anything is imported."""
    monkeypatch.setattr(config_lib.importlib, 'import_module', refuse)
    config = json.loads((finished / 'config.json').read_text())
    inner = config
    for key in section[:-1]:
        inner = inner.setdefault(key, {})
    inner[section[-1]] = {'name': 'subprocess.Popen', 'args': ['touch', str(tmp_path / 'owned')]}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    for trust in ((), ('sub', 'my_models'), 'subprocesses'):
        with pytest.raises(errors.UserError) as raised:
            runs.open_run(tmp_path, trust=trust)
        for part in (f"config.{'.'.join(section)}.name = 'subprocess.Popen'", '--trust=subprocess'):
            assert part in str(raised.value)
    assert not (tmp_path / 'owned').exists()


def refuse(name):
    raise AssertionError(f'{name} was imported')


def test_names_in_lists_are_seen():
    with pytest.raises(errors.UserError, match=r'config\.a\.1\.name'):
        config_lib.check_trusted({'a': ({}, {'name': 'os.system'})}, (), 'x')


@pytest.mark.parametrize('trust', ['os', ['json', 'os.path'], 7])
def test_a_config_cannot_trust_for_itself(trust):
    with pytest.raises(errors.UserError, match=r'config\.distill\.trust = .*--trust=(os|7)'):
        config_lib.check_trusted({'distill': {'trust': trust}}, ('json',), 'x')


@pytest.mark.parametrize('command', ['evaluate', 'deploy.generate', 'data.inspect'])
def test_commands_refuse_untrusted_code(finished, tmp_path, command, capsys):
    config = json.loads((finished / 'config.json').read_text())
    config['model'] = {'name': 'subprocess.Popen', 'args': ['touch', str(tmp_path / 'owned')]}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    options = {'deploy.generate': ['--prompt=a'], 'data.inspect': ['--steps=1:2']}
    arguments = (f'--workdir={tmp_path}', *options.get(command, ()))
    status, out, err = commands.called(capsys, f'bigmodels.{command}', *arguments)
    assert status == 2
    assert out == ''
    assert "config.model.name = 'subprocess.Popen' would import and run code" in err
    assert not (tmp_path / 'owned').exists()


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A run with a model of one's own, and its figures."""
    (tmp_path / 'my_models.py').write_text(OWN_MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    overrides = ['total_steps=4', 'model.name=my_models.Wide', 'model.num_classes=10']
    return tmp_path / 'run', train_lib.train(config_lib.load(DIGITS, overrides), tmp_path / 'run')


def test_a_trusted_model_of_one_s_own_is_opened(own, capsys):
    workdir, final = own
    with pytest.raises(errors.UserError, match=r'--trust=my_models'):
        runs.open_run(workdir)
    run = runs.open_run(workdir, trust=('my_models',))
    assert type(run.model).__name__ == 'Wide'
    status, out, err = commands.called(
        capsys, 'bigmodels.evaluate', f'--workdir={workdir}', '--trust=my_models'
    )
    assert status == 0, err
    assert json.loads(out)['valid/loss'] == pytest.approx(final['valid/loss'], rel=1e-5)


def test_a_trusted_model_of_one_s_own_teaches(own, tmp_path):
    overrides = ['total_steps=4', f'distill.teacher={own[0]}']
    with pytest.raises(errors.UserError, match=r'config\.distill\.trust'):
        train_lib.train(config_lib.load(DIGITS, overrides), tmp_path / 'pupil')
    overrides.append("distill.trust=('my_models',)")
    train_lib.train(config_lib.load(DIGITS, overrides), tmp_path / 'pupil')
    with pytest.raises(errors.UserError, match=r"config\.distill\.trust = 'my_models\.\*'"):
        runs.open_run(tmp_path / 'pupil')  # a run's own word is not enough
    assert runs.open_run(tmp_path / 'pupil', trust=('my_models',)).program().teacher


def archive(path: pathlib.Path, method) -> None:
    """An archive with a good file, and members that would lie or point elsewhere."""
    names = ('../outside', '/tmp/outside', 'a/../../outside', 'good/file')
    if method is resource.ExtractMethod.ZIP:
        with zipfile.ZipFile(path, 'w') as file:
            for name in names:
                file.writestr(name, b'content')
        return
    with tarfile.open(path, 'w') as file:
        link = tarfile.TarInfo('link')
        link.type, link.linkname = tarfile.SYMTYPE, '..'
        file.addfile(link)
        for name in (*names, 'link/outside'):
            member = tarfile.TarInfo(name)
            member.size = 7
            file.addfile(member, io.BytesIO(b'content'))


@pytest.mark.parametrize('method', [resource.ExtractMethod.TAR, resource.ExtractMethod.ZIP])
def test_the_only_extractor_stays_in_its_folder_and_makes_no_links(tmp_path, method):
    """TFDS's, which prepares data sets from the archives of manual_dir."""
    archive(tmp_path / 'archive', method)
    with (tmp_path / 'archive').open('rb') as file:
        members = [name for name, _ in extractor.iter_archive(file, method)]
    for name in members:
        assert (tmp_path / 'in' / name).resolve().is_relative_to(tmp_path / 'in')
    assert 'good/file' in members
    assert 'link' not in members


def test_npz_with_a_pickle_is_refused(tmp_path):
    np.savez(tmp_path / 'x.npz', a=np.array([{}], object))
    with pytest.raises(errors.UserError, match='without pickled objects'):
        train_lib.experiment.SOURCES['npz'](str(tmp_path / 'x.npz'))


def test_tfds_collections_with_code_of_their_own_are_refused():
    with pytest.raises(errors.UserError, match=r"collection 'huggingface'"):
        Tfds('huggingface:some/set', 'train')
