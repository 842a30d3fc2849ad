"""Scores of texts on cases worked out by hand from their published definitions."""

import math

import pytest

from bigmodels import errors
from bigmodels.scores import text
from bigmodels.scores.text import SCORES


def score(name, answer, *references):
    return SCORES[name]([answer], [references])


@pytest.mark.parametrize(
    ('answer', 'expected'),
    [
        # Lin 2004, section 3.1: of the reference's four words in order 3 and 2 are kept; bigrams:
        # "the gunman" in both, one of three.
        ('police kill the gunman', (75, 100 / 3, 75)),
        ('the gunman kill police', (75, 100 / 3, 50)),
        ('Police killed the gunman!', (100, 100, 100)),
        ('nobody', (0, 0, 0)),
        ('', (0, 0, 0)),
        # Precision 4 / 6 and recall 4 / 4; bigrams 3 / 5 and 3 / 3.
        ('today police killed the gunman again', (80, 75, 80)),
    ],
)
def test_rouge(answer, expected):
    reference = 'police killed the gunman'
    given = [score(name, answer, reference) for name in ('rouge1', 'rouge2', 'rouge_l')]
    assert given == pytest.approx(expected)


def test_rouge_counts_a_word_as_often_as_both_have_it():
    assert score('rouge1', 'the the the', 'the cat and the dog') == pytest.approx(100 * 4 / 8)
    assert score('rouge2', 'a b a b', 'a b') == pytest.approx(100 * 2 / 4)
    assert text.words("Zürich's 3rd over_all—über") == ['zürich', 's', '3rd', 'over', 'all', 'über']


@pytest.mark.parametrize(
    ('answer', 'references', 'exact', 'f1'),
    [
        ('The Cat!', ['cat'], 100, 100),
        ('a cat sat', ['the cat sat, down'], 0, 80),  # precision 2 / 2, recall 2 / 3
        ('Saint Bernadette', ['Bernadette Soubirous', 'Saint Bernadette Soubirous'], 0, 80),
        ('1,000', ['1000'], 100, 100),
        ('theatre', ['atre'], 0, 0),  # articles are whole words
        ('dog', ['cat', 'a dog'], 100, 100),
        ('the', ['an'], 100, 0),  # nothing is left of both, and no word is shared
        ('red red blue', ['red blue'], 0, 80),  # one of the two counts
    ],
)
def test_answers_by_the_definition_of_squad(answer, references, exact, f1):
    assert score('exact_match', answer, *references) == exact
    assert score('token_f1', answer, *references) == pytest.approx(f1)


def test_means_are_over_answers():
    assert text.exact_match(['a b', 'c', 'd', 'e'], [['a b'], ['c'], ['x'], ['e', 'y']]) == 75


def test_bleu_by_the_definition():
    """Two sentences as one corpus, with a brevity penalty; tokens as 13a splits them."""
    answers = ['the cat sat on the mat .', 'It is warm today.']
    references = [['the cat sat on a mat .'], ['It is very warm here today.']]
    # 7 + 5 tokens against 7 + 7. Shared n-grams: 6 + 5 of 12, 4 + 2 of 10, 2 + 0 of 8, 1 + 0 of 6.
    precisions = [11 / 12, 6 / 10, 2 / 8, 1 / 6]
    expected = math.exp(1 - 14 / 12) * math.prod(precisions) ** (1 / 4)
    assert text.bleu(answers, references) == pytest.approx(100 * expected)


def test_chrf_by_the_definition():
    """n-grams of up to six characters, of which these texts have three; recall counts twice."""
    # Answer 'abc', reference 'abcd': 3 of 3 and 3 of 4; 2 of 2 and 2 of 3; 1 of 1 and 1 of 2; and
    # of the reference one of four characters, which the answer has none of to count.
    recalls = [3 / 4, 2 / 3, 1 / 2]
    precision, recall = 1.0, sum(recalls) / 3
    expected = 5 * precision * recall / (4 * precision + recall)
    assert text.chrf(['abc'], [['abcd']]) == pytest.approx(100 * expected)


@pytest.mark.parametrize('name', ['bleu', 'chrf'])
def test_several_references_of_different_numbers(name):
    answers = ['a dog runs in the snow', 'a man sleeps on the bench']
    alone = SCORES[name](answers, [[answers[0]], ['someone is asleep']])
    both = SCORES[name](answers, [['a cat', answers[0]], ['someone is asleep']])
    assert both == pytest.approx(alone)
    assert SCORES[name](answers, [[answer] for answer in answers]) == pytest.approx(100)


def test_an_unknown_score_is_named():
    with pytest.raises(errors.UserError, match="Unknown score 'blue'. Did you mean 'bleu'"):
        text.check(['rouge1', 'blue'])
    text.check(tuple(SCORES))


@pytest.mark.parametrize(
    ('answer', 'expected'),
    [
        ('So 3 * 400 = <<3*400=1200>>1,200.\n#### 1,200', 100),
        ('It is 1200.0 in all.', 100),
        ('1200 of 1300', 0),
        ('-1200', 0),
        ('no number', 0),
        ('', 0),
    ],
)
def test_the_last_number_is_the_answer(answer, expected):
    assert score('final_number', answer, 'Half of 2400.\n#### 1200') == expected
