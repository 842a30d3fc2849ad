"""Models of transformers and the same ones here: logits, greedy generation, gradients, files.

    python experiments/interop_parity.py [--only=gemma]

Needs the extra `parity`. Each of `interop_cases.CASES` is a tiny random model that transformers
makes and saves. It is read as `bigmodels.interop` reads published ones and compared in float32;
then written, opened by transformers and compared bit by bit. The table goes to
experiments/results/interop.json and .md, and what the tests compare with, without transformers, to
tests/interop/golden.
"""

import argparse
import json
import pathlib
import tempfile
from typing import NamedTuple

import flax.linen as nn
import hugging_face
import jax
import jax.numpy as jnp
import measure
import numpy as np
import safetensors.torch
import torch
import transformers
from interop_cases import CASES, SPOKEN, WHISPER

from bigmodels.deploy import beam_search, decoding, sampling
from bigmodels.deploy import weights as packing
from bigmodels.interop import directories, families, pictures, weights
from bigmodels.interop.decoders import DECODERS
from bigmodels.models.clip import CLIP
from bigmodels.models.encoder_decoder import EncoderDecoder
from bigmodels.models.resnet import ResNet

GOLDEN = measure.ROOT / 'tests' / 'interop' / 'golden'
PROMPT, NEW = 12, 12
IMAGES, PAIRS = ('vit', 'resnet'), ('clip', 'siglip')


class Trial(NamedTuple):
    """What a model here and its counterpart are given, and what their logits are compared with.

    Fields:
      ours: arguments of our model.
      theirs: keywords of theirs.
      targets: int, one for each row of logits; -100 for none.
      said: what Whisper's own generation makes of a recording.
    """

    ours: tuple[np.ndarray, ...]
    theirs: dict[str, np.ndarray]
    targets: np.ndarray
    said: np.ndarray | None = None


