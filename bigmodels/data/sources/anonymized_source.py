"""A source of texts or tables without what tells who somebody is."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from bigmodels import config, errors
from bigmodels.data import personal, sources
from bigmodels.data.sources import chat_sources, pair_sources, table_sources

# Sources of records with texts, by the name in the section `source`.
TEXTS: dict[str, type] = {
    'text_files': sources.TextFiles,
    'jsonl': sources.JsonLines,
    'chats': chat_sources.Chats,
    'preferences': chat_sources.Preferences,
    'parallel_text': pair_sources.ParallelText,
    'csv': table_sources.Csv,
    'tsv': table_sources.Tsv,
}


class Anonymized:
    """The records of another source with placeholders in their texts, see `personal.Anonymizer`.

    Every text is changed as it is read, and once before, so that `describe` says how many of each
    kind were found. What is no text stays: name a column of numbers that tell of people in
    `fields` and it is refused.

    Args:
      source: the section of a source of TEXTS.
      fields: those whose texts are changed, at any depth of them; all where none are named.
      kinds: of `personal.KINDS`, what to look for.
      names: a file of names to find as well, a line each; '' for none.
      secret: a file with the key of pseudonyms; '' for placeholders that are all alike.

    Raises:
      UserError: for a field that a record lacks or that holds no text; see also `Anonymizer`.
    """

    wraps: ClassVar = {'source': TEXTS}

    def __init__(
        self,
        source: Mapping[str, Any],
        fields: Sequence[str] = (),
        kinds: Sequence[str] = personal.KINDS,
        names: str = '',
        secret: str = '',
    ):
        self._source = config.choose(TEXTS, source, 'data (anonymized).source')
        self._fields = tuple(fields)
        self._anonymizer = personal.Anonymizer(
            tuple(kinds), personal.read_names(names), personal.read_secret(secret)
        )
        self._counts = collections.Counter()
        for i in range(len(self)):
            self._counts += self._changed(i)[1]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._changed(index)[0]

    def _changed(self, index: int) -> tuple[dict[str, Any], collections.Counter]:
        """A record, and how many of each kind were found in it."""
        record, counts = self._source[index], collections.Counter()

        def change(text: str) -> str:
            text, found = self._anonymizer(text)
            counts.update(found)
            return text

        for field in self._fields:
            where = f'{self._source.describe()}, record {index}'
            if field not in record:
                raise errors.unknown(f'field of {where}:', field, record)
            if not isinstance(record[field], str | list | dict):
                raise errors.UserError(
                    f'The field {field!r} of {where} holds {record[field]!r}, which is no text to '
                    'look into: leave the field out of the data.'
                )
        new = {field: personal.changed(record[field], change) for field in self._fields or record}
        return {**record, **new}, counts

    def fingerprint(self) -> str:
        # Of the secret it says no more than every pseudonym does.
        keyed = self._anonymizer.placeholder('fingerprint', '')
        settings = (
            self._fields,
            tuple(self._anonymizer.kinds),
            tuple(self._anonymizer.names),
            keyed,
        )
        parts = (self._source.fingerprint(), repr(settings), personal.rules())
        return sources.digest('anonymized', *parts)

    def describe(self) -> str:
        found = ', '.join(f'{count:,} {kind}' for kind, count in sorted(self._counts.items()))
        return f'{self._source.describe()}, anonymized: {found or "nothing found"}'
