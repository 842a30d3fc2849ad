"""Published encoder-decoders as settings of `models.encoder_decoder`."""

from bigmodels import errors
from bigmodels.interop.family import GELU, Entries, Family
from bigmodels.interop.tables import T5, WHISPER
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


def _read_whisper(config: Entries) -> Entries:
    """Its stacks may differ in depth, but not in width."""
    for name in ('attention_heads', 'ffn_dim'):
        encoder, decoder = (config.get(f'{stack}_{name}') for stack in ('encoder', 'decoder'))
        if encoder != decoder:
            raise errors.UserError(
                f'config.json has encoder_{name} = {encoder} and decoder_{name} = {decoder}: here '
                f'both are alike.'
            )
    return {}


def _write_whisper(model: EncoderDecoder) -> Entries:
    return {
        'encoder_attention_heads': model.num_heads,
        'encoder_ffn_dim': model.mlp_dim or 4 * model.embed_dim,
        'pad_token_id': None,  # by default one that only the published vocabulary has
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
    Family(
        'whisper',
        'WhisperForConditionalGeneration',
        table=WHISPER,
        model=EncoderDecoder,
        names={
            'vocab_size': 'vocab_size',
            'd_model': 'embed_dim',
            'encoder_layers': 'num_encoder_layers',
            'decoder_layers': 'num_layers',
            'decoder_attention_heads': 'num_heads',
            'decoder_ffn_dim': 'mlp_dim',
            'num_mel_bins': 'num_mels',
            'max_source_positions': 'max_source_length',
            'max_target_positions': 'max_length',
        },
        defaults={'activation_function': 'gelu'},
        fixed={'positions': 'learned', 'key_bias': False},
        activation_key='activation_function',
        activations=GELU,
        read=_read_whisper,
        write=_write_whisper,
        only={'scale_embedding': False, 'tie_word_embeddings': True},
    ),
)
