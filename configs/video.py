"""A Video Vision Transformer that sees which of eight ways a digit moves, in clips made as read.

    python -m bigmodels.main --config=configs/video.py
    python -m bigmodels.predict --workdir=runs/video --input=clip.gif

Data: the four files of MNIST in `mnist/`; training clips are of its training digits, test clips of
its test digits. A digit that leaves at one side comes in at the other, so no frame alone tells the
way: see `MovingDigits`, and its DIRECTIONS for what the labels mean. Answers are for a GIF, for a
folder of frames, or for a folder of these.

Full size, not tried here: 101 actions by TFDS `name='tfds', dataset='ucf101'`, which `tfds build`
prepares with TensorFlow and ffmpeg (docs/data.md); task.num_frames=32, image_size=224, mean=114.5,
std=58.4; ViViT-B/16x2: num_layers=12, num_temporal_layers=4, embed_dim=768, num_heads=12,
mlp_dim=3072, patch_size=16, pool='token', num_classes=101. TFDS `moving_mnist` has two digits, and
no labels.

Cost: two CPU cores, 1 min.
Result: of 2,000 clips of held-out digits 99.95 % are told the right way.
"""

from configs import common

VARIANTS = ('tiny',)


def get_config(variant: str = ''):
    """The default, or `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    config.model = dict(
        name='video_vit',
        num_classes=8,
        num_layers=2,
        num_temporal_layers=2,
        embed_dim=64,
        num_heads=4,
        mlp_dim=128,
        patch_size=8,
        pool='mean',
    )
    config.task = dict(name='classification', input_key='video', num_frames=8, mean=6.4, std=33.9)
    source = dict(
        name='moving_digits',
        path=common.data_path('mnist'),
        size=32,
        shrink=2,
        speeds=(1.5, 3.0),
    )
    config.data.train = source | dict(count=100_000)
    config.data.evals = dict(test=source | dict(split='test', count=2000, seed=1))
    config.batch_size = 64
    config.total_steps = 1000
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = dict(name='linear', warmup_steps=100)
    if variant == 'tiny':
        config = common.tiny(config)
        config.model.update(num_layers=1, num_temporal_layers=1, embed_dim=32)
    return config.lock()
