"""ResNet in PyTorch, with the weights of ours: what `benchmark_train.py` compares it with."""

import numpy as np
import torch
from torch import nn

NORM = dict(eps=1e-5, momentum=0.1)


def make(params, model_state, model) -> nn.Module:
    """The twin of a `bigmodels.models.resnet.ResNet` with these weights, in training mode.

    Images are kept with channels last in memory, which is what PyTorch is fastest with on CPUs.
    """
    twin = ResNet(model, params)
    twin.load_state_dict(dict(_named_tensors(params)) | dict(_named_tensors(model_state)), strict=False)
    return twin.to(memory_format=torch.channels_last).train()
