"""A Conformer transcribes strings of 2 to 7 spoken digits, by CTC with SpecAugment.

    pip install -e '.[speech]' && python -m bigmodels.main --config=configs/speech_ctc.py

Strings are put together as they are read: one speaker, random digits, random pauses; training has
the source's training recordings, the test 500 strings of the held-out ones. Each digit is a word
of the error rate. `wer` is of prefix search with beams, `greedy_wer` of the best path.

For read English: LibriSpeech or Common Voice as they are unpacked, by the sources `librispeech` and
`transcribed` (which says how), with task.tokenizer.characters empty, so that training's characters
are learnt, model.num_classes two more than these (for the end and the blank), and more max_tokens
and max_seconds.

Cost: two CPU cores, partly beside other work, 9.6 min.
Result: 2.39 % of the digits wrong with 8 beams, 2.44 % by the best path.
"""

from configs import common

VARIANTS = ('tiny',)


def get_config(variant: str = ''):
    """The default, or `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    config.model = dict(
        name='conformer',
        num_classes=13,
        num_layers=4,
        embed_dim=96,
        num_heads=4,
        pool='none',
        taps=15,
        subsampling_channels=32,
    )
    config.task = dict(
        name='transcription',
        tokenizer=dict(name='characters', characters=' 0123456789'),
        max_tokens=13,
        beams=8,
        sound=dict(sample_rate=8000, max_seconds=5.0, num_mels=40),
        augment=dict(
            speed=(0.9, 1.1),
            noise_decibels=(10.0, 50.0),
            time_masks=2,
            time_share=0.05,
            mel_masks=2,
            mel_width=6,
        ),
    )
    strings = dict(
        name='digit_strings', path=common.data_path('fsdd/fsdd_8khz.npz'), max_seconds=5.0
    )
    config.data.train = dict(strings, count=100_000)
    config.data.evals = dict(test=dict(strings, split='test', count=500, seed=1))
    config.batch_size = 32
    config.total_steps = 600
    config.optimizer.learning_rate = 1e-3
    if variant == 'tiny':
        config.model.update(num_layers=1, embed_dim=16, num_heads=2, subsampling_channels=4)
        config.batch_size = 8
        config.data.evals.test.count = 20
        config = common.tiny(config)
    return config.lock()
