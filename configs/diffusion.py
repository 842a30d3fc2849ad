"""A Diffusion Transformer that writes the digits of MNIST that it is asked for.

    python -m bigmodels.main --config=configs/diffusion.py
    python experiments/sample_digits.py --workdir=runs/diffusion --judge=runs/mnist_lenet

Data: the four files of MNIST in `mnist/`; by TFDS: `name='tfds', dataset='mnist'` with
`task.image_shape=(28, 28, 1)`.

Cost: two CPU cores, 4 to 8 min, beside other work.
Result: configs/mnist_lenet.py reads 96.5 % of 1,000 digits as those asked for
(experiments/results/diffusion.json, with a picture beside it).
"""

from configs import common

VARIANTS = ('tiny',)


def get_config(variant: str = ''):
    """The default, or `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    config.model = dict(
        name='dit', num_classes=10, num_layers=4, embed_dim=96, num_heads=4, patch_size=4
    )
    config.task = dict(name='diffusion', image_shape=(28, 28), guidance=3.0)
    path = common.data_path('mnist')
    config.data.train = dict(name='mnist', path=path, split='train')
    config.data.evals = dict(test=dict(name='mnist', path=path, split='test'))
    config.batch_size = 64
    config.total_steps = 1200
    config.ema_decay = 0.99
    config.optimizer.learning_rate = 8e-3
    config.optimizer.algorithm = dict(name='muon', ns_steps=3)
    config.optimizer.schedule = dict(name='linear', warmup_steps=50)
    if variant == 'tiny':
        config = common.tiny(config)
        config.model.num_layers, config.model.embed_dim = 2, 32
        config.batch_size = 16
        config.ema_decay = 0.9
    return config.lock()
