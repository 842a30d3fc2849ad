"""What is found and what is not, by published examples; files; pseudonyms."""

import csv
import json
import pickle

import pytest

from bigmodels import config as config_lib
from bigmodels import errors, experiment
from bigmodels.data import SOURCES, inspect, personal
from bigmodels.privacy import anonymize
from tests import commands

FOUND = {
    'email': ['ada.lovelace+x@mail.example.co.uk', 'ä@bücher.example'],
    'card': ['4111 1111 1111 1111', '5500-0055-5555-5559', '378282246310005', '502023098911',
             '180071965934238'],
    'iban': ['GB82 WEST 1234 5698 7654 32', 'DE89370400440532013000', 'NO93 8601 1117 947'],
    'ip': ['192.168.0.1', '2001:db8::8a2e:370:7334', '::1'],
    'identity': ['12345678Z', 'X1234567L', '078-05-1120', '943 476 5919', '111222333',
                 '86095742719', '65 929 970 489'],
    'phone': ['+49 (0)30 1234567', '030/1234567', '+1-212-555-0123', '(212) 555-0123',
              '0044 20 7946 0018', '020 7946 0018', '(212)555-0123', '212.555.0123x4567',
              '+1-212-555-0123 ext. 89', '+49(0) 111222333', '(0060) 111222', '11 91234-5678',
              '22 839 89 47'],
}  # fmt: skip
# Another digit at the end, no number of its kind, or a word that only looks like one.
NOT_FOUND = [
    '4111 1111 1111 1112', 'GB82 WEST 1234 5698 7654 33', 'GB82 WEST 1234 5698', '12345678A',
    'X1234567M', '111222334', '86095742718', '256.1.1.1', '12:30',
    '2026-11-27', '27.11.2026', '3.14159265', '1,234,567', 'a@b', 'std::vector', 'v1.2.3.4.5', '::',
    '782 194 892', '3008250402',  # telephone numbers for some, and any number for others
]  # fmt: skip


@pytest.mark.parametrize('kind', FOUND)
def test_each_kind_is_found_whole_within_a_sentence(kind):
    for value in FOUND[kind]:
        text = f'Of {value} and ({value}), or {value}: {value}.'
        found = [(text[start:end], of) for start, end, of in personal.find(text)]
        assert found == [(value, kind)] * 4


@pytest.mark.parametrize('text', NOT_FOUND)
def test_what_fails_its_check_is_left(text):
    assert personal.find(text) == []
    assert personal.Anonymizer()(text) == (text, {})


@pytest.mark.parametrize(
    ('text', 'left'),
    [
        ('qty 2 4111 1111 1111 1111 paid', 'qty 2 <CARD> paid'),
        ('2024-05-01 4111 1111 1111 1111', '2024-05-01 <CARD>'),
        ('DE89 3704 0044 0532 0130 00 GB82 WEST 1234 5698 7654 32', '<IBAN> <IBAN>'),
        ('Ref AB12 DE89 3704 0044 0532 0130 00', 'Ref AB12 <IBAN>'),
    ],
)
def test_what_begins_within_something_longer_is_found(text, left):
    assert personal.Anonymizer()(text)[0] == left


def test_check_digits_find_every_changed_digit():
    assert not any(map(personal.is_ssn, ('000-12-3456', '666-12-3456', '123-00-3456')))
    for check, value in (
        (personal.is_card, '4111111111111111'), (personal.is_iban, 'DE89370400440532013000'),
        (personal.is_dni, '12345678Z'), (personal.is_nhs, '9434765919'),
        (personal.is_bsn, '111222333'),
    ):  # fmt: skip
        assert check(value)
        for i in range(2 if check is personal.is_iban else 0, len(value)):
            for digit in set('0123456789') - {value[i]}:
                assert not value[i].isdigit() or not check(value[:i] + digit + value[i + 1 :])


def test_placeholders_pseudonyms_and_counts():
    text = 'Ann Lee (ANN@x.org, 030 1234567) wrote ann@x.org to Annabel and ann lee: 030-1234567'
    plain, counts = personal.Anonymizer(names=['Ann', 'Ann Lee'])(text)
    assert plain == '<NAME> (<EMAIL>, <PHONE>) wrote <EMAIL> to Annabel and <NAME>: <PHONE>'
    assert counts == {'name': 2, 'email': 2, 'phone': 2}
    keyed = personal.Anonymizer(names=['Ann Lee'], secret=b'0123456789abcdef')
    words = keyed(text)[0].replace('(', '').replace(',', '').replace(')', '').split()
    tokens = [word.rstrip(':') for word in words if word.startswith('<')]
    assert len(tokens) == 6
    assert len(set(tokens)) == 3  # case and separators make no difference
    other = personal.Anonymizer(names=['Ann Lee'], secret=b'0123456789abcdeF')
    assert not set(tokens) & set(other(text)[0].split())
    assert keyed.placeholder('email', 'a@x.org') != keyed.placeholder('name', 'a@x.org')
    only = personal.Anonymizer(kinds=('phone',))(text)[1]
    assert only == {'phone': 2}
    with pytest.raises(errors.UserError, match='at least 16'):
        personal.Anonymizer(secret=b'short')
    with pytest.raises(errors.UserError, match="Did you mean 'phone'"):
        personal.Anonymizer(kinds=('fone',))


