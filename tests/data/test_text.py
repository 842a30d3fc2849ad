"""Corpora, chunks and packed rows against plain Python over the same documents."""

import concurrent.futures
import itertools
import multiprocessing
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigmodels import errors
from bigmodels.data import text, tokenizers
from bigmodels.data.sources import digest, stdlib_source


class Documents:
    """A source of the given texts."""

    def __init__(self, *texts):
        self._texts = texts

    def __len__(self):
        return len(self._texts)

    def __getitem__(self, i):
        return {'text': self._texts[i], 'label': np.int64(i)}

    def fingerprint(self):
        return digest(*self._texts)

    def describe(self):
        return f'{len(self)} documents'


def make_corpus(folder, *texts, **settings):
    return text.tokenize_corpus(Documents(*texts), tokenizers.Bytes(), folder, **settings)


def _tokenize(folder):
    return make_corpus(folder, *('many words ' * 50 for _ in range(200))).num_tokens


def test_corpus_holds_the_documents(tmp_path):
    texts = ['one', '', 'zwö', 'three\n']
    corpus = make_corpus(tmp_path, *texts)
    assert corpus.tokens.dtype == np.uint16
    np.testing.assert_array_equal(corpus.tokens, [*'\0'.join([*texts, '']).encode()])
    for i, document in enumerate(texts):
        part = corpus.tokens[corpus.offsets[i] : corpus.offsets[i + 1]]
        assert tokenizers.Bytes().decode(part) == document
        assert part[-1] == 0
    assert corpus.num_documents == 4
    plain = make_corpus(tmp_path, *texts, append_end_of_text=False)
    assert bytes(plain.tokens.tolist()).decode() == ''.join(texts)
    assert plain.fingerprint() != corpus.fingerprint()


def test_a_large_vocabulary_takes_int32(tmp_path):
    characters = [chr(i) for i in range(0x100, 0x100 + 2**16 + 5000) if not 0xD800 <= i < 0xE000]
    tokenizer = tokenizers.Characters(characters)
    corpus = text.tokenize_corpus(Documents(''.join(characters)), tokenizer, tmp_path)
    assert corpus.tokens.dtype == np.int32
    assert tokenizer.decode(corpus.tokens[:-1]) == ''.join(characters)


def test_cache_is_used_and_keyed(tmp_path):
    class Counting(tokenizers.Bytes):
        calls = 0

        def encode(self, text):
            Counting.calls += 1
            return super().encode(text)

    for _ in range(3):
        corpus = text.tokenize_corpus(Documents('a', 'b'), Counting(), tmp_path)
    assert Counting.calls == 2
    assert make_corpus(tmp_path, 'a', 'c').fingerprint() != corpus.fingerprint()
    characters = tokenizers.Characters('ab')
    other = text.tokenize_corpus(Documents('a', 'b'), characters, tmp_path)
    assert other.fingerprint() != corpus.fingerprint()
    assert len([*tmp_path.iterdir()]) == 3


@pytest.mark.parametrize('file', ['tokens.bin', 'offsets.npy', 'corpus.json'])
@pytest.mark.parametrize('damage', ['cut', 'deleted'])
def test_a_damaged_cache_is_made_again(tmp_path, file, damage):
    tokens = make_corpus(tmp_path, 'some text', 'and more').tokens.tolist()
    (folder,) = tmp_path.iterdir()
    if damage == 'cut':
        (folder / file).write_bytes((folder / file).read_bytes()[:-3])
    else:
        (folder / file).unlink()
    with pytest.raises(errors.UserError, match='is damaged'):
        text.TokenCorpus(folder)
    assert make_corpus(tmp_path, 'some text', 'and more').tokens.tolist() == tokens
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_failure_leaves_nothing_behind(tmp_path):
    tokenizer = tokenizers.Characters('abc')
    with pytest.raises(errors.UserError, match=r"Record 1 of 2 documents: The character 'x'"):
        text.tokenize_corpus(Documents('abc', 'abx'), tokenizer, tmp_path)
    assert not [*tmp_path.iterdir()]
    with pytest.raises(errors.UserError, match=r"field 'txt'. Did you mean 'text'"):
        make_corpus(tmp_path, 'a', field='txt')
    with pytest.raises(errors.UserError, match="field 'label' is int64, wanted str"):
        make_corpus(tmp_path, 'a', field='label')
    with pytest.raises(errors.UserError, match='no text'):
        make_corpus(tmp_path, '', append_end_of_text=False)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').touch()
    for folder in (tmp_path / 'file', '/proc/c'):
        message = f'cache of data in {folder} cannot be written: .*BIGMODELS_CACHE'
        with pytest.raises(errors.UserError, match=message):
            make_corpus(folder, 'abc')


