"""A byte-level decoder Transformer on the Python standard library's own source.

    python -m bigmodels.main --config=configs/transformer.py

Cost: two CPU cores of 200 GFLOP/s, 2.8 minutes with empty caches (first step after 9 s), 1.1 GB.
Result: 1.290 nats, 1.862 bits per byte on 19 held-out files, after 1.8 M bytes of training
(experiments/results/transformer.json, by experiments/benchmark_default.py).

Variants, as in `--config=configs/transformer.py:124m`: `tiny` for tests, the default, `moe` (the
default with 8 experts, of which each token goes through two of half its width), and the shapes of
published models on the same text, for accelerators: `124m` (GPT-2 small), `8b`, `70b` and
`405b` (Llama 3), `1b` (as wide and deep as Llama 3.2's) and `8x7b` (Mixtral); docs/plans.md says
what these need. Their vocabulary of 256 bytes becomes the published one with a tokenizer of that
size; then
`--config.model.vocab_multiple=128` gives tensor cores whole tiles.

What a device holds of `8b` in training, per parameter: 4 bytes, its gradient 4, and Adam's moments
2 each, in bfloat16: 12 bytes, 96 GB for the published 8.03e9, so that one GPU of 141 GB trains it.
On one H200, with published vocabularies, logits in bfloat16 and other batches, `124m` trains on
490,000 tokens/s and `8b` at 51 % of the peak: experiments/benchmark_gpu.py has the fields that it
sets, experiments/results/gpu.md the results.
"""

from configs import common

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
    '124m': GPT2,
    '1b': LLAMA | dict(num_layers=16, embed_dim=2048, mlp_dim=8192, max_length=2048),
    '8b': LLAMA
    | dict(num_layers=32, embed_dim=4096, mlp_dim=14336, max_length=8192, rotary_theta=500_000.0),
    '70b': LLAMA
    | dict(num_layers=80, embed_dim=8192, mlp_dim=28672, max_length=8192, rotary_theta=500_000.0)
    | dict(num_heads=64),
    '405b': LLAMA
    | dict(num_layers=126, embed_dim=16384, mlp_dim=53248, max_length=8192, rotary_theta=500_000.0)
    | dict(num_heads=128),
    '8x7b': LLAMA
    | dict(num_layers=32, embed_dim=4096, mlp_dim=14336, max_length=8192, rotary_theta=1e6)
    | dict(moe=dict(num_experts=8, experts_per_token=2)),
}
VARIANTS = ('moe', *SHAPES, 'tiny')


def get_config(variant: str = ''):
    """The default, `tiny`, `moe`, or one of SHAPES."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    config.task = dict(name='language_modeling', tokenizer=dict(name='bytes'), sample_prompt='def ')
    config.data.train = dict(name='stdlib', split='train')
    config.data.evals = dict(valid=dict(name='stdlib', split='valid'))
    config.checkpoint.best_metric = 'valid/loss'
    if variant in SHAPES:
        config.model = dict(name='transformer', vocab_size=256, **SHAPES[variant])
        config.task.sequence_length = config.model.max_length
        config.batch_size = 32
        config.total_steps = 2000
        config.optimizer.learning_rate = 6e-4
        if variant == '8b':
            config.optimizer.algorithm.moment_dtype = 'bfloat16'
    else:
        # What is sampled may be longer than the 128 bytes trained on: hence the window.
        common.small_transformer(config, vocab_size=256, num_layers=4, sliding_window=128)
        config.task.sequence_length = 128
        config.batch_size = 8
        config.total_steps = 1800
        config.eval_every = 600
    if variant == 'moe':
        config.model.moe = dict(num_experts=8, experts_per_token=2, mlp_dim=256)
    if variant == 'tiny':
        config.model.update(num_layers=2, embed_dim=64)
        config = common.tiny(config)
    return config.lock()
