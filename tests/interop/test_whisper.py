"""Whisper: its features, and a published model as a run that writes what it hears."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from starlette.testclient import TestClient

from bigmodels import config, errors, predict, runs, train, trees
from bigmodels.deploy import beam_search
from bigmodels.deploy.server import app, limits
from bigmodels.interop import convert, directories, pictures, sounds
from bigmodels.models.parts import log_mel
from tests import sound_files
from tests.commands import ROOT, printed
from tests.interop import published

RATE = 16_000
SPECIAL = [
    '<|endoftext|>', '<|startoftranscript|>', '<|en|>', '<|de|>', '<|translate|>',
    '<|transcribe|>', '<|notimestamps|>',
]  # fmt: skip
GENERATION = dict(  # as experiments/interop_parity.py tells transformers
    is_multilingual=True,
    lang_to_id={'<|en|>': 55, '<|de|>': 56},
    task_to_id={'translate': 57, 'transcribe': 58},
    no_timestamps_token_id=59,
    suppress_tokens=[1, 2, *range(54, 61)],
    begin_suppress_tokens=[50, 53],
    forced_decoder_ids=[[1, None], [2, 58]],
)


@pytest.mark.parametrize('num_mels', [80, 128])
def test_features_are_those_of_transformers(num_mels):
    """Of a short sound in silence, and of 30 s; by experiments/whisper_features.py."""
    known = safetensors.numpy.load_file(
        pathlib.Path(__file__).with_name('whisper_features.safetensors')
    )
    sound = np.float32(known['sound']) / 2**15
    given = np.stack([np.pad(sound, (0, 480_000 - len(sound))), np.resize(sound, 480_000)])
    features = jax.jit(log_mel.whisper_features, static_argnums=(1, 2))(given, RATE, num_mels)
    assert features.shape == (2, 3000, num_mels)
    frames = features[:, known['frames']]
    np.testing.assert_allclose(frames, known[f'features.{num_mels}'], atol=1e-4)
    np.testing.assert_allclose(features.mean(1), known[f'means.{num_mels}'], atol=1e-4)


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    """The tiny Whisper of transformers, with a tokenizer of words."""
    library = pytest.importorskip('tokenizers')
    made = tmp_path_factory.mktemp('published') / 'whisper'
    published.golden('whisper').save(made)
    names = [*(f'w{i}' for i in range(53)), *SPECIAL]
    vocabulary = {name: id for id, name in enumerate(names)}
    tokenizer = library.Tokenizer(library.models.WordLevel(vocabulary, unk_token='w0'))
    tokenizer.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(made / directories.TOKENIZER))
    directories.write_json(made / sounds.GENERATION, GENERATION)
    entries = {'n_fft': 400, 'hop_length': 160, 'sampling_rate': RATE, 'feature_size': 8}
    directories.write_json(made / pictures.FILE, entries)
    return made


@pytest.fixture(scope='module')
def run(directory, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs') / 'whisper'
    convert.to_run(str(directory), out)
    return runs.open_run(out)


@pytest.fixture(scope='module')
def recording(tmp_path_factory):
    """A WAV file of 0.1 s: (its path, what the model hears of it)."""
    time = np.arange(1600) / RATE
    values = (9000 * np.sin(2 * np.pi * (400 + 20_000 * time) * time)).astype(np.int16)
    path = tmp_path_factory.mktemp('sound') / 'rising.wav'
    path.write_bytes(sound_files.wav(values, rate=RATE))
    heard = jnp.pad(values / np.float32(2**15), (0, 320))[None]
    return path, log_mel.whisper_features(heard, RATE, 8)


@pytest.fixture(scope='module')
def written(run):
    """A compiled function of features and prompts [1, P]: the ids that are written."""
    task = run.task

    @functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
    def write(features, prompts):
        found = beam_search.search(
            task.model, run.params, features, None, beam_size=1, max_length=task.max_tokens,
            end=task.vocabulary.end_of_text, start=prompts, suppressed=task.suppressed,
            suppressed_first=task.suppressed_first,
        )  # fmt: skip
        return found.tokens[0, 0]

    return write


def test_a_run_writes_what_transformers_writes(run, written):
    known, task = published.golden('whisper'), run.task
    assert trees.first_difference(run.params, known.params(known.model())) is None
    prompt = task.prompt_ids('en')
    np.testing.assert_array_equal(prompt, [54, 55, 58, 59])
    assert task.front_end.most == 1920
    found = written(known.inputs[0], prompt[None])
    np.testing.assert_array_equal(found[: known.said.size], known.said[0])
    assert not np.isin(found, GENERATION['suppress_tokens']).any()


def test_a_recording_is_transcribed_in_the_language_that_is_told(run, written, recording, capsys):
    path, features = recording
    said = {}
    for language, id in GENERATION['lang_to_id'].items():
        ids = written(features, np.array([[54, id, 58, 59]], np.int32))
        said[language] = run.task.postprocess(np.asarray(ids))
    assert said['<|en|>'] != said['<|de|>']
    options = {'workdir': run.workdir, 'input': path, 'batch_size': 1}
    options['config.task.language'] = 'de'
    assert json.loads(printed(predict, capsys, **options))['answer'] == said['<|de|>']


@pytest.mark.slow
def test_a_server_transcribes_in_the_language_of_a_request(run, written, recording):
    path, features = recording
    server = app.Server(run, app.Settings('ears', batch_size=1), limits.Limits(), None)
    server.warm()
    try:
        client = TestClient(server.app)

        def ask(**fields):
            return client.post(
                '/v1/audio/transcriptions', files={'file': path.read_bytes()},
                data={'model': 'ears', **fields},
            )  # fmt: skip

        for fields, id in (({}, 55), ({'language': 'de'}, 56)):
            ids = written(features, np.array([[54, id, 58, 59]], np.int32))
            assert ask(**fields).json() == {'text': run.task.postprocess(np.asarray(ids))}
        refused = ask(language='fr')
        assert refused.status_code == 400
        assert "no token '<|fr|>'" in refused.json()['error']['message']
    finally:
        server.close()


def test_a_run_comes_back_with_what_generation_needs(run, directory, tmp_path):
    assert convert.to_directory(run.workdir, tmp_path / 'back', dtype='bfloat16') == 'whisper'
    known = published.golden('whisper')
    assert trees.first_difference(directories.tensors(tmp_path / 'back'), known.tensors) is None
    written = directories.read_json(tmp_path / 'back' / sounds.GENERATION)
    expected = {key: x for key, x in GENERATION.items() if key != 'forced_decoder_ids'}
    assert {key: written[key] for key in expected} == expected
    assert (written['decoder_start_token_id'], written['eos_token_id']) == (54, 53)
    entries = directories.read_json(tmp_path / 'back' / directories.CONFIG)
    assert (entries['pad_token_id'], entries['decoder_start_token_id']) == (53, 54)
    entries = directories.read_json(tmp_path / 'back' / pictures.FILE)
    assert (entries['feature_size'], entries['n_fft']) == (8, 400)
    again = tmp_path / 'again'
    convert.to_run(str(tmp_path / 'back'), again, ['model.dtype=float32'])
    task = runs.open_run(again).task
    for name in ('model', 'sound', 'prompt', 'language', 'suppressed', 'suppressed_first'):
        assert getattr(task, name) == getattr(run.task, name), name


def test_a_run_of_another_sample_rate_is_not_written(run):
    """For transformers' filters end at 8 kHz, whatever the rate."""
    sounds.check_rate(run.task)
    sound = {**run.task.sound, 'sample_rate': 8000}
    slower = dataclasses.replace(run.task, sound=sound)
    with pytest.raises(errors.UserError, match=r'sample_rate = 8,000 cannot be written'):
        sounds.check_rate(slower)


