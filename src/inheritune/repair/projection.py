"""Find the projection of a layer that a repair is folded into, and prove that the fold is exact.

R tokens, F features that the projection reads, D hidden.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inheritune.errors import UnsupportedModelError
from inheritune.repair.layer_passes import LayerPasses

# Share of a change that may be missing from a layer's output: fp32 beside massive activations.
_ROUNDING = 1e-2


@dataclass(frozen=True)
class Projection:
    """The matrix that ends the MLP of a layer: W of A W^T + b, which the layer adds to its output.

    Its change moves the layer's output by the same, times ``factor``.
    """

    module: nn.Module
    name: str  # its name within the layer, such as ``"mlp.down_proj"``
    is_transposed: bool  # whether its weight is (F, D), as in GPT-2; else (D, F)
    factor: float  # 1, or the class's factor on what it adds to the residual stream

    @property
    def weight(self) -> Tensor:
        """W as a view of (D, F); a change of it changes the layer."""
        weight = self.module.weight.data
        return weight.T if self.is_transposed else weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """Its bias, (D,); None: it has none."""
        bias: Any = getattr(self.module, "bias", None)
        return None if bias is None else bias.data

    def features(self, method: str) -> int:
        """Columns of what a method fits: inputs and a column of ones for the bias, or outputs."""
        outputs, inputs = self.weight.shape
        return inputs + (self.bias is not None) if method == "sequential" else outputs

    def parameters(self) -> list[str]:
        """Names of its weight and bias within the layer."""
        kinds = ["weight"] if self.bias is None else ["weight", "bias"]
        return [f"{self.name}.{kind}" for kind in kinds]

    def replace(self, weight: Tensor, bias: Tensor | None) -> None:
        """Change weight, (D, F), and bias in place."""
        self.weight.copy_(weight)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)

    @contextmanager
    def observed(self) -> Iterator[list[Tensor]]:
        """Collect pairs (A, A W^T + b) of (R, F) and (R, D) of every call while the block runs."""
        calls: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            if args and isinstance(output, Tensor):
                calls.extend((args[0].flatten(0, -2), output.flatten(0, -2)))

        handle = self.module.register_forward_hook(keep)
        try:
            yield calls
        finally:
            handle.remove()


def find_projection(passes: LayerPasses, number: int, ids: Tensor, hidden: Tensor) -> Projection:
    """Find the projection of a layer by what it does, whatever its class calls it.

    It is a matrix whose output is changed here by random numbers. If the layer's output then moves
    by exactly these, or a constant times these, nothing comes between: no norm, no gate, no choice
    of experts. Where several do, that with the most features.

    Args:
        number: Index of the layer.
        ids: A few windows, (B, T).
        hidden: The layer's input on them, (B, T, D).

    Raises:
        UnsupportedModelError: No matrix does.
    """
    layer, reasons = passes.layers[number], []
    for name, module in _candidates(layer, hidden.shape[-1]):
        answer = _try(passes, number, (name, module), ids, hidden)
        if isinstance(answer, Projection):
            return answer
        reasons.append(f"{name} {answer}")
    named = f": {reasons[0]}" if reasons else ""
    raise UnsupportedModelError(
        f"layer {number} of {type(passes.model).__name__} has no projection that a repair can be "
        f"folded into exactly{named}.",
        "Leave the repair out (repair: none); norms or gates behind an MLP, and routed experts, "
        "forbid it.",
    )


def _candidates(layer: nn.Module, width: int) -> list[tuple[str, nn.Module]]:
    """List the matrices that write the hidden state: most features first, then the last."""
    sized = []
    for place, (name, module) in enumerate(layer.named_modules()):
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.dim() == 2 and width in weight.shape:
            sized.append((weight.numel(), place, name, module))
    return [(name, module) for _, _, name, module in sorted(sized, key=lambda s: s[:2])[::-1]]


def _try(
    passes: LayerPasses, number: int, named: tuple[str, nn.Module], ids: Tensor, hidden: Tensor
) -> Projection | str:
    """Return the projection, or the reason why a fold into it would not be exact."""
    name, module = named
    for is_transposed in (False, True):
        projection = Projection(module, name, is_transposed, 1.0)
        with projection.observed() as calls:
            output = passes.run(number, ids, hidden)  # (B, T, D)
        if len(calls) != 2:
            return "does not run once, as a matrix product"
        inputs, result = calls
        if len(inputs) != ids.numel() or result.shape[-1] != hidden.shape[-1]:
            return "does not write the hidden state of every token"
        if projection.weight.shape == (result.shape[-1], inputs.shape[-1]):
            bias = 0 if projection.bias is None else projection.bias
            if _is_close(inputs @ projection.weight.T + bias, result):
                break
    else:
        return "is no matrix product with a bias"
    if _is_shared(passes.model, module):
        return "is shared with other layers"
    # --- change what it writes, and see what becomes of it ---
    draw = torch.Generator().manual_seed(0)
    size = float(output.square().mean().sqrt())  # what the layer writes, if the matrix is zero
    change = torch.randn(result.shape, generator=draw).to(result) * size
    handle = module.register_forward_hook(lambda m, a, output: output + change.view_as(output))
    try:
        moved = passes.run(number, ids, hidden) - output
    finally:
        handle.remove()
    moved = moved.flatten(0, -2)
    factor = float((moved * change).sum() / change.square().sum())
    if abs(factor) < _ROUNDING or not _is_close(moved, factor * change):
        return "is followed by something that is no constant factor"
    is_one = abs(factor - 1) < _ROUNDING**2
    return Projection(module, name, is_transposed, 1.0 if is_one else factor)


def _is_close(value: Tensor, expected: Tensor) -> bool:
    return bool((value - expected).norm() <= _ROUNDING * expected.norm())


def _is_shared(model: nn.Module, module: nn.Module) -> bool:
    names = model.named_parameters(remove_duplicate=False)
    return sum(parameter is module.weight for _, parameter in names) > 1
