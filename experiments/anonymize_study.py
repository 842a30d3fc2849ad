"""How much planted personal data is found, what of plain prose is taken for it, and which copies.

    pip install faker && python experiments/anonymize_study.py

Values that the library Faker makes for several countries are put between two words of sentences
from SST-2: found is what `bigmodels.data.personal` marks from its first character to its last. All
that it marks in the novels is a false alarm or a number in a story. Copies of the novels'
paragraphs, with ever more words changed, are looked for by `bigmodels.privacy.duplicates`, beside
their similarity, computed exactly; so are SST-2's test sentences in its training data, a hundred of
them planted. Of the people in Adult's training data it is counted how many share what others may
know of them. Written: results/anonymize.json and .md.
"""

import argparse
import collections
import functools
import random
import re

import faker
import measure
import numpy as np

from bigmodels.data import personal, sources
from bigmodels.data.sources.table_sources import Csv
from bigmodels.privacy import duplicates, k_anonymity

LOCALES = ('en_US', 'en_GB', 'de_DE', 'fr_FR', 'es_ES', 'it_IT', 'nl_NL', 'pl_PL', 'pt_BR', 'sv_SE')
# Kind -> the country whose numbers of that kind are looked for, None for any; Faker's method.
MAKERS = {
    'email': (None, 'email'),
    'card': (None, 'credit_card_number'),
    'iban': (None, 'iban'),
    'ip': (None, 'ipv4'),
    'ip (version 6)': (None, 'ipv6'),
    'identity (US)': ('en_US', 'ssn'),
    'identity (Spain)': ('es_ES', 'nif'),
    'identity (Netherlands)': ('nl_NL', 'ssn'),
    **{f'phone ({locale[-2:]})': (locale, 'phone_number') for locale in LOCALES},
}
CHANGED = (0.0, 0.005, 0.01, 0.02, 0.04, 0.08)  # of a copy's words
OTHERS = ('sex', 'race', 'marital_status', 'native_country', 'occupation')
DECADES = 'age in decades'
THRESHOLD, NGRAM, PARAGRAPHS, PLANTED = 0.8, 5, 1000, 100


def sentences(split: str) -> list[str]:
    """Those of SST-2."""
    lines = sources.read_text(str(measure.data_path(f'sst2/{split}.tsv.gz'))).split('\n')
    return [line.partition('\t')[0] for line in lines if line]


@functools.cache
def novels() -> str:
    """Those that models are trained on."""
    return sources.read_text(str(measure.data_path('novels/train.txt.gz')))


def planted(kind: str, count: int, rng: random.Random) -> dict:
    """How many of the values of a kind are found whole, in part, and not at all."""
    country, method = MAKERS[kind]
    fakers = [faker.Faker(locale) for locale in ([country] if country else LOCALES)]
    for number, each in enumerate(fakers):
        each.seed_instance(number)
    carriers = sentences('test')
    found = collections.Counter()
    for i in range(count):
        value = getattr(fakers[i % len(fakers)], method)()
        words = rng.choice(carriers).split()
        place = rng.randrange(len(words))
        before = ' '.join([*words[:place], ''])
        marked = personal.find(f'{before}{value} {" ".join(words[place:])}')
        start, end = len(before), len(before) + len(value)
        whole = any((first, last) == (start, end) for first, last, _ in marked)
        part = any(first < end and last > start for first, last, _ in marked)
        found['whole' if whole else 'part' if part else 'missed'] += 1
    return {'kind': kind, **{key: found[key] / count for key in ('whole', 'part', 'missed')}}


def alarms() -> dict:
    """What is marked in prose, by kind, and how many characters there are."""
    marked = collections.Counter(kind for _, _, kind in personal.find(novels()))
    return {'characters': len(novels()), 'marked': dict(sorted(marked.items()))}


