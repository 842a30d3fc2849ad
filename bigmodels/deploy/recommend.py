"""The command and the function that recommend items after those given.

python -m bigmodels.deploy.recommend --workdir=runs/recommend_sequence --items=0848228,1300854
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from bigmodels import errors, runs
from bigmodels.tasks.recommendation import Recommendation


def make_recommender(run: runs.Run) -> Callable[[Sequence[str], str], list[dict[str, Any]]]:
    """(ids of a user's items, the latest last; id of the user, '' for any) -> the best next ones.

    Each answer is {'item', 'title' if known, 'score'}, the best first, none of those given that
    the model looks at, the latest; there are `task.count` of them. Unknown ids are left out, see
    `tasks.recommendation`.

    Raises:
      UserError: if the run is of another task.
    """
    task = run.task
    if not isinstance(task, Recommendation):
        raise errors.UserError(
            f'{run.workdir} is of the task {run.config["task"]["name"]!r}, which recommends no '
            'items: use next_item or retrieval.'
        )
    predict = jax.jit(task.predict)

    def recommend(items: Sequence[str], user: str = '') -> list[dict[str, Any]]:
        example = task.preprocess({'items': items, 'user': user})
        batch = {key: value[None] for key, value in example.items()}
        predictions: Mapping = jax.device_get(predict(run.params, run.model_state, batch))
        return task.postprocess({key: value[0] for key, value in predictions.items()})

    return recommend


def main() -> None:
    """The command: prints an object a line for each recommended item."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    runs.add_run(parser)
    parser.add_argument('--items', default='', help="ids of a user's items, the latest last: a,b,c")
    parser.add_argument('--user', default='', help='the id of the user')
    a = parser.parse_args()
    runs.configure_process()
    run = runs.open_run(a.workdir, a.step, trust=a.trust)
    recommend = make_recommender(run)
    items = a.items.split(',') if a.items else []
    unknown = sorted(set(items) - set(run.task.item_ids.names))
    if unknown:
        print(f'left out, not in the training data: {errors.some(unknown)}', file=sys.stderr)
    for answer in recommend(items, a.user):
        print(json.dumps(answer, ensure_ascii=False))


if __name__ == '__main__':
    errors.exit_on_user_error(main)
