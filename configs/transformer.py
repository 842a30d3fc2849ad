"""A byte-level decoder Transformer on the Python standard library's own source.

    python -m bigmodels.main --config=configs/transformer.py

Variants, as in `--config=configs/transformer.py:124m`: `tiny` for tests, the default, and the
shapes of published models on the same text: `124m` (GPT-2 small), `1b`, `8b` (Llama 3 8B). The
large ones are meant for accelerators.
"""

from configs import common

SHAPES = {
    '': dict(num_layers=4, embed_dim=256, num_heads=4, max_length=256),
    'tiny': dict(num_layers=2, embed_dim=64, num_heads=4, max_length=64),
    '124m': dict(
        num_layers=12,
        embed_dim=768,
        num_heads=12,
        max_length=1024,
        positions='learned',
        dtype='bfloat16',
    ),
    '1b': dict(
        num_layers=16,
        embed_dim=2048,
        num_heads=32,
        num_kv_heads=8,
        mlp_dim=8192,
        max_length=2048,
        dtype='bfloat16',
    ),
    '8b': dict(
        num_layers=32,
        embed_dim=4096,
        num_heads=32,
        num_kv_heads=8,
        mlp_dim=14336,
        max_length=8192,
        rotary_theta=500_000.0,
        dtype='bfloat16',
    ),
}
LLAMA = dict(
    norm='rms_norm',
    activation='swiglu',
    use_bias=False,
    tie_embeddings=False,
    scan_layers=True,
    remat='attention',
)


def get_config(variant: str = ''):
    """The default, or one of SHAPES."""
    if variant not in SHAPES:
        raise ValueError(
            f'unknown variant {variant!r}; there are: {", ".join(filter(None, SHAPES))}'
        )
    config = common.get_config()
    config.model = dict(name='transformer', vocab_size=256, **SHAPES[variant])
    config.task = dict(
        name='language_modeling',
        tokenizer=dict(name='bytes'),
        sequence_length=config.model.max_length,
        sample_prompt='def ',
    )
    config.data.train = dict(name='stdlib', split='train')
    config.data.evals = dict(valid=dict(name='stdlib', split='valid'))
    config.checkpoint.best_metric = 'valid/loss'
    config.batch_size = 16
    config.total_steps = 600
    if variant in ('1b', '8b'):
        config.model.update(LLAMA)
    if variant == 'tiny':
        config = common.tiny(config)
    return config.lock()
