"""The command that trains: python -m bigmodels.main --config=configs/transformer.py

`--config=file.py:variant` picks a variant, `--config.model.num_layers=2` overrides a field.
"""

import pathlib
import sys

from absl import app, flags
from ml_collections import config_flags

from bigmodels import errors

_CONFIG = config_flags.DEFINE_config_file('config', None, 'The experiment.', lock_config=True)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Where the run is kept; default runs/<config name>.'
)
_RESUME = flags.DEFINE_enum(
    'resume',
    'same',
    ['same', 'changed', 'restart'],
    'A run that is there: go on with the same config, go on with this one, or start anew.',
)


def parse(argv: list[str]) -> list[str]:
    """Parses flags; mistakes in them, in the config file or in overrides are UserErrors."""
    flags.mark_flag_as_required('config')
    try:
        rest = flags.FLAGS(argv)
        _CONFIG.value.lock()
    except flags.Error as error:
        raise errors.UserError(str(error)) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise errors.UserError(f'config: {" ".join(str(error).split())}') from error
    except OSError as error:
        raise errors.UserError(f'The config file cannot be read: {error}') from error
    if rest[1:]:
        raise errors.UserError(f'Unknown arguments: {" ".join(rest[1:])}.')
    return rest


def main(_) -> None:
    """Trains the experiment that the flags describe."""
    from bigmodels import runs, train  # imports JAX, which --help does not need

    runs.configure_process()
    spec = config_flags.get_config_filename(flags.FLAGS['config'])
    name = (
        pathlib.Path(spec.partition(':')[0]).stem
        + spec.partition(':')[1].replace(':', '_')
        + spec.partition(':')[2]
    )
    train.train(_CONFIG.value, _WORKDIR.value or pathlib.Path('runs') / name, _RESUME.value)


if __name__ == '__main__':
    errors.exit_on_user_error(lambda: app.run(main, flags_parser=parse, argv=sys.argv))
