"""The command that asks a run the tasks of the library lm_eval, Language Model Evaluation Harness.

pip install -e '.[evaluation]'
python -m bigmodels.interop.lm_eval --workdir=runs/transformer --tasks=lambada_openai,arc_easy
"""

import argparse
import json
import pathlib

from bigmodels import errors, runs
from bigmodels.deploy import generate


def main() -> None:
    """The command: prints the figures of each task as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    runs.add_run(parser)
    parser.add_argument('--tasks', required=True, help="the library's names, with commas between")
    parser.add_argument('--include_path', type=pathlib.Path, help='a folder of further tasks')
    parser.add_argument('--num_fewshot', type=int, help='examples before each question')
    parser.add_argument('--limit', type=int, help='so many of the first questions of each task')
    parser.add_argument('--batch_size', type=int, default=8, help='texts computed together')
    a = parser.parse_args()
    library, tasks, harness = _library()
    runs.configure_process()
    run = generate.open_language_model(a.workdir, a.step, a.trust)
    include = None if a.include_path is None else str(a.include_path)
    manager = tasks.TaskManager(include_path=include)
    names = a.tasks.split(',')
    for name in names:
        if not manager.match_tasks([name]):
            raise errors.UserError(
                f'The library has no task {name!r}, nor has --include_path. To list them: lm_eval '
                'ls tasks.'
            )
    results = library.simple_evaluate(
        model=harness.Model(run, a.batch_size),
        tasks=names,
        num_fewshot=a.num_fewshot,
        limit=a.limit,
        task_manager=manager,
        log_samples=False,
    )
    print(json.dumps({'step': run.step, **results['results']}, indent=1, default=str))


def _library():
    try:
        import lm_eval
        from lm_eval import tasks

        from bigmodels.interop import harness
    except ImportError as error:
        raise errors.UserError(
            f"It needs {error.name}, which is not installed: pip install -e '.[evaluation]'."
        ) from error
    return lm_eval, tasks, harness


if __name__ == '__main__':
    errors.exit_on_user_error(main)
