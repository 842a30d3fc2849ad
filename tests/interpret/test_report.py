"""The page has every record, its answer and its maps, and asks for nothing from outside."""

import html.parser
import re

import numpy as np
import pytest
from PIL import Image

from bigmodels import config, errors, runs, train
from bigmodels.interpret import __main__ as command
from bigmodels.interpret import explanations, report
from bigmodels.models.mlp import MLP
from bigmodels.tasks.node_classification import NodeClassification
from tests import commands
from tests.tasks import table_files


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('explained')


@pytest.fixture(scope='module')
def images(folder):
    """A run of a few steps of a small convolutional network, and two pictures."""
    overrides = ['model.name=convnet', 'model.num_classes=10', 'model.stages=((4,),(4,))']
    path = str(commands.ROOT / 'configs/digits_mlp.py:tiny')
    train.train(config.load(path, overrides), folder / 'digits')
    (folder / 'pictures').mkdir()
    for seed, name in enumerate(('a.png', 'b <i>.png')):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(folder / 'pictures' / name)
    return folder / 'digits'


class Tags(html.parser.HTMLParser):
    """Counts the tags of a page, and keeps the addresses that it names."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.links, self.open = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for key, value in attributes if key in ('src', 'href')]
        if tag not in ('meta', 'link', 'img', '!doctype'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(capsys, workdir, given, to, **options):
    said = commands.printed(command, capsys, workdir=workdir, input=given, to=to, **options)
    page = to.read_text()
    tags = Tags(page)
    assert not tags.open
    assert all(link.startswith('data:') for link in tags.links)
    assert 'http' not in page
    assert '<script' not in page
    return said, page, tags.tags


def test_images(images, folder, capsys):
    methods = 'integrated_gradients,grad_cam,occlusion'
    said, page, tags = page_of(
        capsys, images, folder / 'pictures', folder / 'a.html', method=methods, records=1
    )
    assert said.startswith('1 records')
    assert '1 more were left out' in said
    assert (tags.count('article'), tags.count('img')) == (1, 4)
    assert 'ConvNet, 10 classes' in page
    _, page, tags = page_of(
        capsys, images, folder / 'pictures', folder / 'a.html', method='gradient',
        )  # fmt: skip
    assert (tags.count('article'), tags.count('img')) == (2, 4)
    assert 'b &lt;i&gt;.png' in page
    run = runs.open_run(images)
    pixels = np.asarray(Image.open(folder / 'pictures' / 'a.png').convert('RGB'))
    found = list(explanations.explain(run, [('one', {'image': pixels})], ['integrated_gradients']))
    [one] = found
    label, probability = one.likely[0]
    assert one.answer['label'] == int(label)
    assert one.answer['probability'] == pytest.approx(probability)
    assert one.maps['integrated_gradients'].shape == one.shown.shape[:2]


def test_a_table(folder, capsys, monkeypatch):
    table_files.write_adult(folder)
    monkeypatch.setenv('BIGMODELS_DATA', str(folder))
    path = str(commands.ROOT / 'configs/adult.py:tiny')
    train.train(config.load(path, ['model.num_features=4', 'batch_size=64']), folder / 'adult_run')
    given = folder / 'adult' / 'adult_test.csv.gz'
    _, page, _ = page_of(
        capsys, folder / 'adult_run', given, folder / 'b.html', records=2,
        method='integrated_gradients,occlusion',
    )  # fmt: skip
    [first] = table_files.rows(1, 1)
    assert page.count(f'age = {first[0]}') == 2
    assert page.count('class="bars"') == 4
    with pytest.raises(errors.UserError, match='no layer of places for Grad-CAM'):
        commands.printed(command, capsys, workdir=folder / 'adult_run', input=given,
                         to=folder / 'b.html', method='grad_cam')  # fmt: skip


@pytest.mark.slow
def test_a_language_model(folder, capsys):
    train.train(commands.tiny_text_config(folder), folder / 'text')
    (folder / 'lines.txt').write_text('import <os>\n')
    _, page, tags = page_of(
        capsys, folder / 'text', folder / 'lines.txt', folder / 'c.html',
        method='input_x_gradient,occlusion,attention_rollout',
    )  # fmt: skip
    assert tags.count('table') == 1
    assert page.count('>layer ') == 2
    assert page.count('class="text"') == 3
    texts = re.findall(r'class="text">(.*?)</div>', page)
    assert {re.sub(r'<[^>]*>', '', text) for text in texts} == {'import &lt;os&gt;'}


def test_what_cannot_be_explained_is_told(images, folder, capsys):
    ask = dict(workdir=images, input=folder / 'pictures', to=folder / 'd.html')
    for options, message in [
        (dict(method='gradients'), "method 'gradients'. Did you mean 'gradient'"),
        (dict(method=''), 'Allowed: '),
        (dict(records=0), 'records=0 must be at least 1'),
        (dict(method='grad_cam', layer='conv_7'), "a.png: .*path 'conv_7'"),
        (dict(method='grad_cam', layer='head'), r"Grad-CAM of 'head'|of one layer|has no place"),
        (dict(method='attention_rollout'), 'a.png: .*ConvNet has no attention'),
        (dict(method='gradient', to=folder / 'none/d.html'), 'd.html cannot be written: No such'),
    ]:
        with pytest.raises(errors.UserError, match=message):
            commands.printed(command, capsys, **{**ask, **options})
    with pytest.raises(errors.UserError, match='A object is not explained'):
        explanations.kind_of(object())
    with pytest.raises(errors.UserError, match='A NodeClassification is not explained'):
        explanations.kind_of(NodeClassification(MLP(num_classes=2)))


def test_pictures_are_coloured_by_what_counts():
    pixels = report.scaled(np.array([[0, 5], [10, 5]]))
    np.testing.assert_allclose(pixels[..., 0], [[0, 0.5], [1, 0.5]])
    drawn = report.over(pixels, np.array([[0.0, 1.0], [0.0, -1.0]]))
    assert np.ptp(drawn[0, 0]) == 0
    assert drawn[0, 1].argmax() == 0
    assert drawn[1, 1].argmax() == 2
