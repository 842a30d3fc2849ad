"""Published encoder-decoders as settings of `models.encoder_decoder`."""

from bigmodels.interop.family import Entries, Family
from bigmodels.interop.tables import T5
from bigmodels.models.encoder_decoder import EncoderDecoder


def _read_t5(config: Entries) -> Entries:
    """Its logits are scaled where they are tied; newer files say of the former alone."""
    tied = config['tie_word_embeddings'] and config.get('scale_decoder_outputs', True)
    return {
        'num_layers': config.get('num_decoder_layers') or config['num_layers'],
        'tie_embeddings': tied,
        'scale_logits': tied,
    }


def _write_t5(model: EncoderDecoder) -> Entries:
    return {
        'num_layers': model.num_encoder_layers or model.num_layers,
        'num_decoder_layers': model.num_layers,
        'tie_word_embeddings': model.tie_embeddings,
    }


ENCODER_DECODERS = (
    Family(
        't5',
        'T5ForConditionalGeneration',
        table=T5,
        model=EncoderDecoder,
        names={
            'vocab_size': 'vocab_size',
            'd_model': 'embed_dim',
            'd_kv': 'head_dim',
            'd_ff': 'mlp_dim',
            'num_layers': 'num_encoder_layers',
            'num_heads': 'num_heads',
            'n_positions': 'max_length',
            'relative_attention_num_buckets': 'relative_buckets',
            'relative_attention_max_distance': 'relative_distance',
            'layer_norm_epsilon': 'norm_epsilon',
        },
        defaults={
            'n_positions': 512,  # as it was trained; nothing is bound to them
            'relative_attention_num_buckets': 32,
            'relative_attention_max_distance': 128,
            'layer_norm_epsilon': 1e-6,
            'feed_forward_proj': 'relu',
            'tie_word_embeddings': True,
        },
        fixed={
            'positions': 'relative',
            'norm': 'rms_norm',
            'use_bias': False,
            'query_scalar': 1,
        },
        activation_key='feed_forward_proj',
        activations={'relu': 'relu', 'gated-gelu': 'geglu', 'gated-silu': 'swiglu'},
        read=_read_t5,
        write=_write_t5,
        only={'is_decoder': False},
    ),
)
