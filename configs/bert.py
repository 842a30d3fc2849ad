"""A small BERT: masked language modelling on English novels.

    pip install -e '.[text]' && python -m bigmodels.main --config=configs/bert.py

Cost: two CPU cores, 14 min beside other work; 4,096 tokens a step, 1.8 M parameters.
Result: 4.47 nats a hidden token of the held-out novels, 24.6 % of them right, by a vocabulary of
8,192; the sample has "a very little evening, and she was so sure that she began to cry".

    echo 'she was a [MASK] little girl.' | python -m bigmodels.predict --workdir=runs/bert --input=-

configs/sst2_bert.py fine-tunes it. The published BERT's data are Wikipedia and books: with TFDS
`--config.data.train.name=tfds --config.data.train.dataset=wikipedia/20230601.en
--config.data.train.split=train`, prepared as docs/data.md says, and
`--config.task.packing=documents`.
"""

from configs import common

VARIANTS = ('tiny',)


def get_config(variant: str = ''):
    """The default, or `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    common.small_transformer(
        config,
        vocab_size=8192 + 1,  # the tokenizer's and the mask
        num_layers=4,
        embed_dim=128,
        num_heads=2,
        max_length=128,
        causal=False,
        tie_embeddings=True,
    )
    config.task = dict(
        name='masked_language_modeling',
        tokenizer=dict(name='bpe', vocab_size=8192),
        sequence_length=64,
        mask_rate=0.25,
        append_end_of_text=False,
        sample_text='It was a very [MASK] evening, and she was so [MASK] that she began to cry.',
    )
    config.data.train = dict(name='text_files', path=common.data_path('novels/train.txt.gz'))
    config.data.evals = dict(
        valid=dict(name='text_files', path=common.data_path('novels/valid.txt.gz'))
    )
    config.batch_size = 64
    config.total_steps = 1500
    config.eval_every = 500
    config.checkpoint.every = 500
    if variant == 'tiny':
        config.model.update(num_layers=2, embed_dim=32, num_heads=2, vocab_size=512)
        config.task.tokenizer.vocab_size = 400
        config = common.tiny(config)
    return config.lock()
