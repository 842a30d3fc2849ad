"""The network of TensorFlow's tutorial on CNNs (122,570 parameters) on CIFAR-10.

Three 3x3 convolutions without padding, two of them with maxima after them, and 64 dense units.

    python -m bigmodels.main --config=configs/cifar10_cnn.py

Data: `cifar10/cifar10_jpeg.npz`; by TFDS, lossless: `name='tfds', dataset='cifar10'`.

Cost: two CPU cores, 12.4 min.
Result: 81.62 % of the 10,000 test images right, 0.525 nats, by the averaged parameters. In
runs of 2,500 steps Muon at 1e-2 gets to 77.9 %, AdamW at 3e-3 to 74.5 %, of one seed each.
"""

from configs import common

VARIANTS = ('tiny',)


def get_config(variant: str = ''):
    """The default, or `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    config.model = dict(
        name='convnet',
        stages=((32,), (64,), (64,)),
        paddings=(0, 0, 0),
        pool_last=False,
        dense_widths=(64,),
    )
    common.use_cifar10(config, flip=0.5, shift=2)
    config.batch_size = 128
    config.total_steps = 9000  # 23 epochs
    config.eval_every = 3000
    config.ema_decay = 0.999
    config.optimizer.learning_rate = 1e-2
    config.optimizer.algorithm = dict(name='muon', ns_steps=3)
    config.optimizer.schedule = dict(name='linear', warmup_steps=100)
    if variant == 'tiny':
        config = common.tiny(config)
        config.batch_size = 16
    return config.lock()
