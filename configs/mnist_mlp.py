"""The perceptron 784-256-128-10 on MNIST, its training images moved and turned a little.

    python -m bigmodels.main --config=configs/mnist_mlp.py

Data: the four files of MNIST in `mnist/`; by TFDS: `name='tfds', dataset='mnist'`.

Cost: two CPU cores, 48 s (21 epochs).
Result: 99.16 % of the 10,000 test digits right, 0.0248 nats, by the averaged parameters.
"""

from configs import common

VARIANTS = ('tiny',)


def get_config(variant: str = ''):
    """The default, or `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    config.model = dict(name='mlp', hidden_dims=(256, 128), num_classes=10)
    common.use_mnist(config, shift=1)
    if variant == 'tiny':
        config = common.tiny(config)
    return config.lock()
