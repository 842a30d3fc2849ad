"""Scenes of digits against what is seen in them; their contract is in test_sources."""

import numpy as np
import pytest

from bigmodels import errors
from bigmodels.data.sources.scene_sources import QUESTIONS, DigitScenes
from tests.data import image_files

SIZE, SIDE = 16, 6


@pytest.fixture
def digits(tmp_path):
    """Digits of 6 x 6 pixels of one grey: 10 (label + 1), and of the test 10 (label + 1) + 5."""
    for stem, more in (('train', 0), ('t10k', 5)):
        labels = np.arange(20) % 10
        images = np.broadcast_to(10 * (labels[:, None, None] + 1) + more, (20, SIDE, SIDE))
        image_files.write_mnist(tmp_path, images, labels, stem)
    return str(tmp_path)


def make(path, **changes):
    return DigitScenes(**dict(path=path, count=3000, size=SIZE) | changes)


def seen(image):
    """The labels of the digits in a scene, by quarter, and their corners within the quarters."""
    found, corners = [], []
    for down in (0, 8):
        for right in (0, 8):
            quarter = image[down : down + 8, right : right + 8, 0]
            if quarter.any():
                rows, columns = np.nonzero(quarter)
                corner = rows.min(), columns.min()
                inside = quarter[corner[0] : corner[0] + SIDE, corner[1] : corner[1] + SIDE]
                assert inside.shape == (SIDE, SIDE)
                assert (inside == inside[0, 0]).all()
                assert (quarter > 0).sum() == SIDE**2  # one whole digit
                found.append(int(inside[0, 0]) // 10 - 1)
                corners.append(corner)
    return found, corners


def test_answers_are_of_what_is_seen_and_all_that_is_drawn_is_uniform(digits):
    source = make(digits)
    counts, kinds, places = np.zeros(5), np.zeros(4), np.zeros((3, 3))
    for i in range(len(source)):
        record = source[i]
        labels, corners = seen(record['image'])
        names = list(QUESTIONS)
        expected = {
            'count': len(labels),
            'largest': max(labels),
            'sum': sum(labels),
            'read': ''.join(str(label) for label in labels),
        }
        kind = names[record['kind']]
        assert record['question'] == QUESTIONS[kind][0]
        assert record['answer'] == str(expected[kind])
        counts[len(labels)] += 1
        kinds[record['kind']] += 1
        for corner in corners:
            places[corner] += 1
    assert counts[0] == 0
    for drawn in (counts[1:], kinds, places.ravel()):
        expected = drawn.sum() / len(drawn)
        assert ((drawn - expected) ** 2 / expected).sum() < 32  # of 8 degrees 1 in 10,000 is above


def test_a_split_has_its_own_digits_alone(digits):
    for split, rest in (('train', 0), ('test', 5)):
        source = make(digits, split=split)
        levels = np.unique(np.stack([source[i]['image'] for i in range(60)]))
        assert set(levels[1:] % 10) == {rest}


def test_a_scene_is_a_function_of_seed_and_index(digits):
    source, longer, other = make(digits), make(digits, count=3001), make(digits, seed=1)
    np.testing.assert_array_equal(longer[3]['image'], source[3]['image'])
    assert any((other[i]['image'] != source[i]['image']).any() for i in range(3))
    sources = [source, longer, other, make(digits, size=18), make(digits, split='test')]
    assert len({each.fingerprint() for each in sources}) == len(sources)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(size=11), 'size = 11 must be even and at least 12'),
        (dict(size=10), 'size = 10 must be even and at least 12, twice'),
        (dict(count=0), 'count = 0 must be at least 1'),
    ],
)
def test_what_cannot_be_is_said(digits, changes, message):
    with pytest.raises(errors.UserError, match=message):
        make(digits, **changes)
