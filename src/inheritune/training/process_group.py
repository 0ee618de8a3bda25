"""Share one training among several processes, started by `--processes N` or by torchrun.

Small messages travel as JSON: no object of one process is ever unpickled in another.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from inheritune import errors
from inheritune.errors import InherituneError, Interrupted, MachineError, first_line
from inheritune.system.processes import ALONE, LAUNCHER, MEETING_FILE, Processes, Value
from inheritune.system.signals import follow_parent

_BACKENDS = ("gloo", "NCCL", "nccl", "Connection closed by peer")  # words of their errors
_POLL_S = 0.05
_SILENCE_S = 60.0  # how long process 0 may go on measuring or saving after a stop signal


class ProcessGroup(Processes):
    """Several processes that train one model together."""

    def __init__(self, rank: int, size: int, nodes: int, store: Store, timeout_s: float) -> None:
        self.rank, self.size, self.nodes = rank, size, nodes
        self._posted = 0
        self._messages = PrefixStore("inheritune", store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend,
            store=PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout_s),
        )

    def on_all(self, work: Callable[[], Any]) -> list[Any]:
        """See `Processes.on_all`."""
        own_error: Exception | None = None
        try:
            outcome = {"value": work()}
        except InherituneError as error:
            own_error = error
            outcome = {"error": [type(error).__name__, error.message, error.hint]}
        except Exception as error:  # a bug of ours: the others end with a message, too
            own_error = error
            text = f"process {self.rank}: {type(error).__name__}: {str(error)[:200]}."
            outcome = {"error": ["MachineError", text, ""]}
        outcomes = self._exchange(outcome)
        if own_error is not None:
            raise own_error
        for rank, other in enumerate(outcomes):
            if "error" in other:
                name, message, hint = other["error"]
                their_error = getattr(errors, name)(message, hint)
                their_error.add_note(f"heard from process {rank}")
                raise their_error
        return [other["value"] for other in outcomes]

    def in_turn(self, work: Callable[[], Value]) -> Value:
        """See `Processes.in_turn`."""
        values: list[Value] = []
        each = self.size // self.nodes
        for turn in range(each):
            self.on_all(lambda: values.append(work()) if self.rank % each == turn else None)  # noqa: B023
        return values[0]

    def add_up(self, values: "torch.Tensor") -> "torch.Tensor":
        """See `Processes.add_up`."""
        with self.watched():
            dist.all_reduce(values)
        return values

    def post(self, task: dict[str, Any]) -> None:
        """See `Processes.post`."""
        self._messages.set(f"task {self._posted}", json.dumps(task))
        self._posted += 1

    def tasks(self, stop: Callable[[], bool]) -> Iterator[dict[str, Any]]:
        """See `Processes.tasks`."""
        stopped_s: float | None = None
        # Process 0 may prepare for hours: the store is polled, since a collective would time out.
        while True:
            key = f"task {self._posted}"
            with self.watched():
                while not self._messages.check([key]):
                    time.sleep(_POLL_S)
                    if stopped_s is None and stop():
                        stopped_s = time.monotonic()
                    if stopped_s is not None and time.monotonic() - stopped_s > _SILENCE_S:
                        raise MachineError(
                            f"process {self.rank} was asked to stop, and process 0 is silent.",
                            "It was killed, or hangs. Run the same command to continue.",
                        )
                task: dict[str, Any] = json.loads(self._messages.get(key))
            self._posted += 1
            yield task

    def leave(self) -> None:
        """See `Processes.leave`."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """See `Processes.watched`."""
        try:
            yield
        except RuntimeError as error:
            is_known = isinstance(error, dist.DistError) or any(w in str(error) for w in _BACKENDS)
            if not is_known:
                raise
            raise MachineError(
                f"process {self.rank} lost the others: {first_line(error)}.",
                "One of them ended or hangs; its message is in the log. Run the same command to "
                "continue.",
            ) from error

    def _exchange(self, value: Any) -> list[Any]:
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        with self.watched():
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(lengths, torch.tensor([len(data)]))
            longest = max(int(length) for length in lengths)
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: len(data)] = data
            parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(parts, padded)
        return [
            json.loads(bytes(part[: int(length)].tolist()))
            for part, length in zip(parts, lengths, strict=True)
        ]


def join(timeout_s: float) -> Processes:
    """Join the processes that this one was started among by `--processes N` or by torchrun.

    Args:
        timeout_s: How long one waits for the others, in seconds, before it ends with an error.

    Raises:
        MachineError: There are fewer GPUs than processes.
        Interrupted: The process that started this one has ended meanwhile.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    names = ("RANK", "LOCAL_WORLD_SIZE")
    if size == 1 or any(name not in os.environ for name in names):
        return ALONE
    _take_gpu()
    nodes = size // int(os.environ["LOCAL_WORLD_SIZE"])
    rank = int(os.environ["RANK"])
    if MEETING_FILE in os.environ:
        # SIGTERM, so that workers save where their launcher was killed.
        follow_parent(signal.SIGTERM)
        if os.getppid() != int(os.environ[LAUNCHER]):
            raise Interrupted("the process that started the workers has ended.", "Run it again.")
        store: Store = dist.FileStore(os.environ[MEETING_FILE], size)  # type: ignore[attr-defined]
    elif "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        from torch.distributed.rendezvous import rendezvous

        # Without its torchrun, a worker would hold a GPU and wait for the others.
        follow_parent(signal.SIGKILL)
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
    else:
        return ALONE
    return ProcessGroup(rank, size, nodes, store, timeout_s)


def _take_gpu() -> None:
    """Give this process a GPU of its own, where there are GPUs."""
    if not torch.cuda.is_available():
        return
    device, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if device >= gpus:
        raise MachineError(
            f"{os.environ['LOCAL_WORLD_SIZE']} processes were started for {gpus} GPUs.",
            f"Start {gpus}: each needs a GPU of its own.",
        )
    torch.cuda.set_device(device)