def random_model(model_type: str, entries: dict) -> transformers.PreTrainedModel:
    """A float32 model in which every parameter counts, of values that bfloat16 holds."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **entries)
    config._attn_implementation = 'eager'
    kind = getattr(transformers, families.FAMILIES[model_type].architecture)
    model = kind(config).float().eval()
    if not entries.get('tie_word_embeddings', True) and model_type == 't5':
        # transformers ties them whenever it makes a model, and unties them where a file has both.
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
        model.config.tie_word_embeddings = False
    of_texts = model_type not in IMAGES + PAIRS
    embeddings = model.get_input_embeddings().weight if of_texts else None
    for parameter in model.parameters():
        parameter.requires_grad_()  # positions of Whisper's encoder have no gradient by default
        noise = torch.randn_like(parameter)
        if parameter.ndim < 2:
            parameter.data += 0.2 * noise
        else:  # were embeddings as large as what layers add, the next token would be the last one
            parameter.data = noise * (parameter.shape[-1] ** -0.5, 0.1)[parameter is embeddings]
        parameter.data = parameter.data.bfloat16().float()
    norms = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    if norms:
        _average(model, norms)
    return model


def _average(model: transformers.PreTrainedModel, norms: list[torch.nn.BatchNorm2d]) -> None:
    """Leaves in the averages of BatchNorm what one batch has."""
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(2, model.config.num_channels, 48, 48))
    model.eval()
    for norm in norms:
        norm.momentum = 0.1
        norm.num_batches_tracked.zero_()
        for average in (norm.running_mean, norm.running_var):
            average.data = average.data.bfloat16().float()


def trial(family: families.Family, model: nn.Module, theirs: transformers.PreTrainedModel) -> Trial:
    """Inputs and targets for a model of a family."""
    rng = np.random.default_rng(0)
    if family.model_type in IMAGES:
        side, channels = getattr(theirs.config, 'image_size', 48), theirs.config.num_channels
        inputs = rng.normal(size=(2, side, side, channels)).astype(np.float32)
        return Trial((inputs,), {'pixel_values': inputs.transpose(0, 3, 1, 2)}, np.array([0, 2]))
    if family.model_type in PAIRS:
        images = rng.normal(size=(3, 12, 12, 3)).astype(np.float32)
        end = 60
        tokens = rng.integers(1, end, (3, 9)).astype(np.int32)
        lengths = np.array([9, 4, 6])[:, None]
        tokens = np.where(np.arange(9) < lengths - 1, tokens, end)
        seen = np.arange(9) < (lengths if family.model_type == 'clip' else np.full_like(lengths, 9))
        their_inputs = {'pixel_values': images.transpose(0, 3, 1, 2), 'input_ids': tokens}
        return Trial((images, tokens, np.int32(seen)), their_inputs, np.arange(3))
    if family.model_type == 'whisper':
        return heard(theirs)
    if isinstance(model, EncoderDecoder):
        inputs, answer = answered(theirs)
        shifted = np.pad(answer[:, :-1], ((0, 0), (1, 0)))
        their_inputs = {'input_ids': inputs, 'decoder_input_ids': shifted}
        return Trial((inputs, shifted), their_inputs, answer)
    if not model.causal:
        inputs = rng.integers(2, 61, (2, 9)).astype(np.int32)
        targets = np.where(np.arange(9) % 3, -100, inputs[::-1])
    else:
        inputs = greedy_tokens(theirs)
        targets = np.pad(inputs[:, 1:], ((0, 0), (0, 1)), constant_values=-100)
    return Trial((inputs,), {'input_ids': inputs}, targets)


def greedy_tokens(model: transformers.PreTrainedModel) -> np.ndarray:
    """A prompt and what follows it, [1, PROMPT + NEW]; the first that is not soon in a loop."""
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    for seed in range(100):
        prompt = np.random.default_rng(seed).integers(1, model.config.vocab_size, (1, PROMPT))
        tokens = model.generate(torch.tensor(prompt), max_new_tokens=NEW, do_sample=False).numpy()
        if len(set(tokens[0, PROMPT:])) > 3:
            return tokens.astype(np.int32)
    raise ValueError('Whatever the prompt, the same tokens follow.')


def answered(model: transformers.PreTrainedModel) -> tuple[np.ndarray, np.ndarray]:
    """A source [1, PROMPT] and its greedy answer [1, NEW], the first that is not soon in a loop."""
    model.generation_config.eos_token_id = None
    for seed in range(100):
        source = np.random.default_rng(seed).integers(1, model.config.vocab_size, (1, PROMPT))
        tokens = model.generate(
            torch.tensor(source), max_new_tokens=NEW, do_sample=False, decoder_start_token_id=0
        )
        answer = tokens.numpy()[:, 1:]
        if len(set(answer[0])) > 3:
            return source.astype(np.int32), answer.astype(np.int32)
    raise ValueError('Whatever the source, the same tokens follow.')


def heard(model: transformers.PreTrainedModel) -> Trial:
    """Features of sound, a prompt of four tokens, and greedy answers, not soon in a loop.

    The targets suppress nothing, what is said does.
    """
    config, generation = model.config, model.generation_config
    for name, value in SPOKEN.items():
        setattr(generation, name, value)
    prompt = np.array([[54, 55, 58, 59]], np.int32)
    own = dict(language='en', task='transcribe', max_new_tokens=NEW)
    plain = dict(suppress_tokens=None, begin_suppress_tokens=None, eos_token_id=None)
    plain |= dict(decoder_input_ids=torch.tensor(prompt), max_new_tokens=NEW, do_sample=False)
    shape = 1, 2 * config.max_source_positions, config.num_mel_bins
    for seed in range(100):
        features = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        given = torch.tensor(features.transpose(0, 2, 1))
        said = model.generate(given, **own).numpy().astype(np.int32)
        whole = transformers.GenerationMixin.generate(model, given, **plain).numpy()
        # PyTorch gives no gradient to the embedding of padding.
        if len(set(said[0])) > 3 and config.pad_token_id not in (*said[0], *whole[0]):
            tokens = whole[:, :-1].astype(np.int32)
            targets = np.where(np.arange(tokens.shape[1]) < prompt.size - 1, -100, whole[:, 1:])
            their_inputs = {'input_features': given.numpy(), 'decoder_input_ids': tokens}
            return Trial((features, tokens), their_inputs, targets, said)
    raise ValueError('Whatever is heard, the same tokens follow.')


def logits_and_gradients(
    model, inputs: dict[str, np.ndarray], targets: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits [..., V], and the gradients of the mean loss by the tensors' names in files.

    A target of -100 is none.
    """
    model.zero_grad()
    out = model(**{name: torch.tensor(x) for name, x in inputs.items()})
    logits = out.logits_per_image if 'logits_per_image' in out else out.logits
    torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), torch.tensor(targets).long().reshape(-1)
    ).backward()
    with tempfile.TemporaryDirectory() as directory:  # as they are named and laid out in files
        for parameter in model.parameters():
            parameter.kept, parameter.data = parameter.data, parameter.grad.clone()
        model.save_pretrained(directory)
        for parameter in model.parameters():
            parameter.data = parameter.kept
        gradients = safetensors.torch.load_file(f'{directory}/{directories.WEIGHTS}')
    buffers = dict(model.named_buffers())
    gradients = {name: x.numpy() for name, x in gradients.items() if name not in buffers}
    return logits.detach().contiguous().numpy(), gradients


