"""Adapters in PEFT's files: its documented names and shapes, and back; with PEFT where it is."""

import functools
import json
import math

import jax
import numpy as np
import pytest
import safetensors.numpy

from bigmodels import adapters, errors, trees
from bigmodels.adapters import peft
from bigmodels.models.transformer import Transformer

SETTINGS = adapters.Settings(rank=2, alpha=8.0, targets='(attention|mlp)/.*kernel$')
SIZES = dict(vocab_size=32, num_layers=2, embed_dim=16, num_heads=4, max_length=8)
MODELS = {
    'llama': Transformer(
        **SIZES, num_kv_heads=2, mlp_dim=24, norm='rms_norm', activation='swiglu', use_bias=False
    ),
    'gpt2': Transformer(**SIZES, positions='learned', scan_layers=True),
}
INPUTS = np.random.default_rng(0).integers(0, 32, (2, 8))


@functools.cache
def made(model, settings=SETTINGS):
    """(params of the model, adapters that are not zero, frozen)."""

    @jax.jit
    def make(inputs):
        params = model.init(jax.random.key(0), inputs)['params']
        trained, frozen = adapters.split(settings, params, jax.random.key(1))
        noise = lambda name, leaf: jax.random.normal(jax.random.key(len(name)), leaf.shape)
        moved = trees.map_named(lambda name, leaf: leaf + 0.1 * noise(name, leaf), trained)
        return params, moved, frozen

    return make(INPUTS)


@pytest.mark.parametrize(
    ('name', 'module', 'shapes'),
    [
        ('llama', 'model.layers.1.self_attn.k_proj', ((2, 16), (8, 2))),
        ('llama', 'model.layers.0.mlp.down_proj', ((2, 24), (16, 2))),
        ('gpt2', 'transformer.h.1.attn.c_attn', ((6, 16), (48, 6))),
        ('gpt2', 'transformer.h.0.mlp.c_fc', ((2, 16), (64, 2))),
    ],
)
def test_the_files_have_the_documented_names_and_shapes(name, module, shapes, tmp_path):
    model = MODELS[name]
    _, moved, _ = made(model)
    peft.write(tmp_path, model, moved, SETTINGS, base='some/model')
    tensors = safetensors.numpy.load_file(tmp_path / 'adapter_model.safetensors')
    down, up = (tensors[f'base_model.model.{module}.lora_{part}.weight'] for part in 'AB')
    assert (down.shape, up.shape) == shapes
    config = json.loads((tmp_path / 'adapter_config.json').read_text())
    assert config['peft_type'] == 'LORA'
    assert (config['r'], config['lora_alpha']) == (2, 8.0)
    assert config['base_model_name_or_path'] == 'some/model'
    assert config['fan_in_fan_out'] == (name == 'gpt2')
    assert any(module.endswith(f'.{target}') for target in config['target_modules'])
    # The product is what it adds to the module's weight [outputs, inputs].
    rank, alpha = config['rank_pattern'].get(module, 2), config['alpha_pattern'].get(module, 8.0)
    assert rank == len(down)
    product = alpha / rank * up @ down
    if name == 'gpt2' and 'c_attn' in module:
        value = moved['layers']['attention']['value']['kernel']
        expected = 4.0 * (value['down'][1] @ value['up'][1]).T
        np.testing.assert_allclose(product[32:], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', MODELS)
def test_what_is_written_is_read_back_as_the_same_function(name, tmp_path):
    model = MODELS[name]
    _, moved, frozen = made(model)
    peft.write(tmp_path, model, moved, SETTINGS)
    read, settings = peft.read(tmp_path, model)
    ours, theirs = (
        jax.jit(model.apply)({'params': adapters.joined(of, params, frozen)}, INPUTS)
        for of, params in ((SETTINGS, moved), (settings, read))
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_other_scales_are_read(tmp_path):
    model = MODELS['llama']
    _, moved, _ = made(model)
    peft.write(tmp_path, model, moved, SETTINGS)
    path = tmp_path / 'adapter_config.json'
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {'use_rslora': True, 'alpha_pattern': {'q_proj': 2}}))
    read, settings = peft.read(tmp_path, model)
    for module, alpha in (('query', 2), ('key', 8)):
        up = read['layers_0']['attention'][module]['kernel']['up']
        expected = moved['layers_0']['attention'][module]['kernel']['up']
        ratio = alpha / math.sqrt(2) / settings.scale
        np.testing.assert_allclose(up, ratio * expected, rtol=1e-6)


