"""Moving digits against shifts found in the videos; their contract is in test_sources."""

import numpy as np
import pytest

from bigmodels import errors
from bigmodels.data.sources import image_sources, video_sources
from bigmodels.data.sources.video_sources import DIRECTIONS, MovingDigits
from tests.data import image_files

SIZE, SPEEDS = 16, (1.5, 3.0)
ANGLES = np.pi / 4 * np.arange(8)  # anticlockwise from the right, as the names are in order


def write_digits(folder):
    """Digits of 6 x 6 pixels, told apart by their grey: train 100 to 104, test 200 to 202."""
    folder.mkdir(exist_ok=True)
    for stem, level, count in (('train', 100, 5), ('t10k', 200, 3)):
        images = np.broadcast_to(level + np.arange(count)[:, None, None], (count, 6, 6)).copy()
        images[:, 0, 0] = 7
        image_files.write_mnist(folder, images, np.arange(count), stem)
    return str(folder)


@pytest.fixture
def digits(tmp_path):
    return write_digits(tmp_path)


def make(path, **changes):
    return MovingDigits(**dict(path=path, count=400, size=SIZE, speeds=SPEEDS) | changes)


def places(videos):
    """int [n, T, 2]: the row and the column of the digits' own corner, which alone is 7."""
    n, t = videos.shape[:2]
    flat = (videos[..., 0] == 7).reshape(n, t, -1)
    assert (flat.sum(-1) == 1).all()
    return np.stack(np.divmod(flat.argmax(-1), videos.shape[3]), -1)


def test_the_names_of_directions_are_those_of_their_angles():
    for (name, (down, right)), angle in zip(DIRECTIONS.items(), ANGLES, strict=True):
        assert np.arctan2(-down, right) % (2 * np.pi) == pytest.approx(angle), name
        assert ('right' in name, 'left' in name) == (right > 0, right < 0)
        assert ('down' in name, 'up' in name) == (down > 0, down < 0)


def test_a_digit_moves_straight_in_its_direction_at_one_speed(digits):
    source = make(digits)
    records = source.take(np.arange(len(source)))
    found = places(records['video'])
    # Of all shifts that are the same on the torus, that which is shortest from one to the next.
    steps = (np.diff(found, axis=1) + SIZE // 2) % SIZE - SIZE // 2
    assert (steps != 0).any(-1).all()  # no two frames are the same
    moved = np.concatenate([np.zeros_like(steps[:, :1]), steps.cumsum(1)], axis=1)
    total = moved[:, -1]
    angle = ANGLES[records['label']]
    heading = np.stack([-np.sin(angle), np.cos(angle)], -1)
    along = (total * heading).sum(-1)
    across = total[:, 0] * heading[:, 1] - total[:, 1] * heading[:, 0]
    assert np.abs(across).max() < 1e-9  # eighths of a turn are exact on a grid
    speed = along / 7
    assert SPEEDS[0] - 0.11 < speed.min() < 1.6
    assert 2.9 < speed.max() < SPEEDS[1] + 0.11
    expected = speed[:, None, None] * np.arange(8)[:, None] * heading[:, None]
    assert np.abs(moved - expected).max() <= 1.01  # both ends are rounded


def test_nothing_but_the_digit_moves(digits):
    """Each frame is the first one, shifted on a torus."""
    videos = make(digits, count=50).take(np.arange(50))['video']
    corners = places(videos)
    for video, at in zip(videos, corners, strict=True):
        for frame, corner in zip(video, at, strict=True):
            np.testing.assert_array_equal(
                frame[..., 0], np.roll(video[0, ..., 0], corner - at[0], (0, 1))
            )


def test_a_split_has_its_own_digits_alone(digits):
    for split, levels in (('train', set(range(100, 105))), ('test', {200, 201, 202})):
        videos = make(digits, split=split, count=100).take(np.arange(100))['video']
        assert set(np.unique(videos)) == {0, 7} | levels


def test_no_frame_alone_tells_the_direction(digits):
    """In every frame the corner is uniform, whatever the label: chi-square, 15 degrees."""
    source = make(digits, count=8000)
    records = source.take(np.arange(8000))
    counts = np.bincount(records['label'], minlength=8)
    assert (np.abs(counts - 1000) < 150).all()
    quarters = places(records['video']) // (SIZE // 4)
    for label in range(8):
        for frame in (0, 3, 7):
            down, right = quarters[records['label'] == label, frame].T
            cells = np.bincount(4 * down + right, minlength=16)
            expected = counts[label] / 16
            assert ((cells - expected) ** 2 / expected).sum() < 45  # 1 in 10,000 is above 44.3


def test_a_video_is_a_function_of_seed_and_index(digits):
    source = make(digits)
    some = np.array([399, 3, 3, 0])
    taken = source.take(some)
    for row, index in enumerate(some):
        record = source[index]
        assert record['video'].shape == (8, SIZE, SIZE, 1)
        assert record['video'].dtype == np.uint8
        np.testing.assert_array_equal(record['video'], taken['video'][row])
        assert record['label'] == taken['label'][row]
    longer, other = make(digits, count=401), make(digits, seed=1)
    np.testing.assert_array_equal(longer[3]['video'], source[3]['video'])
    assert (other[3]['video'] != source[3]['video']).any()
    sources = [source, longer, other, make(digits, size=17), make(digits, split='test'),
               make(digits, shrink=2), make(digits, speeds=(1.5, 2.0))]  # fmt: skip
    assert len({each.fingerprint() for each in sources}) == len(sources)
    assert make(digits).fingerprint() == source.fingerprint()


def test_shrunk_is_the_mean_of_squares():
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 9), np.uint8)
    found = video_sources.shrunk(images, 3)
    for n, i, j in np.ndindex(found.shape):
        square = images[n, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3].astype(np.float64)
        assert abs(found[n, i, j] - square.mean()) <= 0.5


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(shrink=4), 'shrink = 4 does not divide digits of 6 x 6 pixels'),
        (dict(size=5), 'size = 5 is smaller than digits of 6 x 6'),
        (dict(count=0), 'count = 0 must be at least 1'),
        (dict(num_frames=1), 'num_frames = 1 at least 2'),
        (dict(speeds=(0.0, 1.0)), r'speeds = \(0\.0, 1\.0\) must be two above 0'),
        (dict(speeds=(3.0, 2.0)), 'the first not above the second'),
        (dict(speeds=(1.0, 8.0)), 'under 8, half of size'),
        (dict(speeds=(1.0, 2.0, 3.0)), 'must be two'),
    ],
)
def test_what_cannot_be_is_said(digits, changes, message):
    with pytest.raises(errors.UserError, match=message):
        make(digits, **changes)


@pytest.mark.shared_data
def test_real_digits(shared_data):
    """The first frame, put back to its corner, is a digit of the test files."""
    path = str(shared_data / 'mnist')
    source = MovingDigits(path, 20, 'test', size=28, speeds=(1.5, 3.0))
    images = image_sources.Mnist(path, 'test').take(np.arange(10_000))['image']
    known = {image.tobytes() for image in images}
    for i in range(20):
        frame = source[i]['video'][0, ..., 0]
        rolled = (np.roll(frame, (r, c), (0, 1)) for r in range(28) for c in range(28))
        assert any(image.tobytes() in known for image in rolled)
