"""A published model becomes a run that everything opens, and comes back bit for bit."""

import dataclasses
import json
import pathlib
import shutil
import sys
import types

import jax
import numpy as np
import pytest

from bigmodels import config as config_lib
from bigmodels import errors, evaluate, program, rundir, runs, trees
from bigmodels import train as train_lib
from bigmodels.data import subwords, tokenizers
from bigmodels.deploy import generate
from bigmodels.experiment import InitFrom
from bigmodels.interop import convert, directories, pictures, sections
from tests.data.test_tokenizers import train_sentencepiece
from tests.interop import published

TEMPLATE = '{{ bos_token }}{% for m in messages %}{{ m.content }} </s>{% endfor %}'
WORDS = ['<unk>', '<s>', '</s>', *(f'w{i}' for i in range(40))]


def add_tokenizer(directory, more=(), **roles) -> None:
    """Words, with a first token as Llama's and a chat template."""
    library = pytest.importorskip('tokenizers')
    vocabulary = {word: id for id, word in enumerate([*WORDS, *more])}
    tokenizer = library.Tokenizer(library.models.WordLevel(vocabulary, unk_token='<unk>'))
    tokenizer.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([*WORDS[:3], *more])
    tokenizer.post_processor = library.processors.TemplateProcessing(
        single='<s> $A', pair='<s> $A $B', special_tokens=[('<s>', 1)]
    )
    tokenizer.save(str(directory / directories.TOKENIZER))
    entries = {'bos_token': '<s>', 'eos_token': '</s>', **roles}
    if not roles:
        entries['chat_template'] = TEMPLATE
    directories.write_json(directory / directories.TOKENIZER_CONFIG, entries)


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    """A tiny Llama 3 as it is published."""
    made = tmp_path_factory.mktemp('model')
    published.golden('llama3').save(made, eos_token_id=[2, 5], pad_token_id=0)
    add_tokenizer(made)
    return made


@pytest.fixture(scope='module')
def run(directory, tmp_path_factory):
    """The same as a run, to be evaluated on a text of its words."""
    text = tmp_path_factory.mktemp('text') / 'words.txt'
    text.write_text(' '.join(WORDS[3:] * 20))
    out = tmp_path_factory.mktemp('runs') / 'llama'
    overrides = [
        'data.evals.valid.name=text_files',
        f'data.evals.valid.path={text}',
        'batch_size=8',
    ]
    overrides += ['task.sequence_length=32']
    convert.to_run(str(directory), out, overrides)
    return out


def command(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, 'argv', ['command', *map(str, arguments)])
    module.main()


def test_a_run_has_the_model_and_its_tokenizer(run):
    known, opened = published.golden('llama3'), runs.open_run(run)
    params = known.params(known.model())
    assert trees.first_difference(opened.params, params) is None
    assert opened.step == 0
    vocabulary = opened.task.vocabulary
    assert (vocabulary.begin_of_text, vocabulary.end_of_text) == (1, 2)
    given = opened.task.preprocess({'text': 'w0 w1 else'})['inputs']
    np.testing.assert_array_equal(given, [1, 3, 4, 0])
    rendered = vocabulary.chat_template.render([{'role': 'user', 'content': 'w1'}])
    assert rendered == '<s>w1 </s>'
    np.testing.assert_array_equal(vocabulary.encode_chat(rendered), [1, 4, 2])


def test_a_run_is_evaluated_and_generates(run, monkeypatch, capsys):
    command(monkeypatch, evaluate, f'--workdir={run}')
    figures = json.loads(capsys.readouterr().out)
    assert figures['step'] == 0
    assert 3 < figures['valid/loss'] < 12
    command(
        monkeypatch, generate, f'--workdir={run}', '--prompt=w1', '--max_new_tokens=3',
        '--temperature=0',
    )  # fmt: skip
    assert capsys.readouterr().out.startswith('w1')


