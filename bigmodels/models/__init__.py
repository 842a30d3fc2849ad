"""Models: pure Linen modules, by the name that `config.model.name` gives.

A model's fields are the keys of `config.model`. To add one, write a module in a file of its own
and put its class here, or name it by dotted path in the config (`my_package.my_model.Model`).
"""

from bigmodels.models.clip import CLIP
from bigmodels.models.conformer import Conformer
from bigmodels.models.convnet import ConvNet
from bigmodels.models.detector import Detector
from bigmodels.models.dit import DiT
from bigmodels.models.efficientnet import EfficientNet
from bigmodels.models.encoder_decoder import EncoderDecoder
from bigmodels.models.feature_crosses import DCN, DLRM
from bigmodels.models.forecasters import DLinear, PatchTST
from bigmodels.models.ft_transformer import FTTransformer
from bigmodels.models.gnn import GAT, GCN
from bigmodels.models.mlp import MLP
from bigmodels.models.recurrent import Recurrent
from bigmodels.models.resnet import ResNet
from bigmodels.models.sparse_autoencoder import SparseAutoencoder
from bigmodels.models.tabular import TabularMLP
from bigmodels.models.transformer import Transformer
from bigmodels.models.transformer_classifier import TransformerClassifier
from bigmodels.models.two_tower import TwoTower
from bigmodels.models.unet import UNet
from bigmodels.models.video_vit import VideoViT
from bigmodels.models.vision_language import VisionLanguage
from bigmodels.models.vit import ViT
from bigmodels.models.wavenet import WaveNet

MODELS = {
    'clip': CLIP,
    'conformer': Conformer,
    'convnet': ConvNet,
    'dcn': DCN,
    'detector': Detector,
    'dit': DiT,
    'dlinear': DLinear,
    'dlrm': DLRM,
    'efficientnet': EfficientNet,
    'encoder_decoder': EncoderDecoder,
    'ft_transformer': FTTransformer,
    'gat': GAT,
    'gcn': GCN,
    'mlp': MLP,
    'patch_tst': PatchTST,
    'recurrent': Recurrent,
    'resnet': ResNet,
    'sparse_autoencoder': SparseAutoencoder,
    'tabular_mlp': TabularMLP,
    'transformer': Transformer,
    'transformer_classifier': TransformerClassifier,
    'two_tower': TwoTower,
    'unet': UNet,
    'video_vit': VideoViT,
    'vision_language': VisionLanguage,
    'vit': ViT,
    'wavenet': WaveNet,
}
