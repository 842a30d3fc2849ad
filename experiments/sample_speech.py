"""Digits that a WaveNet says, and how many of them a classifier hears as asked.

    python experiments/sample_speech.py --workdir=runs/wavenet --judge=runs/speech_digits

`--config.task.guidance=2.0` is for this time, as are `temperature` and `seconds`.
Writes the figures as results/wavenet.json, and as results/wavenet.png the spectrograms of ten
digits by each of six speakers, a row each.
"""

import argparse
import pathlib
import time

import jax
import measure
import numpy as np
from PIL import Image
from sample_digits import grid

from bigmodels import config, runs
from bigmodels.data import audio, pipeline


def recordings(run: runs.Run, labels: np.ndarray, seed: int) -> tuple[list[audio.Sound], float]:
    """Recordings of classes int [N] by speakers in turns, and the seconds that making them took.

    seed: of the first; the next ones follow.
    """
    num_classes = run.model.num_classes
    batch = {
        'targets': labels.astype(np.int32),
        'speakers': np.int32(np.arange(len(labels)) // num_classes % run.model.num_speakers),
        'seeds': np.arange(seed, seed + len(labels), dtype=np.uint32),
    }
    arguments = run.params, run.model_state, batch
    predict = jax.jit(run.task.predict).lower(*arguments).compile()
    began = time.perf_counter()
    codes = jax.device_get(predict(*arguments))
    seconds = time.perf_counter() - began
    return [run.task.postprocess(row)['sound'] for row in codes], seconds


def heard(judge: runs.Run, sounds: list[audio.Sound]) -> tuple[np.ndarray, np.ndarray]:
    """What a run of a classifier hears, int [N], and the features [N, L, M] that it hears."""
    batch = pipeline.stacked(
        [judge.task.preprocess({'audio': s.samples, 'sample_rate': s.rate}) for s in sounds]
    )
    found = jax.jit(judge.task.predict)(judge.params, judge.model_state, batch)
    features, lengths = judge.task.front_end.features(batch['inputs'], batch['lengths'])
    return np.asarray(found).argmax(1), np.asarray(features[:, : int(lengths.max())])


def spectrograms(features: np.ndarray) -> np.ndarray:
    """Features [N, L, M] as pictures uint8 [N, M, L], low bands below."""
    shades = np.clip((features + 2) / 4, 0, 1)
    return np.uint8(255 * shades.transpose(0, 2, 1)[:, ::-1])


def main() -> None:
    """Says, hears, and writes both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--workdir', required=True, help='a run of configs/wavenet.py')
    parser.add_argument('--judge', required=True, help='a run of configs/speech_digits.py')
    parser.add_argument('--count', type=int, default=200, help='recordings, all at once')
    parser.add_argument('--seed', type=int, default=0, help='of the first; the next ones follow')
    parser.add_argument('--keep', type=pathlib.Path, help='a folder for the WAV files')
    arguments, overrides = config.parse_arguments(parser, None)
    runs.configure_process()
    run = runs.open_run(arguments.workdir, overrides=overrides)
    judge = runs.open_run(arguments.judge)
    num_classes = run.model.num_classes
    labels = np.arange(arguments.count) % num_classes
    sounds, seconds = recordings(run, labels, arguments.seed)
    found, features = heard(judge, sounds)
    right = found == labels
    measure.write(
        'wavenet',
        {
            'recordings': len(labels),
            'guidance': run.task.guidance,
            'first_seed': arguments.seed,
            'as_asked': float(right.mean()),
            'by_class': [float(right[labels == c].mean()) for c in range(num_classes)],
            'seconds': round(seconds, 2),
            'samples_per_second': round(run.task.num_made * len(labels) / seconds),
        },
    )
    shown = spectrograms(features[: num_classes * run.model.num_speakers])
    Image.fromarray(grid(shown, num_classes)).save(measure.RESULTS / 'wavenet.png')
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        for i, (label, sound) in enumerate(zip(labels, sounds, strict=True)):
            file = arguments.keep / f'{i:03d}_{label}.wav'
            file.write_bytes(audio.encode_wav(sound))


if __name__ == '__main__':
    main()
