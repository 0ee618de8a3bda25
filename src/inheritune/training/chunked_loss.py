"""Sum a loss over tokens whose logits are made a chunk at a time, with its gradients.

Gradients are gathered in the same walk over the tokens as the loss: a backward pass would have to
make all logits a second time. A chunk is large, for the head's products; on a CPU it is gone
through in blocks of a few tokens, which stay in the processor's cache.

n of N tokens, V vocabulary. z: the target's logits.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from inheritune.training.lazy_logits import LazyLogits, slices

IGNORED = -100  # the label of a token that is not to be predicted
_BLOCK_LOGITS = 2**19  # 2 MiB in fp32

# From z of a block, (n, V) fp32, its labels and its place in the chunk: sums over its labels,
# (k,) fp32, and the slope of the first of them in z, (n, V), a new tensor. Those of a token to be
# ignored may be anything.
OfBlock = Callable[[Tensor, Tensor, slice], tuple[Tensor, Tensor]]


def sum_over_tokens(
    target: LazyLogits, labels: Tensor, open_chunk: Callable[[slice], OfBlock]
) -> Tensor:
    """Sum a loss, and what goes with it, over the N labels: (k,) fp32.

    Gradients flow through the first sum alone.

    Args:
        open_chunk: Given a chunk's place among the N tokens, returns what its blocks add.
    """
    total: Tensor = _walk(target, labels, open_chunk)
    return total


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _walk(target: LazyLogits, labels: Tensor, open_chunk: Callable[[slice], OfBlock]) -> Tensor:
    """Walk over the tokens, never compiled: all blocks would become one graph."""
    gradients = _Gradients(target) if torch.is_grad_enabled() else None
    total = None
    with torch.no_grad():
        logits = target.cast()
        for chunk in logits.chunks():
            of_block, z, y = open_chunk(chunk), logits.rows(chunk), labels[chunk]
            slopes = None if gradients is None else gradients.room_for(chunk, z)
            for block in _blocks(z):
                sums, slope = of_block(z[block].float(), y[block], block)
                total = sums if total is None else total + sums
                if slopes is not None:
                    slopes[block] = slope.masked_fill_((y[block] == IGNORED)[:, None], 0)
            if gradients is not None and slopes is not None:
                gradients.add(chunk, slopes, logits)
    assert total is not None
    return total if gradients is None else gradients.attach(total)


def _blocks(z: Tensor) -> list[slice]:
    return slices(len(z), _BLOCK_LOGITS // z.shape[1]) if z.is_cpu else [slice(None)]


class _Gradients:
    """The gradients of the loss over the tokens walked so far; the head's are summed in fp32.

    Tensors that are not trained, nor lead to trained ones, have none.
    """

    def __init__(self, target: LazyLogits) -> None:
        self._target = target
        self.hidden = torch.empty_like(target.hidden) if target.hidden.requires_grad else None
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None

    def room_for(self, chunk: slice, z: Tensor) -> Tensor | None:
        """Return where to put a chunk's slopes, (n, V): over its logits, if they are its own."""
        if self._target.weight is not None:
            return z
        return None if self.hidden is None else self.hidden[chunk]

    def add(self, chunk: slice, slopes: Tensor, logits: LazyLogits) -> None:
        """Add the gradients of a chunk; ``slopes`` is dloss/dz, (n, V)."""
        # z = h W^T + b:  dloss/dh = slope W;  dloss/dW = slope^T h;  dloss/db = sum of slope
        if self.hidden is not None and logits.weight is not None:
            torch.mm(slopes, logits.weight, out=self.hidden[chunk])
        weight, bias = self._target.weight, self._target.bias
        if weight is not None and weight.requires_grad:
            self.weight = _added(self.weight, slopes.T @ logits.hidden[chunk])
        if bias is not None and bias.requires_grad:
            self.bias = _added(self.bias, slopes.sum(0))

    def attach(self, sums: Tensor) -> Tensor:
        """Give the first of some sums these gradients."""
        target = self._target
        pairs = [
            (tensor, gradient)
            for tensor, gradient in (
                (target.hidden, self.hidden),
                (target.weight, self.weight),
                (target.bias, self.bias),
            )
            if tensor is not None and gradient is not None
        ]
        return attach_gradients(sums, [g for _, g in pairs], [t for t, _ in pairs])


def _added(total: Tensor | None, part: Tensor) -> Tensor:
    return part.float() if total is None else total.add_(part)


def attach_gradients(sums: Tensor, gradients: list[Tensor], tensors: list[Tensor]) -> Tensor:
    """Give the first of some sums gradients that are known already.

    They are given away: a second backward pass through the same sums is refused.
    """
    attached: Tensor = _KnownGradients.apply(sums, gradients, *tensors)
    return attached


class _KnownGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sums: Tensor, gradients: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        return sums.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return grad, None, *[g.mul_(grad[0]).to(dtype) for g, dtype in pairs]