def test_what_peft_has_no_place_for_is_named(tmp_path):
    model = MODELS['llama']
    whole = adapters.Settings(rank=2, trained=('final_norm',))
    with pytest.raises(errors.UserError, match='final_norm/scale are trained whole'):
        peft.write(tmp_path, model, made(model, whole)[1], whole)
    with pytest.raises(errors.UserError, match='holds no adapter of PEFT'):
        peft.read(tmp_path, model)
    peft.write(tmp_path, model, made(model)[1], SETTINGS)
    with pytest.raises(errors.UserError, match='the model has no place for base_model.model.model'):
        peft.read(tmp_path, MODELS['gpt2'])
    path = tmp_path / 'adapter_config.json'
    path.write_text(path.read_text().replace('LORA', 'LOHA'))
    with pytest.raises(errors.UserError, match='is an adapter by LOHA'):
        peft.read(tmp_path, model)


def test_adapters_of_some_layers_are_read_unless_layers_are_scanned(tmp_path):
    model = MODELS['gpt2']
    unrolled = model.clone(scan_layers=False)
    some = adapters.Settings(rank=2, targets='layers_1/mlp/.*kernel$')
    trained = made(unrolled, some)[1]
    peft.write(tmp_path, unrolled, trained, some)
    read, _ = peft.read(tmp_path, unrolled)
    assert trees.first_difference(read, jax.device_get(trained)) is None
    with pytest.raises(errors.UserError, match=r'in all 2 layers: mlp/down/kernel, mlp/up/kernel'):
        peft.read(tmp_path, model)
    path = tmp_path / 'adapter_model.safetensors'
    tensors = safetensors.numpy.load_file(path)
    wider = {  # of the other layer, of another rank
        name.replace('.h.1.', '.h.0.'): np.repeat(x, 2, 0 if 'lora_A' in name else 1)
        for name, x in tensors.items()
    }
    safetensors.numpy.save_file(tensors | wider, path)
    with pytest.raises(errors.UserError, match='differ in rank, or some layers have none'):
        peft.read(tmp_path, model)
    [half, *_] = tensors
    del tensors[half]
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(errors.UserError, match='one of lora_A and lora_B alone for layers_1/mlp'):
        peft.read(tmp_path, unrolled)


def test_the_only_adapter_may_be_that_of_the_unembedding(tmp_path):
    model = MODELS['llama'].clone(scan_layers=True, tie_embeddings=False)
    only = adapters.Settings(rank=2, targets='^unembed$')
    trained = made(model, only)[1]
    peft.write(tmp_path, model, trained, only)
    read, _ = peft.read(tmp_path, model)
    assert trees.first_difference(read, jax.device_get(trained)) is None


@pytest.mark.parametrize('name', MODELS)
def test_peft_computes_the_same(name, tmp_path):
    library = pytest.importorskip('peft')
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    from experiments import hugging_face

    if name == 'llama':
        config = transformers.LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=8,
        )  # fmt: skip
    else:
        config = transformers.GPT2Config(
            vocab_size=32, n_embd=16, n_layer=2, n_head=4, n_positions=8
        )
    theirs = hugging_face.random_model(config)
    model, params = hugging_face.ours(theirs)
    trained, frozen = adapters.split(SETTINGS, params, jax.random.key(1))
    moved = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(2), leaf.shape),
                         trained)  # fmt: skip
    ours = model.apply({'params': adapters.joined(SETTINGS, moved, frozen)}, INPUTS)
    peft.write(tmp_path, model, moved, SETTINGS)
    adapted = library.PeftModel.from_pretrained(theirs, str(tmp_path)).eval()
    with torch.no_grad():
        logits = adapted(torch.tensor(INPUTS)).logits.numpy()
    np.testing.assert_allclose(ours, logits, rtol=1e-4, atol=1e-4)
