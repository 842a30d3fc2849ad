"""Raw input becomes the records that a task needs; what cannot is named by file and record."""

import io
import wave

import numpy as np
import pytest

from bigmodels import errors
from bigmodels.data import inputs
from tests.data import image_files

VIDEO = {'clip': 'video'}
IMAGE, TEXT = {'picture': 'image'}, {'sentence': 'text'}
TABLE = {'age': 'value', 'town': 'value'}


def read(path, fields, stdin='', **options):
    found = inputs.read_inputs(str(path), fields, stdin=io.BytesIO(stdin.encode()), **options)
    return list(found)


def write_wav(path, samples, rate):
    with wave.open(str(path), 'wb') as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.asarray(samples, '<i2').tobytes())


def test_images_of_a_folder_at_any_depth(tmp_path):
    written = image_files.write_folder(tmp_path, {'cat': 2, 'dog': 1})
    (tmp_path / 'notes.txt').write_text('not an image')
    (tmp_path / '.hidden.png').write_text('nor this')
    (tmp_path / '.trash').mkdir()
    (tmp_path / '.trash' / 'deleted.png').write_text('nor what is in hidden folders')
    records = read(tmp_path, IMAGE)
    assert [where for where, _ in records] == [str(tmp_path / name) for name in sorted(written)]
    np.testing.assert_array_equal(records[0][1]['picture'], written['cat/0.png'])


def test_videos_are_gif_files_and_folders_of_frames(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (11, 6, 5), np.uint8)
    (tmp_path / 'b.gif').write_bytes(image_files.gif(frames))
    for i, frame in enumerate(frames):
        (tmp_path / 'a' / 'c').mkdir(parents=True, exist_ok=True)
        (tmp_path / 'a' / 'c' / f'frame{i}.png').write_bytes(image_files.encoded(frame))
    (tmp_path / 'a' / 'c' / '.hidden.png').write_text('no frame')
    (tmp_path / 'a' / 'notes.txt').write_text('nor this')
    (tmp_path / 'a.csv').write_text('clip\na/c\nb.gif\n')
    expected = np.stack([frames] * 3, -1)  # frame2 is before frame10
    both = [str(tmp_path / 'a' / 'c'), str(tmp_path / 'b.gif')]
    for given, names in (
        ('', both),
        ('b.gif', both[1:]),
        ('a/c', both[:1]),
        ('a.csv', [f'{tmp_path}/a.csv, record {i}' for i in range(2)]),
    ):
        records = read(tmp_path / given, VIDEO)
        assert [where for where, _ in records] == names
        for _, record in records:
            np.testing.assert_array_equal(record['clip'], expected)
    [(_, record)] = read('-', VIDEO, f'{{"clip": "{tmp_path}/b.gif"}}\n')
    np.testing.assert_array_equal(record['clip'], expected)


def test_what_is_no_video_is_named(tmp_path):
    (tmp_path / 'a').mkdir()
    for i in range(2):
        image = image_files.encoded(image_files.smooth(i, 12 + i))
        (tmp_path / 'a' / f'{i}.png').write_bytes(image)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'a.txt').write_text('text')
    (tmp_path / 'a.csv').write_text('clip\nempty\n')
    for path, message in [
        ('a', r'a/1\.png is of 13 x 10 pixels, and .*a/0\.png of 12 x 10'),
        ('empty', r'empty has no \.gif file, nor a folder of \.jpg or \.jpeg or \.png files'),
        ('a.csv', r'empty has no \.jpg or \.jpeg or \.png file: no frames'),
        ('a.txt', r'a\.txt is of no use here: the run needs clip \(video\)'),
        ('nothing', 'There is no file .*nothing'),
    ]:
        with pytest.raises(errors.UserError, match=message):
            read(tmp_path / path, VIDEO)