def own_logits_and_gradients(model, variables, inputs: tuple[np.ndarray, ...], targets: np.ndarray):
    """The same of our model."""

    def loss(params):
        logits = model.apply({**variables, 'params': params}, *map(jnp.asarray, inputs))
        told = jax.nn.log_softmax(logits)
        told = jnp.take_along_axis(told, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
        return -(told * (targets >= 0)).sum() / (targets >= 0).sum(), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables['params'])
    return np.asarray(logits), gradients


def compare(name: str, scratch: pathlib.Path) -> dict:
    """The figures of one case; writes its golden file."""
    model_type, entries, special = CASES[name]
    theirs = random_model(model_type, entries)
    theirs.save_pretrained(scratch / 'theirs')
    config = directories.read_json(scratch / 'theirs' / directories.CONFIG)
    family = families.of_config(config)
    ours = family.model(**family.fields(config))
    files = directories.tensors(scratch / 'theirs')
    result = {'family': model_type, 'special': special}
    given = trial(family, ours, theirs)
    variables = hugging_face.load(family, ours, files, *(x[:1] for x in given.ours))
    if family in DECODERS:
        same = _same_tokens(ours, variables['params'], given.ours[0])
        result |= {'tokens': NEW, 'same_tokens': same}
    elif isinstance(ours, EncoderDecoder):
        same = _same_answer(ours, variables['params'], given)
        result |= {'tokens': NEW, 'same_tokens': same}
    logits, gradients = logits_and_gradients(theirs, given.theirs, given.targets)
    own_logits, own_gradients = own_logits_and_gradients(ours, variables, given.ours, given.targets)
    vocab_size = getattr(ours, 'vocab_size', None)
    own_gradients = dict(weights.unload(family.table, own_gradients, 'float32', vocab_size))
    states = _difference_of_states(ours, variables, theirs, given)
    _check_written(scratch / 'ours', family, ours, variables, theirs, files)
    _write_golden(name, config, files, given, logits, gradients)
    return (
        result
        | {
            'logits': float(np.abs(own_logits - logits).max()),
            'largest_logit': float(np.abs(logits).max()),
            'gradients': _largest_difference(own_gradients, gradients),
        }
        | ({} if states is None else {'states': states})
    )


def _difference_of_states(ours, variables, theirs, given: Trial) -> float | None:
    """Between what models have within: stages of a ResNet, vectors, an encoder's states."""
    with torch.no_grad():
        inputs = {name: torch.tensor(x) for name, x in given.theirs.items()}
        out = theirs(**inputs, output_hidden_states=True)
    if isinstance(ours, ResNet):
        own = ours.apply(variables, *given.ours, features=True)
        known = [x.permute(0, 2, 3, 1) for x in out.hidden_states[1:]]
    elif isinstance(ours, CLIP):
        own = [
            ours.apply(variables, given.ours[0], method='images'),
            ours.apply(variables, *given.ours[1:], method='texts'),
        ]
        known = [out.image_embeds, out.text_embeds]
    elif isinstance(ours, EncoderDecoder):
        own = [ours.apply(variables, given.ours[0], method='encode').states]
        known = [out.encoder_last_hidden_state]
    else:
        return None
    pairs = zip(own, known, strict=True)
    return max(float(np.abs(np.asarray(x) - y.numpy()).max()) for x, y in pairs)


def _largest_difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """Relative to the largest entry of each tensor, or to a hundredth of the largest of all.

    For the gradients of keys' biases are 0 where positions are not rotary.
    """
    least = max(np.abs(x).max() for x in theirs.values()) / 100
    return max(
        float(np.abs(ours[name] - x).max() / max(np.abs(x).max(), least))
        for name, x in theirs.items()
    )


def _same_tokens(model, params, tokens: np.ndarray) -> int:
    """How many of the greedy tokens a cache gives as well."""
    given, *_ = decoding.generate_tokens(
        *packing.packed(model, params),
        jnp.asarray(tokens[:, :PROMPT], jnp.int32),
        jnp.full((1,), PROMPT, jnp.int32),
        jnp.zeros((0, 0), jnp.int32),
        jax.random.key(0),
        max_new_tokens=NEW,
        sampling=sampling.Sampling(temperature=0),
    )
    return int((np.asarray(given) == tokens[:, PROMPT:]).sum())


