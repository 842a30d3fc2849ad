"""What data costs: every source and preprocessing step on one core, and the wait of each config.

    python experiments/benchmark_data.py [--configs=bert,detect] [--data=FOLDER] [--against=REF]

Per core: how many examples, tokens, pixels or seconds of sound one second of processor time
gives, by calls that are repeated for --seconds. Sources are read as a training run reads them, in
shuffled batches. Waiting: every config that needs no other run, nor files of one's own, trained by
the command, shorter; the share of the time between two lines of metrics that the loop waited for
its next batch. The first interval, in which the prefetching starts, is not counted. With --against
the same for the tree of a commit, in turns. Each result takes the place of its last one in
results/data.json and results/data.md. The data sets are those of the configs: in $BIGMODELS_DATA,
or in shared/data beside the checkout.
"""

import argparse
import contextlib
import functools
import itertools
import pathlib
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import measure
import numpy as np

from bigmodels import config, runs, writers
from bigmodels.data import SOURCES, audio, images, pipeline, text, tokenizers
from bigmodels.models.parts.log_mel import log_mel

BATCH = 64
LENGTH = 128  # tokens
# Config and steps: enough of them for INTERVALS lines of metrics, not for a result.
INTERVALS = 5
CONFIGS = {
    'digits_mlp': 1000,
    'shakespeare': 300,
    'transformer': 200,
    'transformer:moe': 150,
    'mnist_mlp': 1500,
    'mnist_lenet': 500,
    'cifar10_cnn': 500,
    'cifar10_resnet': 50,
    'cifar10_vit': 50,
    'alexnet': 25,
    'vgg': 15,
    'resnet50': 15,
    'efficientnet': 15,
    'diffusion': 50,
    'segment': 20,
    'detect': 20,
    'video': 50,
    'clip': 25,
    'sst2_lstm': 200,
    'bert': 50,
    'translate': 25,
    'speech_digits': 50,
    'speaker': 50,
    'speech_ctc': 25,
    'speech_sentences': 20,
    'recommend_sequence': 50,
    'recommend_retrieval': 300,
    'recommend_ranking': 500,
    'adult': 500,
    'credit_default': 500,
    'forecast': 50,
    'forecast:dlinear': 250,
    'graph': 50,
    'wavenet': 50,
    'vision_language': 50,
    'arithmetic': 200,
}
# The config without its held-out sets, whose evaluation takes longer than what is measured here.
UNEVALUATED = """from bigmodels import config

def get_config(variant=''):
    loaded = config.load('{}')
    with loaded.unlocked():
        loaded.data.evals = {{}}
        loaded.checkpoint.best_metric = ''
    return loaded
"""
Row = tuple[str, float, str]  # what, per second of one core, unit


def per_second(call: Callable[[int], Any], seconds: float) -> float:
    """Calls per second of processor time, of all threads; call(i) is the i-th."""
    call(0)
    count, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        count += 1
        call(count)
    return count / (time.process_time() - began)


def batches_of(examples, size: int = BATCH):
    """Shuffled batches, as of a training run."""
    return pipeline.training_batches([(examples, 1.0)], size, seed=0)


