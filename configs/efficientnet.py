"""EfficientNet-B0 (Tan and Le 2019) on CIFAR-10, with a quarter of its strides, one epoch.

    python -m bigmodels.main --config=configs/efficientnet.py
    python -m bigmodels.main --config=configs/efficientnet.py:imagenet  # 5,288,548 parameters

Data: `cifar10/cifar10_jpeg.npz`; by TFDS, lossless: `name='tfds', dataset='cifar10'`. The variant
`imagenet` reads a folder of images for each class in `imagenet/train` and `imagenet/val`.

Cost: two CPU cores, 21 min beside other work, 7 GB.
Result: 51.8 % of the 10,000 test images right after the one epoch.
"""

from configs import common

VARIANTS = ('imagenet', 'tiny')


def get_config(variant: str = ''):
    """The default; `imagenet`, the published network at 224 x 224 pixels; `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    config.model = dict(name='efficientnet', stem_stride=1, strides=(1, 1, 2, 2, 1, 2, 1))
    common.use_one_epoch_of_cifar10(config)
    if variant == 'imagenet':
        config.model.update(stem_stride=2, strides=(1, 2, 2, 2, 1, 2, 1), dtype='bfloat16')
        common.use_imagenet(config)
    elif variant == 'tiny':
        config = common.tiny(config)
        config.model.update(stem_stride=2, width=0.25, depth=0.3)
        config.batch_size = 16
    return config.lock()
