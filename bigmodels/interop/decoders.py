"""Published decoders as settings of `models.transformer`."""

from bigmodels import errors
from bigmodels.interop import rotary
from bigmodels.interop.family import Entries, Family
from bigmodels.interop.tables import GEMMA, GPT2, LLAMA
from bigmodels.models.parts.settings import settings_of
from bigmodels.models.transformer import Transformer

FULL, SLIDING = 'full_attention', 'sliding_attention'


def _layer_types(model: Transformer) -> list[str]:
    """Of each layer, as config.json has them."""
    settings = settings_of(model)
    windows = [settings.of_layer(i).sliding_window for i in range(model.num_layers)]
    return [FULL if window is None else SLIDING for window in windows]


def _windows(config: Entries, types: list[str]) -> Entries:
    """The fields of a window that the layers of type SLIDING have."""
    number = config['num_hidden_layers']
    types = config.get('layer_types') or types
    for kind in types:
        if kind not in (FULL, SLIDING):
            raise errors.unknown('layer type', kind, (FULL, SLIDING))
    if len(types) != number:
        raise errors.UserError(f'config.json has {len(types)} layer_types for {number} layers.')
    window = config.get('sliding_window')
    if window is None or SLIDING not in types:
        return {'sliding_window': None}
    full = tuple(i for i, kind in enumerate(types) if kind == FULL)
    return {'sliding_window': window, 'global_layers': full}


def _read_qwen(config: Entries) -> Entries:
    first = config['max_window_layers'] if config['use_sliding_window'] else None
    number = config['num_hidden_layers']
    types = [FULL if first is None or i < first else SLIDING for i in range(number)]
    if not config['use_sliding_window']:
        config = config | {'sliding_window': None}
    return rotary.read(config) | _windows(config, types)


def _write_qwen(model: Transformer) -> Entries:
    return rotary.write(model) | {
        'sliding_window': model.sliding_window,
        'use_sliding_window': model.sliding_window is not None,
        'layer_types': _layer_types(model),
    }


def _read_gemma(config: Entries, period: int) -> Entries:
    number = config['num_hidden_layers']
    return _windows(config, [SLIDING if (i + 1) % period else FULL for i in range(number)])


def _read_gemma3(config: Entries) -> Entries:
    period = config['sliding_window_pattern']
    fields = _read_gemma(config, period)
    everywhere, local = rotary.read_by_type(config, FULL), rotary.read_by_type(config, SLIDING)
    if fields['sliding_window'] is None:
        return fields | everywhere
    if not fields['global_layers']:
        return fields | local
    if local['rotary_scaling'] is not None:
        raise errors.UserError('config.json scales the rotary positions of layers with a window.')
    return fields | everywhere | {'local_rotary_theta': local['rotary_theta']}


def _write_gemma(model: Transformer) -> Entries:
    return {
        'sliding_window': model.sliding_window,
        'layer_types': _layer_types(model),
    }


def _write_gemma3(model: Transformer) -> Entries:
    local = model.local_rotary_theta or model.rotary_theta
    return _write_gemma(model) | rotary.write(model) | {'rope_local_base_freq': local}


def _read_mixtral(config: Entries) -> Entries:
    experts = {
        'num_experts': config['num_local_experts'],
        'experts_per_token': config['num_experts_per_tok'],
        'capacity_factor': None,
        'load_balance_weight': config['router_aux_loss_coef'],
        'router_z_weight': 0.0,
    }
    return rotary.read(config) | {'sliding_window': config['sliding_window'], 'moe': experts}


def _write_mixtral(model: Transformer) -> Entries:
    if model.experts is None:
        return {'num_local_experts': 1, 'num_experts_per_tok': 1}
    return rotary.write(model) | {
        'sliding_window': model.sliding_window,
        'num_local_experts': model.experts.num_experts,
        'num_experts_per_tok': model.experts.experts_per_token,
        'router_aux_loss_coef': model.experts.load_balance_weight,
    }


def _read_llama(config: Entries) -> Entries:
    attention, mlp = config['attention_bias'], config['mlp_bias']
    if mlp and not attention:
        raise errors.UserError('config.json has mlp_bias without attention_bias.')
    return rotary.read(config) | {'use_bias': mlp, 'attention_bias': attention and not mlp}


def _write_llama(model: Transformer) -> Entries:
    return rotary.write(model) | {
        'attention_bias': model.use_bias or model.attention_bias,
        'mlp_bias': model.use_bias,
    }


_SILU = {'silu': 'swiglu', 'gelu_pytorch_tanh': 'geglu', 'gelu_new': 'geglu'}
_NAMES = {
    'vocab_size': 'vocab_size',
    'hidden_size': 'embed_dim',
    'intermediate_size': 'mlp_dim',
    'num_hidden_layers': 'num_layers',
    'num_attention_heads': 'num_heads',
    'num_key_value_heads': 'num_kv_heads',
    'head_dim': 'head_dim',
    'max_position_embeddings': 'max_length',
    'rms_norm_eps': 'norm_epsilon',
    'tie_word_embeddings': 'tie_embeddings',
}
_LLAMA_FIXED = {'norm': 'rms_norm', 'use_bias': False}
_LLAMA_DEFAULTS = {
    'tie_word_embeddings': False,
    'rms_norm_eps': 1e-6,
    'hidden_act': 'silu',
    'rope_theta': 10_000.0,
    'attention_bias': False,
    'mlp_bias': False,
}
_GEMMA_NAMES = _NAMES | {
    'query_pre_attn_scalar': 'query_scalar',
    'final_logit_softcapping': 'logit_softcap',
}
_GEMMA_FIXED = _LLAMA_FIXED | {
    'norm_offset': 1.0,
    'norm_placement': 'both',
    'scale_embeddings': True,
}
_GEMMA_DEFAULTS = {
    'tie_word_embeddings': True,
    'rms_norm_eps': 1e-6,
    'hidden_activation': 'gelu_pytorch_tanh',
    'head_dim': 256,
    'query_pre_attn_scalar': 256,
    'sliding_window': 4096,
    'attention_bias': False,
}
_QWEN_DEFAULTS = _LLAMA_DEFAULTS | {
    'use_sliding_window': False,
    'sliding_window': 4096,
    'max_window_layers': 28,
}


