"""Captions of classes and of files, and what cannot be one."""

import pickle

import numpy as np
import pytest

from bigmodels import errors, experiment
from bigmodels.data.sources.caption_sources import Captioned, ImageTextFolder
from tests.data import image_files

CLASSES = ('cat', 'dog', 'toy {}')  # a name is put in as it is
TEMPLATES = ('a {}.', 'the {}!', 'one {} here')


@pytest.fixture
def archive(tmp_path):
    pictures = [image_files.smooth(i) for i in range(30)]
    image_files.write_npz(tmp_path / 'x.npz', pictures)
    return dict(name='jpeg_npz', path=str(tmp_path / 'x.npz'))


def test_a_caption_is_a_function_of_seed_and_index(archive):
    source = Captioned(archive, CLASSES, TEMPLATES, seed=3)
    again = pickle.loads(pickle.dumps(Captioned(archive, CLASSES, TEMPLATES, seed=3)))
    used = set()
    for i in reversed(range(30)):
        record, same = source[i], again[i]
        possible = [t.replace('{}', CLASSES[record['label']]) for t in TEMPLATES]
        assert record['caption'] == same['caption']
        used.add(possible.index(record['caption']))
        np.testing.assert_array_equal(record['image'], image_files.smooth(i))
    assert used == {0, 1, 2}
    assert source[-1]['caption'] == source[29]['caption']
    others = Captioned(archive, CLASSES, TEMPLATES, seed=4)
    assert [source[i]['caption'] for i in range(30)] != [others[i]['caption'] for i in range(30)]
    assert source.fingerprint() == again.fingerprint() != others.fingerprint()
    assert len(source) == 30
    assert '3 templates' in source.describe()


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(classes=('cat', ' ', 'toy')), r"classes\[1\] is ' '"),
        (dict(classes=('cat', 'cat', 'toy')), r"classes\[1\] is 'cat': .* of its own"),
        (dict(templates=()), 'templates must have at least one'),
        (dict(templates=('a {}', 'nothing')), r"templates\[1\] = 'nothing' must have one"),
        (dict(images=dict(name='jpeg')), r"images.name 'jpeg'. Did you mean"),
    ],
)
def test_what_cannot_make_captions_is_said_at_once(archive, fields, message):
    given = dict(images=archive, classes=CLASSES, templates=TEMPLATES) | fields
    with pytest.raises(errors.UserError, match=message):
        Captioned(**given)


def test_a_label_without_a_name_is_told_with_its_record(archive):
    source = Captioned(archive, CLASSES[:2])
    assert source[1]['caption'] == 'a photo of a dog.'
    with pytest.raises(errors.UserError, match='record 2 is of class 2: classes names 2'):
        source[2]
    with pytest.raises(errors.UserError, match="lacks 'kind'"):
        Captioned(archive, CLASSES, label_key='kind')[0]


def test_a_run_keeps_the_defaults_of_the_source_within(archive):
    one = dict(name='captioned', images=archive, classes=CLASSES)
    mixed = dict(name='mixture', sources=dict(a=one), weights=dict(a=1.0))
    data = dict(train=mixed, evals=dict(test=one))
    model = dict(name='mlp', num_classes=2, hidden_dims=(2,))
    algorithm, schedule = dict(name='adamw'), dict(name='constant')
    optimizer = dict(learning_rate=1e-3, algorithm=algorithm, schedule=schedule)
    plain = experiment.resolved(
        dict(data=data, model=model, task=dict(name='classification'), optimizer=optimizer,
             total_steps=1, batch_size=1)
    )  # fmt: skip
    for source in (plain['data']['train']['sources']['a'], plain['data']['evals']['test']):
        assert source['images'] == archive | dict(split='')
        assert source['templates'] == ['a photo of a {}.']
    assert archive.keys() == {'name', 'path'}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'pairs' / 'deep').mkdir(parents=True)
    for i, name in enumerate(('b.png', 'deep/a.jpg')):
        kind = 'PNG' if name.endswith('png') else 'JPEG'
        path = tmp_path / 'pairs' / name
        path.write_bytes(image_files.encoded(image_files.smooth(i), kind))
        path.with_suffix('.txt').write_text(f' Größe {i}\n')
    return tmp_path / 'pairs'


def test_a_folder_of_images_and_texts(folder):
    source = pickle.loads(pickle.dumps(ImageTextFolder(str(folder))))
    assert [source[i]['path'] for i in range(len(source))] == ['b.png', 'deep/a.jpg']
    assert source[1]['caption'] == 'Größe 1'
    np.testing.assert_array_equal(source[0]['image'], image_files.smooth(0))
    before = source.fingerprint()
    assert before == ImageTextFolder(str(folder)).fingerprint()
    (folder / 'b.txt').write_text('Größe 9')
    assert before != ImageTextFolder(str(folder)).fingerprint()


def test_what_is_wrong_in_a_folder_is_named(folder, tmp_path):
    for blank in (' \n', '\ufeff\n'):  # the latter a byte order mark
        (folder / 'b.txt').write_text(blank)
        with pytest.raises(errors.UserError, match=r'b\.txt \(record 0\) is empty'):
            ImageTextFolder(str(folder))[0]
    (folder / 'b.txt').write_bytes(b'\xff')
    with pytest.raises(errors.UserError, match=r'b\.txt \(record 0\) is not UTF-8'):
        ImageTextFolder(str(folder))[0]
    (folder / 'b.jpg').write_bytes(b'')
    with pytest.raises(errors.UserError, match=r'b\.txt is the caption of both'):
        ImageTextFolder(str(folder))
    (folder / 'b.txt').unlink()
    with pytest.raises(errors.UserError, match=r"has no caption: there is no file '.*b\.txt'"):
        ImageTextFolder(str(folder))
    with pytest.raises(errors.UserError, match='There is no folder'):
        ImageTextFolder(str(tmp_path / 'none'))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(errors.UserError, match='holds no .jpg'):
        ImageTextFolder(str(tmp_path / 'empty'))
