"""Where transformers pools the texts of a CLIP."""

import types

import pytest

from bigmodels import errors
from bigmodels.interop import contrastive


@pytest.mark.parametrize(
    ('told', 'end', 'agrees'),
    [
        (60, 60, True),
        (60, 2, False),  # of another tokenizer than the published one
        (2, 60, True),  # as early files have it: the end is the largest id
        (2, 2, False),
        (2, 59, False),
    ],
)
def test_a_clip_is_written_only_if_its_texts_are_pooled_where_they_end(told, end, agrees):
    config = {'model_type': 'clip', 'text_config': {'eos_token_id': told}}
    vocabulary = types.SimpleNamespace(end_of_text=end, vocab_size=61)
    if agrees:
        contrastive.check_end(config, vocabulary)
    else:
        with pytest.raises(errors.UserError, match=f'end with the token {end}.*eos_token_id'):
            contrastive.check_end(config, vocabulary)
    contrastive.check_end(config | {'model_type': 'siglip'}, vocabulary)
