"""The encoder of configs/bert.py, fine-tuned on SST-2.

    pip install -e '.[text]' && python -m bigmodels.main --config=configs/bert.py
    python -m bigmodels.main --config=configs/sst2_bert.py
    python -m bigmodels.main --config=configs/sst2_bert.py:scratch

Cost: two CPU cores, 4 min, and 14 min for configs/bert.py.
Result: 79.3 % of the 1,821 test sentences right; 77.9 % by the variant `scratch`, the same network
and steps without pretraining; one seed each, and one standard error is 1 point.

The whole set by TFDS, with 67,349 phrases for training: see configs/sst2_lstm.py.

`--config.optimizer.layer_decay=0.8` lets layers near the input learn less, and
`--config.optimizer.freeze="('^encoder/',)"` trains the head alone.
"""

from configs import bert, common

VARIANTS = ('scratch', 'tiny')


def get_config(variant: str = ''):
    """The default, `scratch` (the same network without pretraining), or `tiny` for tests."""
    pretrained = bert.get_config(variant if variant == 'tiny' else '')
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    common.sst2(config)
    # Its tokens must be those of the pretrained embeddings.
    config.task.tokenizer = dict(name='hugging_face', path='runs/bert/preprocessing')
    encoder = {key: value for key, value in pretrained.model.items() if key != 'name'}
    config.model = dict(
        name='transformer_classifier', num_classes=2, encoder=encoder, dropout_rate=0.1
    )
    config.model.encoder.dropout_rate = 0.1
    config.init_from = dict(workdir='runs/bert', prefixes=(('encoder', ''),), new=('^head/',))
    config.optimizer.learning_rate = 5e-4
    config.batch_size = 32
    config.total_steps = 1000
    config.eval_every = 250
    if variant == 'scratch':
        config.init_from = dict()
    elif variant == 'tiny':
        config = common.tiny(config)
    return config.lock()
