"""Features of Whisper as transformers makes them, for a test that compares without it.

    python experiments/whisper_features.py

Needs the extra `parity`. Writes tests/interop/whisper_features.safetensors: a sound of 1.3 s and,
of it filled up to 30 s with silence and of it repeated until then, features in 80 and in 128 bands:
the frames FRAMES, and means over all frames.
"""

import measure
import numpy as np
import safetensors.numpy
import transformers

FILE = measure.ROOT / 'tests' / 'interop' / 'whisper_features.safetensors'
RATE, LENGTH = 16_000, 480_000
FRAMES = [*range(4), *range(126, 134), 1500, *range(2996, 3000)]  # sound, its ends, silence


def sound() -> np.ndarray:
    """A rising tone with a hiss, int16 [20800]."""
    time = np.arange(13 * RATE // 10) / RATE
    tone = np.sin(2 * np.pi * (200 + 2000 * time) * time) * np.exp(-2 * time)
    hiss = np.random.default_rng(0).normal(size=len(time))
    return (12_000 * tone + 300 * hiss).astype(np.int16)


def main() -> None:
    made = sound()
    full = np.float32(made) / 2**15
    recordings = [np.pad(full, (0, LENGTH - len(full))), np.resize(full, LENGTH)]
    kept = {'sound': made, 'frames': np.array(FRAMES)}
    for bands in (80, 128):
        extract = transformers.WhisperFeatureExtractor(feature_size=bands)
        features = extract(recordings, sampling_rate=RATE, return_tensors='np')['input_features']
        features = features.transpose(0, 2, 1)
        kept[f'features.{bands}'] = np.ascontiguousarray(features[:, FRAMES])
        kept[f'means.{bands}'] = features.mean(1)
    safetensors.numpy.save_file(kept, FILE)
    print(FILE, {name: x.shape for name, x in kept.items()})


if __name__ == '__main__':
    main()
