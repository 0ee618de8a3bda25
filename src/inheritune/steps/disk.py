"""Whether what a training saves fits on the disk, asked before it begins."""

import shutil
from pathlib import Path

from inheritune.errors import MachineError
from inheritune.system.reading import escape

__all__ = ["checkpoint_bytes", "refuse_full_disk", "weights_bytes"]

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
