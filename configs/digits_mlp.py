"""A small perceptron on scikit-learn's bundled handwritten digits (8 x 8 pixels).

    pip install -e '.[tables]' && python -m bigmodels.main --config=configs/digits_mlp.py

Cost: two CPU cores, 12 s.
Result: 97.8 % of the 360 held-out digits right, 0.075 nats.
"""

from configs import common

VARIANTS = ('tiny',)


def get_config(variant: str = ''):
    """The default, or `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    config.model = dict(name='mlp', hidden_dims=(128, 64), num_classes=10, dropout_rate=0.1)
    config.task = dict(name='classification', mean=78.0, std=96.0)
    config.data.train = dict(name='digits', split='train')
    config.data.evals = dict(valid=dict(name='digits', split='valid'))
    config.data.buffer = 32  # steps of a millisecond: one late batch must not be waited for
    config.batch_size = 64
    config.total_steps = 1000
    config.checkpoint.best_metric = 'valid/accuracy'
    config.checkpoint.best_mode = 'max'
    if variant == 'tiny':
        config = common.tiny(config)
    return config.lock()
