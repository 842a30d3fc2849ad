"""Small files of sound, as the sources of speech read them."""

import io
import pathlib
import wave

import numpy as np

RATE = 8000


def wav(values: np.ndarray, width: int = 2, rate: int = RATE) -> bytes:
    """Integer samples [T] or [T, channels] as a PCM WAV file."""
    values = values if values.ndim == 2 else values[:, None]
    if width == 1:
        data = (values + 128).astype(np.uint8).tobytes()
    else:
        data = b''.join(int(v).to_bytes(width, 'little', signed=True) for v in values.ravel())
    buffer = io.BytesIO()
    with wave.open(buffer, 'wb') as file:
        file.setparams((values.shape[1], width, rate, len(values), 'NONE', ''))
        file.writeframes(data)
    return buffer.getvalue()


def tones(path: pathlib.Path, repetitions: int = 5) -> str:
    """An archive of ten digits by two speakers, each a tone of its own; the first is the test.

    A recording has 0.1 to 0.2 s; digit d is a tone of 300 (d + 1) Hz.
    """
    rng = np.random.default_rng(0)
    keys = [(d, s, r) for d in range(10) for s in range(2) for r in range(repetitions)]
    parts = []
    for digit, speaker, _ in keys:
        time = np.arange(rng.integers(800, 1600)) / RATE
        tone = np.sin(2 * np.pi * 300 * (digit + 1) * time) * (0.3 + 0.3 * speaker)
        parts.append((2**15 * (tone + 0.01 * rng.normal(size=len(time)))).astype(np.int16))
    labels, speakers, indices = np.array(keys, np.uint8).T
    np.savez(
        path,
        audio=np.concatenate(parts),
        offsets=np.cumsum([0, *map(len, parts)]),
        sample_rate=np.array([RATE]),
        is_test=indices == 0,
        label=labels,
        speaker=speakers,
    )
    return str(path)


def transcribed(folder: pathlib.Path, texts: list[str], rate: int = RATE) -> str:
    """A folder with transcripts.csv, file i a rising tone of i + 1 tenths of a second."""
    (folder / 'wav').mkdir(parents=True, exist_ok=True)
    rows = ['file,text']
    for i, text in enumerate(texts):
        time = np.arange((i + 1) * rate // 10) / rate
        tone = (9000 * np.sin(2 * np.pi * (400 + 4000 * time) * time)).astype(np.int16)
        (folder / 'wav' / f'{i}.wav').write_bytes(wav(tone, rate=rate))
        rows.append(f'{i}.wav,{text}')
    (folder / 'transcripts.csv').write_text('\n'.join(rows))
    return str(folder)
