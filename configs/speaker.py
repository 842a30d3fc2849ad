"""The model of configs/speech_digits.py hears who speaks: six speakers of the same recordings.

    python -m bigmodels.main --config=configs/speaker.py

The split is the source's own: the test has the speakers and digits of training in repetitions 0 to
4. Speed is not augmented, since a speaker's pitch is what tells.

For more speakers, such as VoxCeleb's: a folder of files for each, by data.train.name=wav_folder and
--config.task.label_key=label.

Cost: two CPU cores, 4.0 min.
Result: 97.0 % of the 300 held-out recordings right.
"""

from configs import speech_digits

VARIANTS = speech_digits.VARIANTS


def get_config(variant: str = ''):
    """The default, or `tiny` for tests."""
    config = speech_digits.get_config(variant).unlock()
    config.model.num_classes = 6
    config.task.label_key = 'speaker'
    config.task.augment.speed = (1.0, 1.0)
    return config.lock()
