"""What published models' files say of images, and what is written of them."""

import dataclasses

import numpy as np
import PIL.Image
import pytest

from bigmodels import errors, runs
from bigmodels.interop import convert, directories, pictures
from tests.interop import published

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


@pytest.fixture(scope='module')
def grey(tmp_path_factory):
    """A tiny model of grey images as a run, and what is written of it."""
    made, known = tmp_path_factory.mktemp('grey'), published.golden('vit_grey')
    directory = known.save(made / 'published')
    directories.write_json(directory / pictures.FILE, {'image_mean': [0.4], 'image_std': [0.3]})
    convert.to_run(str(directory), made / 'run')
    convert.to_directory(made / 'run', made / 'written')
    return runs.open_run(made / 'run'), made / 'written'


def test_a_grey_model_is_written_with_one_value_for_its_one_channel(grey, tmp_path):
    """A run whose images were never scaled is, by the size that it was trained on."""
    run, out = grey
    written = directories.read_json(out / pictures.FILE)
    np.testing.assert_allclose([*written['image_mean'], *written['image_std']], [0.4, 0.3])
    assert written['do_convert_rgb'] is False
    assert pictures.read(out, {}) == {'image_size': 12, 'mean': run.task.mean, 'std': run.task.std}
    unscaled = dataclasses.replace(run.task, image_size=0)
    pictures.write(tmp_path, unscaled, (28, 28, 3))
    written = directories.read_json(tmp_path / pictures.FILE)
    assert written['size'] == {'shortest_edge': 28}
    assert (len(written['image_mean']), written['do_convert_rgb']) == (3, True)


def test_transformers_prepares_grey_images_as_the_run_does(grey):
    transformers = pytest.importorskip('transformers')
    run, out = grey
    image = np.random.default_rng(0).integers(0, 256, (12, 12), np.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(out)
    [theirs] = processor(PIL.Image.fromarray(image), return_tensors='np')['pixel_values']
    ours = run.task.preprocess({'image': image[..., None]})['inputs']
    np.testing.assert_allclose(np.moveaxis(theirs, 0, -1), ours, atol=1e-5)
