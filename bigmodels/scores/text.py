"""Scores of texts against the texts that are right: from 0 to 100, as they are published.

Each takes answers [N] and, for each of them, one or more references.
"""

import collections
import re
import string
from collections.abc import Callable, Sequence

import numpy as np

from bigmodels import errors

References = Sequence[Sequence[str]]


def bleu(answers: Sequence[str], references: References) -> float:
    """BLEU of a corpus (Papineni et al. 2002), by sacrebleu with its tokenizer 13a (Post 2018)."""
    return _sacrebleu().corpus_bleu(list(answers), _streams(references)).score


def chrf(answers: Sequence[str], references: References) -> float:
    """chrF2 of a corpus (Popovic 2015, 2016), by sacrebleu."""
    return _sacrebleu().corpus_chrf(list(answers), _streams(references)).score


def rouge1(answers: Sequence[str], references: References) -> float:
    """ROUGE-1, see `rouge_n`."""
    return _mean_of_best(lambda one, other: rouge_n(one, other, 1), answers, references)


def rouge2(answers: Sequence[str], references: References) -> float:
    """ROUGE-2, see `rouge_n`."""
    return _mean_of_best(lambda one, other: rouge_n(one, other, 2), answers, references)


def rouge_l(answers: Sequence[str], references: References) -> float:
    """ROUGE-L, see `rouge_l_of`."""
    return _mean_of_best(rouge_l_of, answers, references)


def exact_match(answers: Sequence[str], references: References) -> float:
    """The share of answers that equal a reference once normalised, as in SQuAD v1.1."""
    same = lambda one, other: float(normalised(one) == normalised(other))
    return _mean_of_best(same, answers, references)


def token_f1(answers: Sequence[str], references: References) -> float:
    """The mean F1 of words shared with the nearest reference, as in SQuAD v1.1."""

    def of_words(answer, reference):
        return _f1(*map(collections.Counter, map(str.split, map(normalised, (answer, reference)))))

    return _mean_of_best(of_words, answers, references)


def final_number(answers: Sequence[str], references: References) -> float:
    """The share of answers whose last number is that of a reference (GSM8K; Cobbe et al. 2021)."""

    def number(text: str) -> float | None:
        found = re.findall(r'-?\d[\d,]*(?:\.\d+)?', text)
        return float(found[-1].replace(',', '')) if found else None

    def same(one: str, other: str) -> float:
        return float(number(one) is not None and number(one) == number(other))

    return _mean_of_best(same, answers, references)


def rouge_n(answer: str, reference: str, n: int) -> float:
    """F1 of the n-grams that two texts share, with their counts (Lin 2004, section 2): 0 to 1."""
    answer, reference = words(answer), words(reference)
    return _f1(*(collections.Counter(zip(*(text[i:] for i in range(n)), strict=False))
                 for text in (answer, reference)))  # fmt: skip


def rouge_l_of(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004, section 3.1): 0 to 1."""
    answer, reference = words(answer), words(reference)
    shared = _common_subsequence(answer, reference)
    return 2 * shared / (len(answer) + len(reference)) if shared else 0.0


def words(text: str) -> list[str]:
    """The runs of letters and digits, in lower case: the words of ROUGE, not stemmed."""
    return re.findall(r'[^\W_]+', text.lower())


def normalised(text: str) -> str:
    """In lower case without punctuation, articles and spare spaces, as SQuAD's evaluation does."""
    text = ''.join(character for character in text.lower() if character not in string.punctuation)
    return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def _f1(one: collections.Counter, other: collections.Counter) -> float:
    """The harmonic mean of precision and recall of what two multisets share."""
    shared = (one & other).total()
    return 2 * shared / (one.total() + other.total()) if shared else 0.0


def _common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    longest = [0] * (len(other) + 1)  # with the words of `one` so far, by the length of `other`
    for word in one:
        before = longest.copy()
        for j, candidate in enumerate(other):
            longest[j + 1] = before[j] + 1 if word == candidate else max(before[j + 1], longest[j])
    return longest[-1]


def _mean_of_best(
    score: Callable[[str, str], float], answers: Sequence[str], references: References
) -> float:
    """100 times the mean over answers of the score with the nearest reference."""
    best = [
        max(score(answer, right) for right in several)
        for answer, several in zip(answers, references, strict=True)
    ]
    return 100 * float(np.mean(best))


def _streams(references: References) -> list[list[str | None]]:
    """First references, second references, ...: None where a text has fewer."""
    most = max(map(len, references))
    return [[r[i] if i < len(r) else None for r in references] for i in range(most)]


def _sacrebleu():
    try:
        import sacrebleu
    except ImportError as error:
        raise errors.UserError(
            "BLEU and chrF need the library 'sacrebleu': pip install 'bigmodels[text]'."
        ) from error
    return sacrebleu


SCORES: dict[str, Callable[[Sequence[str], References], float]] = {
    'bleu': bleu,
    'chrf': chrf,
    'rouge1': rouge1,
    'rouge2': rouge2,
    'rouge_l': rouge_l,
    'exact_match': exact_match,
    'final_number': final_number,
    'token_f1': token_f1,
}


def check(names: Sequence[str]) -> None:
    """Raises UserError for a name that is no key of SCORES, or that needs a library not here."""
    for name in names:
        if name not in SCORES:
            raise errors.unknown('score', name, SCORES)
        SCORES[name](['a'], [['a']])
