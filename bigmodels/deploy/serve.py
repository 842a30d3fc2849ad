"""The command that serves a finished run over HTTP: a page to try it, and an API for programs.

python -m bigmodels.deploy.serve --workdir=runs/transformer --port=8000
python -m bigmodels.deploy.serve --workdir=runs/base --adapter=a=runs/chat_a --adapter=b=runs/chat_b
"""

import argparse
import os
import socket
from collections.abc import Mapping, Sequence

from bigmodels import config, errors, runs
from bigmodels.deploy import common_base, generate
from bigmodels.deploy.weights import WEIGHTS

API_KEY = 'BIGMODELS_API_KEY'  # the environment variable of the key that clients must send


def main() -> None:
    """The command: serves until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=f'Clients must send the key that is in the environment variable {API_KEY}, if any. '
        'Fields of the task for its answers may be set: --config.task.FIELD=VALUE.',
        allow_abbrev=False,
    )
    runs.add_run(parser)
    parser.add_argument('--host', default='127.0.0.1', help='0.0.0.0 for other machines')
    parser.add_argument('--port', type=int, default=8000, help='0 for any that is free')
    parser.add_argument('--name', help='of the model; default: that of its directory')
    parser.add_argument(
        '--adapter', action='append', default=[], metavar='NAME=WORKDIR',
        help='a run with adapters of the same base, as another model; may be given repeatedly',
    )  # fmt: skip
    parser.add_argument('--batch_size', type=int, default=8, help='examples computed together')
    parser.add_argument('--weights', choices=WEIGHTS, help='of texts that go on; see generate')
    parser.add_argument('--concurrent', type=int, default=32, help='requests answered at once')
    parser.add_argument('--queued', type=int, default=64, help='further ones that may wait')
    parser.add_argument('--timeout', type=float, default=120.0, help='seconds for a request')
    parser.add_argument('--max_body', type=int, default=20 * 2**20, help='bytes of a request')
    parser.add_argument(
        '--max_pixels', type=int, default=16_000_000, help='of the images of a request'
    )
    a, overrides = config.parse_arguments(parser, None)
    app, connections, limits, telemetry = _rooms()
    runs.configure_process()
    name = a.name or a.workdir.resolve().name
    run, adapted = _opened(a, name, overrides)
    server = app.Server(
        run,
        app.Settings(name, a.batch_size, weights=a.weights, max_pixels=a.max_pixels),
        limits.Limits(a.max_body, a.concurrent, a.queued, a.timeout),
        os.environ.get(API_KEY) or None,
        adapted,
    )
    telemetry.log_to_stderr()
    with _bound(a.host, a.port) as listening:
        host, port = listening.getsockname()[:2]
        task = run.config['task']['name']
        print(f'{a.workdir} ({task}, step {run.step}) at http://{host}:{port}', flush=True)
        connections.serve(server, listening)


def _opened(
    a: argparse.Namespace, name: str, overrides: Sequence[str]
) -> tuple[runs.Run, Mapping[str, runs.Run]]:
    """The run, and by name those whose adapters have the same base."""
    workdirs = dict([_named(adapter) for adapter in a.adapter])
    if len({name, *workdirs}) <= len(a.adapter):
        raise errors.UserError(f'Two models have one name, among: {", ".join([name, *workdirs])}.')
    run = runs.open_run(a.workdir, a.step, trust=a.trust, overrides=overrides)
    if not workdirs:
        return run, {}
    others = {other: runs.open_run(workdir, trust=a.trust) for other, workdir in workdirs.items()}
    for one in (run, *others.values()):
        generate.check_language_model(one)
    found = common_base.of_one_base({name: run, **others})
    return found.pop(name), found


def _named(adapter: str) -> tuple[str, str]:
    name, _, workdir = adapter.partition('=')
    if not name or not workdir:
        raise errors.UserError(f'--adapter={adapter} must be NAME=WORKDIR.')
    return name, workdir


def _rooms():
    """Those of the server, whose libraries are extra."""
    try:
        from bigmodels.deploy.server import app, connections, limits, telemetry
    except ImportError as error:
        raise errors.UserError(
            f"Serving needs {error.name}, which is not installed: pip install -e '.[serve]'."
        ) from error
    return app, connections, limits, telemetry


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise errors.UserError(f'Nothing can be served at {host}:{port}: {error}.') from error


if __name__ == '__main__':
    errors.exit_on_user_error(main)
