"""Count the FLOPs of a training and measure its peak memory."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inheritune.model_files.flops import (
    attention_width,
    idle_expert_values,
    training_flops_per_token,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def count_params(model: "PreTrainedModel") -> int:
    """Count the weights of a model, tied ones once."""
    return sum(param.numel() for param in model.parameters())


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
    """Count the FLOPs of one training token, forward and backward."""
    config = model.config.get_text_config(decoder=True)
    section = config.to_dict()
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    # Embeddings are looked up, not multiplied; a tied head is the embedding, and is multiplied.
    looked_up = sum(
        weight.numel()
        for module in model.modules()
        if type(module).__name__.endswith("Embedding")
        and isinstance(weight := getattr(module, "weight", None), Tensor)
    )
    if head is not None and embedding is not None and head.weight is embedding.weight:
        looked_up -= embedding.weight.numel()
    idle = idle_expert_values(
        ((name, param.shape) for name, param in model.named_parameters()), section
    )
    attention = attention_width(section, config.num_hidden_layers)
    return training_flops_per_token(count_params(model) - looked_up - idle, attention, seq_len)


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
