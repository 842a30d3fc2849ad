"""Image sources against the files they read; their contract is tested in test_sources.py."""

import gzip
import hashlib
import types

import numpy as np
import pytest

from bigmodels import errors, experiment
from bigmodels.data import pipeline
from bigmodels.data.sources import class_folders, image_sources, table_sources
from bigmodels.models.mlp import MLP
from bigmodels.tasks.classification import Classification
from tests.data.image_files import encoded, idx, smooth, write_folder, write_mnist, write_npz


def test_folder_has_a_class_for_each_sub_folder(tmp_path):
    written = write_folder(tmp_path, {'cat': 2, 'ant/wings': 3, 'dog': 1})
    (tmp_path / 'cat' / 'notes.txt').write_text('left out')
    (tmp_path / '.hidden').mkdir()
    source = image_sources.ImageFolder(str(tmp_path))
    records = [source[i] for i in range(len(source))]
    assert [record['path'] for record in records] == sorted(written)
    classes = {'ant': 0, 'cat': 1, 'dog': 2}
    for record in records:
        assert record['label'] == classes[record['path'].split('/')[0]]
        image = written[record['path']]
        largest = 0 if record['path'].endswith('png') else 4
        assert np.abs(record['image'].astype(int) - image).max() <= largest
    assert '6 files in 3 classes' in source.describe()
    assert '1 other files left out' in source.describe()


def test_classes_keep_their_labels_where_a_folder_lacks_some(tmp_path):
    write_folder(tmp_path, {'cat': 1, 'dog': 1})
    source = image_sources.ImageFolder(str(tmp_path), ('ant', 'dog', 'cat'))
    assert [source[i]['label'] for i in range(2)] == [2, 1]
    assert source.fingerprint() != image_sources.ImageFolder(str(tmp_path)).fingerprint()
    with pytest.raises(errors.UserError, match=r"class folder in .* 'dog'.*Allowed: ant, cat"):
        image_sources.ImageFolder(str(tmp_path), ('ant', 'cat'))


def test_a_held_out_folder_has_the_classes_of_training(tmp_path):
    write_folder(tmp_path / 'train', {'cat': 1, 'dog': 1, 'fox': 1})
    write_folder(tmp_path / 'valid', {'cat': 1, 'fox': 1})
    train = image_sources.ImageFolder(str(tmp_path / 'train'))
    valid = image_sources.ImageFolder(str(tmp_path / 'valid'))
    message = r'data\.evals\.valid has the classes cat, fox, where .* cat, dog, fox: labels would'
    with pytest.raises(errors.UserError, match=message):
        class_folders.check_same_classes(valid, 'config.data.evals.valid', [train])
    whole = image_sources.ImageFolder(str(tmp_path / 'valid'), classes=('cat', 'dog', 'fox'))
    class_folders.check_same_classes(whole, 'config.data.evals.valid', [train])
    class_folders.check_same_classes([], 'config.data.evals.valid', [train])  # has no names
    sections = {
        name: dict(name='image_folder', path=str(tmp_path / name)) for name in ('train', 'valid')
    }
    mixture = dict(name='mixture', sources=sections, weights=dict(train=1.0, valid=1.0))
    data = types.SimpleNamespace(train=mixture, evals={'valid': sections['valid']})
    settings = types.SimpleNamespace(data=data)
    with pytest.raises(errors.UserError, match=r'train\.sources\.valid has the classes cat, fox'):
        experiment.training_sources(settings)
    with pytest.raises(errors.UserError, match=r'data\.evals\.valid has the classes cat, fox'):
        experiment.evaluation_sets(settings, None, trained_on=[train])
    # Later, when the training data is not opened, a run knows the names.
    task = Classification(MLP(num_classes=3)).fit(pipeline.concatenated([train, whole]))
    assert task.postprocess(np.float32([0.2, 0.5, 0.3])) == {'label': 'dog', 'probability': 0.5}
    task.save(tmp_path)
    task = Classification(MLP(num_classes=3)).restored(tmp_path)
    with pytest.raises(errors.UserError, match=r'data\.evals\.valid has the classes cat, fox'):
        experiment.evaluation_sets(settings, task)
    changed = [(valid, 1.0)]
    with pytest.raises(
        errors.UserError, match=r'data\.train has the classes cat, fox, where .* dog'
    ):
        experiment.training_batches(settings, task, changed)
    with pytest.raises(errors.UserError, match=r'3 classes, cat, dog, fox, and .* is 2'):
        Classification(MLP(num_classes=2)).fit(train)
    unnamed = Classification(MLP(num_classes=3)).restored(tmp_path / 'train')
    assert unnamed.postprocess(np.float32([0.25, 0.75, 0])) == {'label': 1, 'probability': 0.75}


