"""What in a text tells who somebody is, and what takes its place.

It is found where its form alone shows it: e-mail, telephone, card, account and address numbers, by
expressions and published check digits; and by names that are given.
"""

import collections
import dataclasses
import functools
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from bigmodels import errors
from bigmodels.data.sources import BOM, digest, read_bytes, read_text

NAME = 'name'
SHORTEST_SECRET = 16  # bytes: a shorter one can be tried out
Change = Callable[[str], str]

# Lengths of IBANs by country (SWIFT, IBAN registry); others are not taken for one.
IBAN_LENGTHS = {
    'AD': 24, 'AE': 23, 'AL': 28, 'AT': 20, 'AZ': 28, 'BA': 20, 'BE': 16, 'BG': 22, 'BH': 22,
    'BR': 29, 'CH': 21, 'CR': 22, 'CY': 28, 'CZ': 24, 'DE': 22, 'DK': 18, 'DO': 28, 'EE': 20,
    'EG': 29, 'ES': 24, 'FI': 18, 'FO': 18, 'FR': 27, 'GB': 22, 'GE': 22, 'GI': 23, 'GL': 18,
    'GR': 27, 'GT': 28, 'HR': 21, 'HU': 28, 'IE': 22, 'IL': 23, 'IS': 26, 'IT': 27, 'JO': 30,
    'KW': 30, 'KZ': 20, 'LB': 28, 'LI': 21, 'LT': 20, 'LU': 20, 'LV': 21, 'MC': 27, 'MD': 24,
    'ME': 22, 'MK': 19, 'MT': 31, 'NL': 18, 'NO': 15, 'PK': 24, 'PL': 28, 'PS': 29, 'PT': 25,
    'QA': 29, 'RO': 24, 'RS': 22, 'SA': 24, 'SE': 24, 'SI': 19, 'SK': 24, 'SM': 27, 'TN': 24,
    'TR': 26, 'UA': 29, 'XK': 20,
}  # fmt: skip


