"""VGG (Simonyan and Zisserman 2015): 11 layers with BatchNorm on CIFAR-10, one epoch.

    python -m bigmodels.main --config=configs/vgg.py
    python -m bigmodels.main --config=configs/vgg.py:imagenet   # 16 layers: 138,357,544 parameters

Data: `cifar10/cifar10_jpeg.npz`; by TFDS, lossless: `name='tfds', dataset='cifar10'`. The variant
`imagenet` reads a folder of images for each class in `imagenet/train` and `imagenet/val`.

Cost: two CPU cores, 8 min, beside other work.
Result: 48.8 % of the 10,000 test images right after the one epoch.
"""

from configs import common

VARIANTS = ('imagenet', 'tiny')


def get_config(variant: str = ''):
    """The default; `imagenet`, the published network at 224 x 224 pixels; `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    config.model = dict(
        name='convnet',
        stages=((64,), (128,), (256, 256), (512, 512), (512, 512)),
        norm='batch_norm',
        dense_widths=(512, 512),
        dropout_rate=0.5,
    )
    common.use_one_epoch_of_cifar10(config)
    if variant == 'imagenet':
        config.model.update(
            stages=((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
            norm='none',
            dense_widths=(4096, 4096),
        )
        common.use_imagenet(config)
    elif variant == 'tiny':
        config = common.tiny(config)
        config.model.update(stages=((8,), (8, 8)), dense_widths=(16,))
        config.batch_size = 16
    return config.lock()
