"""Families of published models against what transformers computes, and all that may not fit."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodels import errors, sharding, trees
from bigmodels.deploy import decoding, sampling
from bigmodels.deploy import weights as packing
from bigmodels.interop import directories, families, weights
from bigmodels.interop import family as family_lib
from bigmodels.models import transformer
from bigmodels.models.encoder_decoder import EncoderDecoder
from tests.interop import published
from tests.interop.published import golden

# Compiles in half the time, and computes the same.
jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def loss(params, further, model, inputs, targets):
    logits = model.apply({'params': params, **further}, *inputs)
    told = jax.nn.log_softmax(logits)
    told = jnp.take_along_axis(told, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return -(told * (targets >= 0)).sum() / (targets >= 0).sum(), logits


@pytest.mark.parametrize('case', published.CASES)
def test_logits_greedy_tokens_and_gradients_are_those_of_transformers(case):
    known = golden(case)
    model = known.model()
    step = jit(jax.value_and_grad(loss, has_aux=True), static_argnums=2)
    variables = known.variables(model)
    (_, logits), gradients = step(*variables, model, known.inputs, known.targets)
    np.testing.assert_allclose(logits, known.logits, atol=1e-4)
    if case in published.DECODERS:
        greedy = np.asarray(logits)[0, published.PROMPT - 1 : -1].argmax(-1)
        np.testing.assert_array_equal(greedy, known.inputs[0][0, published.PROMPT :])
    if isinstance(model, EncoderDecoder):  # whose targets are greedy tokens
        said = known.targets >= 0
        np.testing.assert_array_equal(logits.argmax(-1)[said], known.targets[said])
    vocab_size = getattr(model, 'vocab_size', None)
    named = dict(weights.unload(known.family.table, gradients, 'float32', vocab_size))
    sums = [[named[name].sum(), np.linalg.norm(named[name])] for name in sorted(named)]
    np.testing.assert_allclose(sums, known.gradients, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize('case', ['gemma3', 'mixtral'])
def test_generation_with_a_cache_is_that_of_transformers(case):
    known = golden(case)
    model = known.model()
    tokens, *_ = decoding.generate_tokens(
        *packing.packed(model, known.params(model)),
        jnp.asarray(known.inputs[0][:, : published.PROMPT]),
        jnp.array([published.PROMPT]),
        jnp.zeros((0, 0), jnp.int32),
        jax.random.key(0),
        max_new_tokens=12,
        sampling=sampling.Sampling(temperature=0),
    )
    np.testing.assert_array_equal(tokens, known.inputs[0][:, published.PROMPT :])


@pytest.mark.parametrize('case', published.CASES)
def test_what_is_written_is_what_was_read(case, tmp_path):
    """Bit by bit, in several files, and as a config.json of the same model."""
    known = golden(case)
    model = known.model()
    params, further = known.variables(model)
    vocab_size = getattr(model, 'vocab_size', None)
    variables = {**params, **further}
    written = weights.unload(known.family.table, variables, 'bfloat16', vocab_size)
    directories.write_tensors(tmp_path, written, shard_bytes=4000)
    assert len([*tmp_path.glob('model-*-of-*.safetensors')]) > 1
    counts = [name for name in known.tensors if name.endswith('num_batches_tracked')]
    kept = {name: x for name, x in known.tensors.items() if name not in counts}
    assert trees.first_difference(directories.tensors(tmp_path), kept) is None
    family = families.of_model(model)
    again = family.model(**family.fields(family.config(model)))
    assert family_lib.described(again) == family_lib.described(model)
    assert family.table is known.family.table


def test_every_row_of_every_table_holds_a_parameter_of_some_case():
    used = {}
    for case in published.CASES:
        known = golden(case)
        where = weights.sources(known.family.table, known.shapes(known.model()))
        rows = {source.row for source in where.values()}
        used.setdefault(known.family.table.rows, set()).update(rows)
    for rows in {family.table.rows for family in families.FAMILIES.values()}:
        unused = [row.theirs for row in rows if row not in used[rows]]
        optional = ('lm_head.weight', '.bias')  # what others of the same rows have
        assert [name for name in unused if not name.endswith(optional)] == []


@pytest.mark.parametrize('case', ['llama3', 'mixtral', 'gpt2'])
def test_scanned_padded_and_split_over_devices_is_the_same(case):
    """Stacked layers and experts, a padded vocabulary, and each device reading its part."""
    known = golden(case)
    plain = known.params(known.model())
    model = known.model(scan_layers=True, vocab_multiple=32)
    mesh = sharding.make_mesh(sharding.MeshShape(data=1, fsdp=4, tensor=2))
    wanted = known.shapes(model)
    specs, _ = sharding.param_specs(wanted, model.sharding_rules, mesh)
    placed = jax.tree.map(lambda spec: jax.sharding.NamedSharding(mesh, spec), specs)
    params = weights.load(
        known.family.table,
        known.tensors,
        sharding.with_shardings(wanted, placed),
        model.vocab_size,
    )
    split = params['layers']['mlp']
    split = split['experts']['up']['kernel'] if model.experts else split['up']['kernel']
    assert split.addressable_shards[0].data.size * 8 == split.size
    back = weights.unload(known.family.table, params, 'bfloat16', model.vocab_size)
    assert trees.first_difference(dict(back), known.tensors) is None
    unrolled = transformer.unstack_layers(params)
    table = np.asarray(unrolled['embed'].pop('embedding'))
    np.testing.assert_array_equal(table[: model.vocab_size], plain['embed'].pop('embedding'))
    assert not table[model.vocab_size :].any()
    if 'unembed' in unrolled:
        unrolled['unembed'] = unrolled['unembed'][:, : model.vocab_size]
    assert trees.first_difference(unrolled, plain) is None


def renamed(tensors, old, new):
    return {new if name == old else name: x for name, x in tensors.items()}


Q = 'model.layers.1.self_attn.q_proj.weight'
BROKEN = {
    'missing': (lambda t: {k: x for k, x in t.items() if k != Q}, rf'{Q} is missing, for layers_1'),
    'unexpected': (
        lambda t: t | {'model.layers.2.x': t[Q]},
        r'model.layers.2.x \[16, 16\] is unexpected',
    ),
    'shape': (lambda t: t | {Q: t[Q][:8]}, rf'{Q} is \[8, 16\], which gives \[16, 8\], but'),
    'type': (lambda t: t | {Q: t[Q].astype(np.int32)}, rf'{Q} is of the type int32'),
    'untied': (
        lambda t: t | {'lm_head.weight': -t['model.embed_tokens.weight']},
        r'lm_head.weight is not model.embed_tokens.weight, although .* tied',
    ),
}


@pytest.mark.parametrize('broken', BROKEN)
def test_tensors_that_do_not_fit_are_named(broken):
    change, message = BROKEN[broken]
    known = golden('qwen2')
    known = known._replace(tensors=change(known.tensors))
    with pytest.raises(errors.UserError, match=message):
        known.params(known.model())


def test_files_may_have_a_tied_head_buffers_and_no_prefix():
    known = golden('gpt2')
    model = known.model()
    bare = {name.removeprefix('transformer.'): x for name, x in known.tensors.items()}
    params = known._replace(tensors=bare).params(model)
    more = known.tensors | {
        'lm_head.weight': known.tensors['transformer.wte.weight'],
        'transformer.h.0.attn.bias': np.ones((1, 1, 4, 4), np.uint8),
    }
    assert trees.first_difference(known._replace(tensors=more).params(model), params) is None
    assert trees.first_difference(known.params(model), params) is None


def test_older_files_of_bert_call_norms_otherwise_and_have_more_heads():
    known = golden('bert')
    model = known.model()
    old = {
        name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
            'LayerNorm.bias', 'LayerNorm.beta'
        ): x
        for name, x in known.tensors.items()
    }
    old |= {'bert.pooler.dense.bias': np.zeros(16), 'cls.seq_relationship.bias': np.zeros(2)}
    assert (
        trees.first_difference(known._replace(tensors=old).params(model), known.params(model))
        is None
    )


def test_a_parameter_that_a_family_lacks_is_named():
    model = golden('llama2').model(qk_norm=True)
    with pytest.raises(errors.UserError, match='layers_0/attention/key_norm/scale'):
        golden('llama2').params(model)


CONFIGS = [
    ('llama2', dict(model_type='lama'), "Did you mean 'llama'"),
    ('llama2', dict(hidden_act='relu'), 'relu'),
    ('llama2', dict(quantization_config={}), 'quantization_config'),
    ('llama2', dict(rope_parameters=dict(rope_type='dynamic', factor=2.0)), "'dynamic'"),
    ('llama2', dict(rope_parameters=dict(rope_type='linear', facto=2.0)), "Did you mean 'factor'"),
    ('llama2', dict(rope_parameters=None, partial_rotary_factor=0.5), 'a share of 0.5'),
    ('llama2', dict(mlp_bias=True), 'mlp_bias without attention_bias'),
    ('gpt2', dict(scale_attn_by_inverse_layer_idx=True), 'scale_attn_by_inverse_layer_idx = True'),
    ('gemma2', dict(layer_types=['full_attention']), '1 layer_types for 2 layers'),
    ('gemma2', dict(layer_types=['chunked_attention'] * 2), "'chunked_attention'"),
    ('gemma3', dict(attn_logit_softcapping=5.0), 'attn_logit_softcapping = 5.0'),
    ('resnet', dict(downsample_in_first_stage=True), 'downsample_in_first_stage = True'),
    ('resnet', dict(hidden_act='gelu'), "hidden_act = 'gelu'"),
    ('resnet', dict(embedding_size=8), 'behind an embedding_size of 8'),
    ('resnet', dict(layer_type='bottle'), "Did you mean 'bottleneck'"),
    ('clip', dict(text_config=dict(hidden_act='silu')), "'silu'"),
    ('t5', dict(feed_forward_proj='gated-relu'), "'gated-relu'"),
    ('whisper', dict(encoder_ffn_dim=48), 'encoder_ffn_dim = 48 and decoder_ffn_dim = 24'),
    ('whisper', dict(scale_embedding=True), 'scale_embedding = True'),
    ('siglip', dict(vision_config=dict(vision_use_head=False)), 'vision_use_head = False'),
]


@pytest.mark.parametrize(('case', 'changes', 'message'), CONFIGS)
def test_a_config_that_says_what_is_not_here_is_refused(case, changes, message):
    config = golden(case).config | changes
    with pytest.raises(errors.UserError, match=re.escape(message)):
        families.of_config(config).fields(config)


def test_a_key_that_is_missing_is_named():
    config = {key: x for key, x in golden('llama2').config.items() if key != 'hidden_size'}
    with pytest.raises(errors.UserError, match='lacks hidden_size'):
        families.of_config(config).fields(config)


def test_older_files_say_the_same_of_rotary_positions():
    config = dict(golden('llama3').config)
    scaling = dict(config.pop('rope_parameters'))
    config['rope_theta'] = scaling.pop('rope_theta')
    scaling['type'] = scaling.pop('rope_type')
    old = families.of_config(config).fields(config | {'rope_scaling': scaling})
    assert old['rotary_scaling']['name'] == 'llama3'
    assert old == golden('llama3').family.fields(golden('llama3').config)


def test_a_model_that_no_family_has_is_told_what_each_lacks():
    model = golden('llama2').model(activation='relu_squared')
    with pytest.raises(errors.UserError, match=r'hidden_act of llama.*relu_squared'):
        families.of_model(model)
    with pytest.raises(errors.UserError, match=r'gemma2 has no such models: .*norm_offset = 0'):
        families.of_model(golden('llama2').model(norm_placement='both'))


def test_how_a_model_begins_and_keeps_its_cache_is_no_part_of_what_is_written():
    resnet = published.golden('resnet')
    assert resnet.family.config(resnet.model(stem_init='cosines')) == resnet.family.config(
        resnet.model()
    )
    llama = published.golden('llama3')
    assert llama.family.config(llama.model(kv_cache='int8')) == llama.family.config(llama.model())


def test_damaged_files_are_named(tmp_path):
    directory = golden('gpt2').save(tmp_path / 'model')
    file = directory / directories.WEIGHTS
    whole = file.read_bytes()
    for content, message in [
        (whole[:-1], 'is damaged: it has not all bytes of'),
        (whole[:100], 'is damaged: it ends within its header'),
        (whole[:8] + b'x' + whole[9:], 'is damaged: its header cannot be read'),
        (whole.replace(b'"BF16"', b'"F8_E"', 1), 'of the type F8_E, as in quantised models'),
    ]:
        file.write_bytes(content)
        with pytest.raises(errors.UserError, match=message):
            directories.tensors(directory)
    file.unlink()
    (directory / 'pytorch_model.bin').touch()
    with pytest.raises(errors.UserError, match=r'pytorch_model.bin is a pickle.*save_pretrained'):
        directories.tensors(directory)


def test_an_index_and_its_files_must_agree(tmp_path):
    directories.write_tensors(tmp_path, golden('gpt2').tensors.items(), shard_bytes=4000)
    index = directories.read_json(tmp_path / directories.INDEX)
    index['weight_map']['extra'] = index['weight_map']['transformer.wte.weight']
    directories.write_json(tmp_path / directories.INDEX, index)
    with pytest.raises(errors.UserError, match='differ in: extra'):
        directories.tensors(tmp_path)
    first = min(tmp_path.glob('model-*'))
    first.unlink()
    with pytest.raises(errors.UserError, match=f'{first.name} is missing'):
        directories.tensors(tmp_path)


def test_float16_and_float32_files_are_read_exactly(tmp_path):
    known = golden('gpt2')
    model = known.model()
    for dtype in (np.float32, np.float16):
        cast = {name: x.astype(dtype) for name, x in known.tensors.items()}
        directories.write_tensors(tmp_path, cast.items())
        read = weights.load(
            known.family.table, directories.tensors(tmp_path), known.shapes(model), 61
        )
        exact = {name: x.astype(np.float32) for name, x in cast.items()}
        params = known._replace(tensors=exact).params(model)
        assert trees.first_difference(read, params) is None
