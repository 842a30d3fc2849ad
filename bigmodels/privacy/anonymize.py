"""The command that takes out of texts and tables what tells who somebody is.

python -m bigmodels.privacy.anonymize --input=mails.jsonl --fields=text --output=clean.jsonl

Text files are read whole, of JSON lines the fields named, of CSV the columns named; all of them by
default. What is found becomes a placeholder such as <EMAIL>; with --secret=FILE one such as
<EMAIL:8f31c02a9d47>, the same for the same value and not to be undone without the file. It finds
what has a known form, and names that are given: text may tell of people in other ways.
"""

import argparse
import collections
import csv
import dataclasses
import functools
import hashlib
import hmac
import io
import json
import pathlib
import re
from collections.abc import Callable, Collection, Sequence

from bigmodels import errors
from bigmodels.data.sources import read_text
from bigmodels.privacy import patterns

NAME = 'name'
SHORTEST_SECRET = 16  # bytes: a shorter one can be tried out


@dataclasses.dataclass(frozen=True)
class Anonymizer:
    """text -> (text without what was found, how many there were of each kind).

    Fields:
      kinds: of `patterns.KINDS`, what to look for.
      names: to be found as whole words, in any case.
      secret: the key of pseudonyms; none makes placeholders that are all alike.
    """

    kinds: Collection[str] = patterns.KINDS
    names: Sequence[str] = ()
    secret: bytes = b''

    def __post_init__(self):
        for kind in self.kinds:
            if kind not in patterns.KINDS:
                raise errors.unknown('kind', kind, patterns.KINDS)
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
        found = patterns.find(text, self.kinds)
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


Change = Callable[[str], str]


def of_text(text: str, change: Change, fields: Sequence[str]) -> str:
    """A plain text, changed as a whole."""
    if fields:
        raise errors.UserError('A plain text has no fields: --fields is for .jsonl and .csv files.')
    return change(text)


def of_json_lines(text: str, change: Change, fields: Sequence[str]) -> str:
    """JSON objects, a line each: the strings in the named fields, at any depth in them."""

    def changed(value):
        if isinstance(value, str):
            return change(value)
        if isinstance(value, list):
            return [changed(item) for item in value]
        if isinstance(value, dict):
            return {key: changed(item) for key, item in value.items()}
        return value

    lines = []
    for number, line in enumerate(filter(str.strip, text.split('\n')), 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise errors.UserError(f'Line {number} is no JSON: {error}.') from error
        if not isinstance(record, dict):
            raise errors.UserError(f'Line {number} is no JSON object.')
        for field in fields or record:
            if field not in record:
                raise errors.unknown(f'field of line {number}', field, record)
            record[field] = changed(record[field])
        lines.append(json.dumps(record, ensure_ascii=False) + '\n')
    return ''.join(lines)


def of_csv(text: str, change: Change, fields: Sequence[str]) -> str:
    """Rows under a header: the named columns."""
    reader = csv.DictReader(io.StringIO(text), strict=True)
    header = reader.fieldnames or ()
    for field in fields:
        if field not in header:
            raise errors.unknown('column', field, header)
    out = io.StringIO()
    writer = csv.DictWriter(out, header, lineterminator='\n')
    writer.writeheader()
    for number, row in enumerate(reader, 1):
        if None in row or None in row.values():
            raise errors.UserError(f'Row {number} has not the {len(header)} columns of the header.')
        writer.writerow({**row, **{field: change(row[field]) for field in fields or header}})
    return out.getvalue()


FORMATS = {'.jsonl': of_json_lines, '.csv': of_csv}  # others are plain text


def main() -> None:
    """The command: writes the file, and prints how much of each kind was found, as JSON."""
    parser = argparse.ArgumentParser(
        prog='python -m bigmodels.privacy.anonymize', description=__doc__.splitlines()[0]
    )
    parser.add_argument('--input', type=pathlib.Path, required=True)
    parser.add_argument('--output', type=pathlib.Path, required=True)
    parser.add_argument('--fields', default='', help='of .jsonl and .csv, with commas; all')
    parser.add_argument('--kinds', default=','.join(patterns.KINDS), help='what to look for')
    parser.add_argument('--names', type=pathlib.Path, help='a file of names to find, a line each')
    parser.add_argument(
        '--secret', type=pathlib.Path, help='the key of pseudonyms, 16 bytes or more'
    )
    options = parser.parse_args()
    if options.output.exists():
        raise errors.UserError(f'{options.output} exists already: choose another --output.')
    names = read_text(str(options.names)).splitlines() if options.names else ()
    secret = _read_secret(options.secret) if options.secret else b''
    anonymizer = Anonymizer(_listed(options.kinds), [name.strip() for name in names], secret)
    total = collections.Counter()

    def change(text: str) -> str:
        text, counts = anonymizer(text)
        total.update(counts)
        return text

    suffix = options.input.name.removesuffix('.gz')
    convert = FORMATS.get(pathlib.Path(suffix).suffix, of_text)
    try:
        result = convert(read_text(str(options.input)), change, _listed(options.fields))
    except (errors.UserError, csv.Error) as error:
        raise errors.UserError(f'{options.input}: {error}') from error
    options.output.write_text(result)
    print(json.dumps({'found': dict(sorted(total.items())), 'written': str(options.output)}))


def _listed(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(',')))


def _read_secret(path: pathlib.Path) -> bytes:
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise errors.UserError(f'The secret {path} cannot be read: {error.strerror}.') from error
    if not secret:
        raise errors.UserError(f'The secret {path} is empty.')
    return secret


if __name__ == '__main__':
    errors.exit_on_user_error(main)