def _same_answer(model, params, given: Trial) -> int:
    """Likewise of an encoder-decoder."""
    sources, settings = jnp.asarray(given.ours[0]), dict(start=0)
    answer = given.targets
    if given.said is not None:
        names = 'suppress_tokens', 'begin_suppress_tokens'
        never, not_first = (tuple(WHISPER[name]) for name in names)
        prompt = jnp.asarray(given.ours[1][:, : -NEW + 1])
        settings = dict(start=prompt, suppressed=never, suppressed_first=not_first)
        answer = given.said
    settings |= dict(beam_size=1, max_length=NEW, end=-1)
    found = beam_search.search(model, params, sources, None, **settings)
    return int((np.asarray(found.tokens[:, 0]) == answer).sum())


def _check_written(directory: pathlib.Path, family, model, variables, theirs, files) -> None:
    """Raises AssertionError unless transformers opens what is written as what it had saved."""
    directory.mkdir()
    vocab_size = getattr(model, 'vocab_size', None)
    params, further = variables['params'], {**variables}
    del further['params']
    tensors = weights.unload(family.table, {**params, **further}, 'float32', vocab_size)
    directories.write_tensors(directory, tensors)
    entries = family.config(model)
    if family.model_type in IMAGES + PAIRS:
        entries = pictures.config(entries, model, params)
    directories.write_json(directory / directories.CONFIG, entries)
    again = type(theirs).from_pretrained(directory, dtype=torch.float32).state_dict()
    assert again.keys() == theirs.state_dict().keys()
    differing = [name for name, x in theirs.state_dict().items() if not torch.equal(x, again[name])]
    assert not differing, differing
    copied = directories.tensors(directory)
    files = {name: x for name, x in files.items() if 'num_batches_tracked' not in name}
    assert copied.keys() == files.keys()
    assert all(copied[key].tobytes() == files[key].tobytes() for key in files)


def _write_golden(name, config, files, given: Trial, logits, gradients) -> None:
    """The model in bfloat16, which holds its values, and of gradients (sum, norm) each."""
    golden = {key: torch.tensor(np.asarray(x)).bfloat16() for key, x in files.items()}
    for i, inputs in enumerate(given.ours):
        golden[f'golden.inputs{i or ""}'] = torch.tensor(inputs)
    golden['golden.targets'] = torch.tensor(given.targets.astype(np.int32))
    if given.said is not None:
        golden['golden.said'] = torch.tensor(given.said)
    golden['golden.logits'] = torch.tensor(logits)
    sums = [[gradients[key].sum(), np.linalg.norm(gradients[key])] for key in sorted(gradients)]
    golden['golden.gradients'] = torch.tensor(np.float32(sums))
    GOLDEN.mkdir(exist_ok=True)
    safetensors.torch.save_file(
        golden, GOLDEN / f'{name}.safetensors', metadata={'config': json.dumps(config)}
    )


def main() -> None:
    """Runs the cases and writes the table, in which others stay as they were."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--only', default='', help='cases whose names begin so, with commas')
    only = tuple(parser.parse_args().only.split(','))
    jax.config.update('jax_default_matmul_precision', 'highest')
    kept = json.loads((measure.RESULTS / 'interop.json').read_text())['cases']
    results = {name: kept[name] for name in CASES if name in kept}
    for name in CASES:
        if name.startswith(only):
            with tempfile.TemporaryDirectory() as scratch:
                results[name] = compare(name, pathlib.Path(scratch))
            print(name, results[name], flush=True)
    results = {name: results[name] for name in CASES if name in results}
    versions = {'transformers': transformers.__version__, 'torch': torch.__version__}
    measure.write('interop', {**versions, 'jax': jax.__version__, 'cases': results})
    _write_table(results)


def _write_table(results: dict) -> None:
    rows = [
        ('case', 'family', '', 'logits differ by', 'states', 'greedy tokens', 'gradients, relative')
    ]
    for name, r in results.items():
        logits = f'{r["logits"]:.1e} of {r["largest_logit"]:.1f}'
        equal = f'{r["same_tokens"]} of {r["tokens"]}' if 'tokens' in r else ''
        states = f'{r["states"]:.1e}' if 'states' in r else ''
        gradients = f'{r["gradients"]:.1e}'
        rows.append((name, r['family'], r['special'], logits, states, equal, gradients))
    path = measure.RESULTS / 'interop.md'
    path.write_text(measure.markdown(rows) + '\n')


if __name__ == '__main__':
    main()
