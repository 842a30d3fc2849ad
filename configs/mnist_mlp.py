"""The perceptron 784-256-128-10 on MNIST, its training images moved and turned a little.

    python -m bigmodels.main --config=configs/mnist_mlp.py

Data: the four files of MNIST in `mnist/`; by TFDS: `name='tfds', dataset='mnist'`.

Cost: two CPU cores, 46 s (21 epochs).
Result: 99.16 % of the 10,000 test digits right, 0.0248 nats, by the averaged parameters.
"""

from configs import common


def get_config(variant: str = ''):
    """The default, or `tiny` for tests."""
    config = common.get_config()
    config.model = dict(name='mlp', hidden_dims=(256, 128), num_classes=10)
    config.task = dict(
        name='classification', mean=33.3, std=78.6, augment=dict(rotate=10.0, scale=0.1, shift=1)
    )
    path = common.data_path('mnist')
    config.data.train = dict(name='mnist', path=path, split='train')
    config.data.evals = dict(test=dict(name='mnist', path=path, split='test'))
    config.batch_size = 256
    config.total_steps = 5000
    config.ema_decay = 0.999
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = dict(name='linear', warmup_steps=200)
    if variant == 'tiny':
        config = common.tiny(config)
    elif variant:
        raise ValueError(f'unknown variant {variant!r}; there is: tiny')
    return config.lock()