def test_processes_that_race_get_the_same_corpus(tmp_path):
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(4, mp_context=context) as pool:
        for i in range(20):
            folder = tmp_path / str(i)
            assert {*pool.map(_tokenize, [folder] * 4)} == {200 * 551}
            assert len([*folder.iterdir()]) == 1


@settings(max_examples=60, deadline=None)
@given(num_tokens=st.integers(2, 60), length=st.integers(1, 20), drop=st.booleans())
def test_chunks_predict_every_token_once(tmp_path_factory, num_tokens, length, drop):
    folder = tmp_path_factory.getbasetemp() / 'chunks'
    document = ''.join(chr(65 + i) for i in range(num_tokens))
    corpus = make_corpus(folder, document, append_end_of_text=False)
    tokens = corpus.tokens.tolist()
    if drop and num_tokens < length + 1:
        with pytest.raises(errors.UserError, match=f'{num_tokens} tokens, .* takes {length + 1}'):
            text.Chunks(corpus, length, drop_remainder=drop)
        return
    chunks = text.Chunks(corpus, length, drop_remainder=drop)
    examples = [chunks[i] for i in range(len(chunks))]
    columns = [
        np.concatenate([example[key] for example in examples]).tolist()
        for key in ('inputs', 'targets', 'weights')
    ]
    pairs = [(i, target) for i, target, weight in zip(*columns, strict=True) if weight]
    wanted = [*itertools.pairwise(tokens)]
    kept = len(wanted) // length * length if drop else len(wanted)
    assert pairs == wanted[:kept]
    assert all(
        (v.shape, v.dtype) == ((length,), np.float32 if k == 'weights' else np.int32)
        for example in examples
        for k, v in example.items()
    )


def check_packing(corpus, packed, length):
    """Every token is an input once, its target is the next one of its document; no more."""
    documents = [
        corpus.tokens[corpus.offsets[i] : corpus.offsets[i + 1]].tolist()
        for i in range(corpus.num_documents)
    ]
    pieces = sorted(
        (document[at : at + length], document[at + 1 : at + length + 1])
        for document in documents
        for at in range(0, len(document), length)
    )
    found = []
    for i in range(len(packed)):
        row = packed[i]
        segments = row['segment_ids']
        count = int(segments.max())
        assert set(segments[segments > 0]) == set(range(1, count + 1))
        assert not row['weights'][segments == 0].any()
        for segment in range(1, count + 1):
            (where,) = np.nonzero(segments == segment)
            assert where.tolist() == [*range(where[0], where[-1] + 1)]
            assert row['positions'][where].tolist() == [*range(len(where))]
            weighted = row['weights'][where].astype(bool)
            targets = row['targets'][where][weighted]
            assert weighted.tolist() == [True] * len(targets) + [False] * (~weighted).sum()
            found.append((row['inputs'][where].tolist(), targets.tolist()))
    assert sorted(found) == pieces


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=25), length=st.integers(1, 17))
def test_packing_covers_every_token_once(tmp_path_factory, sizes, length):
    folder = tmp_path_factory.getbasetemp() / 'packed'
    alphabet = ''.join(chr(i) for i in range(33, 127))
    texts = [(alphabet[i:] + alphabet)[:size] for i, size in enumerate(sizes)]
    corpus = make_corpus(folder, *texts)
    packed = text.Packed(corpus, length)
    check_packing(corpus, packed, length)
    filled = packed.take(np.arange(len(packed)))['segment_ids'] > 0
    assert filled.sum() == sum(size + 1 for size in sizes)


