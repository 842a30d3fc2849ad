"""A byte-level decoder Transformer on the Python standard library's own source.

    python -m bigmodels.main --config=configs/transformer.py

Cost: two CPU cores, 2 minutes (122 s with empty caches, first step after 6 s), 0.73 GB.
Result: 1.289 nats, 1.860 bits per byte on 19 held-out files, after 1.8 M bytes of training
(experiments/results/transformer.json, by experiments/benchmark_default.py).

Variants, as in `--config=configs/transformer.py:124m`: `tiny` for tests, the default, and the
shapes of published models on the same text, for accelerators: `124m` (GPT-2 small), `1b`, `8b`
(Llama 3 8B).
"""

from configs import common

# Small on purpose: many quick steps learn more in two minutes of CPU than few large ones.
SMALL = dict(
    num_layers=4,
    embed_dim=128,
    num_heads=4,
    max_length=512,
    sliding_window=128,  # the length trained on: what is sampled may be longer
    norm='rms_norm',
    activation='relu_squared',
    use_bias=False,
    tie_embeddings=False,
)
GPT2 = dict(
    num_layers=12,
    embed_dim=768,
    num_heads=12,
    max_length=1024,
    positions='learned',
    dtype='bfloat16',
)
LLAMA = dict(
    norm='rms_norm',
    activation='swiglu',
    use_bias=False,
    tie_embeddings=False,
    num_heads=32,
    num_kv_heads=8,
    dtype='bfloat16',
    scan_layers=True,
    remat='attention',
)
SHAPES = {
    '': SMALL,
    'tiny': SMALL | dict(num_layers=2, embed_dim=64),
    '124m': GPT2,
    '1b': LLAMA | dict(num_layers=16, embed_dim=2048, mlp_dim=8192, max_length=2048),
    '8b': LLAMA
    | dict(num_layers=32, embed_dim=4096, mlp_dim=14336, max_length=8192, rotary_theta=500_000.0),
}


def get_config(variant: str = ''):
    """The default, or one of SHAPES."""
    if variant not in SHAPES:
        raise ValueError(
            f'unknown variant {variant!r}; there are: {", ".join(filter(None, SHAPES))}'
        )
    config = common.get_config()
    config.model = dict(name='transformer', vocab_size=256, **SHAPES[variant])
    config.task = dict(name='language_modeling', tokenizer=dict(name='bytes'), sample_prompt='def ')
    config.data.train = dict(name='stdlib', split='train')
    config.data.evals = dict(valid=dict(name='stdlib', split='valid'))
    config.checkpoint.best_metric = 'valid/loss'
    if variant in ('', 'tiny'):
        config.task.sequence_length = 128
        config.batch_size = 8
        config.total_steps = 1800
        config.eval_every = 600
        config.optimizer.learning_rate = 4e-3
        config.optimizer.algorithm = dict(name='muon', ns_steps=3)
        config.optimizer.schedule = dict(name='linear', warmup_steps=50)
    else:
        config.task.sequence_length = config.model.max_length
        config.batch_size = 32
        config.total_steps = 2000
        config.optimizer.learning_rate = 6e-4
    if variant == 'tiny':
        config = common.tiny(config)
    return config.lock()
