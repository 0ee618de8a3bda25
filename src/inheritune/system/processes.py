"""The processes of one run, and what they tell each other; alone, nothing is sent."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ALONE", "LAUNCHER", "MEETING_FILE", "Processes"]

# Environment of the workers of `--processes N`, set by cli.launch and read by process_group.join.
MEETING_FILE = "INHERITUNE_MEETING_FILE"  # path of the file in which they meet
LAUNCHER = "INHERITUNE_LAUNCHER"  # process id of the process that started them


class Processes:
    """This process, alone. `training.process_group.ProcessGroup` does the same for several.

    Attributes:
        rank: Number of this process, from 0; 0 prepares, records and prints.
        size: How many there are.
        nodes: On how many machines.
    """

    rank = 0
    size = 1
    nodes = 1

    def on_all(self, work: Callable[[], Any]) -> list[Any]:
        """Do something in every process, and know what it gave in each.

        Args:
            work: Returns a JSON value.

        Returns:
            The values, by rank.

        Raises:
            InherituneError: It failed somewhere: then it is raised everywhere.
        """
        return [work()]

    def on_main(self, work: Callable[[], Any]) -> Any:
        """Do something in process 0; everybody gets the value, or the error."""
        return self.on_all(lambda: work() if self.rank == 0 else None)[0]

    def add_up(self, values: "Tensor") -> "Tensor":
        """The sum over the processes of a float64 tensor on the CPU, the same in each of them."""
        return values

    def post(self, task: dict[str, Any]) -> None:
        """Tell the waiting processes what to do next; see `tasks`."""

    def tasks(self, stop: Callable[[], bool]) -> Iterator[dict[str, Any]]:
        """What process 0 posts, for as long as it takes; it ends with ``{"do": "end"}``.

        Args:
            stop: Process 0 is asked to stop as well, and says so: where it does not, it is
                not there any more.
        """
        return iter(())

    def leave(self) -> None:
        """Take down what `training.process_group.join` put up."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turn the end of another process into an error that says so."""
        yield


ALONE = Processes()
