r"""Answers to questions about scenes of digits, by an image before a decoder (PaliGemma).

    python -m bigmodels.main --config=configs/vision_language.py
    echo '{"image": "scene.png", "question": "what is the sum?"}' | \
        python -m bigmodels.predict --workdir=runs/vision_language --input=-

Data: the four files of MNIST in `mnist/`; scenes of one to four digits are made as they are read,
those of training of its training digits, those of the test of its test digits: see `DigitScenes`,
and its QUESTIONS for what is asked. `test/exact` is the share of answers that are right to the
letter, `test/exact_count`, `_largest`, `_sum` and `_read` that of each question.

For images of your own, write a source whose records have `image`, `question` and `answer`, name it
by its dotted path, and set task.kinds=(), task.channels=3 and the lengths of its texts.

Cost: two CPU cores, 40 min, some of them beside other work, 1.5 GB.
Result: 96.6 % of 3,000 answers about the test's digits are right (counts 100 %, largest digits
98.2 %, sums 89.7 %, all digits read 98.1 %), after 704,000 questions of training. Without the last
question, patches of 8 pixels and 35 min gave 79.0 % of the others (sums 43.8 %).
"""

from configs import common

VARIANTS = ('tiny',)


def get_config(variant: str = ''):
    """The default, or `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    tower = dict(num_layers=4, embed_dim=128, num_heads=4, mlp_dim=256, dtype='bfloat16')
    config.model = dict(
        name='vision_language',
        image=dict(tower, patch_size=16, pool='none'),
        text=dict(
            tower,
            num_layers=3,
            vocab_size=256,
            max_length=50,
            norm='rms_norm',
            activation='relu_squared',
            use_bias=False,
            tie_embeddings=False,
        ),
    )
    config.task = dict(
        name='visual_questions',
        tokenizer=dict(name='bytes'),
        question_length=22,
        answer_length=5,
        image_size=64,
        channels=1,
        mean=16.0,
        std=55.0,
        kinds=('count', 'largest', 'sum', 'read'),
    )
    source = dict(name='digit_scenes', path=common.data_path('mnist'))
    config.data.train = source | dict(count=1_000_000)
    config.data.evals = dict(test=source | dict(split='test', count=3000, seed=1))
    config.batch_size = 32
    config.total_steps = 22_000
    config.optimizer.learning_rate = 4e-3
    config.optimizer.algorithm = dict(name='muon', ns_steps=3)
    config.optimizer.schedule = dict(name='linear', warmup_steps=100)
    if variant == 'tiny':
        config = common.tiny(config)
        tower = dict(num_layers=1, embed_dim=16, num_heads=2, mlp_dim=32, dtype='float32')
        config.model.image.update(tower)
        config.model.text.update(tower)
        config.batch_size = 16
    return config.lock()
