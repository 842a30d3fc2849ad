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
import io
import json
import pathlib
from collections.abc import Sequence

from bigmodels import errors
from bigmodels.data.personal import KINDS, Anonymizer, Change, changed, read_names, read_secret
from bigmodels.data.sources import BOM, read_text
from bigmodels.data.sources.table_sources import whole_rows


def of_text(text: str, change: Change, fields: Sequence[str]) -> str:
    """A plain text, changed as a whole."""
    if fields:
        raise errors.UserError('A plain text has no fields: --fields is for .jsonl and .csv files.')
    return change(text)


def of_json_lines(text: str, change: Change, fields: Sequence[str]) -> str:
    """JSON objects, a line each: the strings in the named fields, at any depth in them."""
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
            record[field] = changed(record[field], change)
        lines.append(json.dumps(record, ensure_ascii=False) + '\n')
    return ''.join(lines)


def of_csv(text: str, change: Change, fields: Sequence[str]) -> str:
    """Rows under a header: the named columns."""
    header, rows = whole_rows('the table', text)
    for field in fields:
        if field not in header:
            raise errors.unknown('column', field, header)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(header)
    chosen = [not fields or name in fields for name in header]
    for row in rows:
        writer.writerow([change(v) if wanted else v for v, wanted in zip(row, chosen, strict=True)])
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
    parser.add_argument('--kinds', default=','.join(KINDS), help='what to look for')
    parser.add_argument('--names', default='', help='a file of names to find, a line each')
    parser.add_argument('--secret', default='', help='the key of pseudonyms, 16 bytes or more')
    options = parser.parse_args()
    if options.output.exists():
        raise errors.UserError(f'{options.output} exists already: choose another --output.')
    anonymizer = Anonymizer(
        _listed(options.kinds), read_names(options.names), read_secret(options.secret)
    )
    total = collections.Counter()

    def change(text: str) -> str:
        text, counts = anonymizer(text)
        total.update(counts)
        return text

    suffix = options.input.name.removesuffix('.gz')
    convert = FORMATS.get(pathlib.Path(suffix).suffix, of_text)
    try:
        text = read_text(str(options.input)).removeprefix(BOM)
        result = convert(text, change, _listed(options.fields))
    except errors.UserError as error:
        raise errors.UserError(f'{options.input}: {error}') from error
    with errors.unwritten(options.output):
        options.output.write_text(result)
    print(json.dumps({'found': dict(sorted(total.items())), 'written': str(options.output)}))


def _listed(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(',')))


if __name__ == '__main__':
    errors.exit_on_user_error(main)
