"""A small Vision Transformer with patches of 4 x 4 pixels on CIFAR-10.

    python -m bigmodels.main --config=configs/cifar10_vit.py

Data: `cifar10/cifar10_jpeg.npz`; by TFDS, lossless: `name='tfds', dataset='cifar10'`.

Cost: two CPU cores, 55 min, some tests beside it.
Result: 79.5 % of the test images right (experiments/results/zoo.md).
"""

from configs import common

VARIANTS = ('tiny',)


def get_config(variant: str = ''):
    """The default, or `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    config.model = dict(
        name='vit',
        patch_size=4,
        num_layers=6,
        embed_dim=192,
        num_heads=3,
        mlp_dim=384,
        pool='mean',
        dtype='bfloat16',
    )
    common.use_strong_cifar10(config, learning_rate=4e-3)
    config.batch_size = 128
    config.total_steps = 3300
    if variant == 'tiny':
        config = common.tiny(config)
        config.model.update(num_layers=2, embed_dim=24)
        config.batch_size = 16
    return config.lock()
