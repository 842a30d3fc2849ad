"""The families of published models that are known here, and which one a model is of."""

from collections.abc import Mapping

import flax.linen as nn

from bigmodels import errors
from bigmodels.interop.classifiers import CLASSIFIERS
from bigmodels.interop.contrastive import CONTRASTIVE
from bigmodels.interop.decoders import DECODERS
from bigmodels.interop.encoder_decoders import ENCODER_DECODERS
from bigmodels.interop.encoders import ENCODERS
from bigmodels.interop.family import Family

FAMILIES = {
    family.model_type: family
    for several in (DECODERS, ENCODERS, CLASSIFIERS, CONTRASTIVE, ENCODER_DECODERS)
    for family in several
}


def of_config(config: Mapping) -> Family:
    """The family that a config.json names.

    Raises:
      UserError: if it is not one of FAMILIES.
    """
    name = config.get('model_type')
    if name not in FAMILIES:
        raise errors.unknown('model_type in config.json', name, FAMILIES)
    return FAMILIES[name]


def of_model(model: nn.Module) -> Family:
    """The first of FAMILIES that has such models.

    Raises:
      UserError: if none has; it says what each of them lacks.
    """
    problems = []
    for family in FAMILIES.values():
        try:
            family.config(model)
        except errors.UserError as error:
            problems.append(str(error).rstrip('.'))
        else:
            return family
    raise errors.UserError(
        'No family of published models has such a model: ' + '; '.join(problems) + '.'
    )
