"""Pictures of what is inside finished runs.

    python experiments/interpret_pictures.py --runs=runs

Causal tracing (Meng et al. 2022) of configs/transformer.py: the quotation mark that opens a string
is changed, and the state of each layer and position is put back in turn. Integrated gradients and
Grad-CAM of configs/mnist_lenet.py on test images. Integrated gradients of a sentence by
configs/sst2_lstm.py, of a recording by configs/speech_digits.py and of a person by
configs/adult.py. Written are results/causal_tracing.png, attributions.png and
attributions_others.png; runs that are not there are said, and their picture is left as it was.

Cost: two CPU cores, about two minutes.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import measure
import numpy as np
from matplotlib.figure import Figure

from bigmodels import config, runs
from bigmodels.data import SOURCES
from bigmodels.data.sources.image_sources import Mnist
from bigmodels.interpret import activations, explanations, report

CLEAN, CORRUPTED, ANSWER = "greeting = ('hello", 'greeting = ("hello', "'"
DIGITS = (0, 8, 18, 115)
METHODS = ('integrated_gradients', 'occlusion', 'grad_cam')
# Run -> which of its test records is shown.
OTHERS = {'sst2_lstm': 4, 'speech_digits': 0, 'adult': 7}


def trace(run: runs.Run, path: pathlib.Path, clean: str, corrupted: str, answer: str) -> None:
    """Draws by how much each state that is put back raises the answer's log probability."""
    vocabulary = run.task.vocabulary
    given, other = (jnp.asarray(vocabulary.encode(text))[None] for text in (clean, corrupted))
    [token] = vocabulary.encode(answer)
    score = lambda logits: jax.nn.log_softmax(logits[0, -1])[token]
    found = jax.jit(functools.partial(activations.causal_tracing, run.task, score=score))(
        run.params, run.model_state, {'inputs': given}, {'inputs': other}
    )
    print(f'log p({answer!r}): clean {found.clean:.3f}, corrupted {found.corrupted:.3f}')
    figure = Figure(figsize=(10, 2.6), layout='constrained')
    axes = figure.add_subplot()
    most = float(np.abs(found.effects).max())
    shown = axes.imshow(found.effects, cmap='RdBu_r', vmin=-most, vmax=most, aspect='auto')
    axes.set_xticks(range(len(corrupted)), [repr(c)[1:-1] for c in corrupted], family='monospace')
    axes.set(ylabel='layer', yticks=range(len(found.effects)))
    axes.set_title(f'nats that log p({answer!r}) gains when one state is that of {clean!r}')
    figure.colorbar(shown)
    figure.savefig(path, dpi=110)


def attribute(run: runs.Run, path: pathlib.Path, data: pathlib.Path) -> None:
    """Draws test images, and what each method says of them."""
    source = Mnist(str(data), 'test')
    records = [(str(i), {'image': np.asarray(source[i]['image'])}) for i in DIGITS]
    found = list(explanations.explain(run, records, METHODS))
    figure = Figure(figsize=(8, 2.1 * len(found)), layout='constrained')
    for row, (axes, one) in enumerate(
        zip(figure.subplots(len(found), 1 + len(METHODS)), found, strict=True)
    ):
        pixels = report.scaled(one.shown)
        drawn = [pixels, *(report.over(pixels, values) for values in one.maps.values())]
        titles = [f'{one.answer["label"]}: p {one.answer["probability"]:.3f}',
                  *(m.replace('_', ' ') if row == 0 else '' for m in METHODS)]  # fmt: skip
        for place, picture, title in zip(axes, drawn, titles, strict=True):
            place.imshow(picture)
            place.set_title(title, fontsize=9)
            place.set_axis_off()
    figure.savefig(path, dpi=110)


def attribute_others(folder: pathlib.Path, path: pathlib.Path) -> None:
    """Draws what integrated gradients say of a sentence, a recording and a row of a table."""
    figure = Figure(figsize=(12, 4), layout='constrained')
    for axes, (name, index) in zip(figure.subplots(1, len(OTHERS)), OTHERS.items(), strict=True):
        run = runs.open_run(folder / name)
        section = run.config['data']['evals']['test']
        source = config.choose(SOURCES, section, 'data.evals.test')
        [one] = explanations.explain(run, [(name, source[index])], METHODS[:1])
        [values] = one.maps.values()
        if one.kind == 'sound':
            picture = report.over(report.scaled(one.shown.T), values.T)
            axes.imshow(picture, origin='lower', aspect='auto')
            axes.set(xlabel='frame', ylabel='mel band')
        else:
            axes.barh(range(len(values)), values, color=np.where(values < 0, 'C0', 'C3'))
            axes.set_yticks(range(len(values)), one.shown, fontsize=8)
            axes.invert_yaxis()
            axes.axvline(0, color='gray', linewidth=0.5)
            axes.set(xlabel='logit over that of a neutral input')
        axes.set_title(f'{name}: {one.answer["label"]}, p {one.answer["probability"]:.3f}')
    figure.savefig(path, dpi=110)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--runs', type=pathlib.Path, default=pathlib.Path('runs'))
    parser.add_argument('--clean', default=CLEAN)
    parser.add_argument('--corrupted', default=CORRUPTED)
    parser.add_argument('--answer', default=ANSWER)
    parser.add_argument('--results', type=pathlib.Path, default=measure.RESULTS)
    options = parser.parse_args()
    runs.configure_process()
    folder, results = options.runs, options.results
    pictures = {
        ('transformer',): lambda: trace(
            runs.open_run(folder / 'transformer'), results / 'causal_tracing.png',
            options.clean, options.corrupted, options.answer,
        ),
        ('mnist_lenet',): lambda: attribute(
            runs.open_run(folder / 'mnist_lenet'), results / 'attributions.png',
            measure.data_path('mnist'),
        ),
        tuple(OTHERS): lambda: attribute_others(folder, results / 'attributions_others.png'),
    }  # fmt: skip
    for names, draw in pictures.items():
        if missing := [name for name in names if not (folder / name).is_dir()]:
            print(f'{", ".join(missing)}: not in {folder}, its picture is left as it was.')
        else:
            draw()


if __name__ == '__main__':
    main()
