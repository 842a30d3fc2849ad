"""An encoder-decoder hears sound and writes its text (Whisper), from scratch or a published one.

    pip install -e '.[speech]' && python -m bigmodels.main --config=configs/speech_to_text.py

From scratch it learns strings of 2 to 7 spoken digits, as configs/speech_ctc.py does.

Cost and result: not measured yet.

A published model is tuned on 44 read sentences and evaluated on the same, a check and no result of
speech recognition; for one, name folders with wav/ and transcripts.csv by `data.train.path` and
`data.evals.learnt.path`. Recordings are filled up to 30 s, whose silence it hears.

    python -m bigmodels.interop.convert --from=hf://openai/whisper-tiny --to=runs/whisper
    python -m bigmodels.main --config=configs/speech_to_text.py:runs/whisper
    python -m bigmodels.predict --workdir=runs/speech_to_text_whisper --input=a.wav
    python -m bigmodels.interop.convert --from=runs/speech_to_text_whisper --to=published

Cost and result: not measured yet.
"""

import json
import pathlib

from configs import common

VARIANTS = ('tiny',)


def get_config(variant: str = ''):
    """The default, the directory of a run that `bigmodels.interop.convert` made, or `tiny`."""
    base = pathlib.Path(variant, 'config.json')
    if base.is_file():
        return tuned(variant, json.loads(base.read_text())).lock()
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    config.model = dict(
        name='encoder_decoder',
        vocab_size=12,
        num_layers=2,
        num_encoder_layers=4,
        embed_dim=96,
        num_heads=4,
        num_mels=80,
        positions='learned',
        max_length=16,
        max_source_length=250,
        dropout_rate=0.1,
    )
    config.task = dict(
        name='speech_to_text',
        tokenizer=dict(name='characters', characters=' 0123456789'),
        sound=dict(max_seconds=5.0),
        max_tokens=14,
        augment=dict(speed=(0.9, 1.1), time_masks=2, time_share=0.05, mel_masks=2, mel_width=12),
        score_names=('wer', 'cer'),
    )
    strings = dict(
        name='digit_strings',
        path=common.data_path('fsdd/fsdd_8khz.npz'),
        max_seconds=5.0,
        sample_rate=16_000,
    )
    config.data.train = dict(strings, count=100_000)
    config.data.evals = dict(test=dict(strings, split='test', count=500, seed=1))
    config.batch_size = 32
    config.total_steps = 3000
    if variant == 'tiny':
        config.model.update(num_layers=1, num_encoder_layers=1, embed_dim=16, num_heads=2)
        config.task.augment = dict()
        config.batch_size = 8
        config.data.evals.test.count = 20
        config = common.tiny(config)
    return config.lock()


def tuned(workdir: str, kept: dict):
    """The config of a run that begins with the parameters of another, of a published model."""
    config = common.get_config()
    config.model, config.task = kept['model'], kept['task']
    config.task.update(max_tokens=min(128, config.task.max_tokens), score_names=('wer', 'cer'))
    config.init_from = dict(workdir=workdir)
    sentences = dict(
        name='transcribed',
        path=common.data_path('speech_sentences/speech_sentences.zip'),
        sample_rate=16_000,
        keep=True,
    )
    config.data.train = sentences
    config.data.evals = dict(learnt=dict(sentences))
    config.batch_size = 8
    config.total_steps = 100
    config.log_every = 10
    config.optimizer.learning_rate = 1e-5
    config.optimizer.schedule = dict(name='linear', warmup_steps=10)
    config.optimizer.weight_decay = 0.0
    config.optimizer.freeze = ('^encoder/position_embed/',)  # sinusoids, as published
    return config
