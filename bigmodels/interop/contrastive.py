"""Published models of images and texts in one space as settings of `models.clip`."""

import math

from bigmodels import errors
from bigmodels.data import tokenizers
from bigmodels.interop.family import GELU, Entries, Family
from bigmodels.interop.image_tables import CLIP as CLIP_TABLE
from bigmodels.interop.image_tables import SIGLIP as SIGLIP_TABLE
from bigmodels.models.clip import CLIP
from bigmodels.models.vit import ViT

ANY_END = 2  # an eos_token_id of CLIP that stands for the largest id of a text
_LAYERS = {
    'hidden_size': 'embed_dim',
    'intermediate_size': 'mlp_dim',
    'num_hidden_layers': 'num_layers',
    'num_attention_heads': 'num_heads',
    'layer_norm_eps': 'norm_epsilon',
}
_TEXT = dict(
    names=_LAYERS | {'vocab_size': 'vocab_size', 'max_position_embeddings': 'max_length'},
    activation_key='hidden_act',
    activations=GELU | {'quick_gelu': 'quick_gelu'},
)
_IMAGE = _TEXT | dict(model=ViT, names=_LAYERS | {'patch_size': 'patch_size'})
# What sections of config.json leave out where it is as in the first published model.
_CLIP_TEXT = {
    'vocab_size': 49408,
    'hidden_size': 512,
    'intermediate_size': 2048,
    'num_hidden_layers': 12,
    'num_attention_heads': 8,
    'max_position_embeddings': 77,
    'hidden_act': 'quick_gelu',
    'layer_norm_eps': 1e-5,
}
_BASE = {
    'hidden_size': 768,
    'intermediate_size': 3072,
    'num_hidden_layers': 12,
    'num_attention_heads': 12,
}
_CLIP_IMAGE = _BASE | {'patch_size': 32, 'hidden_act': 'quick_gelu', 'layer_norm_eps': 1e-5}
_SIGLIP = _BASE | {'hidden_act': 'gelu_pytorch_tanh', 'layer_norm_eps': 1e-6}

# Families of the towers; what they have of tensors is in the tables of the whole.
_TOWERS = {
    'clip': (
        Family(
            'clip_vision_model',
            'CLIPVisionModel',
            table=CLIP_TABLE,
            defaults=_CLIP_IMAGE,
            fixed={'pool': 'token', 'embed_norm': True, 'patch_bias': False, 'head_bias': False},
            **_IMAGE,
        ),
        Family(
            'clip_text_model',
            'CLIPTextModel',
            table=CLIP_TABLE,
            defaults=_CLIP_TEXT,
            fixed={'positions': 'learned'},
            **_TEXT,
        ),
    ),
    'siglip': (
        Family(
            'siglip_vision_model',
            'SiglipVisionModel',
            table=SIGLIP_TABLE,
            defaults=_SIGLIP | {'patch_size': 16},
            fixed={'pool': 'attention'},
            only={'vision_use_head': True},
            **_IMAGE,
        ),
        Family(
            'siglip_text_model',
            'SiglipTextModel',
            table=SIGLIP_TABLE,
            defaults=_SIGLIP | {'vocab_size': 32000, 'max_position_embeddings': 64},
            fixed={'positions': 'learned', 'causal': False},
            **_TEXT,
        ),
    ),
}


def _read_towers(config: Entries) -> Entries:
    """The towers' fields; older files say some of theirs in a section that goes before."""
    fields = {}
    towers = zip(('image', 'text'), ('vision', 'text'), _TOWERS[config['model_type']], strict=True)
    for ours, theirs, family in towers:
        given = config.get(f'{theirs}_config') or {}
        fields[ours] = family.fields(given | (config.get(f'{theirs}_config_dict') or {}))
    return fields


def _write_towers(model: CLIP, model_type: str, projected: str) -> Entries:
    image, text = _TOWERS[model_type]
    return {
        'vision_config': image.entries(model.vit()) | {'projection_dim': model.embed_dim},
        'text_config': text.entries(model.transformer()) | {projected: model.embed_dim},
    }


def _read_clip(config: Entries) -> Entries:
    scale = math.exp(config['logit_scale_init_value'])
    return _read_towers(config) | {'init_scale': min(scale, CLIP.max_scale)}


def _read_siglip(config: Entries) -> Entries:
    fields = _read_towers(config)
    size = (config.get('text_config') or {}).get('projection_size')
    return fields | {'embed_dim': size or fields['text']['embed_dim']}


def check_end(config: Entries, vocabulary: tokenizers.Tokenizer) -> None:
    """Raises UserError unless transformers pools a CLIP's texts where they end, as is done here.

    It takes the first of the tokens that config.json calls their end; where that is 2, as early
    files had it, the first of the largest id that a text has.
    """
    if config['model_type'] != 'clip':
        return
    told, end = config['text_config'].get('eos_token_id'), vocabulary.end_of_text
    if end != (vocabulary.vocab_size - 1 if told == ANY_END else told):
        raise errors.UserError(
            f'Texts of the run end with the token {end}, and config.json would have eos_token_id = '
            f'{told}: transformers would pool a CLIP at other tokens ({ANY_END} stands for the '
            f'largest id of a text). Use a tokenizer whose end of text is another token than '
            f'{ANY_END}, and for a published model its own.'
        )


CONTRASTIVE = (
    Family(
        'clip',
        'CLIPModel',
        table=CLIP_TABLE,
        model=CLIP,
        names={'projection_dim': 'embed_dim'},
        defaults={'projection_dim': 512, 'logit_scale_init_value': 2.6592},
        fixed={'projection_bias': False},
        read=_read_clip,
        write=lambda model: {
            'logit_scale_init_value': math.log(model.init_scale),
            **_write_towers(model, 'clip', 'projection_dim'),
        },
    ),
    Family(
        'siglip',
        'SiglipModel',
        table=SIGLIP_TABLE,
        model=CLIP,
        names={},
        defaults={},
        # As they begin in the paper (section 3.2).
        fixed={'project_images': False, 'max_scale': None, 'init_scale': 10.0, 'init_bias': -10.0},
        read=_read_siglip,
        write=lambda model: _write_towers(model, 'siglip', 'projection_size'),
    ),
)
