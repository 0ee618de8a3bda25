"""Run torchrun, return a worker's exit code, and end together with the process that launched it.

Started as `python -m inheritune.cli.torchrun LAUNCHER_PID OPTIONS` by `launch.command_of`.
"""

import os
import signal
import sys
from collections.abc import Sequence

from inheritune.errors import Interrupted
from inheritune.system.signals import follow_parent

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run torchrun until its workers have ended.

    Args:
        arguments: Process id of the launcher, followed by torchrun's own arguments.

    Returns:
        Exit code of the first worker that failed, or 128 + n if signal n ended it; 0 if none
        failed.
    """
    follow_parent(signal.SIGTERM)  # torchrun passes it on, and the workers save
    if os.getppid() != int(arguments[0]):  # the launcher ended before the line above
        return Interrupted.exit_code
    try:
        return _torchrun(list(arguments[1:]))
    except KeyboardInterrupt:  # before torchrun handled signals
        return Interrupted.exit_code


def _torchrun(arguments: list[str]) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(arguments)
    except ChildFailedError as error:
        code = int(error.get_first_failure()[1].exitcode)
        return code if code >= 0 else 128 - code
    except SignalException:  # the workers have ended, and have recorded why
        return Interrupted.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
