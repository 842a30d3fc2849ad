"""A plan as text."""

from collections.abc import Sequence

from bigmodels import hardware, tables
from bigmodels.plan.advice import Trial
from bigmodels.plan.estimate import Plan, Training, training

MFU_CONVENTION = 'causal: 6 N + 6 layers d length FLOPs a token, recomputation not counted'


def text(plan: Plan, tokens: float | None, watts: float | None, price: float | None) -> str:
    """All of a plan; with `tokens`, what it takes to train on so many."""
    chip, count = plan.topology.chip, len(plan.topology.devices)
    head = (
        f'{plan.topology.name}: {count} x {chip.name}, mesh {plan.mesh}. '
        f'{plan.parameters:,} parameters, {plan.items:,} {plan.unit} a step. '
        f'Compiled in {plan.compile_seconds:.0f} s.'
    )
    parts = [head, _memory(plan)]
    if plan.cost is not None:
        parts += [_collectives(plan), _time(plan)]
        if tokens:
            whole = training(plan, tokens, watts, price)
            parts.append(_training(whole, tokens, plan, watts, price))
    parts += [f'Note: {note}.' for note in plan.notes]
    return '\n\n'.join(parts)


def _memory(plan: Plan) -> str:
    limit = plan.topology.chip.memory
    if plan.memory is None:
        needed = f'{plan.bytes_needed / 1e9:.2f} GB' if plan.refused else 'more than there is'
        return f'OUT OF MEMORY: it needs {needed}, a chip has {limit / 1e9:.2f} GB.'
    held = plan.memory
    rows = [('memory of a device', 'GB')]
    for name in ('params', 'optimiser', 'average', 'gradients', 'activations', 'temporaries',
                 'other', 'program'):  # fmt: skip
        if size := getattr(held, name):
            rows.append((name, f'{size / 1e9:.3f}'))
    rows.append(('all', f'{held.total / 1e9:.3f}'))
    if limit == float('inf'):
        return tables.aligned(rows, '<>')
    share = f'{held.total / limit:.0%} of the {limit / 1e9:.2f} GB of a chip'
    verdict = f'It fits: {share}.' if plan.fits else f'OUT OF MEMORY: {share}.'
    return f'{tables.aligned(rows, "<>")}\n{verdict}'


def _collectives(plan: Plan) -> str:
    if not plan.cost.traffic:
        return 'No collectives.'
    rows = [('collective', 'mesh axes', 'times', 'GB', 'GB sent', 'ms')]
    for one in plan.cost.traffic:
        size, sent = f'{one.size / 1e9:.3f}', f'{one.sent / 1e9:.3f}'
        rows.append((one.kind, one.axes, f'{one.count:,}', size, sent, f'{one.seconds * 1e3:.2f}'))
    return tables.aligned(rows, '<<>>>>')


def _time(plan: Plan) -> str:
    cost = plan.cost
    rows = [
        ('a step, on one device', '', 'seconds'),
        ('FLOPs at the peak', f'{cost.flops:.3e}', f'{cost.compute_seconds:.4f}'),
        ('bytes at the bandwidth', f'{cost.bytes_moved:.3e}', f'{cost.memory_seconds:.4f}'),
        ('the slower of both, by instruction', '', f'{cost.operation_seconds:.4f}'),
        ('collectives', '', f'{cost.link_seconds:.4f}'),
        ('expected: instructions and collectives in turn', '', f'{cost.step_seconds:.4f}'),
        ('at best: all behind the slowest', '', f'{cost.best_seconds:.4f}'),
    ]
    if cost.xla_seconds is not None and cost.xla_seconds > 0:
        rows.append(("XLA's own estimate, loops once", '', f'{cost.xla_seconds:.4f}'))
    expected = plan.mfu(cost.step_seconds)
    lines = [f'{plan.items / cost.step_seconds:,.0f} {plan.unit}/s expected.']
    if expected is not None:
        best = plan.mfu(cost.best_seconds)
        lines.append(f'MFU {expected:.1%} expected, {best:.1%} at best ({MFU_CONVENTION}).')
    return f'{tables.aligned(rows, "<>>")}\n{" ".join(lines)}'


def _training(
    whole: Training, tokens: float, plan: Plan, watts: float | None, price: float | None
) -> str:
    chip = plan.topology.chip
    source = 'given' if watts is not None else 'published' if chip.watts_published else 'assumed'
    power = chip.watts if watts is None else watts
    energy = (
        f'{whole.kilowatt_hours:,.0f} kWh of the chips alone ({power:g} W each, {source})'
        if power
        else 'energy unknown: give --watts'
    )
    cost = (
        f'${whole.dollars:,.0f} (a chip ${price or chip.dollars_per_hour:g} an hour)'
        if whole.dollars is not None
        else 'cost unknown: give --price'
    )
    return (
        f'{tokens:g} {plan.unit}: {whole.seconds / 86400:,.1f} days, {whole.chip_hours:,.0f} '
        f'chip-hours, {energy}, {cost}.'
    )


def advice(trials: Sequence[Trial]) -> str:
    """Changes that were tried where a plan did not fit, best first."""
    rows = [('change, compiled', 'GB', 'fits', 'seconds a step', 'items/s')]
    for trial in trials:
        plan = trial.plan
        words = ' '.join(f'--config.{override}' for override in trial.overrides)
        needed = f'{plan.bytes_needed / 1e9:.2f}'
        timed = ('-', '-')
        if plan.cost is not None:
            seconds = plan.cost.step_seconds
            timed = (f'{seconds:.3f}', f'{plan.items / seconds:,.0f}')
        rows.append((words, needed, 'yes' if plan.fits else 'no', *timed))
    return tables.aligned(rows, '<><>>') if trials else 'No change was found to try.'


def sources() -> str:
    """Where powers and prices are from."""
    return f'Power: {hardware.POWER_SOURCES} Prices: {hardware.PRICE_SOURCE}'