def test_files_of_each_format_by_the_command(tmp_path, capsys):
    mail, number = 'me@x.org', '+49 30 1234567'
    (tmp_path / 'names').write_text('\ufeffGrace Hopper\n\n')
    (tmp_path / 'a.txt').write_text(f'Grace Hopper, {mail}\n')
    record = {'text': f'ä {mail}', 'turns': [{'content': number}], 'id': 7, 'note': mail}
    (tmp_path / 'a.jsonl').write_text(json.dumps(record) + '\n\n' + json.dumps(record) + '\n')
    with (tmp_path / 'a.csv').open('w', newline='') as file:
        csv.writer(file).writerows([['who', 'n'], [f'"{mail}", she\nsaid', '1'], ['nobody', '2']])

    def run(name, **options):
        out = tmp_path / f'out_{name}'
        printed = commands.printed(anonymize, capsys, input=tmp_path / name, output=out, **options)
        return json.loads(printed)['found'], out.read_text()

    found, text = run('a.txt', names=tmp_path / 'names')
    assert (found, text) == ({'email': 1, 'name': 1}, '<NAME>, <EMAIL>\n')
    found, text = run('a.jsonl', fields='text,turns')
    assert found == {'email': 2, 'phone': 2}
    first, second = map(json.loads, text.splitlines())
    assert first == second == record | {'text': 'ä <EMAIL>', 'turns': [{'content': '<PHONE>'}]}
    found, text = run('a.csv')
    assert found == {'email': 1}
    rows = list(csv.reader(text.splitlines(keepends=True)))
    assert rows == [['who', 'n'], ['"<EMAIL>", she\nsaid', '1'], ['nobody', '2']]
    (tmp_path / 'b.csv').write_text('a,b\n1\n')
    (tmp_path / 'twice.csv').write_text('a,a\n1,2\n')
    (tmp_path / 'b.jsonl').write_text('{"a": 1}\n[]\n')
    for name, options, message in (
        ('a.txt', {}, 'exists already'),
        ('b.csv', {}, 'the table:2 has 1 values, the header has 2 columns'),
        ('twice.csv', {}, 'names a column twice: a, a'),
        ('b.jsonl', {}, 'Line 2 is no JSON object'),
        ('b.jsonl', {'fields': 'c'}, "field of line 1 'c'"),
    ):
        with pytest.raises(errors.UserError, match=message):
            run(name, **options)
    with pytest.raises(errors.UserError, match='none/a.txt cannot be written: No such file'):
        commands.printed(
            anonymize, capsys, input=tmp_path / 'a.txt', output=tmp_path / 'none/a.txt'
        )


def test_a_source_of_anonymized_records(tmp_path, monkeypatch):
    mail, number, path = 'me@x.org', '+49 30 1234567', tmp_path / 'a.jsonl'
    records = [{'text': f'{mail} and Ann', 'turns': [{'content': number}], 'id': 7, 'note': mail},
               {'text': 'none', 'turns': [], 'id': 8, 'note': ''}]  # fmt: skip
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    (tmp_path / 'names').write_text('Ann\n')
    (tmp_path / 'secret').write_text('0123456789abcdef\n')

    def made(**settings):
        return SOURCES['anonymized'](dict(name='jsonl', path=str(path)), **settings)

    plain = made()
    assert plain[0] == records[0] | {
        'text': '<EMAIL> and Ann', 'turns': [{'content': '<PHONE>'}], 'note': '<EMAIL>',
    }  # fmt: skip
    assert (len(plain), plain[1]) == (2, records[1])
    assert plain.describe().endswith('anonymized: 2 email, 1 phone')
    some = made(fields=('text',), kinds=('phone',), names=str(tmp_path / 'names'))
    assert some[0] == records[0] | {'text': f'{mail} and <NAME>'}
    assert some.describe().endswith('anonymized: 1 name')
    keyed = made(secret=str(tmp_path / 'secret'))
    assert (
        keyed[0]['note']
        == keyed[0]['text'].split()[0]
        == keyed._anonymizer.placeholder('email', mail)
    )
    prints = {source.fingerprint() for source in (plain, some, keyed, made(fields=('text',)))}
    assert len(prints) == 4
    assert (
        made().fingerprint()
        == plain.fingerprint()
        == pickle.loads(pickle.dumps(plain)).fingerprint()
    )
    with monkeypatch.context() as patch:
        patch.setattr(personal, 'PATTERNS', personal.PATTERNS[1:])
        assert made().fingerprint() not in prints
    for settings, message in (
        (dict(fields=('txt',)), "record 0: 'txt'. Did you mean 'text'"),
        (dict(fields=('id',)), "'id' of .*, record 0 holds .*7.*, which is no text"),
        (dict(kinds=('mail',)), "Did you mean 'email'"),
        (dict(secret=str(tmp_path / 'names')), 'has 3 bytes'),
        (dict(secret=str(tmp_path / 'nothing')), 'nothing'),
    ):
        with pytest.raises(errors.UserError, match=message):
            made(**settings)


def test_a_config_names_it_and_the_start_screen_counts(tmp_path, capsys):
    path, overrides = commands.tiny_text(tmp_path)
    text = tmp_path / 'mails.txt'
    text.write_text('Write to me@x.org. ' * 40)
    source = dict(name='text_files', path=str(text))
    overrides += ['data.train.name=anonymized', f'data.train.source={source}']
    config = config_lib.load(path, overrides)
    [(found, _)] = experiment.training_sources(experiment.from_config(config))
    assert found.describe().endswith('anonymized: 40 email')
    kept = experiment.resolved(config)['data']['train']
    assert kept['secret'] == kept['source']['split_documents'] == ''
    options = {f'config.{key}': value for key, _, value in (o.partition('=') for o in overrides)}
    shown = commands.printed(
        inspect, capsys, config=path, steps='1:2', out=tmp_path / 'out', **options
    )
    assert 'Write to <EMAIL>. ' in shown
    assert 'me@x.org' not in shown
