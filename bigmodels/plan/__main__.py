"""What a config would need and take on other machines: python -m bigmodels.plan

    python -m bigmodels.plan --config=configs/transformer.py:8b --topology=v5p:4x4x4 \
        --config.mesh.fsdp=64 --config.mesh.data=1 --config.batch_size=64 --tokens=15e12

It compiles the real train step from shapes, and allocates nothing.
"""

import argparse
import os
import sys

from bigmodels import config, errors


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the overrides as 'mesh.fsdp=64'."""
    parser = argparse.ArgumentParser(
        prog='python -m bigmodels.plan',
        description='Memory, collectives, step time, energy and cost of a config on a topology.',
        epilog='Any field of the config is set by --config.SECTION.FIELD=VALUE.',
        allow_abbrev=False,
    )
    parser.add_argument('--config', required=True, metavar='FILE.py[:VARIANT]')
    parser.add_argument(
        '--topology',
        required=True,
        action='append',
        metavar='NAME',
        help='v5p:4x4x4, v6e:16x16 or v5e:8x8; gpu:h200:8; cpu:8; may be given repeatedly',
    )
    parser.add_argument('--tokens', type=_positive, help='of a whole training run, as 15e12')
    parser.add_argument('--watts', type=_positive, help="of one chip, in place of the table's")
    parser.add_argument('--price', type=_positive, help='dollars per chip and hour')
    parser.add_argument(
        '--tries',
        type=int,
        default=6,
        help='how many changes are compiled where the config does not fit; default 6',
    )
    return config.parse_arguments(parser, arguments)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError(f'{text} must be positive')
    return value


def prepare(topologies: list[str]) -> None:
    """Sets JAX up, before its first use: no TPU is looked for, and enough CPU devices exist."""
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # libtpu would ask the cloud where it is
    os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # nothing here uses a TPU
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    from bigmodels.plan import topology

    count = max(topology.num_cpu_devices(name) for name in topologies)
    import jax

    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', count)


def main() -> None:
    """Plans what the command line describes, for each topology."""
    options, overrides = parse()
    prepare(options.topology)
    from bigmodels import experiment
    from bigmodels.plan import advice, estimate, report, topology

    for name in options.topology:
        machine = topology.open_topology(name)

        def plan_with(changes, machine=machine):
            loaded = config.load(options.config, [*overrides, *changes])
            settings = experiment.from_config(loaded)
            return settings, estimate.make_plan(settings, machine)

        settings, plan = plan_with(())
        print(report.text(plan, options.tokens, options.watts, options.price), flush=True)
        if not plan.fits and options.tries:
            print('\nTrying what may fit:', file=sys.stderr)
            trials = advice.try_changes(settings, plan_with, options.tries)
            print(f'\n{report.advice(trials)}', flush=True)
        print()
    if options.tokens:
        print(report.sources())


if __name__ == '__main__':
    errors.exit_on_user_error(main)
