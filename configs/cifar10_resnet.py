"""A narrow ResNet with one block a stage on CIFAR-10, by a recipe for few epochs.

    python -m bigmodels.main --config=configs/cifar10_resnet.py

Data: `cifar10/cifar10_jpeg.npz`; by TFDS, lossless: `name='tfds', dataset='cifar10'`.

Cost and result: not measured at full length yet.
"""

from configs import common


def get_config(variant: str = ''):
    """The default, or `tiny` for tests."""
    config = common.get_config()
    config.model = dict(
        name='resnet',
        block='basic',
        stem='cifar',
        stage_sizes=(1, 1, 1),
        stage_widths=(64, 128, 256),
    )
    common.use_cifar10(config, flip=0.5, shift=4, cutout=8)
    config.task.label_smoothing = 0.1
    config.batch_size = 256
    config.total_steps = 5000
    config.eval_every = 1000
    config.ema_decay = 0.998
    config.optimizer.learning_rate = 5e-3
    config.optimizer.algorithm = dict(name='muon', ns_steps=3)
    config.optimizer.schedule = dict(name='linear', warmup_steps=500)
    if variant == 'tiny':
        config = common.tiny(config)
        config.model.stage_widths = (8, 16, 16)
        config.batch_size = 16
    elif variant:
        raise ValueError(f'unknown variant {variant!r}; there is: tiny')
    return config.lock()
