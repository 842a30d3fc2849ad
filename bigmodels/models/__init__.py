"""Models: pure Linen modules, by the name that `config.model.name` gives.

A model's fields are the keys of `config.model`. To add one, write a module in a file of its own
and put its class here, or name it by dotted path in the config (`my_package.my_model.Model`).
"""

from bigmodels.models.conformer import Conformer
from bigmodels.models.convnet import ConvNet
from bigmodels.models.efficientnet import EfficientNet
from bigmodels.models.encoder_decoder import EncoderDecoder
from bigmodels.models.mlp import MLP
from bigmodels.models.recurrent import Recurrent
from bigmodels.models.resnet import ResNet
from bigmodels.models.transformer import Transformer
from bigmodels.models.transformer_classifier import TransformerClassifier
from bigmodels.models.vit import ViT

MODELS = {
    'convnet': ConvNet,
    'efficientnet': EfficientNet,
    'encoder_decoder': EncoderDecoder,
    'conformer': Conformer,
    'mlp': MLP,
    'recurrent': Recurrent,
    'resnet': ResNet,
    'transformer': Transformer,
    'transformer_classifier': TransformerClassifier,
    'vit': ViT,
}
