"""The tables of models of texts, a family each or several that name tensors alike."""

from bigmodels.interop.weights import SAME, TRANSPOSED, Form, Row, Table

_LAYER = 'model.layers.{layer}.'
_EXPERT = _LAYER + 'block_sparse_moe.experts.{expert}.'


def _linear(ours: str, theirs: str) -> tuple[Row, Row]:
    """The rows of a projection: PyTorch keeps kernels as [outputs, inputs]."""
    return (
        Row(f'layers/{ours}/kernel', f'{_LAYER}{theirs}.weight', TRANSPOSED),
        Row(f'layers/{ours}/bias', f'{_LAYER}{theirs}.bias'),
    )


def _scale(ours: str, theirs: str) -> Row:
    return Row(f'layers/{ours}/scale', f'{_LAYER}{theirs}.weight')


_DECODER = (
    Row('embed/embedding', 'model.embed_tokens.weight', vocabulary=0),
    Row('unembed', 'lm_head.weight', TRANSPOSED, vocabulary=1),
    Row('final_norm/scale', 'model.norm.weight'),
    _scale('attention_norm', 'input_layernorm'),
    *_linear('attention/query', 'self_attn.q_proj'),
    *_linear('attention/key', 'self_attn.k_proj'),
    *_linear('attention/value', 'self_attn.v_proj'),
    *_linear('attention/out', 'self_attn.o_proj'),
    _scale('attention/query_norm', 'self_attn.q_norm'),
    _scale('attention/key_norm', 'self_attn.k_norm'),
    *_linear('mlp/gate', 'mlp.gate_proj'),
    *_linear('mlp/up', 'mlp.up_proj'),
    *_linear('mlp/down', 'mlp.down_proj'),
)
_TIED = {'lm_head.weight': 'model.embed_tokens.weight'}
_ANGLES = (r'\.rotary_emb\.inv_freq$',)  # of old files; computed here

# Llama, Mistral, Qwen 2 and 3, Mixtral.
LLAMA = Table(
    (
        *_DECODER,
        _scale('mlp_norm', 'post_attention_layernorm'),
        Row('layers/mlp/router/kernel', _LAYER + 'block_sparse_moe.gate.weight', TRANSPOSED),
        Row('layers/mlp/experts/gate/kernel', _EXPERT + 'w1.weight', TRANSPOSED),
        Row('layers/mlp/experts/down/kernel', _EXPERT + 'w2.weight', TRANSPOSED),
        Row('layers/mlp/experts/up/kernel', _EXPERT + 'w3.weight', TRANSPOSED),
    ),
    prefix='model.',
    copies=_TIED,
    ignored=_ANGLES,
)
# Gemma 2 and 3.
GEMMA = Table(
    (
        *_DECODER,
        _scale('attention_post_norm', 'post_attention_layernorm'),
        _scale('mlp_norm', 'pre_feedforward_layernorm'),
        _scale('mlp_post_norm', 'post_feedforward_layernorm'),
    ),
    prefix='model.',
    copies=_TIED,
    ignored=_ANGLES,
)

_GPT2 = 'transformer.h.{layer}.'


def _gpt2(ours: str, theirs: str, part: tuple[int, int] = (0, 1)) -> tuple[Row, Row]:
    """The rows of a projection, which GPT-2 keeps as [inputs, outputs]."""
    return (
        Row(f'layers/{ours}/kernel', f'{_GPT2}{theirs}.weight', SAME, part),
        Row(f'layers/{ours}/bias', f'{_GPT2}{theirs}.bias', SAME, part),
    )


def layer_norm(ours: str, theirs: str) -> tuple[Row, Row]:
    """The rows of a norm, by whole names."""
    return (Row(f'{ours}/scale', f'{theirs}.weight'), Row(f'{ours}/bias', f'{theirs}.bias'))


