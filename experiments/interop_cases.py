"""The tiny models that interop_parity.py makes with transformers."""

TINY = dict(
    vocab_size=61,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
GPT2 = dict(vocab_size=61, n_embd=16, n_layer=2, n_head=4, n_positions=32)
LAYERS = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4)
ENCODER = LAYERS | dict(vocab_size=61, max_position_embeddings=32)
VIT = LAYERS | dict(image_size=12, patch_size=4, num_channels=3, num_labels=3)
RESNET = dict(num_channels=3, num_labels=3, embedding_size=4)
CONTRASTIVE = dict(
    text_config=LAYERS
    | dict(vocab_size=61, max_position_embeddings=9, projection_dim=8, eos_token_id=60),
    vision_config=LAYERS | dict(image_size=12, patch_size=4, projection_dim=8),
    projection_dim=8,
)
T5 = dict(vocab_size=61, d_model=16, d_kv=6, d_ff=24, num_layers=2, num_heads=4)
T5 |= dict(relative_attention_num_buckets=8, relative_attention_max_distance=10)
# Behind 53 tokens of texts: the end, a beginning, two languages, two tasks, no times, and a time.
WHISPER = dict(vocab_size=61, num_mel_bins=8, d_model=16, encoder_layers=2, decoder_layers=1)
WHISPER |= {f'{stack}_attention_heads': 4 for stack in ('encoder', 'decoder')}
WHISPER |= {f'{stack}_ffn_dim': 24 for stack in ('encoder', 'decoder')}
WHISPER |= dict(max_source_positions=6, max_target_positions=20, decoder_start_token_id=54)
WHISPER |= dict.fromkeys(('pad_token_id', 'bos_token_id', 'eos_token_id'), 53)
WHISPER |= dict(suppress_tokens=[1, 2, *range(54, 61)], begin_suppress_tokens=[50, 53])
SPOKEN = dict(
    is_multilingual=True,
    lang_to_id={'<|en|>': 55, '<|de|>': 56},
    task_to_id={'translate': 57, 'transcribe': 58},
    no_timestamps_token_id=59,
)
TYPES = ['sliding_attention', 'full_attention']
LLAMA3 = dict(
    rope_type='llama3',
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
YARN = dict(rope_type='yarn', factor=4.0, original_max_position_embeddings=16)
# Name -> (model_type, its config, what is special).
CASES = {
    'gpt2': ('gpt2', GPT2, 'tied'),
    'gpt2_erf': (
        'gpt2',
        GPT2 | dict(activation_function='gelu', n_inner=24, vocab_size=50),
        'erf GELU, mlp of 1.5 D',
    ),
    'llama2': (
        'llama',
        TINY | dict(num_key_value_heads=4, rms_norm_eps=1e-5),
        'a key head for each query head',
    ),
    'llama3': ('llama', TINY | dict(rope_theta=5e5, rope_scaling=LLAMA3), 'grouped heads, llama3'),
    'llama_linear': (
        'llama',
        TINY
        | dict(head_dim=6, tie_word_embeddings=True)
        | dict(rope_scaling=dict(rope_type='linear', factor=2.0)),
        'tied, head_dim 6 of D / H = 4, linear scaling',
    ),
    'llama_yarn': ('llama', TINY | dict(head_dim=8, rope_scaling=YARN), 'YaRN'),
    'llama_biases': (
        'llama',
        TINY | dict(attention_bias=True, mlp_bias=True, hidden_act='gelu_pytorch_tanh'),
        'biases everywhere, tanh GELU',
    ),
    'llama_attention_biases': ('llama', TINY | dict(attention_bias=True), 'biases in attention'),
    'mistral': ('mistral', TINY | dict(sliding_window=5), 'window of 5'),
    'qwen2': ('qwen2', TINY | dict(tie_word_embeddings=True), 'biases of q, k, v; tied'),
    'qwen2_window': (
        'qwen2',
        TINY | dict(use_sliding_window=True, sliding_window=5, max_window_layers=1),
        'window in the second layer',
    ),
    'qwen3': ('qwen3', TINY | dict(head_dim=8), 'norms of q and k, head_dim 8'),
    'gemma2': (
        'gemma2',
        TINY
        | dict(head_dim=8, query_pre_attn_scalar=5, sliding_window=5)
        | dict(attn_logit_softcapping=4.0, final_logit_softcapping=6.0),
        'soft caps, norms after branches, a window in every second layer',
    ),
    'gemma3': (
        'gemma3_text',
        TINY
        | dict(head_dim=8, query_pre_attn_scalar=8, sliding_window=5, layer_types=TYPES)
        | dict(rope_scaling=dict(rope_type='linear', factor=8.0)),
        'local and global layers with rotary positions of their own',
    ),
    'mixtral': (
        'mixtral',
        TINY | dict(num_local_experts=4, num_experts_per_tok=2),
        '2 of 4 experts',
    ),
    'bert': ('bert', ENCODER, 'types of tokens'),
    'roberta': ('roberta', ENCODER | dict(type_vocab_size=1), 'positions from 2 on'),
    'vit': ('vit', VIT, 'images of 3 channels'),
    'vit_grey': (
        'vit',
        VIT | dict(num_channels=1, hidden_act='gelu_new'),
        'one channel, tanh GELU',
    ),
    'resnet': (
        'resnet',
        RESNET | dict(hidden_sizes=[16, 32], depths=[2, 1]),
        'bottlenecks, strides in the middle',
    ),
    'resnet_v1': (
        'resnet',
        RESNET | dict(hidden_sizes=[16, 32], depths=[1, 1], downsample_in_bottleneck=True),
        'bottlenecks, strides in the first convolution',
    ),
    'resnet_basic': (
        'resnet',
        RESNET | dict(hidden_sizes=[4, 8], depths=[1, 2], layer_type='basic', num_channels=1),
        'basic blocks, one channel',
    ),
    'clip': ('clip', CONTRASTIVE, 'texts of several lengths'),
    't5': ('t5', T5, 'ReLU, tied and scaled'),
    't5_gated': (
        't5',
        T5 | dict(feed_forward_proj='gated-gelu', tie_word_embeddings=False, num_decoder_layers=1),
        'gated GELU, untied, a decoder of another depth',
    ),
    'whisper': ('whisper', WHISPER, 'told language and task, tokens suppressed'),
    'siglip': ('siglip', CONTRASTIVE, 'attention pools images, padding is seen'),
}
