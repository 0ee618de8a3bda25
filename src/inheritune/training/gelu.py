"""GPT-2's GELU in one kernel instead of eight."""

from torch import nn

__all__ = ["use_fused_gelu"]


def use_fused_gelu(model: nn.Module) -> int:
    """Replace every `gelu_new` module by torch's tanh-approximated GELU: the same formula.

    Only the live module changes; the configuration that is saved keeps its word.

    Args:
        model: Changed in place.

    Returns:
        How many modules were replaced.
    """
    replaced = 0
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__ == "NewGELUActivation":
                setattr(module, name, nn.GELU(approximate="tanh"))
                replaced += 1
    return replaced
