"""The model of `speech_digits.py` hears who speaks: six speakers of the same recordings.

    python -m bigmodels.main --config=configs/speaker.py

The split is the source's own, so that the test has the speakers and digits of training in other
repetitions. Its speed is not augmented: a speaker's pitch is what tells.

For more speakers: a folder of WAV files for each, by --config.data.train.name=wav_folder.

Cost and result: not measured at full length yet.
"""

from configs import speech_digits


def get_config(variant: str = ''):
    """The default, or `tiny` for tests."""
    config = speech_digits.get_config(variant).unlock()
    config.model.num_classes = 6
    config.task.label_key = 'speaker'
    config.task.augment.speed = (1.0, 1.0)
    return config.lock()
