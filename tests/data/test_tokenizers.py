"""Tokenizers: round trips, byte counts, saving, and the errors that a user can cause."""

import json
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigmodels import errors
from bigmodels.data import sources, subwords, tokenizers

CORPUS = [
    'def f(x):\n    return x + 1\n' * 20,
    'Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. 🙂\n' * 20,
    'The quick brown fox jumps over the lazy dog, and 1,234 more.\n' * 20,
]
# Any text that UTF-8 can hold; NUL is what separates documents of bytes.
TEXT = st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\0'))
CORPUS_TEXT = st.text(sorted({*''.join(CORPUS)}))


def texts():
    return iter(CORPUS)


def train_sentencepiece(path):
    library = pytest.importorskip('sentencepiece')
    library.SentencePieceTrainer.train(
        sentence_iterator=iter('\n'.join(CORPUS).splitlines()),
        model_prefix=str(path / 'sp'),
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name='identity',
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return str(path / 'sp.model')


@pytest.fixture(scope='module')
def all_tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tokenizers')
    bpe = tokenizers.fit({'name': 'bpe', 'vocab_size': 400}, texts)
    bpe.save(folder)
    sections = {
        'bytes': {},
        'characters': {},
        'hugging_face': {'path': str(folder)},
        'sentencepiece': {'path': train_sentencepiece(folder)},
    }
    made = {kind: tokenizers.fit({'name': kind, **s}, texts) for kind, s in sections.items()}
    return made | {'bpe': bpe}


KINDS = ['bytes', 'characters', 'hugging_face', 'sentencepiece', 'bpe']


@pytest.fixture
def tokenizer(request, all_tokenizers):
    return all_tokenizers[request.param]


def check_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert ids.ndim == 1
    assert tokenizer.decode(ids) == text
    spelt = tokenizer.token_bytes()
    assert b''.join(spelt[id] for id in ids) == text.encode()
    assert tokenizer.byte_lengths().tolist() == [len(part) for part in spelt]
    if len(ids):
        assert ids.min() >= 0
        assert ids.max() < tokenizer.vocab_size


@settings(max_examples=60, deadline=None)
@given(text=TEXT)
def test_any_text_survives_bytes_and_bpe(all_tokenizers, text):
    check_round_trip(all_tokenizers['bytes'], text)
    check_round_trip(all_tokenizers['bpe'], text)


@settings(max_examples=60, deadline=None)
@given(text=CORPUS_TEXT)
def test_text_of_the_corpus_survives_characters(all_tokenizers, text):
    check_round_trip(all_tokenizers['characters'], text)


@pytest.mark.parametrize('tokenizer', KINDS, indirect=True)
def test_corpus_survives_and_bytes_are_counted(tokenizer):
    for text in CORPUS:
        line = text.splitlines()[0]
        check_round_trip(tokenizer, line)
        joined = [*tokenizer.encode(line), tokenizer.end_of_text]
        assert tokenizer.decode(joined).rstrip('\n') == line
    assert tokenizer.byte_lengths().dtype == np.int32
    assert tokenizer.encode('').shape == (0,)


@pytest.mark.parametrize('tokenizer', KINDS, indirect=True)
def test_saved_and_pickled_tokenizers_are_equal(tokenizer, tmp_path):
    tokenizer.save(tmp_path / 'run')
    for copy in (tokenizers.restore(tmp_path / 'run'), pickle.loads(pickle.dumps(tokenizer))):
        assert type(copy) is type(tokenizer)
        assert copy.vocab_size == tokenizer.vocab_size
        assert copy.end_of_text == tokenizer.end_of_text
        assert copy.fingerprint() == tokenizer.fingerprint()
        np.testing.assert_array_equal(copy.byte_lengths(), tokenizer.byte_lengths())
        for text in ('return x', '<|endoftext|> </s>\n'):
            if type(copy) is not tokenizers.Characters or text == 'return x':
                np.testing.assert_array_equal(copy.encode(text), tokenizer.encode(text))


def test_fingerprints_differ(all_tokenizers):
    different = {t.fingerprint() for t in all_tokenizers.values()}
    assert len(different) == 4  # the Hugging Face one is the trained one, saved
    assert tokenizers.Characters('ab').fingerprint() != tokenizers.Characters('ac').fingerprint()


@pytest.mark.parametrize('tokenizer', ['bpe', 'sentencepiece'], indirect=True)
def test_text_cannot_spell_a_special_token(tokenizer):
    for spelled in ('<|endoftext|>', '</s>', 'a<s>b'):
        ids = tokenizer.encode(spelled)
        assert tokenizer.end_of_text not in ids
        assert tokenizer.decode(ids) == spelled


def test_what_a_file_says_of_truncation_and_padding_is_left_out(all_tokenizers, tmp_path):
    """They are of the calls before it was saved: a corpus is not cut and filled up by them."""
    library = pytest.importorskip('tokenizers')
    plain = all_tokenizers['bpe']
    cutting = library.Tokenizer.from_str(plain.content)
    cutting.enable_truncation(5)
    cutting.enable_padding(length=8, direction='left', pad_token='<|endoftext|>')
    cutting.save(str(tmp_path / 'tokenizer.json'))
    read = tokenizers.fit({'name': 'hugging_face', 'path': str(tmp_path)}, texts)
    for text in ('a', 'some words that are more than five tokens'):
        for encode in ('encode', 'encode_chat'):
            expected = getattr(plain, encode)(text)
            np.testing.assert_array_equal(getattr(read, encode)(text), expected)
    assert subwords.published_names(tmp_path / 'tokenizer.json', None)[1] == ''


@pytest.mark.parametrize('tokenizer', KINDS, indirect=True)
def test_that_of_another_run_is_taken_as_it_was_saved(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    taken = tokenizers.fit({'name': 'saved', 'path': str(tmp_path)}, texts)
    assert taken.fingerprint() == tokenizer.fingerprint()


def test_training_bpe_is_deterministic_and_compresses(all_tokenizers):
    again = tokenizers.fit({'name': 'bpe', 'vocab_size': 400}, texts)
    assert again.fingerprint() == all_tokenizers['bpe'].fingerprint()
    assert again.vocab_size <= 400
    text = ''.join(CORPUS)
    assert len(again.encode(text)) < 0.5 * len(text.encode())


def test_bytes_that_are_not_text_are_replaced(all_tokenizers):
    assert tokenizers.Bytes().decode([0xE4, 97, 0]) == '\ufffda'
    part = all_tokenizers['bpe'].encode('\U0001f9ff')[:1]
    assert '\ufffd' in all_tokenizers['bpe'].decode(part)


def test_characters_decisions():
    tokenizer = tokenizers.Characters('ba')
    assert tokenizer.vocab_size == 3
    assert tokenizer.decode([tokenizer.end_of_text]) == '\n'
    np.testing.assert_array_equal(tokenizer.encode('ab\n'), [1, 2, 0])
    with pytest.raises(errors.UserError, match=r"'c' at position 2 .* 3 characters .*'bytes'"):
        tokenizer.encode('abcd')
    with pytest.raises(errors.UserError, match='position 0'):
        tokenizer.encode('\ud800')


def test_text_that_cannot_be_encoded(all_tokenizers):
    with pytest.raises(errors.UserError, match='NUL character at position 1'):
        tokenizers.Bytes().encode('a\0')
    for kind in ('bytes', 'bpe', 'sentencepiece'):
        with pytest.raises(errors.UserError, match=r'position 1 .* surrogate'):
            all_tokenizers[kind].encode('a\ud800')


def test_errors_of_the_section(tmp_path):
    def error_of(**section):
        with pytest.raises(errors.UserError) as caught:
            tokenizers.fit(section, texts)
        return str(caught.value)

    (tmp_path / 'bad.json').write_text('{"model": 3}')
    assert "Did you mean 'characters'" in error_of(name='character')
    assert 'lacks: vocab_size' in error_of(name='bpe')
    assert '256 bytes and the end of text need 257' in error_of(name='bpe', vocab_size=256)
    absent = str(tmp_path / 'absent')
    assert 'no tokenizer file' in error_of(name='hugging_face', path=absent)
    assert 'no tokenizer file' in error_of(name='sentencepiece', path=absent)
    bad = str(tmp_path / 'bad.json')
    assert 'bad.json is not a tokenizer.json' in error_of(name='hugging_face', path=bad)
    assert 'bad.json is not a SentencePiece model' in error_of(name='sentencepiece', path=bad)


def test_end_of_text_can_be_named(all_tokenizers, tmp_path):
    all_tokenizers['bpe'].save(tmp_path)
    content = json.loads((tmp_path / 'tokenizer.json').read_text())
    content['added_tokens'][0]['content'] = '<|stop|>'
    content['model']['vocab']['<|stop|>'] = content['model']['vocab'].pop('<|endoftext|>')
    (tmp_path / 'tokenizer.json').write_text(json.dumps(content))
    section = {'name': 'hugging_face', 'path': str(tmp_path)}
    with pytest.raises(errors.UserError, match=r"Set end_of_text .*'<\|stop\|>'"):
        tokenizers.fit(section, texts)
    tokenizer = tokenizers.fit(section | {'end_of_text': '<|stop|>'}, texts)
    assert tokenizer.byte_lengths()[tokenizer.end_of_text] == 0


@pytest.mark.parametrize('kind', ['bpe', 'sentencepiece'])
def test_missing_library(kind, all_tokenizers, tmp_path, monkeypatch):
    all_tokenizers[kind].save(tmp_path)
    monkeypatch.setitem(sys.modules, 'tokenizers' if kind == 'bpe' else kind, None)
    with pytest.raises(errors.UserError, match=r"pip install 'bigmodels\[text\]'"):
        tokenizers.restore(tmp_path)


def test_restore_errors(tmp_path):
    with pytest.raises(errors.UserError, match='no tokenizer file'):
        tokenizers.restore(tmp_path)
    (tmp_path / 'tokenizer_kind.json').write_text('{"kind": "byte"}')
    with pytest.raises(errors.UserError, match="Did you mean 'bytes'"):
        tokenizers.restore(tmp_path)


@pytest.mark.shared_data
def test_tiny_shakespeare_has_65_characters(shared_data):
    source = sources.TextFiles(str(shared_data / 'tinyshakespeare' / 'input.txt'))
    text = source[0]['text']
    tokenizer = tokenizers.fit({'name': 'characters'}, lambda: (r['text'] for r in source))
    assert tokenizer.vocab_size == 65
    # nanoGPT's own encoding
    index = {character: i for i, character in enumerate(sorted(set(text)))}
    np.testing.assert_array_equal(tokenizer.encode(text), [index[c] for c in text])