def test_a_run_comes_back_bit_for_bit(run, directory, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'back'
    out.mkdir()
    command(monkeypatch, convert, f'--from={run}', f'--to={out}', '--dtype=bfloat16')
    assert 'holds the llama of' in capsys.readouterr().out
    back, given = directories.tensors(out), directories.tensors(directory)
    assert trees.first_difference(back, given) is None
    config = directories.read_json(out / directories.CONFIG)
    assert config['eos_token_id'] == [2, 5]
    assert config['torch_dtype'] == 'bfloat16'
    for file in (directories.TOKENIZER, directories.CHAT_TEMPLATE):
        content = (out / file).read_text()
        assert content == (
            TEMPLATE if file == directories.CHAT_TEMPLATE else (directory / file).read_text()
        )
    again = tmp_path / 'again'
    command(monkeypatch, convert, f'--from={out}', f'--to={again}')
    assert trees.first_difference(runs.open_run(again).params, runs.open_run(run).params) is None
    assert runs.open_run(again).model == runs.open_run(run).model.clone(dtype='bfloat16')
    command(monkeypatch, convert, f'--from={again}', f'--to={tmp_path / "exact"}')
    exact = directories.tensors(tmp_path / 'exact')
    assert {x.dtype for x in exact.values()} == {np.dtype(np.float32)}
    assert all((exact[name] == x).all() for name, x in given.items())


def test_converted_weights_are_not_trained_on_but_begin_a_run(run, tmp_path):
    with pytest.raises(errors.UserError, match=r'converted weights.*--config.init_from.workdir='):
        train_lib.train(config_lib.read(run / rundir.CONFIG), run)
    opened = runs.open_run(run)
    settings = dataclasses.replace(opened.experiment, init_from=InitFrom(str(run)))
    shapes = rundir.batch_shapes(run, settings.batch_size)
    begun = program.make_program(settings, opened.task, opened.mesh, shapes).init_state(seed=1)
    assert trees.first_difference(begun.params, opened.params) is None


def test_a_run_that_was_trained_has_the_token_ids_of_its_tokenizer(run, tmp_path):
    shutil.copytree(run, tmp_path / 'tuned')
    (tmp_path / 'tuned' / rundir.CONVERTED).unlink()
    assert convert.to_directory(tmp_path / 'tuned', tmp_path / 'out') == 'llama'
    config = directories.read_json(tmp_path / 'out' / directories.CONFIG)
    assert (config['bos_token_id'], config['eos_token_id']) == (1, 2)


def test_a_masked_language_model_becomes_a_run_with_its_own_mask(tmp_path):
    known = published.golden('roberta')
    directory = known.save(tmp_path / 'roberta')
    add_tokenizer(directory, ['<mask>'], mask_token='<mask>', pad_token='<unk>')
    convert.to_run(str(directory), tmp_path / 'run')
    run = runs.open_run(tmp_path / 'run')
    assert run.task.mask_id == run.task.vocabulary.vocab_size - 1 == len(WORDS)
    given = run.task.preprocess({'text': 'w0 [MASK] w1'})['inputs']
    np.testing.assert_array_equal(given[:6], [1, 3, len(WORDS), 4, 2, 0])
    logits = run.task.logits(run.params, {'inputs': known.inputs[0]})
    np.testing.assert_allclose(logits, known.logits, atol=1e-4)
    family = convert.to_directory(tmp_path / 'run', tmp_path / 'back', dtype='bfloat16')
    assert family == 'roberta'
    assert trees.first_difference(directories.tensors(tmp_path / 'back'), known.tensors) is None
    config = directories.read_json(tmp_path / 'back' / directories.CONFIG)
    assert (config['pad_token_id'], config['max_position_embeddings']) == (1, 32)
    roles = directories.read_json(tmp_path / 'back' / directories.TOKENIZER_CONFIG)
    assert (roles['mask_token'], roles['pad_token']) == ('<mask>', '<unk>')
    with pytest.raises(errors.UserError, match=r"no token '\[MASK\]'; special are: .*'<mask>'"):
        tokenizers.token_id(run.task.vocabulary, '[MASK]')
    with pytest.raises(errors.UserError, match='this Bytes has not'):
        tokenizers.token_id(tokenizers.Bytes(), '[MASK]')


def test_a_model_of_images_becomes_a_run_that_answers_and_comes_back(tmp_path):
    known = published.golden('vit')
    names = {'0': 'cat', '1': 'dog', '2': 'cow'}
    directory = known.save(tmp_path / 'vit', id2label=names)
    entries = {'image_mean': [0.4] * 3, 'image_std': [0.5] * 3}
    directories.write_json(directory / pictures.FILE, entries)
    convert.to_run(str(directory), tmp_path / 'run')
    run = runs.open_run(tmp_path / 'run')
    image = np.full((12, 12, 3), 51, np.uint8)  # 0.2
    example = run.task.preprocess({'image': image})
    np.testing.assert_allclose(example['inputs'], -0.4, rtol=1e-6)
    answer = run.task.predict(run.params, run.model_state, {'inputs': known.inputs[0]})
    np.testing.assert_allclose(answer, jax.nn.softmax(known.logits), atol=1e-5)
    assert convert.to_directory(tmp_path / 'run', tmp_path / 'back', dtype='bfloat16') == 'vit'
    assert trees.first_difference(directories.tensors(tmp_path / 'back'), known.tensors) is None
    config = directories.read_json(tmp_path / 'back' / directories.CONFIG)
    assert config['id2label'] == names
    assert (config['image_size'], config['num_channels']) == (12, 3)
    written = directories.read_json(tmp_path / 'back' / pictures.FILE)
    np.testing.assert_allclose(written['image_mean'], [0.4] * 3)
    directories.write_json(directory / pictures.FILE, {'rescale_factor': 1 / 127.5})
    with pytest.raises(errors.UserError, match='does not divide grey levels by 255'):
        convert.to_run(str(directory), tmp_path / 'other')


def test_a_resnet_becomes_a_run_with_its_averages_and_comes_back(tmp_path):
    known = published.golden('resnet')
    directory = known.save(tmp_path / 'resnet')
    means = [0.485, 0.456, 0.406]
    directories.write_json(
        directory / pictures.FILE, {'image_mean': means, 'image_std': [0.5] * 3, 'size': 48}
    )
    convert.to_run(str(directory), tmp_path / 'run')
    run = runs.open_run(tmp_path / 'run')
    image = np.full((60, 50, 3), 51, np.uint8)  # 0.2
    example = run.task.preprocess({'image': image})
    expected = np.broadcast_to((0.2 - np.array(means)) / 0.5, (48, 48, 3))
    np.testing.assert_allclose(example['inputs'], expected, atol=1e-6)
    with pytest.raises(errors.UserError, match=r'config\.task\.mean = .* each of 1 channels'):
        run.task.preprocess({'image': image[..., :1]})
    answer = run.task.predict(run.params, run.model_state, {'inputs': known.inputs[0]})
    np.testing.assert_allclose(answer, jax.nn.softmax(known.logits), atol=1e-5)
    assert convert.to_directory(tmp_path / 'run', tmp_path / 'back', dtype='bfloat16') == 'resnet'
    back = directories.tensors(tmp_path / 'back')
    assert 'resnet.embedder.embedder.normalization.running_var' in back
    assert all((known.tensors[name] == x).all() for name, x in back.items())
    written = directories.read_json(tmp_path / 'back' / pictures.FILE)
    np.testing.assert_allclose(written['image_mean'], means)
    names = dataclasses.replace(run.task, classes=('a', 'b', 'c'))
    names.save(tmp_path / 'run' / rundir.PREPROCESSING)
    convert.to_directory(tmp_path / 'run', tmp_path / 'named')
    config = directories.read_json(tmp_path / 'named' / directories.CONFIG)
    assert config['id2label'] == {'0': 'a', '1': 'b', '2': 'c'}


@pytest.mark.parametrize('case', ['clip', 'siglip'])
def test_a_model_of_images_and_texts_becomes_a_run_that_classifies_by_words(case, tmp_path):
    known = published.golden(case)
    directory = known.save(tmp_path / case)
    if case == 'siglip':
        add_tokenizer(directory, pad_token='</s>')
    else:  # the end as config.json has it, by which transformers pools
        more = [f'<{id}>' for id in range(len(WORDS), 61)]
        add_tokenizer(directory, more, eos_token='<60>')
    end = 60 if case == 'clip' else 2
    overrides = ["task.classes=('w0','w1 w2')", "task.templates=('{}',)"]
    convert.to_run(str(directory), tmp_path / 'run', overrides)
    run = runs.open_run(tmp_path / 'run')
    images, tokens, segment_ids = known.inputs
    scores = run.model.apply({'params': run.params}, images, tokens, segment_ids)
    np.testing.assert_allclose(scores, known.logits, atol=1e-4)
    # Begin, word, end; behind it nothing, or padding that is seen.
    example = run.task.text_example(tokenizers.document(run.task.vocabulary, 'w0'))
    filler = 0 if case == 'clip' else 2  # as the tokenizer says, and config.json does not
    np.testing.assert_array_equal(example['tokens'], [1, 3, end] + [filler] * 6)
    np.testing.assert_array_equal(
        example['segment_ids'], np.ones(9) if case == 'siglip' else [1] * 3 + [0] * 6
    )
    prompts = np.zeros((2, 9), np.int32) + filler
    prompts[0, :3], prompts[1, :4] = [1, 3, end], [1, 4, 5, end]
    seen = np.ones_like(prompts) if case == 'siglip' else np.int32(prompts > 0)
    scores = run.model.apply({'params': run.params}, images, prompts, seen)
    found = run.task.predict(run.params, run.model_state, {'inputs': images})
    np.testing.assert_allclose(found, jax.nn.softmax(scores), atol=1e-5)
    assert set(run.task.postprocess(np.asarray(found[0]))['probabilities']) == {'w0', 'w1 w2'}
    assert convert.to_directory(tmp_path / 'run', tmp_path / 'back', dtype='bfloat16') == case
    assert trees.first_difference(directories.tensors(tmp_path / 'back'), known.tensors) is None
    config = directories.read_json(tmp_path / 'back' / directories.CONFIG)
    assert config['vision_config']['image_size'] == 12
    kept = known.config['text_config']['eos_token_id']
    assert config['text_config']['eos_token_id'] == kept


def test_an_encoder_decoder_becomes_a_run_that_answers_and_comes_back(tmp_path):
    known = published.golden('t5')
    directory = known.save(tmp_path / 't5')
    add_tokenizer(directory)
    overrides = ['task.source_length=12', 'task.target_length=12']
    convert.to_run(str(directory), tmp_path / 'run', overrides)
    run = runs.open_run(tmp_path / 'run')
    example = run.task.preprocess({'source': 'w0 w1'})
    np.testing.assert_array_equal(example['inputs'][:3], [3, 4, 2])
    batch = {'inputs': known.inputs[0], 'input_segment_ids': np.ones((1, 12), np.int32)}
    [answer] = np.asarray(jax.jit(run.task.predict)(run.params, run.model_state, batch))
    [expected] = known.targets
    length = [*expected, 2].index(2)  # the end of this tokenizer
    np.testing.assert_array_equal(answer[:length], expected[:length])
    beams = dataclasses.replace(run.task, beam_size=2)
    assert jax.jit(beams.predict)(run.params, run.model_state, batch).shape == (1, 12)
    assert convert.to_directory(tmp_path / 'run', tmp_path / 'back', dtype='bfloat16') == 't5'
    assert trees.first_difference(directories.tensors(tmp_path / 'back'), known.tensors) is None
    with pytest.raises(errors.UserError, match='start_id = 61 must be a token'):
        dataclasses.replace(run.task, start_id=61)
    (tmp_path / 'run' / rundir.CONVERTED).unlink()  # as of one that was trained
    convert.to_directory(tmp_path / 'run', tmp_path / 'trained')
    config = directories.read_json(tmp_path / 'trained' / directories.CONFIG)
    assert config['decoder_start_token_id'] == run.task.start == 0


@pytest.mark.parametrize(('family', 'begin'), [('t5', False), ('llama', False), ('llama', True)])
def test_a_sentencepiece_model_is_found_again_as_it_was(family, begin, tmp_path):
    vocabulary = subwords.SentencePiece(
        pathlib.Path(train_sentencepiece(tmp_path)).read_bytes(), begin
    )
    convert._write_tokenizer(tmp_path, vocabulary, family)
    section, _ = sections.tokenizer(tmp_path, {})
    assert pathlib.Path(section['path']).read_bytes() == vocabulary.content
    assert section['begin'] is begin


def test_what_cannot_be_converted_is_told(directory, run, tmp_path):
    def error_of(source, out=tmp_path / 'new', overrides=()):
        with pytest.raises(errors.UserError) as caught:
            convert.to_run(str(source), out, overrides)
        assert not (tmp_path / 'new' / 'config.json').exists()
        return str(caught.value)

    assert 'There is no directory' in error_of(tmp_path / 'nothing')
    assert 'exists already' in error_of(directory, run)
    assert 'has no config.json' in error_of(tmp_path)
    bare = published.golden('llama3').save(tmp_path / 'bare')
    assert 'neither tokenizer.json nor tokenizer.model' in error_of(bare)
    wide = ['task.tokenizer.name=bytes']
    assert 'The tokenizer has 256 tokens' in error_of(bare, overrides=wide)
    published.golden('llama3').save(tmp_path / 'wide', vocab_size=62)
    add_tokenizer(tmp_path / 'wide')
    assert 'model.embed_tokens.weight is [61, 16]' in error_of(tmp_path / 'wide')
    with pytest.raises(errors.UserError, match='exists already'):
        convert.to_directory(run, directory)
    assert 'mlp_dim' in error_of(directory, overrides=['model.mlp_dimension=3'])


def test_a_model_is_fetched_without_code(directory, tmp_path, monkeypatch):
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        if name == 'a/missing':
            raise OSError('404 Client Error')
        return str(directory)

    library = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', library)
    assert directories.resolve('hf://a/b@v1') == directory
    assert (asked['name'], asked['revision']) == ('a/b', 'v1')
    assert not any(pattern.endswith(('.py', '.bin', '*')) for pattern in asked['allow_patterns'])
    with pytest.raises(errors.UserError, match='hf://a/missing cannot be fetched: 404'):
        directories.resolve('hf://a/missing')
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(errors.UserError, match=r"pip install 'bigmodels\[interop\]'"):
        directories.resolve('hf://a/b')