def test_best_fit_decreasing_against_the_definition():
    rng = np.random.default_rng(0)
    for capacity in (1, 7, 64):
        sizes = rng.integers(1, capacity + 1, 300)
        free, wanted = [], np.zeros(300, np.int64)
        for piece in sorted(range(300), key=lambda i: (-sizes[i], i)):
            fitting = [(left, row) for row, left in enumerate(free) if left >= sizes[piece]]
            if not fitting:
                fitting = [(capacity, len(free))]
                free.append(capacity)
            row = min(fitting)[1]
            free[row] -= sizes[piece]
            wanted[piece] = row
        rows = text.best_fit_decreasing(sizes, capacity)
        filled, reference = (np.bincount(plan, sizes) for plan in (rows, wanted))
        # Among rows equally full the choice is free, so the rows agree as a multiset.
        np.testing.assert_array_equal(np.sort(filled), np.sort(reference))
        assert filled.max() <= capacity


def test_packing_the_standard_library_wastes_little(tmp_path):
    source = stdlib_source.Stdlib('valid')
    corpus = text.tokenize_corpus(source, tokenizers.Bytes(), tmp_path)
    for length in (256, 1024):
        packed = text.Packed(corpus, length)
        assert corpus.num_tokens / (len(packed) * length) > 0.95
    check_packing(corpus, packed, 1024)


def test_pickles_map_the_files_again(tmp_path):
    corpus = make_corpus(tmp_path, 'document one', 'two' * 500)
    for examples in (text.Chunks(corpus, 16), text.Packed(corpus, 16)):
        several = np.array([len(examples) - 1, 2, 0, 2])
        for key, taken in examples.take(several).items():
            np.testing.assert_array_equal(taken, [examples[i][key] for i in several])
        data = pickle.dumps(examples)
        assert len(data) < 6000  # the plan, and no tokens
        copy = pickle.loads(data)
        assert len(copy) == len(examples)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            others = pool.map(copy.__getitem__, range(len(copy)))
            for mine, other in zip(examples, others, strict=True):
                for key in mine:
                    np.testing.assert_array_equal(mine[key], other[key])
        for i in (len(copy), -len(copy) - 1):
            with pytest.raises(IndexError):
                copy[i]


def test_lengths_that_cannot_be(tmp_path):
    corpus = make_corpus(tmp_path, 'a')
    assert len(text.Chunks(corpus, 8)) == 1
    for make in (text.Chunks, text.Packed):
        with pytest.raises(errors.UserError, match='length = 0 must be at least 1'):
            make(corpus, 0)
    one = make_corpus(tmp_path, 'a', append_end_of_text=False)
    with pytest.raises(errors.UserError, match=r'1 tokens, too few .* length 8, which takes 9'):
        text.Chunks(one, 8)
    assert not text.Packed(one, 8)[0]['weights'].any()


def test_padded_documents_are_alone_in_their_rows(tmp_path):
    texts = ['abc', 'a longer one', 'x', 'exact']
    corpus = make_corpus(tmp_path, *texts, append_end_of_text=False)
    examples = text.Padded(corpus, 5)
    assert len(examples) == 4
    together = examples.take(np.array([3, 0, 1, 2]))
    for row, i in enumerate((3, 0, 1, 2)):
        kept = texts[i].encode()[:5]
        expected = {
            'inputs': [*kept, *[0] * (5 - len(kept))],
            'segment_ids': [1] * len(kept) + [0] * (5 - len(kept)),
        }
        for name, values in expected.items():
            np.testing.assert_array_equal(examples[i][name], values)
            np.testing.assert_array_equal(together[name][row], values)
            assert examples[i][name].dtype == np.int32


def test_a_document_without_text_is_named(tmp_path):
    corpus = make_corpus(tmp_path, 'one', '', 'three', append_end_of_text=False)
    with pytest.raises(errors.UserError, match='Record 1 has no text'):
        text.Padded(corpus, 5)
