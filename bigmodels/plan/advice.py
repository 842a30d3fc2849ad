"""Changes that may make a plan fit into memory: each is compiled, and they are ranked."""

import dataclasses
from collections.abc import Callable, Sequence

from bigmodels import errors
from bigmodels.experiment import Experiment
from bigmodels.models.parts.blocks import REMAT_POLICIES
from bigmodels.plan.estimate import Plan

# From what keeps most for the backward pass to what keeps least.
REMATS = ('none', *sorted(REMAT_POLICIES, key=('dots', 'attention', 'full').index))


@dataclasses.dataclass(frozen=True)
class Trial:
    """A change of the config, as overrides, and the plan that it gives."""

    overrides: tuple[str, ...]
    plan: Plan

    @property
    def rank(self) -> tuple:
        """What fits first, then the fastest per item; of what does not fit, the smallest."""
        if not self.plan.fits:
            return (1, self.plan.bytes_needed)
        return (0, self.plan.cost.step_seconds / self.plan.items)


def try_changes(
    settings: Experiment,
    plan_with: Callable[[Sequence[str]], tuple[Experiment, Plan]],
    most: int,
) -> list[Trial]:
    """Compiles changes of a config that does not fit, best first.

    Single changes first; while none fits, the one that saves most is kept and others are added.

    Args:
      plan_with: overrides -> the changed experiment and its plan; raises UserError for a change
        that cannot be.
      most: how many are compiled.
    """
    trials, kept = [], ()
    while len(trials) < most:
        rounds = []
        for change in changes(settings):
            if len(trials) + len(rounds) == most:
                break
            try:
                changed, plan = plan_with((*kept, *change))
            except errors.UserError:
                continue
            rounds.append((Trial((*kept, *change), plan), changed))
        if not rounds:
            break
        trials += [trial for trial, _ in rounds]
        if any(trial.plan.fits for trial in trials):
            break
        best, settings = min(rounds, key=lambda pair: pair[0].rank)
        kept = best.overrides
    return sorted(trials, key=lambda trial: trial.rank)


def changes(settings: Experiment) -> list[tuple[str, ...]]:
    """Overrides that save memory: remat, fsdp, accumulation and batch, those that cost least first.

    None changes what a step computes but the last, the batch.
    """
    found = []
    mesh, remat = settings.mesh, settings.model.get('remat', 'none')
    if mesh.data != 1 and mesh.fsdp != -1:
        found.append(
            (f'mesh.fsdp={-1 if mesh.data == -1 else mesh.data * mesh.fsdp}', 'mesh.data=1')
        )
    if 'num_layers' in settings.model and remat in REMATS:
        found += [(f'model.remat={policy}',) for policy in REMATS[REMATS.index(remat) + 1 :]]
    part = settings.batch_size // settings.accumulate
    if part % 2 == 0:
        found.append((f'accumulate={2 * settings.accumulate}',))
        found.append((f'batch_size={settings.batch_size // 2}',))
    return found
