"""Sources of images with boxes against what was written; their errors name file and record."""

import collections
import json
import pickle

import numpy as np
import pytest

from bigmodels import errors
from bigmodels.data.sources import box_sources
from tests.data import box_files


def same(source, scenes):
    assert len(source) == len(scenes)
    for i, scene in enumerate(scenes):
        np.testing.assert_array_equal(source[i]['image'], scene['image'])
        np.testing.assert_array_equal(source[i]['boxes'], scene['boxes'])
        assert source[i]['names'].tolist() == scene['names']


def test_folders_archives_and_json_files_hold_the_same(tmp_path):
    train, test = box_files.scenes(5), box_files.scenes(3, 60, 90, seed=1)
    box_files.write_voc(tmp_path / 'voc', {'train': train, 'test': test})
    box_files.write_zip(tmp_path / 'voc.zip', tmp_path / 'voc')
    file = box_files.write_coco(tmp_path / 'coco', train)
    prints = []
    for path in ('voc', 'voc.zip'):
        path = str(tmp_path / path)
        same(box_sources.PascalVoc(path, 'test'), test)
        source = pickle.loads(pickle.dumps(box_sources.PascalVoc(path, 'train')))
        same(source, train)
        prints.append(source.fingerprint())
    assert prints[0] == prints[1]
    source = box_sources.Coco(str(tmp_path / 'coco'), str(file))
    same(source, train)
    assert f'5 images, {sum(len(s["boxes"]) for s in train)} boxes' in source.describe()
    assert box_sources.PascalVoc(str(tmp_path / 'voc'), 'test').fingerprint() != prints[0]


def test_boxes_of_a_pixel_are_an_error_or_left_out_and_counted(tmp_path):
    [scene] = box_files.scenes(1)
    scene['boxes'].append([5, 5, 5, 9])
    scene['names'].append('WBC')
    box_files.write_voc(tmp_path, {'train': [scene]})
    count = len(scene['boxes'])
    first = tmp_path / 'Annotations' / 'train_0.xml'
    first.write_text(first.read_text().replace('<difficult>0', '<difficult>1', 1))
    message = rf'train_0\.xml, box {count - 1} \(WBC\): \[5.0, 5.0, 5.0, 9.0\].* is at most a pixel'
    with pytest.raises(errors.UserError, match=message):
        box_sources.PascalVoc(str(tmp_path), 'train')
    source = box_sources.PascalVoc(str(tmp_path), 'train', drop_empty=True)
    assert len(source[0]['boxes']) == len(source[0]['names']) == count - 1
    assert source[0]['ignored'].tolist() == [True] + [False] * (count - 2)
    assert '1 of a pixel left out' in source.describe()


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('<xmax>', '<xmax>9', r'train_0\.xml, box 0 .* is not inside the 80 x 60 image'),
        ('<xmin>', '<xmin>-', r'train_0\.xml, box 0 .* is not inside the 80 x 60 image'),
        ('<xmin>1', '<xmin>4', r'box 0 \(RBC\): .* right or bottom comes first'),
        ('<ymin>', '<ymin>x', r'train_0\.xml is no annotation of Pascal VOC'),
        ('<name>', '<nome>', r'train_0\.xml is no annotation'),
        ('</annotation>', '', r'train_0\.xml is no annotation'),
        ('<width>80', '<width>81', r'train_0\.jpg \(record 0\) has 80 x 60 .* says 81 x 60'),
    ],
)
def test_what_is_wrong_with_an_annotation_is_said(old, new, message, tmp_path):
    scene = dict(box_files.scenes(1)[0], boxes=[[10, 12, 30, 28]], names=['RBC'])
    box_files.write_voc(tmp_path, {'train': [scene]})
    file = tmp_path / 'Annotations' / 'train_0.xml'
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(errors.UserError, match=message):
        box_sources.PascalVoc(str(tmp_path), 'train')[0]


def test_what_is_wrong_with_a_json_file_is_said(tmp_path):
    file = box_files.write_coco(tmp_path / 'coco', box_files.scenes(2))
    good = json.loads(file.read_text())
    cases = (
        ({'categories': []}, r'coco\.json, annotation 0: there is no image 7 or no category'),
        ({'images': good['images'][1:]}, r'annotation 0: there is no image 7'),
        ({'images': [{}]}, r"coco\.json is not a JSON file .*KeyError\('id'\)"),
        ({'images': 2 * good['images']}, r'coco\.json: several images have the same id'),
        ({'annotations': [good['annotations'][0] | {'bbox': [1, 2]}]}, 'annotation 0: its bbox'),
        ({'annotations': [good['annotations'][0] | {'bbox': [*'1234']}]}, 'annotation 0: its bbox'),
        ({'annotations': [7]}, 'is not a JSON file .*AttributeError'),
    )
    for change, message in cases:
        file.write_text(json.dumps(good | change))
        with pytest.raises(errors.UserError, match=message):
            box_sources.Coco(str(tmp_path / 'coco'), str(file))
    good['annotations'][0]['iscrowd'] = 1
    file.write_text(json.dumps(good))
    source = box_sources.Coco(str(tmp_path / 'coco'), str(file))
    assert sum(len(source[i]['boxes']) for i in range(2)) == len(good['annotations'])
    assert [source[i]['ignored'].sum() for i in range(2)] == [1, 0]
    good['annotations'][0] |= {'iscrowd': 0, 'bbox': [70, 5, 20, 5]}
    file.write_text(json.dumps(good))
    with pytest.raises(errors.UserError, match=r'coco\.json, image 7 \(0\.png\), box 0.*inside'):
        box_sources.Coco(str(tmp_path / 'coco'), str(file))


def test_missing_files_are_named(tmp_path):
    box_files.write_voc(tmp_path / 'voc', {'train': box_files.scenes(1)})
    with pytest.raises(errors.UserError, match=r'Main/valid\.txt'):
        box_sources.PascalVoc(str(tmp_path / 'voc'), 'valid')
    (tmp_path / 'bad.zip').write_text('no archive')
    with pytest.raises(errors.UserError, match=r'bad\.zip is no whole zip archive'):
        box_sources.PascalVoc(str(tmp_path / 'bad.zip'), 'train')


@pytest.mark.shared_data
def test_shared_blood_cells(shared_data):
    """Against the counts that the data's own description gives; the two empty boxes are RBC."""
    path = str(shared_data / 'bccd' / 'bccd_voc.zip')
    with pytest.raises(errors.UserError, match=r'BloodImage_003(38|43)\.xml, box .* a pixel'):
        [box_sources.PascalVoc(path, split) for split in ('train', 'val', 'test')]
    expected = {'train': (205, 214, 209), 'val': (87, 87, 83), 'test': (72, 71, 69)}
    red = 0
    for split, (count, white, platelets) in expected.items():
        source = box_sources.PascalVoc(path, split, drop_empty=True)
        names = collections.Counter(name for r in source._records for name in r.names)
        assert (len(source), names['WBC'], names['Platelets']) == (count, white, platelets)
        assert source[0]['image'].shape == (480, 640, 3)
        red += names['RBC']
    assert red == 2382 + 968 + 805 - 2
