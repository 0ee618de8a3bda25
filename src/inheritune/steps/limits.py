"""Memory that ran out, with the setting that decides how much is needed.

Whether what a training saves fits on the disk, asked before it begins.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inheritune.errors import MachineError, escape

__all__ = ["checkpoint_bytes", "memory_named", "refuse_full_disk", "weights_bytes"]


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


_MARGIN = 1.1  # beside the tensors: buffers, metrics, the report


def weights_bytes(params: int) -> int:
    """A model directory that training publishes: fp32."""
    return 4 * params


def checkpoint_bytes(params: int) -> int:
    """A saved state: weights and two moments, fp32."""
    return 12 * params


def refuse_full_disk(folder: Path, params: int, keep: int, moments: int = 0) -> None:
    """Refuse to begin a training whose checkpoints and model would not fit.

    Args:
        folder: The training's own directory; what was saved there before counts as room.
        params: Of the model that is trained.
        keep: Checkpoints that are kept; the one being written is there beside them.
        moments: Of how many steps the checkpoint stays until the end, and a model after it.

    Raises:
        MachineError: There is not enough room; both amounts are named.
    """
    wanted = checkpoint_bytes(params) * (keep + 1 + moments) + weights_bytes(params) * (1 + moments)
    # One file may be in both places, by a link; it takes its space once.
    places = ("checkpoints/*step-*/*", "moments/*/*step-*/*", "at/*/*")
    files = [path.stat() for place in places for path in folder.glob(place) if path.is_file()]
    saved = sum({(file.st_dev, file.st_ino): file.st_size for file in files}.values())
    needed = round(_MARGIN * wanted) - saved
    place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise MachineError(
            f"{needed:,} bytes are needed for the checkpoints and the model of {escape(folder)}; "
            f"its disk has {free:,} left.",
            "Free some space, put the run on another disk, or lower train.keep.",
        )
