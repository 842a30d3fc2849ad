"""The weights of Hugging Face's GPT-2 and Llama as params of `models.transformer`.

Random models of any size, for comparisons; nothing is downloaded.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import transformers

from bigmodels.models.transformer import Transformer

GPT2_124M = transformers.GPT2Config()
# The shape of Llama 3.2 1B.
LLAMA_1B = transformers.LlamaConfig(
    vocab_size=128_256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=2048,
    tie_word_embeddings=True,
)


def random_model(config: transformers.PretrainedConfig) -> transformers.PreTrainedModel:
    """A float32 model with seeded random weights, ready to generate without stopping."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def gpt2(model: transformers.GPT2LMHeadModel) -> tuple[Transformer, dict]:
    """Our model of the same function, and its params."""
    c, get = model.config, _getter(model)
    ours = Transformer(
        vocab_size=c.vocab_size,
        num_layers=c.n_layer,
        embed_dim=c.n_embd,
        num_heads=c.n_head,
        max_length=c.n_positions,
        positions='learned',
        norm_epsilon=c.layer_norm_epsilon,
    )

    def norm(name):
        return {'scale': get(f'{name}.weight'), 'bias': get(f'{name}.bias')}

    def linear(name, columns=slice(None)):  # already [inputs, outputs]
        return {
            'kernel': get(f'{name}.weight')[:, columns],
            'bias': get(f'{name}.bias')[columns],
        }

    def block(i):
        root = f'transformer.h.{i}'
        attention = {
            name: linear(f'{root}.attn.c_attn', slice(j * c.n_embd, (j + 1) * c.n_embd))
            for j, name in enumerate(('query', 'key', 'value'))
        }
        return {
            'attention_norm': norm(f'{root}.ln_1'),
            'attention': attention | {'out': linear(f'{root}.attn.c_proj')},
            'mlp_norm': norm(f'{root}.ln_2'),
            'mlp': {'up': linear(f'{root}.mlp.c_fc'), 'down': linear(f'{root}.mlp.c_proj')},
        }

    return ours, {
        'embed': {'embedding': get('transformer.wte.weight')},
        'position_embed': {'embedding': get('transformer.wpe.weight')},
        'final_norm': norm('transformer.ln_f'),
        **{f'layers_{i}': block(i) for i in range(c.n_layer)},
    }


def llama(model: transformers.LlamaForCausalLM) -> tuple[Transformer, dict]:
    """Our model of the same function, and its params."""
    c, get = model.config, _getter(model)
    ours = Transformer(
        vocab_size=c.vocab_size,
        num_layers=c.num_hidden_layers,
        embed_dim=c.hidden_size,
        mlp_dim=c.intermediate_size,
        num_heads=c.num_attention_heads,
        num_kv_heads=c.num_key_value_heads,
        max_length=c.max_position_embeddings,
        rotary_theta=c.rope_parameters['rope_theta'],
        norm='rms_norm',
        norm_epsilon=c.rms_norm_eps,
        activation='swiglu',
        use_bias=False,
        tie_embeddings=c.tie_word_embeddings,
    )

    def linears(root, names: Mapping[str, str]):
        return {
            name: {'kernel': get(f'{root}.{theirs}.weight').T} for name, theirs in names.items()
        }

    def block(i):
        root = f'model.layers.{i}'
        attention = dict(query='q_proj', key='k_proj', value='v_proj', out='o_proj')
        return {
            'attention_norm': {'scale': get(f'{root}.input_layernorm.weight')},
            'attention': linears(f'{root}.self_attn', attention),
            'mlp_norm': {'scale': get(f'{root}.post_attention_layernorm.weight')},
            'mlp': linears(f'{root}.mlp', dict(gate='gate_proj', up='up_proj', down='down_proj')),
        }

    params = {
        'embed': {'embedding': get('model.embed_tokens.weight')},
        'final_norm': {'scale': get('model.norm.weight')},
        **{f'layers_{i}': block(i) for i in range(c.num_hidden_layers)},
    }
    return ours, params if ours.tie_embeddings else params | {'unembed': get('lm_head.weight').T}


def _getter(model: torch.nn.Module) -> Callable[[str], np.ndarray]:
    """name -> that weight as a float32 array that shares its memory."""
    weights = model.state_dict()
    return lambda name: weights[name].float().numpy()
