"""The next 96 hours of a power transformer's oil temperature and loads, from the last 336.

    python -m bigmodels.main --config=configs/forecast.py                  # PatchTST
    python -m bigmodels.main --config=configs/forecast.py:dlinear

The file is `ETTh1.csv.gz` (Zhou et al. 2021): 12 months of training, 4 of validation, 4 of test,
the custom of the papers; values are standardised by the training months, and every window counts.

Cost: two CPU cores, DLinear 8 s, PatchTST 4 min 24 s, partly beside other work.
Result: on the 2,785 test windows DLinear has a mean squared error of 0.372 and a mean absolute one
of 0.394 (Zeng et al. report 0.375 and 0.399), PatchTST 0.379
and 0.400.
"""

from configs import common

COLUMNS = ('HUFL', 'HULL', 'MUFL', 'MULL', 'LUFL', 'LULL', 'OT')
INPUT_LENGTH = 336
MONTH = 30 * 24  # hours

VARIANTS = ('dlinear', 'tiny')


def get_config(variant: str = ''):
    """PatchTST, `dlinear`, or `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    config.task = dict(name='forecasting', columns=COLUMNS, input_length=INPUT_LENGTH)
    config.model = dict(
        name='patch_tst', horizon=96, dropout_rate=0.3, head_dropout_rate=0.3, embed_dim=16
    )
    config.optimizer.learning_rate = 1e-3
    config.batch_size = 128
    config.total_steps = 512  # 8 epochs
    if variant == 'dlinear':
        config.model = dict(name='dlinear', horizon=96)
        config.optimizer.learning_rate = 5e-3
    source = dict(name='csv', path=common.data_path('etth1/ETTh1.csv.gz'), numeric=COLUMNS)

    def months(first: int, stop: int) -> dict:
        start = max(first * MONTH - INPUT_LENGTH, 0)  # the first horizon has its input before it
        return source | dict(rows=f'{start}:{stop * MONTH}')

    config.data.train = months(0, 12)
    config.data.evals = dict(valid=months(12, 16), test=months(16, 20))
    config.checkpoint.best_metric = 'valid/mse'
    if variant == 'tiny':
        config = common.tiny(config)
        config.task.input_length = 24
        config.model.update(horizon=8, patch_size=8, stride=4, num_layers=1)
    return config.lock()
