"""The training command on a storage that hangs after the save of step 10."""

import time

from bigmodels import checkpoint, errors, main

real = checkpoint._sha256


def hanging(path):
    if '/10.' not in str(path):
        time.sleep(3600)
    return real(path)


if __name__ == '__main__':
    checkpoint._sha256 = hanging
    errors.exit_on_user_error(main.main)
