"""Classes of tables, near-duplicates and contamination, against counts written out."""

import collections
import json

import numpy as np
import pytest

from bigmodels import errors
from bigmodels.privacy import duplicates, k_anonymity
from tests import commands

rng = np.random.default_rng(0)
WORDS = [f'w{i}' for i in range(400)]


def sentence(length=60):
    return ' '.join(rng.choice(WORDS, length))


def changed(text, count):
    words = text.split()
    for place in rng.choice(len(words), count, replace=False):
        words[place] = 'other'
    return ' '.join(words)


def test_class_sizes_are_those_of_a_counter():
    columns = [rng.choice(['a', 'b', 'c'], 200), rng.integers(0, 5, 200), rng.random(200) < 0.2]
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    counts = collections.Counter(rows)
    sizes = k_anonymity.class_sizes(columns)
    assert sizes.tolist() == [counts[row] for row in rows]


def test_k_anonymity_by_the_command(tmp_path, capsys):
    path = tmp_path / 'a.csv'
    path.write_text('age,town,illness\n' + '30,A,x\n' * 4 + '30,B,y\n' + '40,A,x\n' * 3)
    told = json.loads(commands.printed(k_anonymity, capsys, input=path, columns='town', k=1))
    assert told == {'rows': 8, 'smallest_class': 1, 'offending_rows': 0, 'first_offending': []}
    with pytest.raises(SystemExit, match='1'):
        commands.printed(k_anonymity, capsys, input=path, columns='age,town', k=4)
    assert json.loads(capsys.readouterr().out)['first_offending'] == [5, 6, 7, 8]
    exact = tmp_path / 'exact.csv'
    exact.write_text('amount\n1234567.89\n1234567.91\n')  # one number in float32
    with pytest.raises(SystemExit, match='1'):
        commands.printed(k_anonymity, capsys, input=exact, columns='amount', k=2)
    assert json.loads(capsys.readouterr().out)['smallest_class'] == 1
    exact.write_text('a,amount\n1,2\n3\n')
    with pytest.raises(errors.UserError, match=r'exact\.csv:3 has 1 values, the header has 2'):
        commands.printed(k_anonymity, capsys, input=exact, columns='amount', k=2)
    for options, message in ((dict(columns='tow', k=2), "Did you mean 'town'"),
                             (dict(columns='town', k=0), 'at least 1')):  # fmt: skip
        with pytest.raises(errors.UserError, match=message):
            commands.printed(k_anonymity, capsys, input=path, **options)


def test_signatures_estimate_the_exact_similarity():
    errors_found = []
    for count in (0, 1, 3, 6, 12, 60):
        text = sentence()
        one, other = (duplicates.ngrams(t, 3) for t in (text, changed(text, count)))
        exact = len(one & other) / len(one | other)
        assert duplicates.jaccard(one, other) == exact
        size = 4096
        agree = duplicates.signature(one, size) == duplicates.signature(other, size)
        errors_found.append(agree.mean() - exact)
    assert abs(np.array(errors_found)).max() < 4 * 0.5 / size**0.5
    assert duplicates.ngrams('One, TWO three!', 2) == {('one', 'two'), ('two', 'three')}
    assert duplicates.ngrams('word', 5) == {('word',)}
    assert duplicates.ngrams(' - ', 5) == frozenset()


def test_near_duplicates_are_those_of_all_pairs():
    originals = [sentence() for _ in range(20)]
    texts = [*originals, *(changed(text, 2) for text in originals[:10]), originals[3], '', '']
    texts += [changed(text, 30) for text in originals[10:]]
    sets = [duplicates.ngrams(text, 3) for text in texts]
    expected = {}
    for i in range(len(texts)):
        alike = [j for j in range(i) if j not in expected and sets[i]
                 and duplicates.jaccard(sets[i], sets[j]) >= 0.7]  # fmt: skip
        if alike:
            expected[i] = alike[0]
    assert len(expected) == 11
    assert duplicates.near_duplicates(texts, 0.7, 3) == expected


def test_duplicates_and_contamination_by_the_command(tmp_path, capsys):
    texts = [sentence() for _ in range(6)]
    train, test, out = (tmp_path / f'{name}.jsonl' for name in ('train', 'test', 'out'))
    write = lambda path, several: path.write_text(
        ''.join(json.dumps({'text': text, 'id': i}) + '\n' for i, text in enumerate(several))
    )
    write(train, [*texts, texts[1]])
    halves = ' '.join(texts[2].split()[:30]) + ' ' + sentence(30)
    write(test, [texts[4].upper(), sentence(), halves])
    told = json.loads(commands.printed(duplicates, capsys, input=train, output=out))
    assert told == {'texts': 7, 'dropped': 1, 'first_dropped': [[6, 1]]}
    assert [json.loads(line)['id'] for line in out.read_text().splitlines()] == [0, 1, 2, 3, 4, 5]
    options = dict(input=train, against=test, ngram=13)
    told = json.loads(commands.printed(duplicates, capsys, **options))
    assert (told['known'], told['first_known']) == (1, [0])
    np.testing.assert_allclose(told['mean_share'], (1 + 18 / 48) / 3)
    part = ' '.join(texts[2].split()[10:18])  # of fewer words than an n-gram
    assert duplicates.contamination(texts, [part, f'{part} other'], 13) == [1, 0]
    for options, message in (
        (dict(output=out), 'exists already'),
        (dict(output=tmp_path / 'none/a'), 'none/a cannot be written: No such file'),
        (dict(against=test, field='txt'), 'record 0 has no text in --field=txt'),
        (dict(against=test, threshold=0), 'must be over 0'),
    ):
        with pytest.raises(errors.UserError, match=message):
            commands.printed(duplicates, capsys, input=train, **options)