def source_rows(data: pathlib.Path, scratch: pathlib.Path, seconds: float) -> Iterator[Row]:
    """Examples per second through batches of each source."""
    with zipfile.ZipFile(data / 'bccd' / 'bccd_voc.zip') as archive:
        names = [name for name in archive.namelist() if name.endswith('.jpg')]
        for name in names[:64]:
            path = scratch / 'images' / 'blood' / pathlib.Path(name).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(name))
    sections = {
        'digits 8 x 8': dict(name='digits'),
        'mnist 28 x 28': dict(name='mnist', path=str(data / 'mnist')),
        'npz, nuclei 256 x 256': dict(name='npz', path=str(data / 'nuclei' / 'nuclei_256.npz')),
        'csv, adult, 15 columns': dict(name='csv', path=str(data / 'adult' / 'adult_train.csv.gz')),
        'jpeg_npz, cifar10 32 x 32': dict(
            name='jpeg_npz', path=str(data / 'cifar10' / 'cifar10_jpeg.npz'), split='train'
        ),
        'image_folder, 640 x 480': dict(name='image_folder', path=str(scratch / 'images')),
    }
    for name, section in sections.items():
        batches = batches_of(config.choose(SOURCES, section, 'source'))
        yield f'source {name}', BATCH * per_second(batches.__getitem__, seconds), 'examples'
    for rate in (8000, 16_000):
        section = dict(
            name='audio_npz', path=str(data / 'fsdd' / 'fsdd_8khz.npz'), sample_rate=rate
        )
        batches = batches_of(config.choose(SOURCES, section, 'source'), 1)  # of any length
        yield (
            f'source audio_npz, fsdd at {rate} Hz',
            per_second(batches.__getitem__, seconds),
            'examples',
        )
    novel = config.choose(
        SOURCES, dict(name='text_files', path=str(data / 'novels' / 'valid.txt.gz'),
                      split_documents='\n\n'), 'source'
    )  # fmt: skip
    corpus = text.tokenize_corpus(novel, tokenizers.Bytes(), scratch)
    for name, examples in (
        ('chunks', text.Chunks(corpus, LENGTH)), ('documents, packed', text.Packed(corpus, LENGTH))
    ):  # fmt: skip
        rate = per_second(batches_of(examples).__getitem__, seconds)
        yield f'text in {name} of {LENGTH}', BATCH * LENGTH * rate, 'tokens'


def image_rows(data: pathlib.Path, seconds: float) -> Iterator[Row]:
    """Images per second of decoding, resizing and cropping, for the sizes of ImageNet's."""
    with zipfile.ZipFile(data / 'bccd' / 'bccd_voc.zip') as archive:
        [name, *_] = (name for name in archive.namelist() if name.endswith('.jpg'))
        large = archive.read(name)
    cifar = np.load(data / 'cifar10' / 'cifar10_jpeg.npz')
    small = cifar['test_jpeg'][: cifar['test_offsets'][1]].tobytes()
    image = images.decode(large, name)
    for what, call in {
        'decode JPEG 32 x 32': lambda i: images.decode(small, name),
        'decode JPEG 640 x 480': lambda i: images.decode(large, name),
        'decode JPEG 640 x 480, at least 224': lambda i: images.decode(
            large, name, at_least=(224, 224)
        ),
        'resize 640 x 480 to 224 x 224': lambda i: images.resize(image, 224, 224),
        'middle of 640 x 480 as 224 x 224': lambda i: images.centre_crop(
            images.resize_shorter_side(image, 224), 224, 224
        ),
    }.items():
        yield what, per_second(call, seconds), 'images'


def text_and_sound_rows(data: pathlib.Path, seconds: float) -> Iterator[Row]:
    """Tokenising, resampling and log-mel features."""
    novel = (data / 'tinyshakespeare' / 'input.txt').read_text()
    part = novel[:100_000]
    for section in (dict(name='bytes'), dict(name='characters'), dict(name='bpe', vocab_size=1000)):
        tokenizer = tokenizers.fit(section, lambda: iter([novel]), 'tokenizer')
        rate = per_second(lambda i, t=tokenizer: t.encode(part), seconds)
        yield f'tokenise by {section["name"]}', len(tokenizer.encode(part)) * rate, 'tokens'
    second = np.random.default_rng(0).normal(size=16_000).astype(np.float32)
    rate = per_second(lambda i: audio.resample(second, 16_000, 8000), seconds)
    yield 'resample 16 to 8 kHz', rate, 'seconds of sound'
    features = jax.jit(functools.partial(log_mel, sample_rate=16_000))
    batch = np.tile(second, (16, 10))
    rate = per_second(lambda i: features(batch).block_until_ready(), seconds)
    yield 'log-mel, 80 bands of 16 kHz', batch.size / 16_000 * rate, 'seconds of sound'


