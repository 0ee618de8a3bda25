"""Check that memory and disk suffice, and name the recipe key to change where they do not."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inheritune.errors import MachineError, escape
from inheritune.model_files.safetensors import item_bits
from inheritune.system.disk_space import refuse_full_disk

_MARGIN = 1.1  # beside the tensors: buffers, metrics, the report


@contextmanager
def memory_named(setting: str, value: int, smaller: int, otherwise: str) -> Iterator[None]:
    """Turn an out-of-memory error inside the block into one that names what to do.

    Args:
        setting: Recipe key that decides how much memory is needed.
        value: Its present value.
        smaller: The hint's; 0: there is none.
        otherwise: The hint where there is none.

    Raises:
        MachineError: The device or the machine ran out of memory.
    """
    import torch

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch's own errors are RuntimeErrors, too: most of them are about something else.
        is_memory_error = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not is_memory_error and "can't allocate memory" not in str(error):
            raise
        way_out = f"Set {setting} to {smaller}" if smaller else otherwise
        raise MachineError(
            f"out of memory with {setting} {value}.",
            f"{way_out}; then run the same command to continue.",
        ) from error


def weights_bytes(params: int, dtype: str = "F32") -> int:
    """Size of the weights of a model in a dtype, as in a safetensors header."""
    return params * item_bits(dtype) // 8


def checkpoint_bytes(params: int, trained: int) -> int:
    """Size of a checkpoint: all weights, and AdamW's two moments of the trained ones, fp32."""
    return 4 * params + 8 * trained


def stored_checkpoints(keep: int) -> int:
    """Largest number of checkpoints at a time: the newest, the best one, and one being written."""
    return keep + 2


def refuse_large_training(
    directory: Path, params: int, trained: int, dtype: str, keep: int, snapshots: int = 0
) -> None:
    """Refuse to begin a training whose checkpoints and models would not fit.

    Args:
        directory: The training's own directory; what was saved there before counts as room.
        params: Number of weights.
        trained: Number of those that are trained.
        dtype: Dtype of published weights; a rounded model has its fp32 weights beside it.
        keep: Newest checkpoints kept; see `stored_checkpoints`.
        snapshots: Mid-training snapshots, of which a checkpoint and then a model are kept.

    Raises:
        MachineError: There is not enough room; both amounts are named.
    """
    models = weights_bytes(params, dtype) * (1 + snapshots)
    models += weights_bytes(params) * (dtype != "F32")
    total = checkpoint_bytes(params, trained) * (stored_checkpoints(keep) + snapshots) + models
    # A file may be linked into both `checkpoints` and `moments`; it takes its space once.
    patterns = ("checkpoints/*step-*/*", "moments/*/*step-*/*", "at/*/*", "master/*")
    files = [f.stat() for pattern in patterns for f in directory.glob(pattern) if f.is_file()]
    saved = sum({(file.st_dev, file.st_ino): file.st_size for file in files}.values())
    refuse_full_disk(
        directory,
        round(_MARGIN * total) - saved,
        f"the checkpoints and the model of {escape(directory)}",
        "Free some space, put the run on another disk, or lower train.keep.",
    )
