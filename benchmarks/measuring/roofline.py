"""The limits of a machine, measured in the same run as what is compared with them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from measuring.disk import copy_speed
from torch import Tensor
from training.shapes import Shape

_COPIED = 2**27  # bytes of memory
_REPEATS = 5


@dataclass(frozen=True)
class Roofline:
    """What the machine does at best, with the threads that this process has."""

    fp32: float  # FLOP/s of matrix products
    bf16: float
    copy: float  # bytes of memory read and written per second
    disk: float  # bytes of a cached file copied per second
    threads: int

    def line(self) -> str:
        return (
            f"limits measured here, {self.threads} thread{'s' * (self.threads != 1)}: "
            f"products of these shapes {self.fp32 / 1e9:,.0f} GFLOP/s in fp32 and "
            f"{self.bf16 / 1e9:,.0f} in bf16, memory {self.copy / 1e9:,.1f} GB/s, "
            f"copy of a file {self.disk / 1e9:,.1f} GB/s"
        )


def clock() -> float:
    """Seconds of this process: of its processor where one thread computes, else of the clock.

    Beside other programs the first is the steadier one.
    """
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def roofline(
    weights: Sequence[tuple[int, int]], tokens: int, folder: Path | None = None
) -> Roofline:
    """Measure the limits.

    Args:
        weights: Rows and columns of the matrices that the products of a model have.
        tokens: That go through them at once.
        folder: Where a file is copied.
    """
    torch.manual_seed(0)
    source = torch.ones(_COPIED // 4)
    target = torch.empty_like(source)
    return Roofline(
        fp32=_products(weights, tokens, torch.float32),
        bf16=_products(weights, tokens, torch.bfloat16),
        copy=2 * _COPIED / least_seconds(lambda: target.copy_(source)),
        disk=copy_speed(folder),
        threads=torch.get_num_threads(),
    )


def layer_weights(shape: Shape) -> list[tuple[int, int]]:
    """Rows and columns of the matrices of a layer and of the head."""
    width, inner = shape.width, shape.inner
    gated = shape.kind == "llama"
    return [*[(width, width)] * 4, *[(inner, width)] * (2 + gated), (shape.vocab, width)]


def least_seconds(call: Callable[[], object]) -> float:
    """The least of some calls, after one to warm up."""
    call()
    seconds = []
    for _ in range(_REPEATS):
        begin = clock()
        call()
        seconds.append(clock() - begin)
    return max(min(seconds), 1e-9)


def _products(weights: Sequence[tuple[int, int]], tokens: int, dtype: torch.dtype) -> float:
    matrices: dict[tuple[int, int], tuple[Tensor, Tensor]] = {
        shape: (torch.randn(tokens, shape[1]).to(dtype), torch.randn(shape).to(dtype))
        for shape in set(weights)
    }

    def multiply() -> None:
        for shape in weights:
            inputs, weight = matrices[shape]
            torch.nn.functional.linear(inputs, weight)

    return sum(2 * tokens * rows * columns for rows, columns in weights) / least_seconds(multiply)
