"""The command that drops texts nearly like an earlier one, or finds what of a test set is in them.

python -m bigmodels.privacy.duplicates --input=texts.jsonl --output=kept.jsonl --threshold=0.8
python -m bigmodels.privacy.duplicates --input=train.jsonl --against=test.jsonl --ngram=13

What is in the data many times is learnt by heart first (Lee et al. 2022, Kandpal et al. 2022).
Candidates are found by MinHash in bands (Broder 1997; Leskovec et al., "Mining of Massive
Datasets", chapter 3) and compared exactly, so that nothing under the threshold is dropped.
"""

import argparse
import collections
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np

from bigmodels import errors
from bigmodels.data.sources import JsonLines, read_text

Ngrams = frozenset[tuple[str, ...]]
BANDS, ROWS = 32, 4  # of a signature: pairs of a similarity over (1 / 32)^(1/4) = 0.42 are likely
_PRIME = np.uint64(2**31 - 1)


def ngrams(text: str, length: int) -> Ngrams:
    """The sequences of `length` words in a text, whatever their case and punctuation.

    A shorter text is one sequence; one without words has none.
    """
    words = re.findall(r'\w+', text.casefold())
    if not words:
        return frozenset()
    starts = range(max(1, len(words) - length + 1))
    return frozenset(tuple(words[start : start + length]) for start in starts)


def jaccard(one: Ngrams, other: Ngrams) -> float:
    """The share of common ones among all; 0 where there are none."""
    return len(one & other) / max(1, len(one | other))


def signature(parts: Ngrams, size: int = BANDS * ROWS) -> np.ndarray:
    """MinHash: the least of each of `size` hashes, uint64 [size].

    Two sets agree in a share of places that is on average their Jaccard similarity.
    """
    hashes = np.array([_hash(part) for part in parts], np.uint64)
    factors, offsets = _hash_functions(size)
    # Under 2**31 each, so that no product wraps round.
    return ((hashes[:, None] * factors + offsets) % _PRIME).min(0)


@functools.cache
def _hash_functions(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors and offsets of as many linear functions modulo a prime, always the same."""
    rng = np.random.default_rng(0)
    return tuple(rng.integers(1, int(_PRIME), (2, size), dtype=np.uint64))


def _hash(words: Sequence[str]) -> int:
    digest = hashlib.blake2b(' '.join(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'little') % int(_PRIME)


def near_duplicates(texts: Sequence[str], threshold: float, length: int) -> dict[int, int]:
    """Each text that is nearly like an earlier one that stays -> that one.

    Args:
      threshold: the least Jaccard similarity of what is nearly alike.
      length: of n-grams, in words.
    """
    seen, sets, found = collections.defaultdict(list), [], {}
    for number, text in enumerate(texts):
        sets.append(ngrams(text, length))
        if not sets[-1]:
            continue
        keys = list(_band_keys(signature(sets[-1])))
        candidates = sorted({other for key in keys for other in seen[key]})
        like = (other for other in candidates if jaccard(sets[number], sets[other]) >= threshold)
        if (first := next(like, None)) is not None:
            found[number] = first
            continue
        for key in keys:
            seen[key].append(number)
    return found


def _band_keys(values: np.ndarray) -> Iterator[tuple[int, bytes]]:
    for band, rows in enumerate(values.reshape(BANDS, ROWS)):
        yield band, rows.tobytes()


def contamination(training: Sequence[str], test: Sequence[str], length: int) -> list[float]:
    """For each test text, the share of its n-grams that are in some training text.

    A test text of fewer words is one n-gram, of as many. (Brown et al. 2020, appendix C, with the
    share in place of one common n-gram of 13 words)
    """
    parts = [ngrams(text, length) for text in test]
    wanted = frozenset().union(*parts)
    known = set()
    for size in {len(words) for words in wanted}:
        known.update(*(wanted & ngrams(text, size) for text in training))
    return [len(own & known) / max(1, len(own)) for own in parts]


def main() -> None:
    """The command: writes the texts that stay, or reports what of a test set is known; as JSON."""
    parser = argparse.ArgumentParser(
        prog='python -m bigmodels.privacy.duplicates', description=__doc__.splitlines()[0]
    )
    parser.add_argument('--input', type=pathlib.Path, required=True, help='JSON lines')
    aim = parser.add_mutually_exclusive_group(required=True)
    aim.add_argument('--output', type=pathlib.Path, help='where the lines that stay are written')
    aim.add_argument('--against', type=pathlib.Path, help='JSON lines of a test set')
    parser.add_argument('--field', default='text', help='which holds the text')
    parser.add_argument(
        '--threshold',
        type=float,
        default=0.8,
        help='Jaccard similarity; under 0.6 pairs are missed',
    )
    parser.add_argument('--ngram', type=int, default=5, help='words in an n-gram')
    options = parser.parse_args()
    if not 0 < options.threshold <= 1 or options.ngram < 1:
        raise errors.UserError(
            f'--threshold = {options.threshold} must be over 0 and at most 1, and --ngram = '
            f'{options.ngram} at least 1.'
        )
    texts = _read(options.input, options.field)
    if options.against:
        test = _read(options.against, options.field)
        shares = np.array(contamination(texts, test, options.ngram))
        known = np.flatnonzero(shares >= options.threshold)
        report = {'texts': len(test), 'known': len(known), 'mean_share': float(shares.mean()),
                  'first_known': known[:20].tolist()}  # fmt: skip
    else:
        if options.output.exists():
            raise errors.UserError(f'{options.output} exists already: choose another --output.')
        found = near_duplicates(texts, options.threshold, options.ngram)
        lines = filter(str.strip, read_text(str(options.input)).split('\n'))
        kept = ''.join(f'{line}\n' for number, line in enumerate(lines) if number not in found)
        with errors.unwritten(options.output):
            options.output.write_text(kept)
        report = {'texts': len(texts), 'dropped': len(found), 'first_dropped': [
            [number, like] for number, like in list(found.items())[:20]]}  # fmt: skip
    print(json.dumps(report))


def _read(path: pathlib.Path, field: str) -> list[str]:
    """The texts in a field of a file's records."""
    source = JsonLines(str(path))
    records = [source[i] for i in range(len(source))]
    for number, record in enumerate(records):
        if not isinstance(record.get(field), str):
            raise errors.UserError(f'{path}: record {number} has no text in --field={field}.')
    return [record[field] for record in records]


if __name__ == '__main__':
    errors.exit_on_user_error(main)