@pytest.mark.slow
def test_a_published_model_is_tuned_and_written_again(run, tmp_path):
    """It learns a recording by heart; the encoder's positions stay as they were."""
    path = sound_files.transcribed(tmp_path / 'data', ['w4 w5 w6'], rate=RATE)
    overrides = [f'data.{split}.path={path}' for split in ('train', 'evals.learnt')]
    overrides += ['batch_size=8', 'total_steps=30', 'optimizer.learning_rate=0.02']
    overrides += ['task.score_names=()']  # evaluation that writes takes long to compile
    loaded = config.load(f'{ROOT}/configs/speech_to_text.py:{run.workdir}', overrides)
    figures = train.train(loaded, tmp_path / 'tuned')
    assert figures['learnt/accuracy'] == 1
    tuned = runs.open_run(tmp_path / 'tuned')
    kept, moved = (x['encoder']['position_embed']['embedding'] for x in (run.params, tuned.params))
    np.testing.assert_array_equal(kept, moved)
    assert convert.to_directory(tuned.workdir, tmp_path / 'again') == 'whisper'
    written = directories.read_json(tmp_path / 'again' / directories.CONFIG)
    assert (written['pad_token_id'], written['decoder_start_token_id']) == (53, 54)


def test_what_the_files_say_of_prompts(directory, tmp_path):
    base = published.golden('whisper').config
    directories.write_json(tmp_path / sounds.GENERATION, dict(is_multilingual=False))
    english = sounds.read(tmp_path, base)
    assert english['prompt'] == ('<|startoftranscript|>', '<|notimestamps|>')
    assert english['suppressed_first'] == (50, 53)  # of config.json
    assert english['max_tokens'] == 18
    forced = GENERATION | dict(forced_decoder_ids=[[1, 56], [2, 58]])
    for told, language in ((forced, 'de'), (GENERATION | {'language': '<|de|>'}, 'de')):
        directories.write_json(tmp_path / sounds.GENERATION, told)
        assert sounds.read(tmp_path, base)['language'] == language
    directories.write_json(tmp_path / pictures.FILE, {'hop_length': 200})
    with pytest.raises(errors.UserError, match='hop_length = 200; here it is 160'):
        sounds.read(tmp_path, base)
    parts = {'feature_extractor': {'n_fft': 512}}  # as transformers 5 saves a WhisperProcessor
    directories.write_json(tmp_path / pictures.PROCESSOR, parts)
    with pytest.raises(errors.UserError, match='processor_config.json has n_fft = 512'):
        sounds.read(tmp_path, base)
    with pytest.raises(errors.UserError, match=r"no token '<\|fr\|>'; special are: .*'<\|en\|>'"):
        convert.to_run(str(directory), tmp_path / 'run', ['task.language=fr'])