def copies(share: float, rng: random.Random) -> dict:
    """How many copies with a share of their words changed are alike enough, and found."""
    paragraphs = re.split(r'\n\s*\n', novels())
    originals = rng.sample([text for text in paragraphs if len(text.split()) >= 50], PARAGRAPHS)
    vocabulary = sorted({word for text in originals for word in text.split()})
    changed = [
        ' '.join(rng.choice(vocabulary) if rng.random() < share else word for word in text.split())
        for text in originals
    ]
    found = duplicates.near_duplicates([*originals, *changed], THRESHOLD, NGRAM)
    pairs = zip(originals, changed, strict=True)
    alike = [duplicates.jaccard(*(duplicates.ngrams(t, NGRAM) for t in pair)) for pair in pairs]
    close = [i for i, similarity in enumerate(alike) if similarity >= THRESHOLD]
    return {
        'changed': share,
        'similarity': sum(alike) / len(alike),
        'alike': len(close),
        'found': sum(PARAGRAPHS + i in found for i in close),
        'others': sum(number not in {PARAGRAPHS + i for i in close} for number in found),
    }


def known(rng: random.Random) -> dict:
    """How many test sentences of SST-2 are in its training data, before and after planting some."""
    training, test = sentences('train'), sentences('test')
    places = set(rng.sample(range(len(test)), PLANTED))
    rates = []
    for texts in (training, [*training, *(test[i] for i in places)]):
        shares = duplicates.contamination(texts, test, NGRAM)
        rates.append({i for i, share in enumerate(shares) if share >= THRESHOLD})
    return {'before': len(rates[0]), 'planted': PLANTED, 'found': len(rates[1] & places),
            'others': len(rates[1] - places - rates[0])}  # fmt: skip


def shared() -> list[dict]:
    """The size of the smallest class, and the shares of people who are alone or among under 5, as
    ever more is known of them; what is not known of a person is a value too.
    """
    source = Csv(str(measure.data_path('adult/adult_train.csv.gz')), numeric=('age',))
    people = source.take(np.arange(len(source)))
    people[DECADES] = people['age'] // 10
    rows = []
    for age in ('age', DECADES):
        for count in range(len(OTHERS) + 1):
            columns = [age, *OTHERS[:count]]
            sizes = k_anonymity.class_sizes([people[name] for name in columns])
            rows.append({
                'people': len(sizes),
                'columns': columns,
                'smallest': int(sizes.min()),
                'alone': float(np.mean(sizes == 1)),
                'under 5': float(np.mean(sizes < 5)),
            })  # fmt: skip
    return rows


def table(results: dict) -> str:
    """All of it as Markdown."""
    percent = lambda share: f'{share:.1%}'
    first = [('planted', 'found whole', 'in part', 'missed')]
    first += [
        (row['kind'], *(percent(row[key]) for key in ('whole', 'part', 'missed')))
        for row in results['planted']
    ]
    alarms, known = results['alarms'], results['known']
    marked = ', '.join(f'{count} {kind}' for kind, count in alarms['marked'].items()) or 'nothing'
    second = [('words changed', 'similarity', f'over {THRESHOLD}', 'of these found', 'others')]
    second += [
        (percent(row['changed']), f'{row["similarity"]:.2f}', str(row['alike']),
         str(row['found']), str(row['others']))
        for row in results['copies']
    ]  # fmt: skip
    people = results['shared'][0]['people']
    third = [(f'known of each of {people:,} people', 'k', 'alone', 'among under 5')]
    third += [
        (', '.join(row['columns']), str(row['smallest']), percent(row['alone']),
         percent(row['under 5']))
        for row in results['shared']
    ]  # fmt: skip
    return '\n\n'.join([
        measure.markdown(first),
        f'Marked in {alarms["characters"]:,} characters of novels: {marked}.',
        f'Copies of {PARAGRAPHS:,} paragraphs, by {NGRAM} words:',
        measure.markdown(second),
        f'Of SST-2\'s test sentences {known["before"]} are in its training data; of '
        f'{known["planted"]} that were put there {known["found"]} are found, and '
        f'{known["others"]} others.',
        measure.markdown(third),
    ])  # fmt: skip


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--count', type=int, default=1000, help='values of each kind')
    options = parser.parse_args()
    rng = random.Random(0)
    results = {
        'planted': [planted(kind, options.count, rng) for kind in MAKERS],
        'alarms': alarms(),
        'copies': [copies(share, rng) for share in CHANGED],
        'known': known(rng),
        'shared': shared(),
    }
    measure.write('anonymize', results, libraries=('faker',), quiet=True)
    (measure.RESULTS / 'anonymize.md').write_text(table(results) + '\n')
    print(table(results))
