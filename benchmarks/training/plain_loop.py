"""Train in the shortest loop there is, on random ids; nothing of ours is imported."""

from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

import torch
from torch import Tensor
from training.shapes import Shape
from training.turns import Turns

SAMPLES = 256


def random_batches(shape: Shape, extra: int) -> Tensor:
    """(256, T + extra) int64, the same for every program that asks."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, shape.vocab, (SAMPLES, shape.length + extra), generator=generator)


def plain_loop(
    turns: Turns,
    shape: Shape,
    params: Iterable[Tensor],
    optimizer: Any,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    clip_norm: float = 1.0,
) -> None:
    """Forward, backward, clip, step, until the driver ends the process.

    Args:
        loss_of: Gives the loss of ids and labels, each (B, T) int64.
    """
    params = list(params)
    batches = random_batches(shape, extra=1).split(shape.batch)
    for step in count():
        batch = batches[step % len(batches)]
        loss_of(batch[:, :-1], batch[:, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(params, clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        turns.step_done()
