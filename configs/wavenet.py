r"""A WaveNet that says the digits it is asked for, in the voice asked for: spoken digits at 8 kHz.

    python -m bigmodels.main --config=configs/wavenet.py
    echo '{"label": 3, "speaker": 1, "seed": 0}' | \
        python -m bigmodels.predict --workdir=runs/wavenet --input=- --pictures=said
    python experiments/sample_speech.py --workdir=runs/wavenet --judge=runs/speech_digits

Recordings and split are those of configs/speech_digits.py; `speaker` is from 0 to 5: george,
jackson, lucas, nicolas, theo, yweweler. An answer is a WAV file in the folder `said`, of 0.45 s,
near what the speakers take. `test/bits` is of whole recordings, in bits per sample.

Cost: one CPU core, 47 min beside other work, 2.1 GB.
Result: 3.66 bits a sample, and configs/speech_digits.py hears 80.0 % of 200 digits as those asked
for (experiments/results/wavenet.json, with their spectrograms beside it), which two cores make at
22,000 samples a second. Of 200 others, those of `--seed=1000`, by `--config.task.guidance=...`: at
1, as trained, 66.0 % are heard, at 1.5 72.0, at 2 76.5, at 2.5 72.5, at 3 64.0 and at 4 61.0 %; a
draw has a deviation of 3 points. Of 400 others (`--seed=2000 --count=400`) 78.3 % are heard; no
lower temperature or longer answer gave clearly more. A run before, which saw less of the ends of
recordings, had 85.0 and, of the others, 86.0 %, by the same bits a sample.
"""

from configs import common

VARIANTS = ('tiny',)


def get_config(variant: str = ''):
    """The default, or `tiny` for tests."""
    common.check_variant(variant, VARIANTS)
    config = common.get_config()
    config.model = dict(
        name='wavenet',
        num_classes=10,
        num_speakers=6,
        num_layers=16,
        cycle=8,
        embed_dim=32,
        skip_dim=64,
        dtype='bfloat16',
    )
    config.task = dict(
        name='sound_generation',
        sound=dict(sample_rate=8000, max_seconds=2.3),
        crop_samples=2048,
        seconds=0.45,
        label_dropout=0.1,
        guidance=2.0,
    )
    path = common.data_path('fsdd/fsdd_8khz.npz')
    config.data.train = dict(name='audio_npz', path=path)
    config.data.evals = dict(test=dict(name='audio_npz', path=path, split='test'))
    config.batch_size = 8
    config.total_steps = 10_000
    config.ema_decay = 0.998
    config.optimizer.learning_rate = 1e-2
    config.optimizer.algorithm = dict(name='muon', ns_steps=3)
    config.optimizer.schedule = dict(name='linear', warmup_steps=50)
    if variant == 'tiny':
        config.model.update(num_layers=4, cycle=3, embed_dim=8, skip_dim=8, dtype='float32')
        config.task.sound.max_seconds = 0.25
        config.task.update(crop_samples=1000, seconds=0.1)
        config.ema_decay = 0.9
        config = common.tiny(config)
    return config.lock()
