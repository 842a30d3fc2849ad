"""AlexNet (Krizhevsky 2014, arXiv:1404.5997) with small kernels and layers for CIFAR-10, one epoch.

    python -m bigmodels.main --config=configs/alexnet.py
    python -m bigmodels.main --config=configs/alexnet.py:imagenet       # 61,100,840 parameters

Data: `cifar10/cifar10_jpeg.npz`; by TFDS, lossless: `name='tfds', dataset='cifar10'`. The variant
`imagenet` reads a folder of images for each class in `imagenet/train` and `imagenet/val`.

Cost: two CPU cores, 13 min, beside other work.
Result: 52.7 % of the 10,000 test images right after the one epoch.
"""

from configs import common

VARIANTS = ('imagenet', 'tiny')


def get_config(variant: str = ''):
    """The default; `imagenet`, the published network at 224 x 224 pixels; `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    config.model = dict(
        name='convnet',
        stages=((64,), (192,), (384, 256, 256)),
        kernel_sizes=(5, 5, 3, 3, 3),
        strides=(1, 1, 1, 1, 1),
        pool_size=3,
        dense_widths=(512, 512),
        dropout_rate=0.5,
    )
    common.use_one_epoch_of_cifar10(config)
    if variant == 'imagenet':
        config.model.update(
            kernel_sizes=(11, 5, 3, 3, 3),
            strides=(4, 1, 1, 1, 1),
            paddings=(2, 2, 1, 1, 1),
            dense_widths=(4096, 4096),
        )
        common.use_imagenet(config)
    elif variant == 'tiny':
        config = common.tiny(config)
        config.model.update(stages=((8,), (8,), (8, 8, 8)), dense_widths=(16, 16))
        config.batch_size = 16
    return config.lock()
