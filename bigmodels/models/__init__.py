"""Models: pure Linen modules, by the name that `config.model.name` gives.

A model's fields are the keys of `config.model`. To add one, write a module in a file of its own
and put its class here, or name it by dotted path in the config (`my_package.my_model.Model`).
"""

from bigmodels.models.feature_crosses import DCN, DLRM
from bigmodels.models.mlp import MLP
from bigmodels.models.resnet import ResNet
from bigmodels.models.transformer import Transformer
from bigmodels.models.two_tower import TwoTower
from bigmodels.models.vit import ViT

MODELS = {
    'dcn': DCN,
    'dlrm': DLRM,
    'mlp': MLP,
    'resnet': ResNet,
    'transformer': Transformer,
    'two_tower': TwoTower,
    'vit': ViT,
}
