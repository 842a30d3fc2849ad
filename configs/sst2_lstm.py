"""A bidirectional LSTM on SST-2: whether a sentence of a film review is positive.

python -m bigmodels.main --config=configs/sst2_lstm.py
"""

from configs import common


def get_config(variant: str = ''):
    """The default, or `tiny` for tests."""
    config = common.get_config()
    common.sst2(config)
    config.task.update(tokenizer=dict(name='bpe', vocab_size=4096), token_dropout=0.2)
    config.model = dict(
        name='recurrent',
        num_classes=2,
        vocab_size=4096,
        embed_dim=128,
        hidden_dim=128,
        cell='lstm',
        dropout_rate=0.5,
    )
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.1
    config.ema_decay = 0.99
    config.batch_size = 64
    config.total_steps = 1000
    config.eval_every = 250
    if variant == 'tiny':
        config.model.update(embed_dim=16, hidden_dim=16)
        config = common.tiny(config)
    elif variant:
        raise ValueError(f'unknown variant {variant!r}; there is: tiny')
    return config.lock()
