"""LeNet-5 (LeCun et al. 1998) on MNIST: 61,706 parameters, with ReLU and maxima.

    python -m bigmodels.main --config=configs/mnist_lenet.py

Data: the four files of MNIST in `mnist/`; by TFDS: `name='tfds', dataset='mnist'`.

Cost: two CPU cores, 2.9 min.
Result: 99.41 % of the 10,000 test digits right, 0.0181 nats, by the averaged parameters.
"""

from configs import common

VARIANTS = ('tiny',)


def get_config(variant: str = ''):
    """The default, or `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    config.model = dict(
        name='convnet',
        num_classes=10,
        stages=((6,), (16,)),
        kernel_sizes=(5, 5),
        paddings=(2, 0),
        dense_widths=(120, 84),
    )
    common.use_mnist(config, shift=2)
    config.total_steps = 3500  # 15 epochs
    if variant == 'tiny':
        config = common.tiny(config)
    return config.lock()
