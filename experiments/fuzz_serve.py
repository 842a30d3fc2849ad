"""A server asked what its own description allows and forbids, made up by schemathesis.

    pip install schemathesis
    python experiments/fuzz_serve.py --workdir=runs/transformer [--examples=100] [--seed=0]

Serves the run in a process of its own. It fails if an answer is a fault of the server (5xx), has a
status, type or body that /openapi.json does not describe, or if the server logs a fault or does not
end well afterwards.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import benchmark_serve

CHECKS = (
    'not_a_server_error',
    'status_code_conformance',
    'content_type_conformance',
    'response_schema_conformance',
)


def main() -> None:
    """Asks, and ends with the status of what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--workdir', type=pathlib.Path, required=True)
    parser.add_argument('--examples', type=int, default=100, help='of each operation')
    parser.add_argument('--seed', type=int, default=0)
    a = parser.parse_args()
    # It keeps a cache where it is started.
    with tempfile.TemporaryFile('w+') as log, tempfile.TemporaryDirectory() as folder:
        process, url = benchmark_serve.started(a.workdir.resolve(), log)
        try:
            found = subprocess.run(
                ['schemathesis', 'run', f'{url}/openapi.json', f'--checks={",".join(CHECKS)}',
                 f'--max-examples={a.examples}', f'--seed={a.seed}', '--continue-on-failure',
                 '--suppress-health-check=all'],
                cwd=folder,
            ).returncode  # fmt: skip
        finally:
            process.terminate()
            status = process.wait(15)
        log.seek(0)
        lines = [json.loads(line) for line in log]
    faults = [line for line in lines if line['level'] == 'error']
    for fault in faults:
        print(json.dumps(fault, indent=1))
    asked = sum('path' in line for line in lines)
    print(f'{asked} requests, {len(faults)} faults in the log; the server ended with {status}.')
    sys.exit(found or status or bool(faults))


if __name__ == '__main__':
    main()
