"""ResNet-50 (He et al. 2016) on CIFAR-10 at its own 32 x 32 pixels, one epoch.

    python -m bigmodels.main --config=configs/resnet50.py
    python -m bigmodels.main --config=configs/resnet50.py:imagenet      # 25,557,032 parameters

Data: `cifar10/cifar10_jpeg.npz`; by TFDS, lossless: `name='tfds', dataset='cifar10'`. The variant
`imagenet` reads a folder of images for each class in `imagenet/train` and `imagenet/val`.

Cost: two CPU cores, 5.7 min.
Result: 57.8 % of the 10,000 test images right after the one epoch.
"""

from configs import common

VARIANTS = ('imagenet', 'tiny')


def get_config(variant: str = ''):
    """The default; `imagenet`, the published network at 224 x 224 pixels; `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    config.model = dict(name='resnet')
    common.use_one_epoch_of_cifar10(config)
    if variant == 'imagenet':
        config.model.dtype = 'bfloat16'
        common.use_imagenet(config)
    elif variant == 'tiny':
        config = common.tiny(config)
        config.model.update(stage_sizes=(1, 1), stage_widths=(8, 16))
        config.batch_size = 16
    return config.lock()
