"""What a training of a model costs in floating-point operations.

The most memory that a training took: on the GPU, or of this process.
"""

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

__all__ = ["count_params", "flops_per_token", "forget_peak", "mfu", "peak_bytes"]


def count_params(model: "PreTrainedModel") -> int:
    """Number of weights, tied ones once."""
    return sum(param.numel() for param in model.parameters())


def mfu(
    tokens_per_s: float, flops_per_token: float, peak_flops: float | None, processes: int
) -> float | None:
    """Model FLOPs utilisation: which share of what the devices could do went into the training.

    ``tokens_per_s x flops_per_token / (processes x peak_flops)``. Recomputed activations, the
    forward passes of a distillation's reference and validations are not counted as done.

    Args:
        tokens_per_s: Of all processes together.
        flops_per_token: See `flops_per_token`.
        peak_flops: Of one process's device, per second, in dense bf16 products (fp32 where a
            device has no bf16); None: not known, as of a processor.
        processes: Each with a device of its own.

    Source: Chowdhery et al., PaLM, arXiv 2204.02311, appendix B.
    """
    return tokens_per_s * flops_per_token / (processes * peak_flops) if peak_flops else None


def flops_per_token(model: "PreTrainedModel", seq_len: int) -> float:
    """FLOPs of one training token, forward and backward, see `flops.training_flops_per_token`.

    Args:
        model: A causal language model, also one on the meta device.
        seq_len: T, tokens per sequence.
    """
    config = model.config.get_text_config(decoder=True)
    section = config.to_dict()
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    # Whatever is looked up by id, not multiplied; a tied head is the embedding, and is multiplied.
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


try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


_PROC = Path("/proc/self")


def forget_peak() -> None:
    """Count from here on, as far as the system can: what is in use now stays the least.

    Where it cannot (no ``/proc``), the peak remains that of the whole process.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        (_PROC / "clear_refs").write_text("5")  # proc(5): resets the peak resident set


def peak_bytes() -> int | None:
    """Bytes at the peak since `forget_peak`: allocated on this process's GPU, or resident.

    None where neither is known.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError, ValueError):
        for line in (_PROC / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
