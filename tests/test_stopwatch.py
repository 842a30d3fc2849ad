"""The parts of a stretch of time add up to it."""

import time

from bigmodels import stopwatch


def test_parts_end_where_the_next_begin(monkeypatch):
    clock = iter([10.0, 11.5, 11.75, 14.0])
    monkeypatch.setattr(time, 'perf_counter', lambda: next(clock))
    watch = stopwatch.Stopwatch()
    for name in ('imports', 'data', 'imports'):
        watch.lap(name)
    assert watch.parts == {'imports': 3.75, 'data': 0.25}
    assert watch.seconds == 4.0
    assert str(watch) == '4.0 s: imports 3.75, data 0.25'
