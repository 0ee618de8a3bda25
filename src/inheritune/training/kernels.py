"""Replace attention and GELU of a live model by kernels that train faster.

Causal attention as batched matrix products has the faster backward pass on CPUs for short
sequences; GPT-2's GELU becomes one kernel instead of eight.

B batch, H heads, K key-value heads, T sequence, D head size.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel


MATMUL_ATTENTION = "inheritune_matmul"
# Beyond this the score matrix costs more than the flash kernel's slow backward saves
# (measured forward + backward, docs/log.md: 10.0 -> 6.7 ms at T 512, 51 -> 52 ms at T 1024).
LONGEST_SEQUENCE = 512
# Arguments of models whose attention does more (Gemma 2, gpt-oss): refused by name, since in the
# logits of a fresh model a soft-cap does not show.
_UNSUPPORTED = ("softcap", "s_aux")


def register_matmul_attention() -> None:
    """Register the attention with transformers, as `attn_implementation`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(MATMUL_ATTENTION, _causal_attention)
    # Sequences are full and causal here, so no mask is ever built.
    AttentionMaskInterface.register(MATMUL_ATTENTION, lambda *args, **kwargs: None)


def _causal_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    batch, heads, length, size = query.shape  # (B, H, T, D); key and value (B, K, T, D)
    window = kwargs.get("sliding_window")
    if (window and window < length) or any(kwargs.get(key) is not None for key in _UNSUPPORTED):
        raise ValueError("this attention is causal and nothing else")
    scaling = size**-0.5 if scaling is None else scaling
    # In bf16 the products are faster without gradients as well: 12 against 18 ms at T 512.
    if not torch.is_grad_enabled() and query.dtype != torch.bfloat16:
        out = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=key.shape[1] != heads
        )
        return out.transpose(1, 2), None
    if key.shape[1] != heads:
        key = key.repeat_interleave(heads // key.shape[1], dim=1)
        value = value.repeat_interleave(heads // value.shape[1], dim=1)
    future = torch.full((length, length), -1e9, dtype=query.dtype, device=query.device).triu(1)
    scores = torch.baddbmm(
        future.expand(batch * heads, length, length),
        query.reshape(batch * heads, length, size),
        key.reshape(batch * heads, length, size).transpose(1, 2),
        alpha=scaling,
    )  # (B·H, T, T)
    weights = F.dropout(scores.softmax(-1).to(value.dtype), p=dropout)
    out = torch.bmm(weights, value.reshape(batch * heads, length, size))
    return out.view(batch, heads, length, size).transpose(1, 2), None


def agrees_with_the_model(model: "PreTrainedModel", vocab_size: int, length: int) -> bool:
    """Return whether a model computes the same logits with this attention as with its own.

    Sliding windows, soft-caps and sinks live in the attention function; a model that has them
    fails here and keeps its own. Gradients are on, since that is the path that training takes.

    Args:
        model: A transformers causal language model; it has its own attention afterwards.
        length: Sequence length of the training, so that a shorter window shows.
    """
    device = next(model.parameters()).device
    ids = torch.arange(length, device=device).remainder(vocab_size)[None]
    training, own = model.training, model.config._attn_implementation
    model.eval()
    try:
        expected = model(input_ids=ids, use_cache=False).logits
        model.set_attn_implementation(MATMUL_ATTENTION)
        logits = model(input_ids=ids, use_cache=False).logits
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        return False
    finally:
        model.set_attn_implementation(own)
        model.train(training)
    scale = float(expected.detach().abs().max()) or 1.0
    most = 1e-4 if logits.dtype == torch.float32 else 2e-2  # rounding
    return bool((expected - logits).detach().abs().max() <= most * scale)


def use_fused_gelu(model: nn.Module) -> None:
    """Replace every `gelu_new` module by torch's tanh-approximated GELU: the same formula.

    Only the live module changes; the config that is saved still says `gelu_new`.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__ == "NewGELUActivation":
                setattr(module, name, nn.GELU(approximate="tanh"))
