"""Memory that ran out, with the setting that decides how much is needed."""

from collections.abc import Iterator
from contextlib import contextmanager

from inheritune.errors import MachineError

__all__ = ["memory_named"]


@contextmanager
def memory_named(setting: str, value: int, otherwise: str) -> Iterator[None]:
    """Say what can be done where the memory does not suffice.

    Args:
        setting: Key of the recipe.
        value: What it is now.
        otherwise: The way out when it is 1 already.

    Raises:
        MachineError: The device or the machine has no more memory.
    """
    import torch

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch's own errors are RuntimeErrors, too: most of them are about something else.
        memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not memory and "can't allocate memory" not in str(error):
            raise
        way_out = f"Set {setting} to {value // 2}" if value > 1 else otherwise
        raise MachineError(
            f"out of memory with {setting} {value}.",
            f"{way_out}; then run the same command to continue.",
        ) from error
