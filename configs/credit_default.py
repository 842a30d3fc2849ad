"""Whether a holder of a credit card in Taiwan defaults next month, from 23 columns.

    python -m bigmodels.main --config=configs/credit_default.py            # perceptron
    python -m bigmodels.main --config=configs/credit_default.py:ft_transformer

The file is `default_of_credit_card_clients.csv.gz`, the UCI set with the header `ID, X1..X23, Y`.
Every fifth record is the test set.

Cost: two CPU cores, 0.4 min for the perceptron; 4 min for the FT-Transformer, beside other work.
Result: an area under the ROC curve of 0.788 and 0.785 on the test records, where boosted trees have
0.787: `python experiments/benchmark_tables.py`, experiments/results/tables.json; an earlier run of
the FT-Transformer by experiments/zoo.py has 0.784.
"""

from configs import common

CATEGORICAL = ('X2', 'X3', 'X4')  # sex, education, marital status
NUMERIC = tuple(f'X{i}' for i in range(1, 24) if f'X{i}' not in CATEGORICAL)

VARIANTS = ('ft_transformer', 'tiny')


def get_config(variant: str = ''):
    """The perceptron, `ft_transformer`, or `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    common.table_model(config, variant, num_outputs=2, num_categories=20)
    config.task = dict(
        name='table_classification', label_key='Y', numeric=NUMERIC, categorical=CATEGORICAL
    )
    path = common.data_path('credit_default/default_of_credit_card_clients.csv.gz')
    source = dict(name='csv', path=path, numeric=NUMERIC)
    config.data.train = source | dict(without=('4::5', '::10'))
    config.data.evals = dict(valid=source | dict(rows='::10'), test=source | dict(rows='4::5'))
    config.total_steps = 600
    config.checkpoint.best_metric = 'valid/roc_auc'
    config.checkpoint.best_mode = 'max'
    if variant == 'tiny':
        config = common.tiny(config)
    return config.lock()
