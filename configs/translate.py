"""An encoder-decoder Transformer that translates English captions to German (Multi30k).

    pip install -e '.[text]' && python -m bigmodels.main --config=configs/translate.py

Cost: two CPU cores, 62 min, some of them beside other work, 2.1 GB; 5.0 M parameters, 17 epochs.
Result: 39.5 BLEU (sacrebleu, 13a) and 63.2 chrF on test_2016_flickr by 5 beams; 40.7 BLEU on the
validation pairs.

Data: line-aligned text, `multi30k/{train,val,test_2016_flickr}.{en,de}.gz` in $BIGMODELS_DATA. The
full-size version is `wmt14_translate/de-en` of TFDS, by the source `tfds`, with
task.source_field=en, task.target_field=de, greater lengths and a model of `num_layers=6,
embed_dim=512, num_heads=8`.
"""

from configs import common

SAMPLES = (
    'Two dogs are running through the snow.',
    'A young woman in a red dress is playing the violin on the street.',
    'Several children are sitting around a table and eating cake.',
)

VARIANTS = ('tiny',)


def get_config(variant: str = ''):
    """The default, or `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    config.model = dict(
        name='encoder_decoder',
        vocab_size=4000,
        num_layers=3,
        embed_dim=256,
        num_heads=4,
        mlp_dim=512,
        max_length=96,
        norm='rms_norm',
        activation='relu_squared',
        use_bias=False,
        dropout_rate=0.25,
        dtype='bfloat16',
    )
    config.task = dict(
        name='text_to_text',
        tokenizer=dict(name='bpe', vocab_size=4000),
        source_length=80,
        target_length=80,
        row_length=96,
        label_smoothing=0.1,
        beam_size=5,
        length_penalty=0.6,
        score_names=('bleu', 'chrf'),
        samples=SAMPLES,
    )
    config.data.train = pair('train')
    config.data.evals = dict(valid=pair('val'), test=pair('test_2016_flickr'))
    config.optimizer.learning_rate = 3e-3
    config.optimizer.algorithm = dict(name='muon', ns_steps=3)
    config.optimizer.schedule = dict(name='linear', warmup_steps=100)
    config.batch_size = 40
    config.total_steps = 2400  # 17 epochs
    if variant == 'tiny':
        config.model.update(vocab_size=300, num_layers=2, embed_dim=32, num_heads=2, max_length=512)
        config.model.update(dropout_rate=0.1, dtype='float32')
        config.task.update(source_length=256, target_length=256, row_length=512, beam_size=2)
        config.task.tokenizer.vocab_size = 300
        config.batch_size = 8
        config = common.tiny(config)
    return config.lock()


def pair(split: str) -> dict:
    """The source of a split: English and the same in German."""
    source, target = (common.data_path(f'multi30k/{split}.{end}.gz') for end in ('en', 'de'))
    return dict(name='parallel_text', source=source, target=target)
