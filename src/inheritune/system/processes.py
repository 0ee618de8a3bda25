"""Let the processes of a run work together; a process that is alone sends nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value")

# Environment of the workers of `--processes N`, set by cli.launch and read by process_group.join.
MEETING_FILE = "INHERITUNE_MEETING_FILE"  # path of the file in which they meet
LAUNCHER = "INHERITUNE_LAUNCHER"  # process id of the process that started them


class Processes:
    """A process that is alone; `training.process_group.ProcessGroup` is the same for several.

    Attributes:
        rank: Number of this process, from 0; process 0 prepares, records and prints.
        size: Number of processes.
        nodes: Number of machines.
    """

    rank = 0
    size = 1
    nodes = 1

    def on_all(self, work: Callable[[], Any]) -> list[Any]:
        """Run a function in every process, and return its values by rank.

        Args:
            work: Returns a JSON value.

        Raises:
            InherituneError: ``work`` failed in some process: the error is raised in all of them.
        """
        return [work()]

    def on_main(self, work: Callable[[], Any]) -> Any:
        """Run a function in process 0; its value, or its error, comes to all processes."""
        return self.on_all(lambda: work() if self.rank == 0 else None)[0]

    def in_turn(self, work: Callable[[], Value]) -> Value:
        """Run a function in the processes of a machine one after the other; return one's own value.

        What it needs for a moment is then needed once in a machine.
        """
        return work()

    def add_up(self, values: "Tensor") -> "Tensor":
        """Sum a float64 tensor on the CPU over the processes; all get the same bits."""
        return values

    def post(self, task: dict[str, Any]) -> None:
        """Send the next task to the waiting processes; see `tasks`."""

    def tasks(self, stop: Callable[[], bool]) -> Iterator[dict[str, Any]]:
        """Yield the tasks that process 0 posts, until ``{"do": "end"}``.

        Args:
            stop: Tells whether this process was asked to stop. Process 0 is asked, too, and posts
                the end; if it stays silent, it is gone.
        """
        return iter(())

    def leave(self) -> None:
        """Leave the group that `training.process_group.join` made."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turn the death of another process within the block into an error that says so."""
        yield


ALONE = Processes()
