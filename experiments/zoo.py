"""Trains rows of the README's table of models and writes what they reach.

    python experiments/zoo.py [--rows=mnist_mlp,forecast:dlinear] [--keep=FOLDER]

Each row is its config's own command, in a process of its own, as it is. The figure is that of the
held-out set at the last step, or, where the config names what is best, at the best one by
`bigmodels.evaluate --step=best`. A row's result takes the place of its last one in
experiments/results/zoo.json and in the table beside it, which hold the rows measured so far.
`sst2_bert` begins with the run of `bert` in the same folder, or else with that in `runs`.
Where a bar is another method's figure, or a mean over seeds, it is not here: benchmark_graph.py,
benchmark_tables.py, recommend.py and transfer_study.py compare. Of what is made, sample_digits.py
and sample_speech.py tell how much is as asked.
"""

import argparse
import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import measure


@dataclasses.dataclass(frozen=True)
class Row:
    """The figure that counts, and what it should reach in how many minutes.

    Fields:
      bar: at least this; at most, where `lowest`; None where there is none.
    """

    figure: str
    bar: float | None
    minutes: float
    lowest: bool = False

    def reached(self, value: float, minutes: float) -> str:
        """'yes' if a run with this value is good enough, and in time, else 'no'; '' without bar."""
        if self.bar is None:
            return ''
        good = value <= self.bar if self.lowest else value >= self.bar
        return 'yes' if good and minutes <= self.minutes else 'no'


ROWS = {
    'mnist_mlp': Row('test/accuracy', 0.983, 1),
    'mnist_lenet': Row('test/accuracy', 0.991, 3),
    'mnist_private': Row('test/accuracy', 0.95, 5),
    'cifar10_cnn': Row('test/accuracy', 0.80, 15),
    'cifar10_resnet': Row('test/accuracy', 0.92, 60),
    'cifar10_vit': Row('test/accuracy', 0.75, 60),
    'alexnet': Row('test/accuracy', None, 60),
    'vgg': Row('test/accuracy', None, 60),
    'resnet50': Row('test/accuracy', None, 60),
    'efficientnet': Row('test/accuracy', None, 60),
    'video': Row('test/accuracy', 0.95, 15),
    'clip': Row('test/zero_shot_accuracy', None, 60),
    'clip:sigmoid': Row('test/zero_shot_accuracy', None, 60),
    'vision_language': Row('test/exact', 0.95, 60),
    'diffusion': Row('test/loss', None, 30, lowest=True),
    'segment': Row('test/dice', 0.88, 30),
    'detect': Row('test/map50', 0.70, 90),
    'detect:set': Row('test/map50', 0.70, 90),
    'sst2_lstm': Row('test/accuracy', 0.80, 10),
    'bert': Row('valid/loss', None, 30, lowest=True),
    'sst2_bert': Row('test/accuracy', None, 30),
    'sst2_bert:scratch': Row('test/accuracy', None, 30),
    'translate': Row('test/bleu', 35, 90),
    'speech_digits': Row('test/accuracy', 0.97, 10),
    'speaker': Row('test/accuracy', 0.97, 10),
    'speech_ctc': Row('test/wer', 0.05, 10, lowest=True),
    'speech_to_text': Row('test/wer', None, 60, lowest=True),
    'speech_sentences': Row('learnt/cer', 0.05, 60, lowest=True),
    'wavenet': Row('test/bits', None, 90, lowest=True),
    'recommend_sequence': Row('test/ndcg@10', None, 30),
    'recommend_retrieval': Row('test/ndcg@10', None, 30),
    'recommend_ranking': Row('test/auc', None, 30),
    'recommend_ranking:dcn': Row('test/auc', None, 30),
    'adult': Row('test/roc_auc', None, 30),
    'adult:ft_transformer': Row('test/roc_auc', None, 30),
    'credit_default': Row('test/roc_auc', None, 30),
    'credit_default:ft_transformer': Row('test/roc_auc', None, 30),
    'graph': Row('test/accuracy', None, 30),
    'graph:gat': Row('test/accuracy', None, 30),
    'forecast:dlinear': Row('test/mse', 0.39, 30, lowest=True),
    'forecast': Row('test/mse', 0.39, 30, lowest=True),
}
# What a row is told of another one's run in the same folder.
TOKENIZER = 'task.tokenizer.path={bert}/preprocessing'
TOLD = {
    'sst2_bert': ('init_from.workdir={bert}', TOKENIZER),
    'sst2_bert:scratch': (TOKENIZER,),
}