def test_folder_errors(tmp_path):
    with pytest.raises(errors.UserError, match='no folder'):
        image_sources.ImageFolder(str(tmp_path / 'absent'))
    with pytest.raises(errors.UserError, match='holds no folder: one for each class'):
        image_sources.ImageFolder(str(tmp_path))
    write_folder(tmp_path, {'cat': 2})
    source = image_sources.ImageFolder(str(tmp_path))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(errors.UserError, match=r'empty holds no \.jpg or \.jpeg or \.png file'):
        image_sources.ImageFolder(str(tmp_path))
    path = tmp_path / 'cat' / '0.png'
    data = path.read_bytes()
    path.write_bytes(data[:50] + bytes(len(data) - 50))
    with pytest.raises(errors.UserError, match=r'cat/0\.png \(record 0\) is not a whole'):
        source[0]
    path.write_bytes(data[:50])
    with pytest.raises(errors.UserError, match=r'cat/0\.png changed during the run'):
        source[0]
    (tmp_path / 'empty').rmdir()
    (tmp_path / 'cat' / '9.png').symlink_to(tmp_path / 'nowhere.png')
    with pytest.raises(errors.UserError, match=r'cat/9\.png cannot be read: No such file'):
        image_sources.ImageFolder(str(tmp_path))


def test_fingerprint_of_a_folder_is_of_its_content(tmp_path):
    write_folder(tmp_path / 'a', {'cat': 2, 'dog': 3})
    write_folder(tmp_path / 'b', {'cat': 2, 'dog': 3})
    first, second = (image_sources.ImageFolder(str(tmp_path / name)) for name in 'ab')
    assert first.fingerprint() == second.fingerprint()
    path = tmp_path / 'b' / 'dog' / '0.png'
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    assert first.fingerprint() != image_sources.ImageFolder(str(tmp_path / 'b')).fingerprint()


def test_jpeg_npz(tmp_path):
    images = [smooth(i, 8 + i, 9) for i in range(5)]
    write_npz(tmp_path / 'a.npz', images, 'test')
    source = image_sources.JpegNpz(str(tmp_path / 'a.npz'), 'test')
    for i, image in enumerate(images):
        np.testing.assert_array_equal(source[i]['image'], image)
        assert source[i]['label'] == i % 3
    with pytest.raises(errors.UserError, match=r"array in .* 'jpeg'.*Allowed: test_jpeg"):
        image_sources.JpegNpz(str(tmp_path / 'a.npz'))


def test_jpeg_npz_errors(tmp_path):
    data = np.frombuffer(encoded(smooth(0)), np.uint8)
    path = str(tmp_path / 'a.npz')
    size = len(data)
    for offsets in ([0], [0, size - 1], [1, size], [0, size, size], [0, size + 1, size]):
        np.savez(path, jpeg=data, offsets=offsets, label=np.zeros(1, int))
        with pytest.raises(errors.UserError, match=r'offsets must ascend from 0 to the \d+ bytes'):
            image_sources.JpegNpz(path)
    np.savez(path, jpeg=data, offsets=np.uint32([0, 60, 50, size]), label=np.zeros(3, int))
    with pytest.raises(errors.UserError, match='offsets must ascend'):
        image_sources.JpegNpz(path)
    np.savez(path, jpeg=data, offsets=[0, size + 0.0], label=np.zeros(1, int))
    with pytest.raises(errors.UserError, match=r'offsets is float64 \[2\], and must be a row of'):
        image_sources.JpegNpz(path)
    np.savez(path, jpeg=data, offsets=[0, 60, size], label=np.zeros(2, int))
    for read in (
        lambda: image_sources.JpegNpz(path)[0],
        lambda: image_sources.DecodedJpegNpz(path),
    ):
        with pytest.raises(errors.UserError, match=r'a\.npz, record 0 is not a whole JPEG or PNG'):
            read()


