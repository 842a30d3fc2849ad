"""The command that shows, on one page, what spoke for the answers of a run.

python -m bigmodels.interpret --workdir=runs/mnist_lenet --input=digits --to=report.html
"""

import argparse
import itertools
import pathlib

from bigmodels import errors, runs
from bigmodels.data import inputs
from bigmodels.interpret import explanations, report


def main() -> None:
    """The command: writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    runs.add_run(parser)
    parser.add_argument('--input', required=True, help='a file, a folder, or - for standard input')
    parser.add_argument('--to', type=pathlib.Path, required=True, help='the HTML file to write')
    parser.add_argument(
        '--method',
        default='integrated_gradients,occlusion',
        help=f'one or several of {", ".join(explanations.METHODS)}, by commas; default %(default)s',
    )
    parser.add_argument(
        '--layer', default='', help='the path of the module that grad_cam is of, such as conv_1'
    )
    parser.add_argument(
        '--records', type=int, default=20, help='the most that are shown; default %(default)s'
    )
    a = parser.parse_args()
    methods = [method.strip() for method in a.method.split(',')]
    explanations.check_methods(methods)
    if a.records < 1:
        raise errors.UserError(f'--records={a.records} must be at least 1.')
    runs.configure_process()
    run = runs.open_run(a.workdir, a.step, trust=a.trust)
    kind = explanations.kind_of(run.task)
    fields = {run.task.text_field: 'text'} if kind == 'language' else run.task.record_fields
    records = inputs.read_inputs(a.input, fields, getattr(run.task, 'sample_rate', None))
    shown = list(explanations.explain(run, itertools.islice(records, a.records), methods, a.layer))
    if not shown:
        raise errors.UserError(f'{a.input} has no record to explain.')
    left_out = sum(1 for _ in records)
    page = report.page(run, shown, left_out)
    with errors.unwritten(a.to):
        a.to.write_text(page)
    more = f'; {left_out} more were left out, see --records' if left_out else ''
    print(f'{len(shown)} records, {", ".join(methods)}: {a.to}{more}')


if __name__ == '__main__':
    errors.exit_on_user_error(main)
