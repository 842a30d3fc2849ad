"""How probable the tokens of prompts are, for clients that want them back."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from bigmodels import adapters
from bigmodels.deploy.requests import MOST_ALTERNATIVES
from bigmodels.deploy.scoring import scores
from bigmodels.deploy.server.batching import Batcher
from bigmodels.deploy.server.generation import Generation, Piece
from bigmodels.deploy.server.texts import Assembler
from bigmodels.predict import Program


class Scoring:
    """Of what a `Generation` goes on with; programs are compiled for lengths as they come."""

    def __init__(self, generation: Generation, batcher: Batcher):
        self._generation, self._batcher = generation, batcher
        self._program: Program | None = None

    def warm(self) -> None:
        """Takes over the model of the generation, which is warm."""
        model, params = self._generation.packed
        count = min(MOST_ALTERNATIVES, model.vocab_size)

        def score(params, model_state, batch):
            inputs, params = batch['inputs'], adapters.by_row(params, batch['adapter'])
            following = jnp.roll(inputs, -1, axis=1)
            return scores(model, params, inputs, following, count, batch['segment_ids'])

        self._program = Program(score, params, {})

    async def pieces(
        self, prompts: Sequence[np.ndarray], model: str, alternatives: int | None
    ) -> list[list[Piece]]:
        """The tokens int32 [n] of prompts as pieces; the first has no log probability.

        Args:
          model: the name of one of the generation's.
          alternatives: how many are told with each; None for no log probabilities either.
        """
        spelling, found = self._generation.spelling, [None] * len(prompts)
        if alternatives is not None:
            adapter = np.int32(self._generation.adapter(model))
            task = self._generation.tasks[model]
            examples = [{**task.text_example(ids), 'adapter': adapter} for ids in prompts]
            found = await self._batcher.answers(self._program, examples)
        return [
            _pieces(ids.tolist(), Assembler(spelling, ()), scored, alternatives)
            for ids, scored in zip(prompts, found, strict=True)
        ]


def _pieces(
    ids: Sequence[int], assembler: Assembler, scored: Mapping | None, alternatives: int | None
) -> list[Piece]:
    """Of one prompt; `scored`: of `scores`, without its first axis."""
    pieces = [Piece(assembler.add(token), token, None, None) for token in ids]
    pieces[-1] = pieces[-1]._replace(text=pieces[-1].text + assembler.end())
    if scored is None:
        return pieces
    log_probs, tokens, best = (
        scored[name].tolist() for name in ('log_probs', 'tokens', 'best')
    )  # of what follows each
    return pieces[:1] + [
        piece._replace(
            log_prob=log_probs[i],
            alternatives=tuple(zip(tokens[i], best[i], strict=True))[:alternatives],
        )
        for i, piece in enumerate(pieces[1:])
    ]
