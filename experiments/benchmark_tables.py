"""Networks on tables beside scikit-learn's gradient-boosted trees, on the same records.

    pip install -e '.[tables]' && python experiments/benchmark_tables.py

For each data set: HistGradientBoostingClassifier with its defaults (categories as such, early
stopping on a tenth of what it is given), given the training and the validation records; then both
networks of the config, which see the training records alone. The area under the ROC curve of the
test records, at the last step. Writes experiments/results/tables.json. The runs are kept in
runs/benchmark_tables: the same command goes on with what another has begun.
"""

import json
import time

import measure
import numpy as np
from sklearn import compose, ensemble, metrics, pipeline, preprocessing

from bigmodels import config as config_lib
from bigmodels import runs, train
from bigmodels.data import SOURCES

VARIANTS = {'perceptron': '', 'ft_transformer': ':ft_transformer'}


def columns_of(sections, task) -> tuple[np.ndarray, np.ndarray]:
    """The records of sources as a matrix, categories first, and their labels."""
    columns = []
    for section in sections:
        arguments = {key: value for key, value in section.items() if key != 'name'}
        source = SOURCES[section['name']](**arguments)
        columns.append(source.take(np.arange(len(source))))
    joined = {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}
    names = (*task['categorical'], *task['numeric'])
    matrix = np.stack([joined[name].astype(object) for name in names], axis=1)
    return matrix, joined[task['label_key']].astype(str)


def boosted_trees(config) -> dict[str, float]:
    """The area of HistGradientBoostingClassifier, and its seconds."""
    plain = config.to_dict()
    task, evals = plain['task'], plain['data']['evals']
    inputs, labels = columns_of([plain['data']['train'], evals['valid']], task)
    test_inputs, test_labels = columns_of([evals['test']], task)
    categories = list(range(len(task['categorical'])))
    encode = preprocessing.OrdinalEncoder(handle_unknown='use_encoded_value', unknown_value=-1)
    model = pipeline.make_pipeline(
        compose.make_column_transformer((encode, categories), remainder='passthrough'),
        ensemble.HistGradientBoostingClassifier(categorical_features=categories, random_state=0),
    )
    began = time.perf_counter()
    model.fit(inputs, labels)
    seconds = time.perf_counter() - began
    positive = model.classes_[1]
    area = metrics.roc_auc_score(test_labels == positive, model.predict_proba(test_inputs)[:, 1])
    return {'test_roc_auc': round(float(area), 5), 'seconds': round(seconds, 1)}


def networks(name: str) -> dict[str, dict]:
    """The areas of both networks of a config, and the seconds of their loops."""
    results = {}
    for label, variant in VARIANTS.items():
        workdir = measure.ROOT / 'runs' / 'benchmark_tables' / f'{name}_{label}'
        figures = train.train(config_lib.load(f'configs/{name}.py{variant}'), workdir)
        summary = json.loads((workdir / 'summary.json').read_text())
        results[label] = {
            'test_roc_auc': round(figures['test/roc_auc'], 5),
            'test_accuracy': round(figures['test/accuracy'], 5),
            'seconds': summary['seconds'],
        }
    return results


if __name__ == '__main__':
    runs.configure_process()
    results = {}
    for name in ('adult', 'credit_default'):
        trees = boosted_trees(config_lib.load(f'configs/{name}.py'))
        results[name] = {'boosted_trees': trees, **networks(name)}
    rows = [('data', 'model', 'test ROC AUC', 'seconds')]
    rows += [
        (name, label, f'{figures["test_roc_auc"]:.4f}', f'{figures["seconds"]:.0f}')
        for name, models in results.items()
        for label, figures in models.items()
    ]
    measure.write('tables', {'results': results}, libraries=('jax', 'flax', 'scikit-learn'))
    print(measure.markdown(rows))