GPT2 = Table(
    (
        Row('embed/embedding', 'transformer.wte.weight', vocabulary=0),
        Row('position_embed/embedding', 'transformer.wpe.weight'),
        Row('unembed', 'lm_head.weight', TRANSPOSED, vocabulary=1),
        *layer_norm('final_norm', 'transformer.ln_f'),
        *layer_norm('layers/attention_norm', _GPT2 + 'ln_1'),
        *_gpt2('attention/query', 'attn.c_attn', (0, 3)),
        *_gpt2('attention/key', 'attn.c_attn', (1, 3)),
        *_gpt2('attention/value', 'attn.c_attn', (2, 3)),
        *_gpt2('attention/out', 'attn.c_proj'),
        *layer_norm('layers/mlp_norm', _GPT2 + 'ln_2'),
        *_gpt2('mlp/up', 'mlp.c_fc'),
        *_gpt2('mlp/down', 'mlp.c_proj'),
    ),
    prefix='transformer.',
    copies={'lm_head.weight': 'transformer.wte.weight'},
    ignored=(r'\.attn\.(bias|masked_bias)$',),  # the causal mask
)


def dense(ours: str, theirs: str) -> tuple[Row, Row]:
    """The rows of a projection, by whole names."""
    return (Row(f'{ours}/kernel', f'{theirs}.weight', TRANSPOSED),
            Row(f'{ours}/bias', f'{theirs}.bias'))  # fmt: skip


def _bert(root: str, transform: str, norm: str, bias: str, decoder: str) -> Table:
    """BERT's tensors: what it is below its head, `root`, and the names of the head's."""
    embeddings, layer = f'{root}.embeddings.', root + '.encoder.layer.{layer}.'
    return Table(
        (
            Row('embed/embedding', f'{embeddings}word_embeddings.weight', vocabulary=0),
            Row('position_embed/embedding', f'{embeddings}position_embeddings.weight'),
            Row('type_embed/embedding', f'{embeddings}token_type_embeddings.weight'),
            *layer_norm('embed_norm', f'{embeddings}LayerNorm'),
            *dense('layers/attention/query', layer + 'attention.self.query'),
            *dense('layers/attention/key', layer + 'attention.self.key'),
            *dense('layers/attention/value', layer + 'attention.self.value'),
            *dense('layers/attention/out', layer + 'attention.output.dense'),
            *layer_norm('layers/attention_post_norm', layer + 'attention.output.LayerNorm'),
            *dense('layers/mlp/up', layer + 'intermediate.dense'),
            *dense('layers/mlp/down', layer + 'output.dense'),
            *layer_norm('layers/mlp_post_norm', layer + 'output.LayerNorm'),
            *dense('logits_transform/dense', transform),
            *layer_norm('logits_transform/norm', norm),
            Row('unembed_bias', bias, vocabulary=0),
        ),
        prefix=f'{root}.',
        copies={
            f'{decoder}.weight': f'{embeddings}word_embeddings.weight',
            f'{decoder}.bias': bias,
        },
        ignored=(  # of other heads, and counts
            rf'^{root}\.pooler\.',
            r'^cls\.seq_relationship\.',
            r'\.embeddings\.(position|token_type)_ids$',
        ),
        renamed=(('LayerNorm.gamma', 'LayerNorm.weight'), ('LayerNorm.beta', 'LayerNorm.bias')),
    )


BERT = _bert(
    'bert',
    transform='cls.predictions.transform.dense',
    norm='cls.predictions.transform.LayerNorm',
    bias='cls.predictions.bias',
    decoder='cls.predictions.decoder',
)
ROBERTA = _bert(
    'roberta',
    transform='lm_head.dense',
    norm='lm_head.layer_norm',
    bias='lm_head.bias',
    decoder='lm_head.decoder',
)


