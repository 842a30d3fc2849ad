"""Published encoders: of texts by `models.transformer`, of images by `models.vit`."""

from bigmodels.interop.family import Entries, Family
from bigmodels.interop.tables import BERT, ROBERTA, VIT
from bigmodels.models.transformer import Transformer
from bigmodels.models.vit import ViT

GELU = {'gelu': 'gelu_exact', 'gelu_pytorch_tanh': 'gelu', 'gelu_new': 'gelu'}


def _read_vit(config: Entries) -> Entries:
    labels = config.get('id2label')
    return {'num_classes': config.get('num_labels', 2) if labels is None else len(labels)}


def _write_vit(model: ViT) -> Entries:
    names = [f'LABEL_{i}' for i in range(model.num_classes)]
    return {
        'id2label': {str(i): name for i, name in enumerate(names)},
        'label2id': {name: i for i, name in enumerate(names)},
    }


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
    Family(
        'vit',
        'ViTForImageClassification',
        table=VIT,
        model=ViT,
        names={
            'hidden_size': 'embed_dim',
            'num_hidden_layers': 'num_layers',
            'num_attention_heads': 'num_heads',
            'intermediate_size': 'mlp_dim',
            'layer_norm_eps': 'norm_epsilon',
            'patch_size': 'patch_size',
        },
        defaults={'layer_norm_eps': 1e-12, 'hidden_act': 'gelu'},
        fixed={'pool': 'token'},
        activation_key='hidden_act',
        activations=GELU,
        read=_read_vit,
        write=_write_vit,
        only={'qkv_bias': True},
    ),
)