def waiting(tree: pathlib.Path, name: str, steps: int, data: pathlib.Path) -> dict[str, float]:
    """Trains a config with the code of a tree, and reads how long its loop waited."""
    config_name, _, variant = name.partition(':')
    if name == 'shakespeare':
        variant = data / 'tinyshakespeare' / 'input.txt'
    with tempfile.TemporaryDirectory() as directory:
        workdir, unevaluated = pathlib.Path(directory, 'run'), pathlib.Path(directory, 'config.py')
        unevaluated.write_text(UNEVALUATED.format(f'configs/{config_name}.py:{variant}'))
        measure.train(
            str(unevaluated), workdir, pathlib.Path(directory, 'cache'),
            f'--config.total_steps={steps}', '--config.eval_every=0',
            f'--config.log_every={steps // INTERVALS}',
            '--config.optimizer.schedule.warmup_steps=1', tree=tree,
        )  # fmt: skip
        rows = writers.read_metrics(workdir / 'metrics.jsonl')
    rows = [row for row in rows if 'perf/data_wait' in row][1:]
    [rate] = (name for name in rows[0] if name.endswith('/s') and name.startswith('perf/'))
    return {
        f'{rate.removeprefix("perf/")}': round(statistics.median(row[rate] for row in rows)),
        'waiting_percent': round(100 * statistics.fmean(r['perf/data_wait'] for r in rows), 2),
        'largest_percent': round(100 * max(r['perf/data_wait'] for r in rows), 2),
    }


def place(result: dict) -> tuple[int, int, str]:
    """Of a config's waiting, or behind these of a rate, among the results."""
    if 'config' in result:
        return 0, list(CONFIGS).index(result['config']), result['tree']
    return 1, result['number'], ''


def table(results: list[dict]) -> str:
    """The results as Markdown: two tables."""
    shares = [
        (r['config'], r['tree'], f'{r["waiting_percent"]} %', f'{r["largest_percent"]} %')
        for r in results
        if 'config' in r
    ]
    rates = [(r['what'], f'{r["rate"]:,.0f} {r["unit"]}') for r in results if 'what' in r]
    tables = (
        [('config', 'tree', 'waiting for data', 'at most'), *shares],
        [('on one core', 'per second'), *rates],
    )
    return '\n\n'.join(map(measure.markdown, tables))


def main() -> None:
    """Measures, and keeps each result at once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--data', type=pathlib.Path, default=measure.data_path())
    parser.add_argument('--seconds', type=float, default=1.0)
    parser.add_argument('--configs', help="these, without the rates; '' for the rates alone")
    parser.add_argument('--against', metavar='REF', help='a commit, for the waiting')
    options = parser.parse_args()
    names = list(CONFIGS) if options.configs is None else options.configs.split(',')
    names = [name for name in names if name]
    if unknown := set(names) - set(CONFIGS):
        parser.error(f'unknown {", ".join(sorted(unknown))}; there are: {", ".join(CONFIGS)}')
    runs.configure_process()
    data, seconds = options.data.resolve(), options.seconds
    keep = functools.partial(measure.keep, 'data', place=place, table=table)
    with contextlib.ExitStack() as stack:
        trees = {'here': measure.ROOT}
        if options.against:
            other = stack.enter_context(measure.checkout(options.against))
            trees = {options.against: other} | trees
        for name in names:
            for label, tree in trees.items():
                waited = waiting(tree, name, CONFIGS[name], data)
                keep({'config': name, 'tree': label, **waited})
        if options.configs:
            return
        scratch = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rows = itertools.chain(
            source_rows(data, scratch, seconds),
            image_rows(data, seconds),
            text_and_sound_rows(data, seconds),
        )
        for number, (what, rate, unit) in enumerate(rows):
            keep({'number': number, 'what': what, 'rate': float(f'{rate:.3g}'), 'unit': unit})


if __name__ == '__main__':
    main()
