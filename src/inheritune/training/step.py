"""Run the forward and backward passes of one optimizer step.

B sequences per micro-batch, T tokens per sequence.
"""

import math
from dataclasses import dataclass

import torch

from inheritune.system.signals import StopFlag
from inheritune.training.batches import micro_batches
from inheritune.training.fsdp import sync_gradients
from inheritune.training.setup import TrainingSetup


@dataclass(frozen=True)
class StepSums:
    """The losses of a step, summed over its tokens, and what the processes agreed on."""

    loss: float  # nats
    # Of a distillation: cross-entropy and KL divergence, nats, and the distance of hidden states,
    # if there is a loss on it; else nothing
    parts: tuple[float, ...]
    targets: float  # predicted tokens
    stop: bool  # a process was asked to stop: the step is broken off
    save: bool  # it is time to save, by the clock of process 0
    nonfinite_ranks: list[int]  # processes whose loss was not finite


def forward_backward(
    setup: TrainingSetup, step: int, first_sample: int, stop: StopFlag, *, save_due: bool
) -> StepSums:
    """Add up the gradients of a step in the model; processes exchange one small message.

    Args:
        first_sample: Place in the order of samples at which the step begins.
        stop: Stop flag, read between micro-batches; a process alone leaves the step at once.
        save_due: It is time to save, by the clock of this process.
    """
    train, processes, device = setup.train, setup.processes, setup.settings.device
    begin, end = setup.share

    # --- one forward and backward pass for each micro-batch ---
    # The loss, and of a distillation its parts: on the device, since reading them would make the
    # host wait for every micro-batch.
    losses, num_sums, targets = torch.zeros(4, dtype=torch.float64, device=device), 1, 0
    size = train.resolved_micro_batch
    batches = micro_batches(setup.stream, train, first_sample + begin, first_sample + end)
    for sequence, samples in zip(range(begin, end, size), batches, strict=True):
        if train.dropout:  # seeded by the place in the training, so that a resume drops the same
            number = sequence // size
            torch.manual_seed((train.seed << 48 | step << 16 | number) % 2**63)
        # Gradients are summed over the processes once, behind the last micro-batch, where every
        # process has room for a whole gradient.
        is_last = sequence == end - size
        sync_gradients(setup.objective, is_last or setup.settings.sums_every_pass)
        setup.objective.position = first_sample + sequence
        samples = samples.to(device)  # (B, T + 1)
        with setup.settings.autocast():
            sums = setup.objective(samples[:, :-1], samples[:, 1:]).reshape(-1)  # 1, 3 or 4
        sums[0].backward()
        num_sums = sums.numel()
        losses[:num_sums] += sums.detach().double()
        targets += samples.shape[0] * train.seq_len
        if stop() and processes.size == 1:  # one of several that left alone would hang the others
            break

    # --- what all processes must know, in one message ---
    loss, *parts = losses.tolist()  # waits for the device
    ranks = range(processes.size)
    message = [loss, targets, stop(), save_due and processes.rank == 0, *parts]
    message += [rank == processes.rank and not math.isfinite(loss) for rank in ranks]
    totals = processes.add_up(torch.tensor(message, dtype=torch.float64)).tolist()
    loss, total_targets, stops, saves, *others = totals
    parts, nonfinite = others[: len(parts)], others[len(parts) :]
    return StepSums(
        loss=loss,
        parts=tuple(parts[: num_sums - 1]),
        targets=total_targets,
        stop=bool(stops),
        save=bool(saves),
        nonfinite_ranks=[rank for rank in ranks if nonfinite[rank]],
    )