def _t5(stack: str, cross: bool) -> tuple[Row, ...]:
    """The rows of one of T5's stacks, of which the decoder's also sees the encoder's states."""
    ours, layer = f'{stack}/layers/', stack + '.block.{layer}.layer.'
    own = stack + '.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
    attentions = [('attention', 'SelfAttention'), ('cross_attention', 'EncDecAttention')]
    rows = [
        Row(f'{stack}/relative_bias/embedding', own),
        Row(f'{stack}/final_norm/scale', f'{stack}.final_layer_norm.weight'),
    ]
    for i, (name, theirs) in enumerate(attentions[: 1 + cross]):
        rows.append(Row(f'{ours}{name}_norm/scale', f'{layer}{i}.layer_norm.weight'))
        rows += [
            Row(f'{ours}{name}/{part}/kernel', f'{layer}{i}.{theirs}.{part[0]}.weight', TRANSPOSED)
            for part in ('query', 'key', 'value', 'out')
        ]
    mlp = f'{layer}{1 + cross}.DenseReluDense.'
    gate = f'{ours}mlp/gate/kernel'
    return (
        *rows,
        Row(f'{ours}mlp_norm/scale', f'{layer}{1 + cross}.layer_norm.weight'),
        Row(f'{ours}mlp/up/kernel', mlp + 'wi.weight', TRANSPOSED),
        Row(gate, mlp + 'wi_0.weight', TRANSPOSED),
        Row(f'{ours}mlp/up/kernel', mlp + 'wi_1.weight', TRANSPOSED, beside=gate),
        Row(f'{ours}mlp/down/kernel', mlp + 'wo.weight', TRANSPOSED),
    )


T5 = Table(
    (
        Row('embed/embedding', 'shared.weight', vocabulary=0),
        Row('unembed', 'lm_head.weight', TRANSPOSED, vocabulary=1),
        *_t5('encoder', cross=False),
        *_t5('decoder', cross=True),
    ),
    copies=dict.fromkeys(
        ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight', 'lm_head.weight'),
        'shared.weight',
    ),
    ignored=(r'EncDecAttention\.relative_attention_bias\.weight$',),  # which nothing reads
)

# Of three taps, which PyTorch keeps as [D, M, 3], to the [3*M, D] of `FrameEmbed`.
_TAPS = Form(
    lambda x: x.transpose(2, 1, 0).reshape(-1, len(x)),
    lambda x: x.reshape(3, -1, x.shape[-1]).transpose(2, 1, 0),
)


def _whisper(stack: str, cross: bool) -> tuple[Row, ...]:
    """The rows of one of Whisper's stacks, of which the decoder's also sees the encoder's states.

    Keys have no bias.
    """
    ours, theirs = f'{stack}/layers/', f'model.{stack}.layers.' + '{layer}.'
    attentions = [('attention', 'self_attn'), ('cross_attention', 'encoder_attn')]
    rows = [
        Row(f'{stack}/position_embed/embedding', f'model.{stack}.embed_positions.weight'),
        *layer_norm(f'{stack}/final_norm', f'model.{stack}.layer_norm'),
    ]
    for name, attention in attentions[: 1 + cross]:
        kept = theirs + attention
        rows += [
            *layer_norm(f'{ours}{name}_norm', f'{kept}_layer_norm'),
            *dense(f'{ours}{name}/query', f'{kept}.q_proj'),
            Row(f'{ours}{name}/key/kernel', f'{kept}.k_proj.weight', TRANSPOSED),
            *dense(f'{ours}{name}/value', f'{kept}.v_proj'),
            *dense(f'{ours}{name}/out', f'{kept}.out_proj'),
        ]
    return (
        *rows,
        *layer_norm(f'{ours}mlp_norm', f'{theirs}final_layer_norm'),
        *dense(f'{ours}mlp/up', f'{theirs}fc1'),
        *dense(f'{ours}mlp/down', f'{theirs}fc2'),
    )


WHISPER = Table(
    (
        Row('frame_embed/conv1/kernel', 'model.encoder.conv1.weight', _TAPS),
        Row('frame_embed/conv1/bias', 'model.encoder.conv1.bias'),
        Row('frame_embed/conv2/kernel', 'model.encoder.conv2.weight', _TAPS),
        Row('frame_embed/conv2/bias', 'model.encoder.conv2.bias'),
        *_whisper('encoder', cross=False),
        Row('embed/embedding', 'model.decoder.embed_tokens.weight', vocabulary=0),
        *_whisper('decoder', cross=True),
    ),
    prefix='model.',
    copies={'proj_out.weight': 'model.decoder.embed_tokens.weight'},
)