def test_recordings_are_resampled_to_the_rate_of_the_run(tmp_path):
    write_wav(tmp_path / 'a.wav', np.full(800, 1000), 8000)
    [(_, record)] = read(tmp_path / 'a.wav', {'audio': 'audio'})
    assert record['sample_rate'] == 8000
    assert record['audio'].shape == (800,)
    with pytest.warns(UserWarning, match='has sound of 8,000 Hz: it is resampled to 16,000 Hz'):
        [(_, record)] = read(tmp_path / 'a.wav', {'audio': 'audio'}, sample_rate=16000)
    assert record['sample_rate'] == 16000
    assert record['audio'].shape == (1600,)
    # Samples in JSON are of the rate that they say, else of the run's.
    (tmp_path / 'a.jsonl').write_text(
        '{"audio": [0, 0.5, 0, 0.5], "sample_rate": 16000}\n{"audio": [0, 0.5, 0, 0.5]}\n'
    )
    with pytest.warns(UserWarning, match='has sound of 16,000 Hz: it is resampled to 8,000 Hz'):
        (_, told), (_, silent) = read(tmp_path / 'a.jsonl', {'audio': 'audio'}, sample_rate=8000)
    for folder in ('speakers/one', 'speakers/two'):
        (tmp_path / folder).mkdir(parents=True)
        write_wav(tmp_path / folder / 'b.wav', np.full(800, 1000), 8000)
    with pytest.warns(UserWarning, match='speakers has sound of 8,000 Hz') as warned:
        assert len(read(tmp_path / 'speakers', {'audio': 'audio'}, sample_rate=16000)) == 2
    assert len({str(warning.message) for warning in warned}) == 1  # of which one is shown
    assert (told['sample_rate'], len(told['audio'])) == (8000, 2)
    for samples, rate in (('[0.5]', '"fast"'), ('[0.5]', 'null'), ('[0.5]', '0'), ('["a"]', '9'),
                          ('[0.5]', 'Infinity'), ('[[0.5]]', '9'), ('1', '9')):  # fmt: skip
        (tmp_path / 'b.jsonl').write_text(f'{{"audio": {samples}, "sample_rate": {rate}}}\n')
        with pytest.raises(errors.UserError, match=r'b\.jsonl, record 0: audio or sample_rate'):
            read(tmp_path / 'b.jsonl', {'audio': 'audio'}, sample_rate=8000)
    assert silent.keys() == {'audio'}
    assert list(silent['audio']) == [0, 0.5, 0, 0.5]


def test_lines_of_text(tmp_path):
    (tmp_path / 'a.txt').write_text('one\n\nzwei äöü\n')
    expected = [{'sentence': 'one'}, {'sentence': 'zwei äöü'}]
    assert read(tmp_path / 'a.txt', TEXT) == [
        (f'{tmp_path}/a.txt:{line}', record) for line, record in zip((1, 3), expected, strict=True)
    ]
    assert [record for _, record in read('-', TEXT, 'one\n\nzwei äöü\n')] == expected


def test_lines_end_at_line_ends_alone_and_begin_behind_a_byte_order_mark(tmp_path):
    text = '\ufeffone\u2028still\x0cone\r\ntwo\n'
    (tmp_path / 'a.txt').write_text(text, newline='')
    lines = ['one\u2028still\x0cone', 'two']
    for records in (read(tmp_path / 'a.txt', TEXT), read('-', TEXT, text)):
        assert [record['sentence'] for _, record in records] == lines
        assert [int(where.rpartition(':')[2]) for where, _ in records] == [1, 2]


def test_standard_input_that_cannot_be_read_is_named():
    for data, fields, message in (
        (b'one\n\xff\n', TEXT, 'standard input:2 is not UTF-8'),
        (b'{"age": 1, "town": "A"}\n{"age": "\xff"}', TABLE, 'standard input:2 is not UTF-8'),
        (b'[' * 100_000, TABLE, 'standard input:1 is not a JSON object'),
    ):
        with pytest.raises(errors.UserError, match=message):
            list(inputs.read_inputs('-', fields, stdin=io.BytesIO(data)))


def test_tables_give_their_rows(tmp_path):
    (tmp_path / 'a.csv').write_text('age,town\n31,A\n?,B\n')
    records = read(tmp_path / 'a.csv', TABLE)
    assert records[1] == (f'{tmp_path}/a.csv, record 1', {'age': '?', 'town': 'B'})
    (tmp_path / 'a.jsonl').write_text('{"age": 31, "town": "A"}\n')
    assert read(tmp_path / 'a.jsonl', TABLE)[0][1] == {'age': 31, 'town': 'A'}
    line = '{"age": null, "town": "A"}\n'
    assert read('-', TABLE, line) == [('standard input:1', {'age': None, 'town': 'A'})]
    assert len(read(tmp_path, TABLE)) == 3