def luhn(text: str) -> bool:
    """Whether the digits of a text end in their check digit (ISO/IEC 7812-1, annex B)."""
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [sum(divmod(2 * d, 10)) for d in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


CARDS = ('1800', '2', '3', '4', '5', '6')  # how numbers of payment cards begin


def is_card(text: str) -> bool:
    """Whether a text of digits, blanks and hyphens is a payment card's number."""
    digits = re.sub(r'\D', '', text)
    return 12 <= len(digits) <= 19 and digits.startswith(CARDS) and luhn(digits)


def is_iban(text: str) -> bool:
    """Whether a text is an IBAN of the length of its country (ISO 13616; 97 by ISO 7064)."""
    compact = re.sub(r'\s', '', text).upper()
    if len(compact) != IBAN_LENGTHS.get(compact[:2]):
        return False
    return int(''.join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def is_dni(text: str) -> bool:
    """Whether a Spanish identity number, DNI or NIE, ends in its letter: modulo 23."""
    compact = text.replace('-', '').upper()
    number = compact[:-1].translate(str.maketrans('XYZ', '012'))
    return 'TRWAGMYFPDXBNJZSQVHLCKE'[int(number) % 23] == compact[-1]


def is_nhs(text: str) -> bool:
    """Whether ten digits are a British NHS number (NHS Data Dictionary: modulo 11)."""
    digits = [int(c) for c in text if c.isdigit()]
    check = -sum(d * w for d, w in zip(digits, range(10, 1, -1), strict=False)) % 11
    return check == digits[9]


def is_bsn(text: str) -> bool:
    """Whether nine digits are a Dutch citizen service number (the eleven test, last weight -1)."""
    digits = [int(c) for c in text if c.isdigit()]
    weights = (9, 8, 7, 6, 5, 4, 3, 2, -1)
    return any(digits) and sum(d * w for d, w in zip(digits, weights, strict=True)) % 11 == 0


def is_steuer_id(text: str) -> bool:
    """Whether eleven digits are a German tax identification number (ISO 7064, MOD 11,10)."""
    digits = [int(c) for c in text if c.isdigit()]
    counts = sorted(digits[:10].count(d) for d in set(digits[:10]))
    product = 10
    for digit in digits[:10]:
        product = ((digit + product) % 10 or 10) * 2 % 11
    # Of the first ten digits one occurs two or three times, all others at most once.
    repeated = counts[-1] in (2, 3) and counts[-2] == 1
    return bool(digits[0]) and repeated and (11 - product) % 10 == digits[10]


def is_ssn(text: str) -> bool:
    """Whether a United States social security number may have been issued (20 CFR 422.103)."""
    area, group, serial = text.split('-')
    return area not in ('000', '666') and area < '900' and group != '00' and serial != '0000'


def is_address(text: str) -> bool:
    """Whether a text is an IPv4 or IPv6 address, but for "::", which programs are full of."""
    try:
        return bool(ipaddress.ip_address(text)) and text != '::'
    except ValueError:
        return False


_START, _END = r'(?<![\w.+-])', r'(?![\w-])'
_EXTENSION = r'(?: ?(?:x|ext\.?) ?\d{1,5})?'


def is_phone(text: str) -> bool:
    """Whether a text has as many digits as a telephone number (ITU-T E.164), and is no date."""
    digits = re.sub(r'\D', '', re.split('[ex]', text)[0])  # without an extension's
    if re.fullmatch(r'(\d{4}[-./]\d\d?[-./]\d\d?|\d\d?[-./]\d\d?[-./]\d{4})', text):
        return False
    return 8 <= len(digits) <= 15


# (kind, expression, whether what it finds is one). Of two that find the same place the longer one
# counts, and the earlier of the same length.
PATTERNS: tuple[tuple[str, re.Pattern, Callable[[str], bool]], ...] = tuple(
    (kind, re.compile(expression), check)
    for kind, expression, check in (
        ('email', r'(?<![\w.+-])[\w.+%-]+@\w[\w-]*(?:\.\w[\w-]*)+', lambda text: True),
        ('iban', rf'{_START}[A-Z]{{2}}\d{{2}}(?: ?[A-Z0-9]{{1,4}}){{3,8}}{_END}', is_iban),
        ('card', rf'{_START}\d(?:[ -]?\d){{11,18}}{_END}', is_card),
        ('ip', r'(?<![\w.:])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)', is_address),
        (
            'ip',
            r'(?<![\w.:])[0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){2,7}(?:(?<=\w)|(?<=::))(?!\w)',
            is_address,
        ),
        ('identity', rf'{_START}(?:\d{{8}}|[XYZ]-?\d{{7}})-?[A-Z]{_END}', is_dni),
        ('identity', rf'{_START}\d{{3}}-\d{{2}}-\d{{4}}{_END}', is_ssn),
        ('identity', rf'{_START}\d{{3}} \d{{3}} \d{{4}}{_END}', is_nhs),
        ('identity', rf'{_START}\d{{2}} ?\d{{3}} ?\d{{3}} ?\d{{3}}{_END}', is_steuer_id),
        ('identity', rf'{_START}\d{{9}}{_END}', is_bsn),
        (
            'phone',
            rf'{_START}(?:\+|00)\d(?:[ ./()-]{{0,2}}\d){{6,13}}{_EXTENSION}{_END}',
            is_phone,
        ),
        (
            'phone',
            rf'{_START}(?:\(0\d{{1,5}}\)|0\d{{1,5}})(?:[ ./-]{{0,2}}\d){{5,10}}{_EXTENSION}{_END}',
            is_phone,
        ),
        (  # North America's, Brazil's and Poland's without a country's code
            'phone',
            rf'{_START}(?:\(\d{{3}}\)[ .-]?|\d{{3}}[ .-])\d{{3}}[ .-]\d{{4}}{_EXTENSION}{_END}',
            is_phone,
        ),
        ('phone', rf'{_START}(?:\(\d{{2}}\) ?|\d{{2}} )\d{{4,5}}-\d{{4}}{_END}', is_phone),
        ('phone', rf'{_START}\d{{2}} \d{{3}} \d{{2}} \d{{2}}{_END}', is_phone),
    )
)
KINDS = tuple(dict.fromkeys(kind for kind, _, _ in PATTERNS))
_VERSION = 1  # raise it when `find`, a check or a placeholder changes


def rules() -> str:
    """A hex digest of what is looked for and how: by others a text becomes another one."""
    expressions = (f'{kind} {pattern.pattern}' for kind, pattern, _ in PATTERNS)
    return digest(str(_VERSION), *expressions)


def find(text: str, kinds: Collection[str] = KINDS) -> list[tuple[int, int, str]]:
    """(start, end, kind) of what is found in a text, in its order; none overlaps another."""
    possible = []
    for order, (kind, pattern, check) in enumerate(PATTERNS):
        if kind not in kinds:
            continue
        match = pattern.search(text)
        while match:
            value = match[0]
            while ' ' in value and not (pattern.fullmatch(value) and check(value)):
                value = value.rpartition(' ')[0]  # what follows may look like a part of it
            if pattern.fullmatch(value) and check(value):
                possible.append((-len(value), order, match.start(), kind))
            match = pattern.search(text, match.start() + 1)  # what begins within this one, too
    found, taken = [], bytearray(len(text))
    for length, _, start, kind in sorted(possible):
        end = start - length
        if not any(taken[start:end]):
            taken[start:end] = b'\1' * (end - start)
            found.append((start, end, kind))
    return sorted(found)


@dataclasses.dataclass(frozen=True)
class Anonymizer:
    """text -> (text without what was found, how many there were of each kind).

    Fields:
      kinds: of KINDS, what to look for.
      names: to be found as whole words, in any case.
      secret: the key of pseudonyms; none makes placeholders that are all alike.
    """

    kinds: Collection[str] = KINDS
    names: Sequence[str] = ()
    secret: bytes = b''

    def __post_init__(self):
        for kind in self.kinds:
            if kind not in KINDS:
                raise errors.unknown('kind', kind, KINDS)
        if self.secret and len(self.secret) < SHORTEST_SECRET:
            raise errors.UserError(
                f'The secret has {len(self.secret)} bytes, at least {SHORTEST_SECRET} are needed: '
                f'pseudonyms by a shorter one can be undone by trying. openssl rand -hex 32 makes '
                f'one.'
            )

    @functools.cached_property
    def _name_pattern(self) -> re.Pattern | None:
        longest_first = sorted(filter(None, self.names), key=len, reverse=True)
        either = '|'.join(map(re.escape, longest_first))
        return re.compile(rf'(?<!\w)(?:{either})(?!\w)', re.IGNORECASE) if either else None

    def __call__(self, text: str) -> tuple[str, collections.Counter]:
        found = find(text, self.kinds)
        if self._name_pattern:
            names = [(*match.span(), NAME) for match in self._name_pattern.finditer(text)]
            found += [
                (start, end, kind)
                for start, end, kind in names
                if all(end <= other or start >= stop for other, stop, _ in found)
            ]
        parts, last = [], 0
        for start, end, kind in sorted(found):
            parts += [text[last:start], self.placeholder(kind, text[start:end])]
            last = end
        counts = collections.Counter(kind for _, _, kind in found)
        return ''.join([*parts, text[last:]]), counts

    def placeholder(self, kind: str, value: str) -> str:
        """What takes the place of a value; pseudonyms do not depend on its case or separators."""
        if not self.secret:
            return f'<{kind.upper()}>'
        kept = r'[\s]' if kind in ('email', NAME) else r'[\s./()-]'
        plain = re.sub(kept, '', value).casefold()
        digest = hmac.new(self.secret, f'{kind}:{plain}'.encode(), hashlib.sha256).hexdigest()
        return f'<{kind.upper()}:{digest[:12]}>'


def changed(value: Any, change: Change) -> Any:
    """A value with `change` made to every text in it, at any depth of lists and dicts."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [changed(item, change) for item in value]
    if isinstance(value, dict):
        return {key: changed(item, change) for key, item in value.items()}
    return value


def read_names(path: str) -> list[str]:
    """The names in a file, a line each; none for ''."""
    lines = read_text(path).removeprefix(BOM).splitlines() if path else []
    return [line.strip() for line in lines]


def read_secret(path: str) -> bytes:
    """The key of pseudonyms in a file; none, b'', for ''.

    Raises:
      UserError: if it cannot be read or is empty.
    """
    secret = read_bytes(path).strip() if path else b''
    if path and not secret:
        raise errors.UserError(f'The secret {path} is empty.')
    return secret
