"""Models: pure Linen modules, by the name that `config.model.name` gives.

A model's fields are the keys of `config.model`. To add one, write a module in a file of its own
and put its class here, or name it by dotted path in the config (`my_package.my_model.Model`).
"""

from bigmodels.models.forecasters import DLinear, PatchTST
from bigmodels.models.ft_transformer import FTTransformer
from bigmodels.models.gnn import GAT, GCN
from bigmodels.models.mlp import MLP
from bigmodels.models.resnet import ResNet
from bigmodels.models.tabular import TabularMLP
from bigmodels.models.transformer import Transformer
from bigmodels.models.vit import ViT

MODELS = {
    'dlinear': DLinear,
    'ft_transformer': FTTransformer,
    'gat': GAT,
    'gcn': GCN,
    'mlp': MLP,
    'patch_tst': PatchTST,
    'resnet': ResNet,
    'tabular_mlp': TabularMLP,
    'transformer': Transformer,
    'vit': ViT,
}
