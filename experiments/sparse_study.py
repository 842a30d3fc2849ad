"""What training gains where a model is made smaller: pruning and rounding, with it and without.

    python experiments/sparse_study.py --runs=FOLDER

A perceptron for MNIST is trained, and made smaller in two ways: by `python -m bigmodels.compress`
after the same number of further steps, or within these steps, by config.prune, config.compress and
config.distill. What is in the folder already is not trained again. Written:
experiments/results/sparse.json, .md, and .png, the accuracy over the share of weights that is 0.
"""

import argparse
import pathlib
import tempfile

import measure

from bigmodels import config, runs, train
from bigmodels.compress import __main__ as command

SPARSITIES = (50, 80, 90, 95, 98)
DENSE = ('total_steps=1500',)
FURTHER = ('total_steps=600', 'optimizer.schedule.warmup_steps=50')
GRADUALLY = ('prune.begin=100', 'prune.end=400', 'prune.every=20')
SMALL = ('model.hidden_dims=(32,16)',)  # whose int4 loses something
# Way of pruning -> the recipe without its number, or what training is told beside the share.
AT_ONCE = {'at once, each layer': 'prune', 'at once, all weights': 'prune_global'}
IN_TRAINING = {
    'in training, each layer': ('prune.scope=layer',),
    'in training, all weights': ('prune.scope=global',),
    'in training, each layer, by movement': ('prune.score=movement',),
    'at once, all weights, then trained': ('prune.scope=global', 'prune.begin=0', 'prune.end=0'),
}
# Recipe -> what training is told to round as it does.
FORMATS = {
    'int8': ('compress.weights=int8',),
    'int4': ('compress.weights=int4',),
    'int4:16': ('compress.weights=int4', 'compress.group_size=16'),
    'int4,a8': ('compress.weights=int4', 'compress.activations=int8'),
}


def described(workdir: pathlib.Path) -> dict:
    """Size and figures of a run."""
    run = runs.open_run(workdir)
    return {**command.sizes(run), **command.figures(run)}


def trained(workdir: pathlib.Path, *changes: str, begin: str = '') -> pathlib.Path:
    """A run, which is trained if it is not complete yet, and may begin as another one."""
    given = config.load(str(measure.ROOT / 'configs' / 'mnist_mlp.py'))
    with given.unlocked():
        given.init_from = dict(workdir=begin)
    config.set_fields(given, ('batch_size=128', 'log_every=300', *changes))
    train.train(given, workdir)
    return workdir


def compressed(workdir: pathlib.Path, recipe: str) -> dict:
    """What a recipe makes of a run."""
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch, recipe)
        command.compressed(runs.open_run(workdir), recipe, out)
        return described(out)


def further(dense: pathlib.Path, name: str, *changes: str) -> pathlib.Path:
    """A run that begins as another one, beside it."""
    workdir = dense.with_name(f'{dense.name}_{name}')
    return trained(workdir, *FURTHER, *changes, begin=str(dense))


def pruning(folder: pathlib.Path) -> dict:
    """Pruning after the training, during it, and before it."""
    dense = trained(folder / 'dense', *DENSE)
    control = further(dense, 'further')
    rows = {'as trained': described(dense), 'trained further': described(control)}
    for share in SPARSITIES:
        for way, recipe in AT_ONCE.items():
            rows[f'{way} {share}'] = compressed(control, f'{recipe}{share}')
        for way, changes in IN_TRAINING.items():
            name = f'{way.replace(", ", "_").replace(" ", "_")}_{share}'
            told = f'prune.sparsity={share / 100}', *GRADUALLY, *changes
            rows[f'{way} {share}'] = described(further(dense, name, *told))
    rows['2:4, at once'] = compressed(control, '2:4')
    told = 'prune.sparsity=0.5', 'prune.pattern=2:4', 'prune.begin=100', 'prune.end=100'
    rows['2:4, in training'] = described(further(dense, '2_4', *told))
    return rows


def rounding(folder: pathlib.Path) -> dict:
    """Formats of few bits, of a perceptron that was trained without them and with them."""
    dense = trained(folder / 'small', *DENSE, *SMALL)
    control = further(dense, 'further', *SMALL)
    rows = {'as trained': described(dense), 'trained further': described(control)}
    for recipe, changes in FORMATS.items():
        rows[f'{recipe}, afterwards'] = compressed(control, recipe)
        run = further(dense, recipe.replace(':', '_').replace(',', '_'), *SMALL, *changes)
        rows[f'{recipe}, in training'] = compressed(run, recipe)
    return rows


def chain(folder: pathlib.Path) -> dict:
    """Pruned at once, taught by what it was, rounded."""
    dense = trained(folder / 'dense', *DENSE)
    lean = folder / 'lean'
    if not lean.exists():
        command.compressed(runs.open_run(dense), 'prune_global90', lean)
    told = 'prune.sparsity=0.9', 'prune.scope=global'
    alone = further(lean, 'alone', *told)
    taught = further(lean, 'taught', *told, f'distill.teacher={dense}')
    return {
        'prune_global90': described(lean),
        'prune_global90, then trained': described(alone),
        'prune_global90, then taught': described(taught),
        'prune_global90, then taught, then int8': compressed(taught, 'int8'),
    }


def table(results) -> str:
    """Each part's rows."""
    rows = [('part', 'way', 'zeros', 'bytes', 'test accuracy, %', 'test loss')]
    for part, ways in results[0]['parts'].items():
        for way, row in ways.items():
            zeros = f'{row["zeros"] / row["parameters"]:.1%}'
            figures = f'{100 * row["test/accuracy"]:.2f}', f'{row["test/loss"]:.4f}'
            rows.append((part, way, zeros, f'{row["bytes on disk"]:,}', *figures))
    note = (
        'One seed, 10,000 test digits. "as trained" and "prune_global90" had 1,500 steps, all '
        "others 2,100. A number behind a way of pruning is the percentage of the kernels' weights "
        'that is 0. The perceptron of "rounding" has 32 and 16 hidden units, so few that int4 '
        'loses something. Bytes are those on disk: of the same arrays, saved twice, they have '
        'differed by a tenth.'
    )
    return f'{measure.markdown(rows)}\n\n{note}'


def draw(rows: dict) -> None:
    """The accuracy of each way of pruning over the share that is 0; on the right the best of it."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    accuracy = {way: 100 * row['test/accuracy'] for way, row in rows.items()}
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout='constrained')
    for axes, least in zip(panels, (0, 95), strict=True):
        for way in (*AT_ONCE, *IN_TRAINING):
            line = [accuracy[f'{way} {share}'] for share in SPARSITIES]
            axes.plot(SPARSITIES, line, marker='o', label=way)
        for way, mark in (('2:4, at once', 'kx'), ('2:4, in training', 'k+')):
            axes.plot(50, accuracy[way], mark, label=way)
        axes.axhline(accuracy['trained further'], color='gray', linestyle=':', label='not pruned')
        axes.set(xlabel='weights pruned, %', ylabel='test accuracy, %', ylim=(least, 99.5))
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize='small')
    figure.savefig(measure.RESULTS / 'sparse.png', dpi=120)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--runs', type=pathlib.Path, required=True, help='a folder for the runs')
    options = parser.parse_args()
    runs.configure_process()
    parts = {part.__name__: part(options.runs) for part in (pruning, rounding, chain)}
    measure.keep('sparse', {'parts': parts}, lambda result: 0, table)
    draw(parts['pruning'])


if __name__ == '__main__':
    main()
