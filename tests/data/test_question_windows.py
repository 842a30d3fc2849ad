"""Windows over a passage: all of it is in them, and the answer where its characters are."""

import numpy as np
import pytest

from bigmodels import errors
from bigmodels.data import question_windows, tokenizers

CONTEXT = 'Ada was born in Zürich in 1815.'
RECORD = {
    'question': 'Where was she born?',
    'context': CONTEXT,
    'answers': ['Zürich', 'in Zürich'],
    'starts': np.array([16, 13]),
}
END = tokenizers.Bytes.end_of_text


def windows(**changes):
    fields = dict(
        tokenizer=tokenizers.Bytes(),
        length=20,
        question_length=5,
        stride=8,
        answer_length=10,
        max_references=2,
    )
    return question_windows.Windows(**fields | changes)


def test_windows_cover_the_context_and_find_the_answer():
    made = windows().of(RECORD)
    data = CONTEXT.encode()
    assert len(made) == 4  # 14 tokens of room: from 0, 8, 16 and 24 of 32 on
    for number, window in enumerate(made):
        at = int(window['context_start'])
        ids = window['inputs'][window['segment_ids'] == 1]
        assert bytes(ids[:at].tolist()) == b'Where' + bytes([END])
        part = data[8 * number :][:14]
        assert bytes(ids[at:].tolist()) == part
        if b'Z\xc3\xbcrich' in part:
            first, last = window['targets']
            assert bytes(ids[first : last + 1].tolist()).decode() == 'Zürich'
        else:
            assert window['targets'].tolist() == [at - 1] * 2
    assert [tuple(window['targets']) for window in made].count((5, 5)) == 3
    texts = [tokenizers.Bytes().decode(ids[ids >= 0]) for ids in made[0]['references']]
    assert texts == ['Zürich', 'in Zürich']


def test_tokens_of_several_characters():
    """The answer is found by what its tokens spell."""
    tokenizer = tokenizers.train_bpe(lambda: iter([CONTEXT] * 3), 280)
    [window] = windows(tokenizer=tokenizer, length=60).of(RECORD)
    first, last = window['targets']
    assert tokenizer.decode(window['inputs'][first : last + 1]).strip() == 'Zürich'


def test_a_question_alone_has_no_targets():
    [window] = windows(length=60).of({'question': 'Who?', 'context': 'Bo ran.'})
    assert window.keys() == {'inputs', 'segment_ids', 'context_start'}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(answer_length=6), "The answer 'Zürich'... has 7 tokens"),
        (dict(max_references=1), 'There are 2 answers, more than task.max_references = 1'),
        (dict(stride=15), 'task.stride = 15 must be from 1 to 14'),
        (dict(stride=0), 'task.stride = 0 must be'),
    ],
)
def test_what_does_not_fit_is_told(changes, message):
    with pytest.raises(errors.UserError, match=message):
        windows(**changes).of(RECORD)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(answers=[], starts=[]), 'There are 0 answers and 0 starts'),
        (dict(starts=[16]), 'There are 2 answers and 1 starts: each'),
        (dict(starts=[17, 13]), "'Zürich' is not at character 17 .* 'ürich '"),
    ],
)
def test_answers_that_are_not_in_the_context_are_told(changes, message):
    with pytest.raises(errors.UserError, match=message):
        windows().of(RECORD | changes)


def test_every_window_says_of_which_record_it_is():
    class Records(list):
        def describe(self):
            return 'the records'

    short = RECORD | {'context': 'in Zürich', 'starts': np.array([3, 0])}
    examples = question_windows.QuestionWindows(Records([short, RECORD]), windows())
    assert [int(examples[i]['record']) for i in range(len(examples))] == [0, 1, 1, 1, 1]
    one = short | {'answers': ['Zürich'], 'starts': np.array([3])}
    with pytest.raises(errors.UserError, match='Record 1 of the records: There are 2 answers'):
        question_windows.QuestionWindows(Records([one, RECORD]), windows(max_references=1))
    asked = {name: RECORD[name] for name in ('question', 'context')}
    with pytest.raises(errors.UserError, match="Record 0 of the records: .*'answers'"):
        question_windows.QuestionWindows(Records([asked]), windows())
