"""A detector of objects by their centres (Zhou et al. 2019, "Objects as Points", CenterNet).

A residual network's stages are joined from the coarsest to the finest, as in a feature pyramid (Lin
et al. 2017), and every cell of the finest says of which class an object is centred there, and what
box it has; see `bigmodels.boxes`.
"""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodels import config
from bigmodels.models import resnet
from bigmodels.models.parts import layers
from bigmodels.models.parts.batch_norm import BatchNorm
from bigmodels.models.parts.convolution import Conv

Array = jax.Array

PRIOR = 0.1  # the probability of an object that a cell begins with (Zhou et al. 2019, section 5)
# Parameter name -> mesh axes of its trailing dimensions. The ResNet's begin with 'backbone/' here.
SHARDING_RULES = (
    (r'^lateral_\d+/kernel$', ('fsdp', 'tensor')),
    (r'^joined/kernel$', ('tensor', 'fsdp')),
    (r'^(heat|box)_hidden/kernel$', ('fsdp', 'tensor')),
    (r'^(heat|box)_head/kernel$', ('tensor', None)),
    *(
        (rule.replace('^', '^backbone/'), axes)
        for rule, axes in resnet.SHARDING_RULES
        if 'head' not in rule
    ),
)


class Detector(nn.Module):
    """inputs [B, H, W, C] -> heat [B, h, w, num_classes] and codes [B, h, w, 4], both float32.

    The heat is logits of an object's centre, the codes are of its box, as `boxes.encode` has them;
    h and w are H and W over `stride`.

    Fields:
      backbone: the fields of a `ResNet`.
        Its dtype and momentum are those of all layers.
      width: channels of what the stages are joined to.
    """

    num_classes: int
    backbone: Mapping[str, Any]
    width: int = 64

    sections: ClassVar = {'backbone': resnet.ResNet}
    sharding_rules: ClassVar = SHARDING_RULES

    def __post_init__(self):
        # A model is hashable; a kept config has lists, as JSON knows no tuples.
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in self.backbone.items()}
        self.backbone = nn.FrozenDict(fields)
        self._resnet(parent=None)  # building it checks its fields
        super().__post_init__()

    def _resnet(self, **given) -> resnet.ResNet:
        given['num_classes'] = self.num_classes  # of a head that is not made
        return config.build(resnet.ResNet, self.backbone, 'model.backbone', **given)

    @property
    def stride(self) -> int:
        """Of the cells in pixels, and what the sides of images are multiples of."""
        return 4 if self._resnet(parent=None).stem == 'imagenet' else 1

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool = False) -> tuple[Array, Array]:
        backbone = self._resnet(name='backbone')
        norm = functools.partial(BatchNorm, backbone.momentum)
        stages = backbone(inputs, train=train, features=True)
        x = None
        for level, stage in reversed(list(enumerate(stages))):
            lateral = Conv(self.width, 1, name=f'lateral_{level}')(stage)
            lateral = norm(name=f'lateral_{level}_norm')(lateral, train)
            x = lateral if x is None else lateral + upsampled(x, *stage.shape[1:3])
            x = jax.nn.relu(x)
        x = Conv(self.width, 3, name='joined')(x)
        x = jax.nn.relu(norm(name='joined_norm')(x, train))
        answers = {}
        for name, size in (('heat', self.num_classes), ('box', 4)):
            y = Conv(self.width, 3, name=f'{name}_hidden')(x)
            y = jax.nn.relu(norm(name=f'{name}_hidden_norm')(y, train))
            y = layers.Linear(size, name=f'{name}_head')(y)
            answers[name] = y.astype(jnp.float32)
        prior = jnp.log(PRIOR / (1 - PRIOR))
        return answers['heat'] + prior, answers['box'] + jnp.array([0, 0, 2.0, 2.0])


def upsampled(x: Array, height: int, width: int) -> Array:
    """x [B, H, W, C] with each pixel as 2 x 2, cut to [B, height, width, C]."""
    return x.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width]
