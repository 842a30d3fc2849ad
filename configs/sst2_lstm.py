"""A bidirectional LSTM on SST-2: whether a sentence from a film review is positive.

    pip install -e '.[text]' && python -m bigmodels.main --config=configs/sst2_lstm.py
    python -m bigmodels.evaluate --workdir=runs/sst2_lstm --step=best

Cost: two CPU cores, 2.2 min, 0.8 M parameters.
Result: 80.2 % of the 1,821 test sentences right at the step that is best on dev, 79.4 % at the last
one. No word vectors, and whole sentences only, no phrases.

`--config.model.cell=gru` is the GRU. TFDS has the set with 67,349 phrases for training and a test
set without labels: `--config.data.train.name=tfds --config.data.train.dataset=glue/sst2
--config.data.train.split=train --config.task.text_field=sentence`, likewise both evaluation
sets, of split=validation: the labels of TFDS's test set are not given. IMDB's reviews likewise, but
with the field as it is: dataset=imdb_reviews, split='train[5000:]', for dev 'train[:5000]' (TFDS
has shuffled them), for test 'test', and --config.task.sequence_length=400.
"""

from configs import common

VARIANTS = ('tiny',)


def get_config(variant: str = ''):
    """The default, or `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
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
    config.checkpoint.best_metric = 'dev/accuracy'
    config.checkpoint.best_mode = 'max'
    if variant == 'tiny':
        config.model.update(embed_dim=16, hidden_dim=16)
        config = common.tiny(config)
    return config.lock()
