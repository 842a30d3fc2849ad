"""TFDS without TensorFlow: preparing from local files, reading, and what can go wrong."""

import concurrent.futures
import contextlib
import functools
import gzip
import http.server
import pickle
import shutil
import sys
import threading

import numpy as np
import pytest

from bigmodels import config, errors
from bigmodels.data import SOURCES
from bigmodels.data.sources import tfds_source
from bigmodels.data.sources.tfds_source import Tfds


def write_idx(path, array):
    header = (0x800 + array.ndim).to_bytes(4, 'big')
    header += b''.join(size.to_bytes(4, 'big') for size in array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), 1))


def read_idx(path):
    data = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], 'big') for i in range(data[3])]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


@pytest.fixture(scope='module')
def prepared_twice(tmp_path_factory):
    """A data set of our own with text, text lists and numbers, as TFDS writes it."""
    import tensorflow_datasets as tfds

    class Sayings(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version('1.0.0')

        def _info(self):
            features = tfds.features
            return tfds.core.DatasetInfo(
                builder=self,
                features=features.FeaturesDict(
                    {
                        'text': features.Text(),
                        'words': features.Sequence(features.Text()),
                        'pair': features.Translation(['en', 'de']),
                        'turns': features.Sequence({'who': features.Text(), 'n': np.int64}),
                        'scores': features.Sequence(np.float32),
                        'key': features.Tensor(shape=(), dtype=np.object_),
                        'label': features.ClassLabel(num_classes=3),
                    }
                ),
            )

        def _split_generators(self, manager):
            return {'train': self._generate_examples()}

        def _generate_examples(self):
            for i in range(10):
                yield (
                    i,
                    {
                        'text': f'grüß {i}',
                        'words': ['ä'] * i,
                        'pair': {'en': 'yes', 'de': 'jä'},
                        'turns': [{'who': 'ü', 'n': 3}] * 2,
                        'scores': [0.5] * i,
                        'key': b'\xff',
                        'label': i % 3,
                    },
                )

    folders = [tmp_path_factory.mktemp('sayings') for _ in range(2)]
    for folder in folders:
        Sayings(data_dir=folder, file_format='array_record').download_and_prepare()
    return folders


@pytest.fixture(scope='module')
def prepared_text(prepared_twice):
    return prepared_twice[0]


def test_text_is_str_and_the_rest_numpy(prepared_twice):
    source, again = (Tfds('sayings', 'train[:80%]', data_dir=str(each)) for each in prepared_twice)
    assert len(source) == 8
    assert again.fingerprint() == source.fingerprint()
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint() == source.fingerprint()
    for i in range(8):
        record = source[i]
        number = int(record['text'].split()[1])
        assert record['text'] == f'grüß {number}'
        assert record['words'] == ['ä'] * number
        assert record['pair'] == {'en': 'yes', 'de': 'jä'}
        assert record['turns']['who'] == ['ü', 'ü']
        np.testing.assert_array_equal(record['turns']['n'], [3, 3])
        np.testing.assert_array_equal(record['scores'], np.full(number, 0.5, np.float32))
        assert record['key'] == b'\xff'
        assert record['label'] == number % 3
        assert isinstance(record['label'], np.int64)
        assert copy[i]['text'] == record['text']
    with pytest.raises(IndexError):
        source[8]
    other = Tfds('sayings', 'train', data_dir=str(prepared_twice[0]))
    assert other.fingerprint() != source.fingerprint()


def test_errors(prepared_text, tmp_path):
    with pytest.raises(errors.UserError, match=r"Unknown TFDS data set 'mnits'. .*'mnist'"):
        Tfds('mnits', 'train')
    with pytest.raises(errors.UserError, match=r"no such split 'valid'.*\['train'\]"):
        Tfds('sayings', 'valid', data_dir=str(prepared_text))
    for dataset in ('mnist', 'movielens/100k-ratings', 'glue/sst2', 'wmt14_translate/de-en'):
        with pytest.raises(errors.UserError, match=r'not prepared in .*Set download=True'):
            Tfds(dataset, 'train', data_dir=str(tmp_path))
    with pytest.raises(errors.UserError, match='is not a folder'):
        Tfds('mnist', 'train', data_dir=str(tmp_path), manual_dir=str(tmp_path / 'absent'))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(
        errors.UserError, match=r"images-idx3-ubyte.gz' is not in manual_dir.*Fetch"
    ):
        Tfds('mnist', 'train', data_dir=str(tmp_path), manual_dir=str(tmp_path / 'empty'))


def test_files_are_fetched_where_asked(tmp_path):
    import tensorflow_datasets as tfds

    (tmp_path / 'far').mkdir()
    (tmp_path / 'far' / 'words.txt').write_text('ja\nnein\n')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / 'far')
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    class Fetched(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version('1.0.0')
        file = 'words.txt'

        def _info(self):
            features = tfds.features.FeaturesDict({'text': tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            path = manager.download(f'http://127.0.0.1:{server.server_port}/{self.file}')
            return {'train': self._generate_examples(path)}

        def _generate_examples(self, path):
            for i, word in enumerate(path.read_text().split()):
                yield i, {'text': word}

    section = {'name': 'tfds', 'dataset': 'fetched', 'split': 'train'}
    with server, contextlib.ExitStack() as stack:
        stack.callback(server.shutdown)
        (tmp_path / 'empty').mkdir()
        local = section | {'data_dir': str(tmp_path / 'one'), 'manual_dir': str(tmp_path / 'empty')}
        with pytest.raises(errors.UserError, match=r"'words.txt' is not in manual_dir.*Fetch http"):
            config.choose(SOURCES, local, 'data')
        source = config.choose(SOURCES, local | {'download': True}, 'data')
        assert sorted(record['text'] for record in source) == ['ja', 'nein']
        assert [path.name for path in (tmp_path / 'empty').iterdir()] == ['words.txt']
        url, fetched = f'http://127.0.0.1:{server.server_port}/words.txt', tmp_path / 'words.txt'
        with tfds_source._fetched(url, fetched), tfds_source._fetched(url, fetched):
            pass  # twice at once
        assert fetched.read_text() == 'ja\nnein\n'
        Fetched.file = 'absent.txt'
        with pytest.raises(errors.UserError, match='absent.txt cannot be fetched: .*404'):
            config.choose(
                SOURCES, section | {'data_dir': str(tmp_path / 'two'), 'download': True}, 'data'
            )
    downloads = tmp_path / 'two' / 'downloads' / 'fetched'
    assert list(downloads.iterdir()) == []


def test_who_comes_while_a_data_set_is_prepared_waits_for_it(tmp_path):
    import tensorflow_datasets as tfds

    others = []

    def opened():
        return Tfds('slowly', 'train', data_dir=str(tmp_path), download=True)

    class Slowly(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version('1.0.0')

        def _info(self):
            features = tfds.features.FeaturesDict({'text': tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {'train': self._generate_examples()}

        def _generate_examples(self):
            assert not others, 'it is prepared twice'
            others.append(pool.submit(opened))
            with contextlib.suppress(concurrent.futures.TimeoutError):
                others[0].exception(timeout=0.5)  # so that it has come, and waits
            yield 0, {'text': 'ja'}

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        source = opened()
    assert source[0] == others[0].result()[0] == {'text': 'ja'}


def test_a_format_without_random_access_is_named(prepared_text, tmp_path):
    shutil.copytree(prepared_text / 'sayings', tmp_path / 'sayings')
    info = tmp_path / 'sayings' / '1.0.0' / 'dataset_info.json'
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    for shard in info.parent.glob('*.array_record*'):
        shard.rename(str(shard).replace('array_record', 'tfrecord'))
    with pytest.raises(errors.UserError, match='stored as tfrecord, which allows no random access'):
        Tfds('sayings', 'train', data_dir=str(tmp_path))


def test_wrong_files_are_refused_and_leave_nothing(tmp_path):
    raw = tmp_path / 'raw'
    raw.mkdir()
    for part, count in (('train', 60000), ('t10k', 10000)):
        write_idx(raw / f'{part}-images-idx3-ubyte.gz', np.zeros((count, 28, 28), np.uint8))
        write_idx(raw / f'{part}-labels-idx1-ubyte.gz', np.zeros(count, np.uint8))
    with pytest.raises(errors.UserError, match=r'wrong checksum(.|\n)*verify_checksums=False'):
        Tfds('mnist', 'train', data_dir=str(tmp_path / 'data'), manual_dir=str(raw))
    files = [path for path in (tmp_path / 'data').rglob('*') if path.is_file()]
    assert files == [tmp_path / 'data' / tfds_source._LOCK]


@pytest.mark.shared_data
@pytest.mark.slow
def test_real_mnist_is_prepared_and_read(shared_data, tmp_path):
    raw, data_dir = tmp_path / 'raw', tmp_path / 'data'
    shutil.copytree(shared_data / 'mnist', raw)
    section = {'name': 'tfds', 'dataset': 'mnist', 'data_dir': str(data_dir)}
    first = section | {'manual_dir': str(raw), 'verify_checksums': False}
    # Our files were compressed anew, so TFDS's registered checksums cannot hold.
    with pytest.raises(errors.UserError, match='wrong checksum'):
        config.choose(SOURCES, first | {'split': 'train', 'verify_checksums': True}, 'data')
    config.choose(SOURCES, first | {'split': 'train'}, 'data')
    # The scratch folder is gone.
    assert {path.name for path in data_dir.iterdir()} == {'mnist', tfds_source._LOCK}
    for split, part, count in (('train', 'train', 60_000), ('test', 't10k', 10_000)):
        source = config.choose(SOURCES, section | {'split': split}, 'data')
        images = read_idx(raw / f'{part}-images-idx3-ubyte.gz')
        labels = read_idx(raw / f'{part}-labels-idx1-ubyte.gz')
        assert len(source) == len(images) == count
        # TFDS shuffles when it writes: compare the whole as a multiset of (pixels, label).
        mine = sorted((record['image'].tobytes(), int(record['label'])) for record in source)
        assert mine == sorted((i.tobytes(), int(l)) for i, l in zip(images, labels, strict=True))
        assert source[0]['image'].shape == (28, 28, 1)
        assert pickle.loads(pickle.dumps(source))[7]['label'] == source[7]['label']
    assert 'tensorflow' not in sys.modules
    shutil.copytree(data_dir, tmp_path / 'elsewhere')
    elsewhere = section | {'split': 'test', 'data_dir': str(tmp_path / 'elsewhere')}
    assert config.choose(SOURCES, elsewhere, 'data').fingerprint() == source.fingerprint()
