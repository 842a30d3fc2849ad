"""What bad input gets: one clear paragraph, exit status 2, no traceback, nothing lost."""

import signal
import subprocess
import sys

import pytest

from bigmodels import errors, main
from tests import commands

TINY = '--config=configs/transformer.py:tiny'
DIGITS = '--config=configs/digits_mlp.py:tiny'
# What is typed, and what the answer must name.
MISTAKES = {
    'missing config file': (
        ['--config=configs/nothing.py'],
        ['configs/nothing.py', 'does not exist'],
    ),
    'unknown variant': (['--config=configs/transformer.py:13b'], ['13b', '124m, 1b, 8b']),
    'misspelt flag': ([TINY, '--wrkdir=x'], ['--wrkdir']),
    'misspelt section': ([TINY, '--config.modle.num_layers=2'], ['config.modle']),
    'misspelt key': ([TINY, '--config.model.num_layer=2'], ['num_layer', "'num_layers'"]),
    'misspelt top key': ([TINY, '--config.total_step=2'], ['total_step', "'total_steps'"]),
    'wrong type': ([TINY, '--config.model.num_layers=two'], ['model.num_layers', 'two', 'int']),
    'misspelt value': ([TINY, '--config.model.positions=rotry'], ['model.positions', 'rotary']),
    'unknown model': ([TINY, '--config.model.name=transfomer'], ["'transformer'", 'mlp']),
    'unknown source': ([TINY, '--config.data.train.name=stdlip'], ["'stdlib'", 'jsonl']),
    'unknown optimiser': ([TINY, '--config.optimizer.algorithm.name=adamv'], ["'adam", 'muon']),
    'unknown schedule': ([TINY, '--config.optimizer.schedule.name=cosin'], ["'cosine'", 'linear']),
    'unknown task': ([TINY, '--config.task.name=languag'], ['language_modeling']),
    'heads do not divide': ([TINY, '--config.model.num_heads=5'], ['num_heads = 5', '64']),
    'too long sequence': ([TINY, '--config.task.sequence_length=513'], ['513', 'max_length = 512']),
    'batch does not divide': ([TINY, '--config.batch_size=15'], ['15', '8 devices']),
    'parts do not divide': ([TINY, '--config.accumulate=3'], ['batch_size = 8', 'accumulate = 3']),
    'mesh too large': ([TINY, '--config.mesh.data=64'], ['data 64', 'there are 8']),
    'dotted path to nothing': ([TINY, '--config.model.name=os.nothing'], ['os.nothing']),
    'rules leave out': (
        [TINY, "--config.optimizer.weight_decay_rules=[('bias', False)]"],
        ['embed/embedding', '(".*", default)'],
    ),
    'no such file': (
        [TINY, '--config.data.train.name=text_files', '--config.data.train.path=nothing*.txt'],
        ['nothing*.txt'],
    ),
    'vocabulary too small': ([TINY, '--config.model.vocab_size=100'], ['256', '100']),
    'warm-up too long': ([TINY, '--config.optimizer.schedule.warmup_steps=50'], ['50', '19']),
    'zero steps': ([DIGITS, '--config.total_steps=0'], ['total_steps', '0']),
    'label out of range': ([DIGITS, '--config.model.num_classes=9'], ['Label 9', 'num_classes']),
    'pmap with tensor': (
        [TINY, '--config.parallel=pmap', '--config.mesh.tensor=2'],
        ['pmap', 'jit'],
    ),
    'unknown dtype': ([TINY, '--config.model.dtype=bf16'], ["'bfloat16'"]),
    'unknown activation': ([DIGITS, '--config.model.activation=gleu'], ["'gelu'"]),
    'negative interval': ([DIGITS, '--config.eval_every=-3'], ['eval_every = -3']),
    'misspelt policy': ([DIGITS, '--config.guard.policy=skp'], ['guard.policy', "'skip'"]),
    'a window of one': ([DIGITS, '--config.guard.spike_window=1'], ['spike_window = 1', '2']),
    'no layers': ([TINY, '--config.model.num_layers=0'], ['at least 1']),
    'a choice without a name': (
        [TINY, '--config.optimizer.schedule.nme=linear'],
        ['optimizer.schedule', "'nme'"],
    ),
    'cudnn on a CPU': ([TINY, '--config.model.attention=cudnn'], ['cudnn', 'NVIDIA GPU', 'auto']),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_gets_one_paragraph_and_status_2(tmp_path, monkeypatch, capsys, mistake):
    arguments, named = MISTAKES[mistake]
    workdir = tmp_path / 'run'
    monkeypatch.chdir(commands.ROOT)
    monkeypatch.setattr('sys.argv', ['main', *arguments, f'--workdir={workdir}'])
    with pytest.raises(SystemExit) as stopped:
        errors.exit_on_user_error(main.main)
    said = capsys.readouterr()
    assert stopped.value.code == 2, said.err
    for text in named:
        assert text in said.err
    assert 'step 1' not in said.out + said.err
    assert not (workdir / 'checkpoints').exists()


def test_a_mistake_at_the_command_line_shows_no_traceback(tmp_path):
    status, _, err = commands.train(
        TINY, '--config.model.num_layer=2', f'--workdir={tmp_path / "run"}'
    )
    assert status == 2
    assert 'Traceback' not in err
    assert err.startswith('error: ')


def test_bad_text_is_named(tmp_path, capsys):
    shakespeare = 'configs/shakespeare.py'
    for content, named in ((b'\xff\xfe\x00a', 'not text'), (b'', 'no text'), (b'ab', 'too few')):
        path = tmp_path / 'input.txt'
        path.write_bytes(content)
        status, _, err = commands.called(
            capsys, 'bigmodels.main', f'--config={shakespeare}:{path}', '--config.batch_size=8',
            f'--workdir={tmp_path}/run',
        )  # fmt: skip
        assert status == 2
        assert named in err


def test_commands_on_a_directory_without_a_run(tmp_path, capsys):
    for module, more in (('bigmodels.evaluate', []), ('bigmodels.deploy.generate', ['--prompt=a'])):
        status, _, err = commands.called(capsys, module, f'--workdir={tmp_path}', *more)
        assert status == 2
        assert 'holds no run' in err


def test_help_is_complete_and_imports_nothing_slow():
    code = (
        'import sys; from bigmodels import errors, main; sys.argv[1:] = ["--help"]\n'
        'try: main.main()\n'
        'finally: print([m for m in ("jax", "numpy", "grain") if m in sys.modules])'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith('[]\n')
    assert all(flag in result.stdout for flag in ('--config', '--workdir', '--resume'))


def test_a_reader_that_has_seen_enough_ends_a_command_quietly(tmp_path):
    arguments = ['--config=configs/digits_mlp.py', '--steps=1:2', f'--out={tmp_path}']
    process = commands.start('bigmodels.data.inspect', *arguments)
    process.stdout.close()
    assert process.stderr.read() == ''
    assert process.wait(timeout=60) == 141


def test_another_broken_pipe_is_an_error():
    def command():
        raise BrokenPipeError('of a peer')

    with pytest.raises(BrokenPipeError, match='of a peer'):
        errors.exit_on_user_error(command)


@pytest.mark.slow
def test_an_interrupt_is_quiet_and_the_same_command_goes_on(tmp_path):
    arguments = [
        '--config=configs/digits_mlp.py',
        '--config.checkpoint.every=50',
        f'--workdir={tmp_path / "run"}',
    ]
    process = commands.start('bigmodels.main', *arguments)
    for line in process.stderr:
        if line.startswith('step 100/'):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert 'Traceback' not in err
    status, _, err = commands.train(*arguments)
    assert status == 0
    assert 'resumed at step' in err
