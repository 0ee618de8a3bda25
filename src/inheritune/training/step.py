"""The forward and backward passes of one optimizer step.

B sequences per forward, T tokens per sequence.
"""

import math
from dataclasses import dataclass

import torch

from inheritune.data.tokens import TokenStream
from inheritune.recipe.schema import Train
from inheritune.system.processes import Processes
from inheritune.system.signals import StopFlag
from inheritune.training.batches import micro_batches
from inheritune.training.setup import TrainingSetup

__all__ = ["Sums", "forward_backward"]


@dataclass(frozen=True)
class Sums:
    """A step's forward and backward passes, summed over all processes.

    Attributes:
        loss: Nats.
        parts: Nats: cross-entropy and KL divergence, where the loss is made of both.
        targets: Tokens that were predicted.
        stop: Whether any process was asked to stop.
        save: Whether it is time to save, by the clock of process 0.
        broken: Ranks whose loss was not finite.
    """

    loss: float
    parts: tuple[float, ...]
    targets: float
    stop: bool
    save: bool
    broken: list[int]


def forward_backward(
    ready: TrainingSetup,
    recipe: Train,
    stream: TokenStream,
    step: int,
    first: int,
    share: tuple[int, int],
    stop: StopFlag,
    save_due: bool,
    processes: Processes,
) -> Sums:
    """Add up a step's gradients in the model; one small message between the processes.

    Args:
        ready: Model, loss and device.
        recipe: Batch, sequence length, seed.
        stream: Training tokens.
        step: Optimizer steps before this one.
        first: Position in the order of samples at which the step begins.
        share: Sequences of the step that are this process's, from and to.
        stop: Asked between micro-batches; alone, the process then leaves the step at once.
        save_due: Whether it is time to save, by the clock of this process.
        processes: That share the step.
    """
    sums = torch.zeros(6 + processes.size, dtype=torch.float64)
    device, last = ready.settings.device, share[1] - recipe.micro_batch
    # The loss, and with a distillation its two parts: read once, after the last micro-batch.
    loss_total, known = torch.zeros(3, dtype=torch.float64, device=device), 1
    batches = micro_batches(stream, recipe, first + share[0], first + share[1])
    for sequence, samples in zip(range(*share, recipe.micro_batch), batches, strict=True):
        if recipe.dropout:  # drawn from the place in the training, so that a resume repeats it
            number = sequence // recipe.micro_batch
            torch.manual_seed((recipe.seed << 48 | step << 16 | number) % 2**63)
        ready.last_of_step(sequence == last)
        ready.go_to(first + sequence)
        with ready.settings.autocast():
            loss = ready.compute_loss(samples.to(device))
        (loss[0] if loss.ndim else loss).backward()
        known = loss.numel()
        loss_total[:known] += loss.detach().reshape(-1).double()
        sums[3] += samples.shape[0] * recipe.seq_len
        if stop() and processes.size == 1:  # one of several that left alone would hang the others
            break
    sums[:3] = loss_total.cpu()
    sums[4], sums[5] = float(stop()), float(save_due and processes.rank == 0)
    sums[6 + processes.rank] = float(not math.isfinite(float(sums[0])))
    loss_sum, ce, kl, targets, stops, saves, *broken = processes.add_up(sums).tolist()
    ranks = [rank for rank, count in enumerate(broken) if count]
    return Sums(loss_sum, (ce, kl)[: known - 1], targets, bool(stops), bool(saves), ranks)
