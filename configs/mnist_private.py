"""A small CNN on MNIST that is differentially private: epsilon 3, delta 1e-5 for the whole run.

    pip install -e '.[privacy]' && python -m bigmodels.main --config=configs/mnist_private.py

14,634 parameters with tanh (Papernot et al. 2021, arXiv:2007.14191), whose gradients are clipped
example by example. The seed is that of the noise: for a model that is to be published choose one
that nobody knows, --config.seed=..., and keep it.

Data: the four files of MNIST in `mnist/`.

Cost: two CPU cores, 2.4 min, 1.1 GB; 18 epochs.
Result: 96.16 % of the 10,000 test digits right, 0.164 nats, by the averaged parameters, having
spent an epsilon of 3.00.
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
        stages=((16,), (32,)),
        kernel_sizes=(5, 3),
        strides=(2, 1),
        dense_widths=(32,),
        activation='tanh',
    )
    common.use_mnist(config, shift=0)
    config.task.augment = None
    config.privacy = dict(epsilon=3.0, delta=1e-5, clip=0.1, examples=60_000)
    config.batch_size = 2048  # places: about 1,750 examples are drawn
    config.accumulate = 32  # 64 examples' gradients are held at once
    config.total_steps = 600
    config.ema_decay = 0.98
    config.optimizer = dict(
        learning_rate=4.0,
        algorithm=dict(name='sgd', momentum=0.9),
        schedule=dict(name='linear', warmup_steps=10),
    )
    if variant == 'tiny':
        config = common.tiny(config)
        config.batch_size, config.accumulate = 256, 2
    return config.lock()
