"""LeNet-5 (LeCun et al. 1998) on MNIST: 61,706 parameters, with ReLU and maxima.

    python -m bigmodels.main --config=configs/mnist_lenet.py

Data: the four files of MNIST in `mnist/`; by TFDS: `name='tfds', dataset='mnist'`.

Cost: two CPU cores, 3 min 57 s (21 epochs).
Result: 99.48 % of the 10,000 test digits right, 0.0170 nats, by the averaged parameters.
"""

from configs import common


def get_config(variant: str = ''):
    """The default, or `tiny` for tests."""
    config = common.get_config()
    config.model = dict(
        name='convnet',
        num_classes=10,
        stages=((6,), (16,)),
        kernel_sizes=(5, 5),
        paddings=(2, 0),
        dense_widths=(120, 84),
    )
    config.task = dict(
        name='classification', mean=33.3, std=78.6, augment=dict(rotate=10.0, scale=0.1, shift=2)
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
