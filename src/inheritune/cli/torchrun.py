"""torchrun, with the exit code of a worker, in a process that does not outlive its launcher.

`python -m inheritune.cli.torchrun LAUNCHER_PID OPTIONS`, as `launch.command_of` writes it.
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
        arguments: Process id of the launcher; then torchrun's own.

    Returns:
        Of the worker that failed first its exit code, 128 and more where a signal ended it; 0 when
        none failed.
    """
    follow_parent(signal.SIGTERM)  # which torchrun passes on: workers save
    if os.getppid() != int(arguments[0]):  # it ended before this could be asked for
        return Interrupted.exit_code
    try:
        return _torchrun(list(arguments[1:]))
    except KeyboardInterrupt:  # before torchrun was there to hear of it
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
    except SignalException:  # the workers have ended; what they recorded says more
        return Interrupted.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