def measured(name: str, folder: pathlib.Path) -> dict:
    """Trains a row in a folder of its name; its figure and its cost."""
    row, workdir = ROWS[name], folder / name
    file, _, variant = name.partition(':')
    bert = folder / 'bert'
    told = [f'--config.{field.format(bert=bert)}' for field in TOLD.get(name, ()) if bert.exists()]
    with tempfile.TemporaryDirectory() as cache:
        run = measure.train(f'configs/{file}.py:{variant}', workdir, pathlib.Path(cache), *told)
    if row.figure not in run['final']:
        raise SystemExit(f'{name} has no figure {row.figure}; there are: {", ".join(run["final"])}')
    kept = json.loads((workdir / 'config.json').read_text())
    best = bool(kept['checkpoint']['best_metric'])
    value = best_figures(workdir)[row.figure] if best else run['final'][row.figure]
    return {
        'row': name,
        'figure': row.figure,
        'value': round(value, 4),
        'of': 'best step' if best else 'last step',
        'minutes': round(run['wall_clock_seconds'] / 60, 1),
        'peak_memory_mb': run['peak_memory_mb'],
        **{key: run[key] for key in ('flops', 'kilowatt_hours', 'energy_source')},
    }


def best_figures(workdir: pathlib.Path) -> dict[str, float]:
    """The figures of a run's best step, by the command that a user types."""
    command = ['-m', 'bigmodels.evaluate', f'--workdir={workdir}', '--step=best']
    done = subprocess.run(
        [sys.executable, *command], cwd=measure.ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def table(results: list[dict]) -> str:
    """The results as Markdown."""
    header = (
        *('config', 'figure', 'value', 'of', 'bar', 'minutes', 'allowed', 'reached'),
        *('peak MB', 'PFLOP', 'kWh'),
    )
    lines = []
    for r in results:
        row = ROWS[r['row']]
        lines.append((
            r['row'], r['figure'], f'{r["value"]:.4g}', r['of'],
            '' if row.bar is None else f'{row.bar:g}', f'{r["minutes"]:.1f}', f'{row.minutes:g}',
            row.reached(r['value'], r['minutes']), f'{r["peak_memory_mb"]:,}',
            f'{r["flops"] / 1e15:.3g}' if r.get('flops') else '',
            f'{r["kilowatt_hours"]:.2g}' if r.get('kilowatt_hours') else '',
        ))  # fmt: skip
    return measure.markdown([header, *lines])


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rows', default=','.join(ROWS))
    parser.add_argument('--keep', type=pathlib.Path, help='a folder in which the runs stay')
    options = parser.parse_args()
    names = options.rows.split(',')
    if unknown := set(names) - set(ROWS):
        parser.error(f'unknown {", ".join(sorted(unknown))}; there are: {", ".join(ROWS)}')
    with tempfile.TemporaryDirectory() as directory:
        folder = (options.keep or pathlib.Path(directory)).resolve()
        if there := [name for name in names if (folder / name).exists()]:
            parser.error(f'{folder} has {", ".join(there)}: rows are measured from their beginning')
        for name in names:
            result = measured(name, folder)
            measure.keep('zoo', result, lambda r: (list(ROWS).index(r['row']),), table)
            print(json.dumps(result), flush=True)
            if not options.keep and name != 'bert':
                shutil.rmtree(folder / name)
