"""The command that trains: python -m bigmodels.main --config=configs/transformer.py

`--config=file.py:variant` picks a variant, `--config.model.num_layers=2` sets a field.
"""

import argparse
import contextlib
import pathlib

from bigmodels import config, errors, stopwatch


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the overrides as 'model.num_layers=2'."""
    parser = argparse.ArgumentParser(
        prog='python -m bigmodels.main',
        description='Trains the experiment of a config file.',
        epilog='Any field of the config is set by --config.SECTION.FIELD=VALUE.',
        allow_abbrev=False,
    )
    parser.add_argument('--config', required=True, metavar='FILE.py[:VARIANT]')
    parser.add_argument(
        '--workdir', type=pathlib.Path, help='where the run is kept; default runs/<config name>'
    )
    parser.add_argument(
        '--resume',
        default='same',
        choices=('same', 'changed', 'restart'),
        help='a run that is there: go on under the same config, go on under this '
        'one, or move it aside and start anew',
    )
    parser.add_argument(
        '--distributed',
        action='store_true',
        help='this process is one of several, which find each other by '
        'jax.distributed.initialize()',
    )
    parser.add_argument(
        '--timeout',
        type=float,
        default=100,  # as JAX's own heartbeats
        metavar='SECONDS',
        help='with --distributed: how long another process may give no sign of life; default 100',
    )
    parser.add_argument(
        '--explain',
        metavar='NAME',
        help='tell what the config would do and train nothing; sharding: where each parameter '
        'lies and what a device holds, also for more devices than there are here',
    )
    options, overrides = config.parse_arguments(parser, arguments)
    if options.timeout < 1:
        parser.error(f'--timeout={options.timeout:g} must be at least 1 second')
    return options, overrides


def main() -> None:
    """Trains the experiment that the command line describes."""
    options, overrides = parse()
    watch = stopwatch.Stopwatch()
    from bigmodels import explain, processes, rundir, runs, train  # what --help does not need

    watch.lap('imports')
    runs.configure_process()
    if options.explain is not None:
        print(explain.explain(options.explain, config.load(options.config, overrides)))
        return
    workdir = options.workdir or rundir.default(options.config)
    with contextlib.ExitStack() as stack:
        if options.distributed:
            stack.enter_context(
                processes.together(options.timeout, lambda: rundir.how_to_go_on(workdir))
            )
        train.train(config.load(options.config, overrides), workdir, options.resume, watch)


if __name__ == '__main__':
    errors.exit_on_user_error(main)
