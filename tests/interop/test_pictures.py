"""What published models' files say of images, and what is written of them."""

import pytest

from bigmodels import errors
from bigmodels.interop import directories, pictures

SETTINGS = {'image_mean': [0.48, 0.46, 0.41], 'image_std': [0.27, 0.26, 0.28], 'size': 24}


def levels(values) -> tuple[float, ...]:
    return tuple(255 * value for value in values)


def test_the_part_of_a_processor_goes_before_a_file_of_images_alone(tmp_path, capsys):
    """As transformers 5 saves a CLIPProcessor, and as it reads it."""
    parts = {'image_processor': SETTINGS, 'processor_class': 'CLIPProcessor'}
    directories.write_json(tmp_path / pictures.PROCESSOR, parts)
    expected = {'image_size': 24, 'mean': levels(SETTINGS['image_mean'])}
    expected['std'] = levels(SETTINGS['image_std'])
    assert pictures.read(tmp_path, {}) == expected
    directories.write_json(tmp_path / pictures.FILE, {'image_mean': [0] * 3, 'image_std': [1] * 3})
    assert pictures.read(tmp_path, {}) == expected
    # Earlier versions wrote into it which class the processor is of, and no more.
    directories.write_json(tmp_path / pictures.PROCESSOR, {'processor_class': 'CLIPProcessor'})
    assert pictures.read(tmp_path, {}) == {'image_size': 224, 'mean': 0, 'std': 255}
    assert not capsys.readouterr().out
    odd = {'image_processor': SETTINGS | {'rescale_factor': 1 / 127.5}}
    directories.write_json(tmp_path / pictures.PROCESSOR, odd)
    with pytest.raises(errors.UserError, match=r'processor_config\.json does not divide grey'):
        pictures.read(tmp_path, {})


def test_what_no_file_says_of_grey_levels_is_told(tmp_path, capsys):
    assert pictures.read(tmp_path, {}) == {'image_size': 224, 'mean': 127.5, 'std': 127.5}
    said = capsys.readouterr().out
    assert said.startswith('WARNING: no preprocessor_config.json or processor_config.json in ')
    assert 'has image_mean, image_std: 0.5 is assumed' in said
    directories.write_json(tmp_path / pictures.FILE, {'do_normalize': False})
    assert pictures.read(tmp_path, {}) == {'image_size': 224, 'mean': 0, 'std': 255}
    assert not capsys.readouterr().out
