"""Random models of transformers, of any size, and the same ones here, for comparisons."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import numpy as np
import torch
import transformers

from bigmodels.interop import families, weights
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


def ours(model: transformers.PreTrainedModel) -> tuple[Transformer, dict]:
    """Our model of the same function as a GPT-2 or a Llama, and its params."""
    config = model.config.to_dict()
    family = families.of_config(config)
    made = family.model(**family.fields(config))
    tensors = {name: x.float().numpy() for name, x in model.state_dict().items()}
    return made, load(family, made, tensors, np.zeros((1, 4), np.int32))['params']


def load(
    family: families.Family,
    model: nn.Module,
    tensors: Mapping[str, np.ndarray],
    *inputs: np.ndarray,
) -> dict:
    """The variables of one of our models, for inputs such as these, on the first device."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=here),
        jax.eval_shape(model.init, jax.random.key(0), *inputs),
    )
    params = shapes.pop('params')
    vocab_size = getattr(model, 'vocab_size', None)
    loaded = weights.load(family.table, tensors, {**params, **shapes}, vocab_size)
    return {name: loaded.pop(name) for name in shapes} | {'params': loaded}
