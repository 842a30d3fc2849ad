"""The plans of published models on several machines, as a page.

    python experiments/make_plans.py [--only=70b]

Compiles each of PLANS (a minute or two each) with the compilers that are installed, keeps the
figures in experiments/results/plans.json, and writes docs/plans.md from all that are there.
"""

import argparse
import datetime
import importlib.metadata
import json
from collections.abc import Mapping

import measure

from bigmodels import config, errors, experiment, hardware
from bigmodels.plan import __main__ as command

TOKENS = 15e12  # what Llama 3 was trained on, its model card says
LLAMA = ('model.vocab_size=128256',)
MIXTRAL = ('model.vocab_size=32000', 'task.sequence_length=4096')
# (variant of configs/transformer.py, topology, overrides).
PLANS = (
    ('8b', 'v5p:4x4x4', (*LLAMA, 'mesh.fsdp=64', 'mesh.data=1', 'batch_size=64')),
    ('8b', 'v6e:8x8', (*LLAMA, 'mesh.fsdp=64', 'mesh.data=1', 'batch_size=64')),
    ('8b', 'gpu:h200:8', (*LLAMA, 'mesh.fsdp=8', 'mesh.data=1', 'batch_size=8')),
    ('70b', 'v6e:16x16', (*LLAMA, 'mesh.fsdp=256', 'mesh.data=1', 'batch_size=256',
                          'model.remat=full')),
    ('70b', 'v5p:4x8x8', (*LLAMA, 'mesh.fsdp=256', 'mesh.data=1', 'batch_size=256')),
    ('70b', 'gpu:h200:64', (*LLAMA, 'mesh.fsdp=64', 'mesh.data=1', 'batch_size=64',
                            'model.remat=full')),
    ('405b', 'v5p:8x8x16', (*LLAMA, 'mesh.fsdp=1024', 'mesh.data=1', 'batch_size=1024',
                            'model.remat=full')),
    ('405b', 'gpu:h200:512', (*LLAMA, 'mesh.fsdp=512', 'mesh.data=1', 'batch_size=512',
                              'model.remat=full', 'task.sequence_length=4096')),
    ('8x7b', 'v5p:4x4x4', (*MIXTRAL, 'mesh.fsdp=16', 'mesh.expert=4', 'mesh.data=1',
                           'batch_size=128')),
    ('8x7b', 'gpu:h200:64', (*MIXTRAL, 'mesh.fsdp=8', 'mesh.expert=8', 'mesh.data=1',
                             'batch_size=256', 'model.remat=full')),
)  # fmt: skip
NAMES = {'8b': 'Llama 3 8B', '70b': 'Llama 3 70B', '405b': 'Llama 3 405B', '8x7b': 'Mixtral 8x7B'}

PAGE = """# Plans of published models

Written by `python experiments/make_plans.py` from experiments/results/plans.json. Each plan is made
by the command beside it, on a laptop without any of these chips. TPU programs are compiled by the
TPU's own compiler for the topology. For GPUs a program of as many CPU devices stands in: it gives
the collectives and the FLOPs, and no more than a bound for the rest.

"Expected" takes every instruction at the chip's peak or at its memory's bandwidth, whichever takes
longer, and then every collective at the bandwidth of its links, with nothing hidden behind anything
else; "at best" hides all behind the slowest of the three. Latencies are in neither. MFU is causal:
6 N + 6 layers d length FLOPs a token, recomputation not counted. {power} {price}

{summary}

{sections}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument('--only', default='', help='a part of VARIANT TOPOLOGY, as "70b v6e"')
    only = parser.parse_args().only
    chosen = [plan for plan in PLANS if only in f'{plan[0]} {plan[1]}']
    command.prepare([topology for _, topology, _ in chosen])
    path = measure.RESULTS / 'plans.json'
    kept = json.loads(path.read_text())['plans'] if path.exists() else {}
    for variant, topology, overrides in chosen:
        kept[f'{variant} {topology}'] = made(variant, topology, overrides)
        measure.write('plans', {'tokens': TOKENS, 'plans': kept}, quiet=True)
    write_page(kept)


def made(variant: str, name: str, overrides: tuple[str, ...]) -> dict:
    """The figures of one plan and its text."""
    from bigmodels.plan import estimate, report, topology

    spec = f'configs/transformer.py:{variant}'
    settings = experiment.from_config(config.load(str(measure.ROOT / spec), overrides))
    plan = estimate.make_plan(settings, topology.open_topology(name))
    text = report.text(plan, TOKENS, None, None)
    print(text, flush=True)
    words = [f'--config={spec}', f'--topology={name}', f'--tokens={TOKENS:g}',
             *(f'--config.{override}' for override in overrides)]  # fmt: skip
    return {
        'date': datetime.date.today().isoformat(),
        'libtpu': _version('libtpu') if plan.topology.kind == 'tpu' else None,
        'command': f'python -m bigmodels.plan {" ".join(words)}',
        'text': text,
        **estimate.as_data(plan),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def write_page(kept: Mapping[str, dict]) -> None:
    """docs/plans.md, in the order of PLANS."""
    keys = [f'{variant} {topology}' for variant, topology, _ in PLANS]
    rows = [
        '| model | chips | mesh | GB of a chip | step, s | MFU expected, at best | tokens/s |',
        '| --- | --- | --- | --- | --- | --- | --- |',
    ]
    sections = []
    for key in [key for key in keys if key in kept]:
        plan = kept[key]
        variant, topology = key.split()
        memory = f'{plan["bytes_per_device"] / 1e9:.1f} of {plan["limit"] / 1e9:.1f}'
        timed = ['-', '-', '-']
        if 'cost' in plan:
            timed = [
                f'{plan["step_seconds"]:.2f}',
                f'{plan["mfu"]:.1%}, {plan["best_mfu"]:.1%}',
                f'{plan["items"] / plan["step_seconds"]:,.0f}',
            ]
        cells = [NAMES[variant], f'{topology}', plan['mesh'], memory, *timed]
        rows.append(f'| {" | ".join(cells)} |')
        indented = '\n'.join(f'    {line}'.rstrip() for line in plan['text'].splitlines())
        sections.append(f'## {NAMES[variant]} on {topology}\n\n    {plan["command"]}\n\n{indented}')
    (measure.ROOT / 'docs' / 'plans.md').write_text(
        PAGE.format(
            power=f'Power: {hardware.POWER_SOURCES}',
            price=f'Prices: {hardware.PRICE_SOURCE}',
            summary='\n'.join(rows),
            sections='\n\n'.join(sections),
        )
    )


if __name__ == '__main__':
    errors.exit_on_user_error(main)