def test_decoded_jpeg_npz(tmp_path):
    images = [smooth(i) for i in range(5)]
    path = str(tmp_path / 'a.npz')
    write_npz(path, images, 'test')
    source = image_sources.DecodedJpegNpz(path, 'test')
    taken = source.take(np.array([4, 0]))
    np.testing.assert_array_equal(taken['image'], [images[4], images[0]])
    np.testing.assert_array_equal(taken['label'], [1, 0])
    assert source.fingerprint() == image_sources.JpegNpz(path, 'test').fingerprint()
    write_npz(path, [*images, smooth(5, 13)], 'test')
    with pytest.raises(errors.UserError, match=r'record 0 of \(12, 10, 3\) and record 5 of \(13,'):
        image_sources.DecodedJpegNpz(path, 'test')


def test_mnist_files(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (7, 28, 28), np.uint8), np.arange(7) % 4
    write_mnist(tmp_path, images, labels)
    source = image_sources.Mnist(str(tmp_path))
    np.testing.assert_array_equal(source.take(np.array([4, 2]))['image'], images[[4, 2]])
    assert [source[i]['label'] for i in range(7)] == labels.tolist()
    with pytest.raises(errors.UserError, match='no file .*t10k-images-idx3-ubyte'):
        image_sources.Mnist(str(tmp_path), 'test')
    write_mnist(tmp_path, images, labels[:-1])
    with pytest.raises(errors.UserError, match='do not belong together'):
        image_sources.Mnist(str(tmp_path))


def test_idx_errors(tmp_path):
    path = tmp_path / 'a'
    good = idx(np.arange(6).reshape(2, 3))
    for data, message in (
        (b'', 'is not an idx file'),
        (good[:7], 'is not an idx file'),
        (b'\0\0\x0d' + good[3:], 'is not an idx file of unsigned bytes'),
        (good[:-1], r'cut short or too long: it has 5 values and says \(2, 3\)'),
        (good + b'x', 'too long'),
    ):
        path.write_bytes(data)
        with pytest.raises(errors.UserError, match=message):
            image_sources.read_idx(str(path))
    path.write_bytes(good)
    np.testing.assert_array_equal(image_sources.read_idx(str(path)), [[0, 1, 2], [3, 4, 5]])
    (tmp_path / 'b.gz').write_bytes(gzip.compress(good)[:-9])
    with pytest.raises(errors.UserError, match=r'b\.gz is not a whole gzip file'):
        image_sources.read_idx(str(tmp_path / 'b.gz'))


@pytest.mark.shared_data
def test_shared_images(shared_data):
    """Against the counts and digests that the data's own description gives."""
    cifar = image_sources.JpegNpz(str(shared_data / 'cifar10' / 'cifar10_jpeg.npz'), 'test')
    assert len(cifar) == 10_000
    assert {cifar[i]['image'].shape for i in range(0, 10_000, 997)} == {(32, 32, 3)}
    labels = [int(cifar[i]['label']) for i in range(0, 10_000, 50)]
    assert set(labels) == set(range(10))
    mnist = image_sources.Mnist(str(shared_data / 'mnist'), 'test')
    counts = np.bincount(mnist.take(np.arange(10_000))['label'])
    assert counts.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    images = mnist.take(np.arange(10_000))['image']
    digest = hashlib.md5(idx(images)).hexdigest()
    assert digest == '2646ac647ad5339dbf082846283269ea'
    assert isinstance(mnist, table_sources.Columns)
