"""What a small model gains by a teacher: the same one trained alone and distilled, several seeds.

    python experiments/distill_study.py --runs=FOLDER [--sets sst2 cifar10] [--seeds=3]

For each set a teacher is trained once, and for each seed a student alone and one that learns from
the teacher too, of the same initial parameters, batches and steps: from its answers, or from what
its layers give, where the set says so by its name. What is in the folder already is not trained
again, so that the command goes on where it was stopped. Written: results/distill.json and .md, in
the place of the last results of the same set.
"""

import argparse
import dataclasses
import pathlib

import measure
import numpy as np

from bigmodels import config, runs, train, trees


@dataclasses.dataclass(frozen=True)
class Set:
    """What is trained on one set.

    Fields:
      config: of all three, in configs/; the teacher's as it is.
      student: overrides of the two students.
      model: their section.
      distill: of the student that has a teacher.
    """

    config: str
    student: tuple[str, ...]
    model: dict
    distill: dict


SETS = {
    'sst2': Set(
        'sst2_lstm.py', ('total_steps=600', 'eval_every=0', 'checkpoint.best_metric='),
        dict(name='recurrent', num_classes=2, vocab_size=4096, embed_dim=16, hidden_dim=16),
        dict(temperature=2.0, weight=0.7),
    ),
    'cifar10': Set(
        'cifar10_cnn.py', ('total_steps=3000',),
        dict(name='convnet', num_classes=10, stages=((16,), (32,), (32,)), dense_widths=(64,)),
        dict(temperature=2.0, weight=0.7),
    ),
}  # fmt: skip
SETS['sst2, features'] = dataclasses.replace(
    SETS['sst2'],
    distill=dict(
        kind='features',
        weight=0.5,
        layers=tuple((name, name) for name in ('embed', 'layers_0_forward')),
    ),
)


def trained(workdir: pathlib.Path, one: Set, *changes: str, **sections: dict) -> float:
    """The test accuracy of a run, which is trained if it is not complete yet."""
    given = config.load(str(measure.ROOT / 'configs' / one.config))
    with given.unlocked():
        for name, section in sections.items():
            given[name] = section
    config.set_fields(given, changes)
    return train.train(given, workdir)['test/accuracy']


def study(folder: pathlib.Path, name: str, seeds: int) -> dict:
    """The accuracies of a teacher and of both students for each seed, and their sizes."""
    one, data = SETS[name], name.partition(',')[0]
    teacher = folder / f'{data}_teacher'
    found = {'teacher': [trained(teacher, one)], 'alone': [], 'distilled': []}
    for seed in range(seeds):
        for kind, sections in (
            ('alone', {}),
            ('distilled', {'distill': dict(teacher=str(teacher), **one.distill)}),
        ):
            workdir = folder / f'{name if kind == "distilled" else data}_{kind}_{seed}'
            changes = *one.student, f'seed={seed}'
            accuracy = trained(workdir, one, *changes, model=one.model, **sections)
            found[kind].append(accuracy)
            print(name, kind, seed, accuracy, flush=True)
    sizes = {
        'teacher': trees.count(runs.open_run(teacher).params),
        'student': trees.count(runs.open_run(workdir).params),
    }
    return {'set': name, 'parameters': sizes, 'distill': one.distill, 'test/accuracy': found}


def table(results) -> str:
    """Test accuracy in percent: mean over seeds, and how often the teacher helped."""
    rows = [('set', 'parameters of the teacher', 'of the student', 'teacher', 'student alone',
             'with the teacher', 'gain of each seed')]  # fmt: skip
    for result in results:
        found = {key: 100 * np.array(each) for key, each in result['test/accuracy'].items()}
        gains = ', '.join(f'{gain:+.2f}' for gain in found['distilled'] - found['alone'])
        sizes = (f'{result["parameters"][key]:,}' for key in ('teacher', 'student'))
        rows.append((result['set'], *sizes, *(f'{each.mean():.2f}' for each in found.values()),
                     gains))  # fmt: skip
    return measure.markdown(rows)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--runs', type=pathlib.Path, required=True, help='a folder for the runs')
    parser.add_argument('--sets', nargs='+', default=list(SETS), choices=list(SETS))
    parser.add_argument('--seeds', type=int, default=3)
    options = parser.parse_args()
    runs.configure_process()
    for name in options.sets:
        result = study(options.runs, name, options.seeds)
        measure.keep('distill', result, lambda result: result['set'], table)


if __name__ == '__main__':
    main()
