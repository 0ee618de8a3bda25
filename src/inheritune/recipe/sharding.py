"""Decide how a training is divided among processes: copies of its weights, and its steps."""

from inheritune.errors import RecipeError
from inheritune.recipe.training import Train

_ROOM_AT_REST = 0.5  # of a device, for weights, gradients and moments; the rest is for a step
MOST_ON_A_CPU = 8  # sequences of `micro_batch: auto` there, where no memory is counted
_ROOM_FOR_SUMS = 0.25  # of a device, for gradients that are not yet added up over processes


def micro_batches(train: Train, processes: int, most: int | None = None) -> list[int]:
    """List the micro-batches that divide each process's share of a step, the largest first.

    Args:
        most: The largest to list; None: the whole share.
    """
    share, rest = divmod(train.batch_tokens, train.seq_len * processes)
    if rest:
        return []
    return [n for n in range(min(share, most or share), 0, -1) if share % n == 0]


def micro_batch_choices(train: Train, processes: int, most: int | None) -> list[int]:
    """List what ``train.micro_batch`` leaves to choose from, the largest first; at least one.

    Args:
        most: The largest for ``auto``; None: the whole share of a process.
    """
    if train.micro_batch != "auto":
        return [train.micro_batch]
    return micro_batches(train, processes, most) or [1]  # a training refuses such a batch


def bytes_at_rest(params: int, trained: int, reference: int, precision: str) -> int:
    """Count the bytes that a training holds between its steps, over all shards of a copy.

    fp32 weights; gradients and AdamW's two moments of what is trained; and the reference.

    Args:
        reference: Its parameters; 0: none runs beside the training.
        precision: That of the computation, in which the reference lies: ``"bf16"`` or ``"fp32"``.
    """
    return 4 * params + 12 * trained + (2 if precision == "bf16" else 4) * reference


def shard_count(
    train: Train, processes: int, machines: int, at_rest: int, memory: int | None
) -> int:
    """Return the number of processes that share one copy of the weights.

    ``auto``: those of one machine, whose links are fast; all of them, if one machine cannot hold a
    copy. Copies on other machines only exchange gradients.

    Args:
        at_rest: Bytes of `bytes_at_rest`.
        memory: Bytes of one device; None: not known.

    Raises:
        RecipeError: ``train.shard_size`` does not divide the processes.
    """
    each = max(1, processes // machines)
    if train.parallel == "shard":
        return processes
    if train.shard_size is not None:
        if processes % train.shard_size:
            raise RecipeError(
                f"train.shard_size {train.shard_size} does not divide {processes} processes.",
                "Choose a divisor of their number, such as that of one machine's devices.",
            )
        return train.shard_size
    fits = memory is None or at_rest / each <= _ROOM_AT_REST * memory
    return each if train.parallel == "hybrid" or fits or train.offload == "on" else processes


def sums_every_pass(trained: int, shards: int, memory: int | None) -> bool:
    """Return whether processes add up gradients after every micro-batch, not once in a step.

    Until then each process holds the gradient of all weights, in fp32: 32 GB of 8B parameters. The
    sums are the same but for their order.
    """
    return shards > 1 and memory is not None and 4 * trained > _ROOM_FOR_SUMS * memory