def test_texts_and_names_of_files_in_a_table_may_look_like_numbers(tmp_path):
    (tmp_path / 'a.csv').write_text('sentence,age\n1.50,1\n007,2\n')
    (tmp_path / 'b.csv').write_text('sentence,age\n1.50,1\n7,2\n')
    for name, last in (('a', '007'), ('b', '7')):
        records = [record for _, record in read(tmp_path / f'{name}.csv', TEXT)]
        assert records == [{'sentence': '1.50'}, {'sentence': last}]
    for folder in ('1', '2'):
        (tmp_path / folder).mkdir()
        image = image_files.encoded(image_files.smooth(int(folder)))
        (tmp_path / folder / '0.png').write_bytes(image)
    (tmp_path / 'c.csv').write_text('clip\n1\n2\n')
    one, other = (record['clip'] for _, record in read(tmp_path / 'c.csv', VIDEO))
    assert one.shape == other.shape
    assert (one != other).any()


def test_a_series_is_one_record(tmp_path):
    (tmp_path / 'a.csv').write_text('time,load\n0,1.5\n1,2.5\n')
    assert read(tmp_path / 'a.csv', {'load': 'series'}) == [
        (f'{tmp_path}/a.csv', {'load': [1.5, 2.5]})
    ]


def test_a_table_may_name_images_beside_it(tmp_path):
    written = image_files.write_folder(tmp_path / 'all', {'cat': 2})
    (tmp_path / 'a.jsonl').write_text('{"picture": "all/cat/0.png", "question": "What?"}\n')
    [(where, record)] = read(tmp_path / 'a.jsonl', IMAGE | {'question': 'text'})
    assert where == f'{tmp_path}/a.jsonl, record 0'
    np.testing.assert_array_equal(record['picture'], written['cat/0.png'])
    assert record['question'] == 'What?'


def test_what_cannot_be_read_is_named(tmp_path):
    image = image_files.encoded(image_files.smooth(0), 'JPEG')
    (tmp_path / 'cut.jpg').write_bytes(image[: len(image) // 2])
    (tmp_path / 'a.csv').write_text('age,twon\n31,A\n')
    (tmp_path / 'a.jsonl').write_text('{"picture": "cut.jpg"}\n')
    (tmp_path / 'b.jsonl').write_text('{"picture": "nothing.jpg"}\n')
    (tmp_path / 'whole.jpg').write_bytes(image)
    (tmp_path / 'c.csv').write_text('number,picture\n1,whole.jpg\n2,\n')
    (tmp_path / 'd.jsonl').write_text('{"clip": " "}\n')
    (tmp_path / 'empty').mkdir()
    for path, fields, message in [
        ('cut.jpg', IMAGE, r'cut\.jpg is not a whole JPEG'),
        ('a.jsonl', IMAGE, r'a\.jsonl, record 0: .*cut\.jpg is not a whole JPEG'),
        ('b.jsonl', IMAGE, r'b\.jsonl, record 0: There is no file .*nothing\.jpg'),
        ('c.csv', IMAGE, r'c\.csv, record 1: picture is empty, and names no file'),
        ('c.csv', VIDEO, r"column of .*c\.csv 'clip'"),
        ('d.jsonl', VIDEO, r'd\.jsonl, record 0: clip is empty, and names no file'),
        ('a.csv', TABLE, r"a\.csv, record 0 lacks 'town'. Did you mean 'twon'"),
        ('cut.jpg', TABLE, r'cut\.jpg is of no use here: the run needs age \(value\), town'),
        ('empty', IMAGE, r'empty has no \.jpg or \.jpeg or \.png file: the run needs picture'),
        ('nothing', IMAGE, r'There is no file .*nothing'),
    ]:
        with pytest.raises(errors.UserError, match=message):
            read(tmp_path / path, fields)
    for line in ('{"age": 1}', '[1]', '{"age"'):
        with pytest.raises(errors.UserError, match='standard input:1'):
            read('-', TABLE, line)
