"""Sources of images with masks against what was written; their errors name file and record."""

import numpy as np
import pytest
from PIL import Image

from bigmodels import errors
from bigmodels.data import images
from bigmodels.data.sources import mask_sources
from tests.data import mask_files


def test_an_archive_is_read_by_splits(tmp_path):
    path = tmp_path / 'a.npz'
    mask_files.write_archive(path)
    pixels, masks = mask_files.scenes(24, 32, 32)
    parts = {'train': np.arange(24) % 4 > 0, 'test': np.arange(24) % 4 == 0, '': np.full(24, True)}
    prints = set()
    for split, kept in parts.items():
        source = mask_sources.MaskNpz(str(path), split, mask='instance')
        assert len(source) == kept.sum()
        for i, number in enumerate(np.flatnonzero(kept)):
            np.testing.assert_array_equal(source[i]['image'], pixels[number])
            np.testing.assert_array_equal(source[i]['mask'], masks[number])
        prints.add(source.fingerprint())
    assert len(prints) == 3
    with pytest.raises(errors.UserError, match=r"Unknown array in .*a\.npz 'mask'"):
        mask_sources.MaskNpz(str(path))
    with pytest.raises(errors.UserError, match=r"Unknown split of .* 'valid'.*test, train"):
        mask_sources.MaskNpz(str(path), 'valid', mask='instance')
    np.savez(path, image=pixels, mask=masks[:, 1:])
    with pytest.raises(errors.UserError, match=r'a\.npz: .*got \[24, 32, 32\] and \[24, 31, 32\]'):
        mask_sources.MaskNpz(str(path))


def test_folders_pair_images_with_masks_by_name(tmp_path):
    written = [mask_files.scenes(1, *size) for size in ((10, 14), (20, 8))]
    mask_files.write_folder(tmp_path, *zip(*((i[0], m[0]) for i, m in written), strict=True))
    (tmp_path / 'images' / '._0.png').write_bytes(b'what macOS leaves beside a file')
    source = mask_sources.MaskFolder(str(tmp_path))
    assert len(source) == 2
    for i, (image, mask) in enumerate(written):
        np.testing.assert_array_equal(source[i]['image'], np.repeat(image[0, ..., None], 3, -1))
        np.testing.assert_array_equal(source[i]['mask'], mask[0])
        assert source[i]['path'] == f'{i}.png'
    before = source.fingerprint()
    Image.fromarray(np.zeros((20, 9), np.uint8)).save(tmp_path / 'masks' / '1.png')
    message = r'masks/1\.png \(record 1\) has 20 x 9 pixels, its image 20 x 8'
    with pytest.raises(errors.UserError, match=message):
        source[1]
    assert mask_sources.MaskFolder(str(tmp_path)).fingerprint() != before
    (tmp_path / 'masks' / '1.png').unlink()
    with pytest.raises(errors.UserError, match=r'images/1\.png has no mask: .*masks/1\.png'):
        mask_sources.MaskFolder(str(tmp_path))
    with pytest.raises(errors.UserError, match='There is no folder .*nothing/images'):
        mask_sources.MaskFolder(str(tmp_path / 'nothing'))


def test_a_folder_s_fingerprint_is_of_its_content_wherever_it_lies(tmp_path):
    pixels, masks = mask_files.scenes(3, 12, 12)
    prints = {}
    for name in ('one', 'moved', 'other_image', 'other_mask', 'renamed'):
        mask_files.write_folder(tmp_path / name, pixels, masks)
        for folder in ('images', 'masks'):
            file = tmp_path / name / folder / '1.png'
            if name == f'other_{folder[:-1]}':  # of the same size
                data = bytearray(file.read_bytes())
                data[-13] ^= 1  # of the checksum before the last chunk
                file.write_bytes(data)
            elif name == 'renamed':
                file.rename(file.with_name('9.png'))
        prints[name] = mask_sources.MaskFolder(str(tmp_path / name)).fingerprint()
    assert prints.pop('moved') == prints['one']
    assert len(set(prints.values())) == 4


def test_masks_are_the_numbers_stored_and_nothing_else(tmp_path):
    numbers = np.arange(12, dtype=np.uint8).reshape(3, 4)
    palette = Image.fromarray(numbers)
    palette.putpalette([7] * 768)
    wide = Image.fromarray(numbers.astype(np.uint16) * 1000)
    path = tmp_path / 'a.png'
    for image, expected in ((palette, numbers), (wide, numbers * 1000.0)):
        image.save(path)
        found = images.decode_mask(path.read_bytes(), 'a.png')
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(errors.UserError, match=r'a\.png is not a whole'):
        images.decode_mask(path.read_bytes()[:-30], 'a.png')
    Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(path)
    with pytest.raises(errors.UserError, match=r'a\.png is a PNG image of mode RGB: a mask is'):
        images.decode_mask(path.read_bytes(), 'a.png')


@pytest.mark.shared_data
def test_shared_nuclei(shared_data):
    """Against the counts that the data's own description gives."""
    path = str(shared_data / 'nuclei' / 'nuclei_256.npz')
    sources = [mask_sources.MaskNpz(path, split, mask='instance') for split in ('train', 'test')]
    assert list(map(len, sources)) == [267, 67]
    masks = np.concatenate([source.take(np.arange(len(source)))['mask'] for source in sources])
    assert (masks > 0).mean() == pytest.approx(0.077, abs=5e-4)
    assert sum(len(np.unique(mask)) - 1 for mask in masks) == 9543
