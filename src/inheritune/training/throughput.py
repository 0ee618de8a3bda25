"""Count the FLOPs of a training and measure its peak memory."""

import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inheritune.model_files.flops import (
    EVALUATION_SHARE,
    attention_width,
    idle_expert_values,
    training_flops_per_token,
)
from inheritune.training.fsdp import layer_modules
from inheritune.training.trained_weights import lowest_trained_layer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def count_params(model: "PreTrainedModel", trained: bool = False) -> int:
    """Count the weights of a model, tied ones once; with ``trained``, without frozen ones."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def mfu(
    tokens_per_s: float, flops_per_token: float, peak_flops: float | None, processes: int
) -> float | None:
    """Compute model FLOPs utilisation: the share of the devices' peak that went into the training.

    Recomputed activations, validations and the forward passes of a distillation's reference do not
    count as work.

    Args:
        tokens_per_s: Speed of all processes together.
        peak_flops: FLOP/s of one device, in dense bf16 products (fp32 where a device has no bf16);
            None: not known, as of a CPU.

    Source: Chowdhery et al., PaLM, arXiv 2204.02311, appendix B.
    """
    return tokens_per_s * flops_per_token / (processes * peak_flops) if peak_flops else None


def flops_per_token(model: "PreTrainedModel", seq_len: int) -> float:
    """Count the FLOPs of one training token, forward and backward.

    The backward pass takes 2 N for the gradients of weights and 2 N + 4 A T for those of
    activations, see `flops.training_flops_per_token`: the first of trained weights alone, the
    second from the lowest trained layer on.
    """
    config = model.config.get_text_config(decoder=True)
    section, total = config.to_dict(), config.num_hidden_layers
    weights = dict(model.named_parameters())
    multiplied = partial(_multiplied, looked_up=_looked_up(model), section=section)
    attention = attention_width(section, total)
    whole = training_flops_per_token(multiplied(weights), attention, seq_len)
    trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
    if len(trained) == len(weights):
        return whole
    first = lowest_trained_layer(model)
    reached = {id(p) for layer in layer_modules(model)[first:] for p in layer.parameters()}
    head = model.get_output_embeddings()
    others = [weight for weight in trained.values() if head is None or weight is not head.weight]
    if head is not None and (first < total or others):
        reached.add(id(head.weight))
    above = {name: weight for name, weight in weights.items() if id(weight) in reached}
    above_attention = attention_width(section, total, range(first, total))
    of_activations = 2 * multiplied(above) + 4 * above_attention * seq_len
    return whole * EVALUATION_SHARE + 2 * multiplied(trained) + of_activations


def _looked_up(model: "PreTrainedModel") -> set[int]:
    """The weights that are looked up, not multiplied; a tied head is multiplied."""
    head = model.get_output_embeddings()
    return {
        id(weight)
        for module in model.modules()
        if type(module).__name__.endswith("Embedding")
        and isinstance(weight := getattr(module, "weight", None), Tensor)
        and not (head is not None and weight is head.weight)
    }


def _multiplied(
    weights: Mapping[str, Tensor], looked_up: Collection[int], section: Mapping[str, Any]
) -> int:
    """Count the values of some weights that enter matrix products for one token."""
    count = sum(w.numel() for w in weights.values() if id(w) not in looked_up)
    return count - idle_expert_values(((n, w.shape) for n, w in weights.items()), section)


_PROC = Path("/proc/self")


def forget_peak() -> None:
    """Start a new peak at the memory in use now.

    Where the system cannot (no ``/proc``), the peak remains that of the whole process.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        (_PROC / "clear_refs").write_text("5")  # proc(5): resets the peak resident set


def peak_bytes() -> int | None:
    """Return the peak since `forget_peak`, in bytes: allocated on the GPU, or resident.

    None where neither is known.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError, ValueError):
        for line in (_PROC / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
