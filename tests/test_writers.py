"""What a run writes can be read back, and a resumed run leaves no doubled rows."""

import io
import math

import jax.numpy as jnp
import pytest

from bigmodels import errors, writers


def make_reporter(workdir, log_every=2, active=True):
    speed = writers.Speed(100, 'tokens', flops=1e9, peak=2e12)
    return writers.Reporter(workdir, 0, 10, log_every, speed, active)


def step_metrics(loss: float, norm: float = 1.0):
    return {
        'loss': (jnp.float32(2 * loss), jnp.float32(2)),
        'param_norm': jnp.float32(norm),
        'learning_rate': jnp.float32(0.5),
    }


def test_rows_are_of_single_steps_with_speed(tmp_path):
    reporter = make_reporter(tmp_path)
    for step in range(1, 11):
        reporter.add(step, step_metrics(float(step)))
    reporter.flush()
    reporter.evaluated(10, {'valid/loss': 0.5, 'valid/roc_auc': float('nan')})
    reporter.close()
    rows = writers.read_metrics(tmp_path / 'metrics.jsonl')
    assert [row['step'] for row in rows] == [2, 4, 6, 8, 10, 10]
    assert [row['train/loss'] for row in rows[:-1]] == [2, 4, 6, 8, 10]
    assert rows[-1] == {'step': 10, 'eval/valid/loss': 0.5}
    speed = rows[1]
    expected = speed['perf/tokens/s'] / 100 * 1e9 / 2e12
    assert speed['perf/mfu'] == pytest.approx(expected)
    assert 0 <= speed['perf/data_wait'] <= 1


def test_metrics_are_read_late(tmp_path):
    """Only step 1 may be read when step 3 is dispatched: 2 and 3 may still be running."""
    reporter = make_reporter(tmp_path, log_every=1)
    for step in range(1, 4):
        reporter.add(step, step_metrics(1.0))
    assert [row['step'] for row in writers.read_metrics(tmp_path / 'metrics.jsonl')] == [1]
    reporter.flush()
    assert len(writers.read_metrics(tmp_path / 'metrics.jsonl')) == 3


@pytest.mark.parametrize(('loss', 'norm'), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan)])
def test_what_is_not_finite_stops(tmp_path, loss, norm):
    reporter = make_reporter(tmp_path)
    reporter.add(1, step_metrics(1.0))
    reporter.add(2, step_metrics(loss, norm))
    with pytest.raises(errors.UserError, match=r'step 2 \(batch 1\)'):
        reporter.flush()


def test_rows_after_the_restored_step_are_dropped_and_half_a_line_too(tmp_path):
    writer = writers.MetricWriter(tmp_path, 0, active=True)
    for step in range(1, 6):
        writer.write(step, {'a': step / 3})
    writer.close()
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 6, "a"')
    writers.MetricWriter(tmp_path, 3, active=True).close()
    rows = writers.read_metrics(tmp_path / 'metrics.jsonl')
    assert rows == [{'step': step, 'a': step / 3} for step in (1, 2, 3)]


def test_other_hosts_write_and_print_nothing(tmp_path, capsys):
    reporter = make_reporter(tmp_path, active=False)
    reporter.start_screen({'a': 'b'})
    for step in range(1, 11):
        reporter.add(step, step_metrics(1.0))
    reporter.flush()
    reporter.warn('something')
    reporter.close()
    said = capsys.readouterr()
    assert said.out + said.err == ''
    assert not list(tmp_path.iterdir())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal_and_lines_elsewhere():
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        progress = writers.Progress(10, 0, True, stream)
        for step in range(1, 11):
            progress.update(step, {'loss': '1.5'}, report=step % 5 == 0)
        progress.say('a line')
        progress.close()
    assert pipe.getvalue().splitlines() == ['step 5/10: loss 1.5', 'step 10/10: loss 1.5', 'a line']
    assert '10/10' in terminal.getvalue()
    assert 'a line' in terminal.getvalue()


def test_curves_are_a_picture(tmp_path):
    writer = writers.MetricWriter(tmp_path, 0, active=True)
    for step in range(1, 50):
        writer.write(step, {'train/loss': 1 / step})
    writer.write(49, {'eval/valid/loss': 0.1})
    writer.close()
    writers.plot_curves(tmp_path)
    from PIL import Image

    with Image.open(tmp_path / 'curves.png') as image:
        assert image.size[0] > 600
        assert len(image.convert('RGB').getcolors(1 << 20)) > 50
