"""An encoder-decoder Transformer that summarises: JSONL of {'text': ..., 'summary': ...}.

    pip install -e '.[text]' && python -m bigmodels.main --config=configs/summarize.py:FOLDER

FOLDER, by default `summaries` in $BIGMODELS_DATA, holds train.jsonl and test.jsonl; texts of more
than 512 tokens lose their end. The full-size version is `cnn_dailymail` of TFDS, by the source
`tfds`, with task.source_field=article and task.target_field=highlights.

Cost and result: not measured on a real set yet. ROUGE-1, 2 and L equal their published definition
on cases worked out by hand (tests/scores/test_text_scores.py).
"""

from configs import common


def get_config(folder: str = ''):
    """`folder` of the data, or `tiny` for tests."""
    tiny = folder == 'tiny'
    folder = common.data_path('summaries') if tiny else folder or common.data_path('summaries')
    config = common.get_config()
    common.small_transformer(config, vocab_size=8000, num_layers=3, embed_dim=256, mlp_dim=512)
    config.model.update(name='encoder_decoder', tie_embeddings=True, dropout_rate=0.2)
    config.task = dict(
        name='text_to_text',
        tokenizer=dict(name='bpe', vocab_size=8000),
        source_field='text',
        target_field='summary',
        source_length=512,
        target_length=64,
        cut_sources=True,
        row_length=512,
        label_smoothing=0.1,
        beam_size=4,
        score_names=('rouge1', 'rouge2', 'rouge_l'),
    )
    config.data.train = dict(name='jsonl', path=f'{folder}/train.jsonl')
    config.data.evals = dict(test=dict(name='jsonl', path=f'{folder}/test.jsonl'))
    config.batch_size = 16
    config.total_steps = 1000
    if tiny:
        config.model.update(vocab_size=300, num_layers=2, embed_dim=32, num_heads=2, mlp_dim=64)
        config.task.tokenizer.vocab_size = 300
        config.task.update(source_length=128, target_length=32, row_length=128)
        config = common.tiny(config)
    return config.lock()
