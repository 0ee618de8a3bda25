"""Make AdamW, compute the learning rate from the tokens, and average and clip the gradients."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from inheritune.recipe.training import Train
from inheritune.training.fsdp import local

# The last fifth of a warmup-stable-decay schedule falls. Hägele et al., arXiv 2405.18392.
_WSD_DECAY_SHARE = 0.2


def make_optimizer(model: nn.Module, train: Train, *, fused: bool) -> torch.optim.AdamW:
    """Make AdamW; weight decay is for matrices only: norms and biases have no direction.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  with m', v' corrected for their start at 0:
    w <- w - rate (m' / (sqrt(v') + eps) + weight_decay w)

    Source: Loshchilov and Hutter, arXiv 1711.05101.
    """
    params = [param for param in model.parameters() if param.requires_grad]
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=train.learning_rate,
        betas=(train.betas[0], train.betas[1]),
        fused=fused,
    )


def learning_rate(train: Train, tokens: int, total: int) -> float:
    """Return the learning rate of a step.

    It rises linearly over the warmup. Then, with s in [0, 1] the share of the other tokens seen, it
    is min + (max - min) h: for a cosine h = (1 + cos(pi s)) / 2, for wsd (warmup, stable, decay)
    h = min(1, (1 - s) / 0.2); a constant schedule stays at max.

    Args:
        tokens: Tokens seen when the step is done, in [1, total].
        total: Tokens of this training.
    """
    warmup = min(train.warmup_tokens, total)
    if tokens < warmup:
        return train.learning_rate * tokens / warmup
    if train.schedule == "constant":
        return train.learning_rate
    rise = train.learning_rate - train.min_learning_rate
    return train.min_learning_rate + rise * schedule_height(train, tokens, total)


def schedule_height(train: Train, tokens: int, total: int) -> float:
    """Return h of `learning_rate`, in [0, 1]: 1 in the warmup and under a constant schedule.

    A function of the tokens alone, so that a step has the same after any restart.
    """
    warmup = min(train.warmup_tokens, total)
    if tokens < warmup or train.schedule == "constant":
        return 1.0
    share = (tokens - warmup) / max(total - warmup, 1)
    if train.schedule == "wsd":
        return min(1.0, (1 - share) / _WSD_DECAY_SHARE)
    return 0.5 * (1 + math.cos(math.pi * share))


def mean_and_clip(params: Sequence[Tensor], tokens: float, clip_norm: float) -> float:
    """Divide summed gradients by the number of tokens and clip their norm, in one pass.

    Args:
        params: Weights whose `grad` holds the sum over a step's tokens, over all processes.
        tokens: Predicted tokens of the step, over all processes.

    Returns:
        The norm of the mean gradient before clipping; not finite if any gradient is not, in which
        case nothing is changed.
    """
    grads = [param.grad for param in params if param.grad is not None]
    total = get_total_norm(grads)
    norm = float(total.full_tensor() if isinstance(total, DTensor) else total) / tokens
    if math.isfinite(norm):
        scale = min(1.0, clip_norm / (norm + 1e-6)) / tokens
        torch._foreach_mul_([local(grad) for grad in grads], scale)
    return norm
