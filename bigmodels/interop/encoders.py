"""Published encoders of texts as settings of `models.transformer`."""

from bigmodels.interop.family import GELU, Entries, Family
from bigmodels.interop.tables import BERT, ROBERTA
from bigmodels.models.transformer import Transformer


def _read_roberta(config: Entries) -> Entries:
    """Its positions begin behind the number of the padding token."""
    offset = config['pad_token_id'] + 1
    return {'position_offset': offset, 'max_length': config['max_position_embeddings'] - offset}


def _write_roberta(model: Transformer) -> Entries:
    return {
        'pad_token_id': model.position_offset - 1,
        'max_position_embeddings': model.max_length + model.position_offset,
    }


_BERT_NAMES = {
    'vocab_size': 'vocab_size',
    'hidden_size': 'embed_dim',
    'num_hidden_layers': 'num_layers',
    'num_attention_heads': 'num_heads',
    'intermediate_size': 'mlp_dim',
    'type_vocab_size': 'token_types',
    'layer_norm_eps': 'norm_epsilon',
}
_BERT = dict(
    defaults={'layer_norm_eps': 1e-12, 'hidden_act': 'gelu', 'pad_token_id': 1},
    fixed={
        'causal': False,
        'positions': 'learned',
        'norm_placement': 'post',
        'embed_norm': True,
        'final_norm': False,
        'logits_transform': True,
    },
    activation_key='hidden_act',
    only={
        'is_decoder': False,
        'add_cross_attention': False,
        'tie_word_embeddings': True,
        'position_embedding_type': 'absolute',
    },
)

ENCODERS = (
    Family(
        'bert',
        'BertForMaskedLM',
        table=BERT,
        names=_BERT_NAMES | {'max_position_embeddings': 'max_length'},
        activations=GELU | {'relu': 'relu'},
        **_BERT,
    ),
    Family(
        'roberta',
        'RobertaForMaskedLM',
        table=ROBERTA,
        names=_BERT_NAMES,
        activations={'gelu': 'gelu_exact'},  # of the head in any case
        read=_read_roberta,
        write=_write_roberta,
        **_BERT,
    ),
)
