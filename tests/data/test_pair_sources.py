"""Files whose lines correspond, and what can be wrong with them."""

import gzip
import json
import pickle

import pytest

from bigmodels import errors
from bigmodels.data.sources.pair_sources import ParallelText, Squad


def write(directory, sources: bytes, targets: bytes, suffix=''):
    opened = gzip.open if suffix == '.gz' else open
    paths = []
    for name, content in (('a', sources), ('b', targets)):
        paths.append(str(directory / (name + suffix)))
        with opened(paths[-1], 'wb') as stream:
            stream.write(content)
    return paths


@pytest.mark.parametrize('suffix', ['', '.gz'])
def test_line_by_line(suffix, tmp_path):
    paths = write(tmp_path, b'one\r\n two \nthree', 'eins\nzwei\ndréi\n'.encode(), suffix)
    source = ParallelText(*paths)
    records = [source[i] for i in range(len(source))]
    assert [record['source'] for record in records] == ['one', ' two ', 'three']
    assert [record['target'] for record in records] == ['eins', 'zwei', 'dréi']
    assert source[-1] == pickle.loads(pickle.dumps(source))[2]
    assert source.fingerprint() == ParallelText(*paths).fingerprint()
    assert source.fingerprint() != ParallelText(*reversed(paths)).fingerprint()
    assert source.describe().endswith('3 pairs')
    with pytest.raises(IndexError):
        source[3]


def test_a_byte_order_mark_is_no_text(tmp_path):
    source = ParallelText(*write(tmp_path, b'\xef\xbb\xbfone\ntwo\n', b'eins\nzwei\n'))
    assert [source[i]['source'] for i in range(2)] == ['one', 'two']
    with pytest.raises(errors.UserError, match='a:1 is blank'):
        ParallelText(*write(tmp_path, b'\xef\xbb\xbf\ntwo\n', b'eins\nzwei\n'))


def test_different_numbers_of_lines(tmp_path):
    with pytest.raises(errors.UserError, match=r'a has 2 lines and .*b 3'):
        ParallelText(*write(tmp_path, b'1\n2\n', b'1\n2\n3\n'))


@pytest.mark.parametrize(
    ('sources', 'targets', 'place'), [(b'1\n2\n', b'1\n \n', 'b:2'), (b'\n2\n', b'1\n2\n', 'a:1')]
)
def test_a_blank_line_is_named_or_its_pair_left_out(sources, targets, place, tmp_path):
    paths = write(tmp_path, sources, targets)
    with pytest.raises(errors.UserError, match=f'{place} is blank'):
        ParallelText(*paths)
    source = ParallelText(*paths, empty_lines='drop')
    kept = '2' if place == 'a:1' else '1'
    assert source[0] == {'source': kept, 'target': kept}
    assert source.describe().endswith('1 pairs, 1 left out')


def test_other_bytes_than_text_are_named(tmp_path):
    with pytest.raises(errors.UserError, match=r'b:2 is not UTF-8 text: byte 0xff at column 3'):
        ParallelText(*write(tmp_path, b'1\n2\n', b'1\nab\xff\n'))
    paths = write(tmp_path, b'\n', b'\n')
    with pytest.raises(errors.UserError, match='hold no pair'):
        ParallelText(*paths, empty_lines='drop')
    with pytest.raises(errors.UserError, match='There is no file'):
        ParallelText(paths[0], paths[1] + '.gz')


def squad(directory, *paragraphs) -> str:
    """A file of SQuAD's format: a paragraph is (context, [(question, answers, starts)])."""
    listed = [
        {
            'context': context,
            'qas': [
                {
                    'id': f'q{number}',
                    'question': question,
                    'answers': [
                        {'text': text, 'answer_start': start}
                        for text, start in zip(answers, starts, strict=True)
                    ],
                }
                for number, (question, answers, starts) in enumerate(questions)
            ],
        }
        for context, questions in paragraphs
    ]
    path = directory / 'squad.json'
    content = {'version': '1.1', 'data': [{'title': 'any', 'paragraphs': listed}]}
    path.write_text(json.dumps(content))
    return str(path)


def test_questions_in_the_format_of_squad(tmp_path):
    context = 'Ada was born in Zürich in 1815.'
    asked = [('Where?', ['Zürich', 'in Zürich'], [16, 13]), ('When?', ['1815'], [26])]
    path = squad(tmp_path, (context, asked), ('Bo ran.', [('Who?', ['Bo'], [0])]))
    source = Squad(path)
    assert len(source) == 3
    first = source[0]
    assert first.pop('starts').tolist() == [16, 13]
    assert first == {
        'id': 'q0',
        'question': 'Where?',
        'context': context,
        'answers': ['Zürich', 'in Zürich'],
        'source': f'question: Where? context: {context}',
        'target': 'Zürich',
    }
    assert source.fingerprint() == Squad(path).fingerprint()
    assert source.describe().endswith('3 questions')


@pytest.mark.parametrize(
    ('question', 'message'),
    [
        (('Who?', ['Bo'], [1]), "question q0: The answer 'Bo' is not at character 1 .* 'o '"),
        (('Who?', ['Bo'], [-7]), 'is not at character -7'),
        (('Who?', [], []), 'question q0: There are 0 answers'),
    ],
)
def test_an_answer_that_is_not_there_is_named(question, message, tmp_path):
    with pytest.raises(errors.UserError, match=message):
        Squad(squad(tmp_path, ('Bo ran.', [question])))


@pytest.mark.parametrize('content', ['{"data": [{}]}', '[1]', '{', '{"data": []}'])
def test_another_format_is_refused(content, tmp_path):
    path = tmp_path / 'other.json'
    path.write_text(content)
    with pytest.raises(errors.UserError, match='is not of the format|holds no question'):
        Squad(str(path))
    with pytest.raises(errors.UserError, match='There is no file'):
        Squad(str(tmp_path / 'none.json'))