def _llama(model_type: str, architecture: str, **changes) -> Family:
    """A family whose activation, names and table are Llama's, but for the changes."""
    given = dict(
        table=LLAMA,
        names=_NAMES,
        defaults=_LLAMA_DEFAULTS,
        fixed=_LLAMA_FIXED,
        activation_key='hidden_act',
        activations=_SILU,
    )
    return Family(model_type, architecture, **given | changes)


DECODERS = (
    Family(
        'gpt2',
        'GPT2LMHeadModel',
        table=GPT2,
        names={
            'vocab_size': 'vocab_size',
            'n_embd': 'embed_dim',
            'n_inner': 'mlp_dim',
            'n_layer': 'num_layers',
            'n_head': 'num_heads',
            'n_positions': 'max_length',
            'layer_norm_epsilon': 'norm_epsilon',
            'tie_word_embeddings': 'tie_embeddings',
        },
        defaults={
            'tie_word_embeddings': True,
            'layer_norm_epsilon': 1e-5,
            'activation_function': 'gelu_new',
        },
        fixed={'positions': 'learned'},
        activation_key='activation_function',
        activations={
            'gelu_new': 'gelu',
            'gelu_pytorch_tanh': 'gelu',
            'gelu': 'gelu_exact',
            'relu': 'relu',
        },
        only={
            'scale_attn_weights': True,
            'scale_attn_by_inverse_layer_idx': False,
            'add_cross_attention': False,
        },
    ),
    _llama('llama', 'LlamaForCausalLM', read=_read_llama, write=_write_llama),
    _llama(
        'mistral',
        'MistralForCausalLM',
        defaults=_LLAMA_DEFAULTS | {'sliding_window': 4096},
        read=lambda config: rotary.read(config) | {'sliding_window': config['sliding_window']},
        write=lambda model: rotary.write(model) | {'sliding_window': model.sliding_window},
    ),
    _llama(
        'qwen2',
        'Qwen2ForCausalLM',
        fixed=_LLAMA_FIXED | {'qkv_bias': True},
        defaults=_QWEN_DEFAULTS,
        read=_read_qwen,
        write=_write_qwen,
    ),
    _llama(
        'qwen3',
        'Qwen3ForCausalLM',
        names=_NAMES | {'attention_bias': 'attention_bias'},
        fixed=_LLAMA_FIXED | {'qk_norm': True},
        defaults=_QWEN_DEFAULTS | {'head_dim': 128},
        read=_read_qwen,
        write=_write_qwen,
    ),
    _llama(
        'mixtral',
        'MixtralForCausalLM',
        defaults=_LLAMA_DEFAULTS
        | {
            'rms_norm_eps': 1e-5,
            'rope_theta': 1e6,
            'sliding_window': None,
            'router_aux_loss_coef': 0.001,
        },
        read=_read_mixtral,
        write=_write_mixtral,
        only={'router_jitter_noise': 0.0},
    ),
    Family(
        'gemma2',
        'Gemma2ForCausalLM',
        table=GEMMA,
        names=_GEMMA_NAMES
        | {'attn_logit_softcapping': 'attention_softcap', 'attention_bias': 'attention_bias'},
        defaults=_GEMMA_DEFAULTS
        | {
            'rope_theta': 10_000.0,
            'final_logit_softcapping': 30.0,
            'attn_logit_softcapping': 50.0,
        },
        fixed=_GEMMA_FIXED,
        activation_key='hidden_activation',
        activations={'gelu_pytorch_tanh': 'geglu', 'gelu_new': 'geglu', 'silu': 'swiglu'},
        read=lambda config: rotary.read(config) | _read_gemma(config, 2),
        write=lambda model: rotary.write(model) | _write_gemma(model),
        only={'use_bidirectional_attention': False},
    ),
    Family(
        'gemma3_text',
        'Gemma3ForCausalLM',
        table=GEMMA,
        names=_GEMMA_NAMES | {'attention_bias': 'attention_bias'},
        defaults=_GEMMA_DEFAULTS
        | {
            'rope_theta': 1e6,
            'rope_local_base_freq': 10_000.0,
            'sliding_window_pattern': 6,
            'final_logit_softcapping': None,
        },
        fixed=_GEMMA_FIXED | {'qk_norm': True},
        activation_key='hidden_activation',
        activations={'gelu_pytorch_tanh': 'geglu', 'gelu_new': 'geglu', 'silu': 'swiglu'},
        read=_read_gemma3,
        write=_write_gemma3,
        only={'use_bidirectional_attention': False, 'attn_logit_softcapping': None},
    ),
)
