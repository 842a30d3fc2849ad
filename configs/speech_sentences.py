r"""A Conformer learns 44 read sentences by heart, in characters: a check of variable lengths.

    pip install -e '.[speech]' && python -m bigmodels.main --config=configs/speech_sentences.py

Recordings of 1.5 to 11.7 s of LJSpeech, LibriSpeech and LibriVox at 16 and 22 kHz, resampled to
16 kHz. They are evaluated on themselves: this is no result of speech recognition.

For one, LibriSpeech as it is unpacked, or any set with a table of transcripts, such as Common Voice
(`--config.data.train.name=transcribed`, whose fields say where its files are):

    --config.data.train.name=librispeech --config.data.train.path=LibriSpeech/train-clean-100 \
    --config.data.evals.learnt.name=librispeech \
    --config.data.evals.learnt.path=LibriSpeech/dev-clean --config.model.num_classes=30 \
    --config.task.sound.max_seconds=36.0 --config.task.max_tokens=640 \
    --config.model.dropout_rate=0.1 --config.total_steps=100000

Cost: two CPU cores, 6.7 min beside other work.
Result: no error in the 44 sentences (CER and WER 0).
"""

from configs import common

VARIANTS = ('tiny',)


def get_config(variant: str = ''):
    """The default, or `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    config.model = dict(
        name='conformer',
        num_classes=50,
        num_layers=4,
        embed_dim=128,
        num_heads=4,
        pool='none',
        taps=15,
        dropout_rate=0.0,
    )
    config.task = dict(
        name='transcription',
        tokenizer=dict(name='characters'),
        max_tokens=192,
        sound=dict(sample_rate=16_000, max_seconds=11.8, num_mels=64),
    )
    sentences = dict(
        name='transcribed',
        path=common.data_path('speech_sentences/speech_sentences.zip'),
        sample_rate=16_000,
        text_column='normalised_text',
        keep=True,
    )
    config.data.train = sentences
    config.data.evals = dict(learnt=dict(sentences))
    config.batch_size = 11
    config.total_steps = 240
    config.log_every = 20
    config.checkpoint.every = 120
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule.warmup_steps = 50
    config.optimizer.weight_decay = 0.0
    if variant == 'tiny':
        config.model.update(num_layers=1, embed_dim=16, num_heads=2, subsampling_channels=4)
        config.batch_size = 8
        config = common.tiny(config)
    return config.lock()
