"""What a training costs in floating-point operations, by a stated convention."""

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["EVALUATION_SHARE", "count_params", "flops_per_token"]

# A forward pass against forward and backward.
EVALUATION_SHARE = 1 / 3


def count_params(model: "PreTrainedModel") -> int:
    """Number of weights, tied ones once."""
    return sum(param.numel() for param in model.parameters())


def flops_per_token(model: "PreTrainedModel", seq_len: int) -> float:
    """FLOPs of one training token, forward and backward: 6 N + 12 d Σ k.

    N counts the weights that enter matrix products (the head once, input embedding and learned
    positions not), d is heads x head size, k the mean number of keys a query sees, T/2 when
    causal. Recomputation is not counted.

    Args:
        model: A causal language model, also one on the meta device.
        seq_len: T, tokens per sequence.

    Source: Chowdhery et al., PaLM, arXiv 2204.02311, appendix B, with causal attention halved.
    """
    config = model.config.get_text_config(decoder=True)
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
    heads = getattr(config, "num_attention_heads", None) or 0  # Mamba has none
    size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    attention = 12 * size * heads * config.num_hidden_layers * seq_len / 2
    return float(6 * (count_params(model) - looked_up) + attention)
