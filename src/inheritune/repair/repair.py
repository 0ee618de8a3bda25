"""Repair a cut: fit what the kept layers write to what the reference has at the same places.

N windows of T tokens, F features of an MLP, D hidden. Layer j of the target is layer map[j] of the
reference. What follows it there is layer map[j + 1], or the final norm. E is the reference's hidden
state before that, minus the target's.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from numpy.typing import NDArray
from torch import Tensor

from inheritune.errors import DataError, UnsupportedModelError
from inheritune.repair.layer_passes import LayerPasses
from inheritune.repair.least_squares import RIDGES, NormalEquations, Solution, solve_by_held_out
from inheritune.repair.projection import Projection, find_projection
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.signals import StopFlag

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

# Called with a layer, a parameter's name in it, and its values.
StoredDtype = Callable[[int, str, Tensor], torch.dtype]

_BATCH = 8  # windows per forward
_HELD_OUT = 8  # every eighth window is held out to choose the ridge
# Its Gram matrix takes 2 GiB, of which four are held at a time.
_MOST_FEATURES = 16_384


@dataclass(frozen=True)
class RepairedLayer:
    """A layer that was changed, and what that gained on the held-out windows."""

    place: int  # index in the target
    layer: int  # index in the reference
    parameters: tuple[str, ...]  # names of the changed parameters within the layer
    ridge: float | None  # see `Solution`; None: nothing was gained, and the layer is as it was
    error: float  # ‖E‖² after the change / before it, on the held-out windows


@dataclass(frozen=True)
class Repair:
    """What `repair_layers` did."""

    layers: tuple[RepairedLayer, ...]
    flops: float  # of forward passes, products and solutions


def repaired_places(layer_map: Sequence[int], total: int, method: str) -> list[int]:
    """List the places of a target that a method changes, in order.

    Raises:
        UnsupportedModelError: There are none, since only layers before the first kept one are left
            out and the method changes the layer before a gap.
    """
    following = [*layer_map[1:], total]
    places = [j for j, n in enumerate(layer_map) if following[j] != n + 1]  # before a gap
    if len(layer_map) == total:
        return []
    if method == "sequential":
        first = 0 if layer_map[0] else places[0]
        return [*range(first, len(layer_map))]
    if not places:
        raise UnsupportedModelError(
            f"repair: {method} changes the kept layer before a gap, but this gap is at the "
            "beginning.",
            "Choose sequential, which changes the layers behind it, or other layers.",
        )
    return places


def repair_layers(
    model: "PreTrainedModel",
    total: int,
    layer_map: Sequence[int],
    windows: "NDArray[np.int64]",
    method: str,
    *,
    stored_dtype: StoredDtype = lambda layer, name, weight: torch.float32,
    ridges: Sequence[float] = RIDGES,
    stop: StopFlag | None = None,
    on_progress: Listener = silent,
    task: str = "repair",
) -> Repair:
    """Change layers of a reference, in place, so that the cut to ``layer_map`` is nearer to it.

    ``"sequential"`` changes the layer before the first gap and each one behind it, in order, on the
    inputs that the target so far gives it. A: input of its MLP's last projection W, (N T, F), with
    a column of ones where that has a bias::

        dW = ((A^T A + a I)^-1 A^T E)^T,    W + dW

    ``"linear"`` changes the layer before each gap. M: output of that projection, (N T, D)::

        T = I + (M^T M + a I)^-1 M^T E,     T^T W and its bias b T

    ``"scale"`` does the same with a diagonal T.

    The ridge a draws dW to 0 and T to I. It is chosen for each layer on held-out windows, and where
    none does better there than no change, the layer stays as it was. With no layer left out, E = 0,
    and no weight moves.

    Args:
        model: fp32; its changed layers are those of the target, the others stay as they were.
        total: Number of its layers.
        layer_map: Indices of the kept layers, ascending.
        windows: Ids of training text, (N, T); N >= 2.
        method: One of ``sequential``, ``linear``, ``scale``.
        stored_dtype: Called with a layer, the name of a parameter in it, and its values before
            their change; returns the dtype that it is stored in. Later layers see it rounded.
        ridges: Values of a to choose from, in units of the mean diagonal.
        stop: Checked between batches.

    Raises:
        UnsupportedModelError: A layer has no projection to fold into, or one too wide.
        DataError: There are fewer than two windows.
        Interrupted: ``stop`` was set.

    Sources: linear, Shopkhoev et al., ReplaceMe, arXiv 2505.02819, with the ridge towards I instead
    of 0; scale after Chen et al., LinearPatch, arXiv 2505.24680, which scales the whole hidden
    state, where no tensor of the model could hold it; sequential is our own.
    """
    places = repaired_places(layer_map, total, method)
    if len(windows) < 2:
        raise DataError(
            f"the calibration text has {len(windows)} window, a repair needs two: one to choose "
            "the ridge on.",
            "Give more text, or more tokens of it.",
        )
    ids = torch.from_numpy(windows).to(next(model.parameters()).device)
    passes = LayerPasses(model, total, ids[:1])
    work = _Work(passes, ids, stop, task)
    if not places:
        return Repair((), work.flops)
    # --- target and reference have the same hidden states up to the first gap ---
    first = 0 if layer_map[0] else places[0]
    following = [*layer_map[1:], total]
    reference = work.embedded()
    work.advance(reference, range(first))
    target, depth = reference.clone(), first
    repaired = []
    for place in range(first, len(layer_map)):
        layer = layer_map[place]
        work.advance(reference, range(depth, following[place]))  # before this layer changes
        depth = following[place]
        if place in places:
            hidden = target[:1].to(ids.device)
            projection = find_projection(passes, layer, ids[:1], hidden)
            solution = work.solve(layer, projection, method, target, reference, ridges)
            if solution.ridge is not None:
                names = projection.parameters()
                weights = [passes.layers[layer].get_parameter(name) for name in names]
                dtypes = [stored_dtype(layer, *pair) for pair in zip(names, weights, strict=True)]
                _fold(projection, method, solution.values, dtypes)
            error = solution.error_after / solution.error_before if solution.error_before else 1.0
            parameters = tuple(projection.parameters())
            repaired.append(RepairedLayer(place, layer, parameters, solution.ridge, error))
        if place + 1 < len(layer_map):
            work.advance(target, [layer])
        on_progress(Progress(task, place + 1 - first, len(layer_map) - first, "layers"))
    return Repair(tuple(repaired), work.flops)


class _Work:
    """The windows, the layers that run on them, and the FLOPs of what was done."""

    def __init__(self, passes: LayerPasses, ids: Tensor, stop: StopFlag | None, task: str) -> None:
        self._passes, self._ids, self._stop, self._task = passes, ids, stop, task
        self.flops = 0.0

    def _batches(self, held_out: bool | None = None) -> Iterator[Tensor]:
        numbers = torch.arange(len(self._ids))
        if held_out is not None:
            # From the last window on, so that two windows are one and one.
            is_held_out = (len(numbers) - 1 - numbers) % _HELD_OUT == 0
            numbers = numbers[is_held_out == held_out]
        for batch in numbers.split(_BATCH):
            if self._stop is not None:
                self._stop.check(f"{self._task} is done again")
            yield batch

    def embedded(self) -> Tensor:
        """Compute the input of the first layer on all windows, (N, T, D), in main memory."""
        return torch.cat([self._passes.embed(self._ids[b]).cpu() for b in self._batches()])

    def advance(self, hidden: Tensor, layers: Sequence[int]) -> None:
        """Replace hidden states, (N, T, D), by what some layers in turn make of them."""
        for layer in layers:
            for batch in self._batches():
                hidden[batch] = self._run(layer, batch, hidden).cpu()

    def _run(self, layer: int, batch: Tensor, hidden: Tensor) -> Tensor:
        ids = self._ids[batch]
        # Two for each weight and token: the products of a layer, but for those within attention.
        weights = sum(p.numel() for p in self._passes.layers[layer].parameters())
        self.flops += 2.0 * weights * ids.numel()
        return self._passes.run(layer, ids, hidden[batch].to(ids.device))

    def solve(
        self,
        layer: int,
        projection: Projection,
        method: str,
        target: Tensor,
        reference: Tensor,
        ridges: Sequence[float],
    ) -> Solution:
        """Fit the layer's output on its input ``target`` to ``reference``, both (N, T, D)."""
        outputs, inputs = projection.weight.shape
        features = inputs + (projection.bias is not None) if method == "sequential" else outputs
        if features > _MOST_FEATURES and method != "scale":
            raise UnsupportedModelError(
                f"{projection.name} of layer {layer} has {features:,} features, of at most "
                f"{_MOST_FEATURES:,} that {method} solves for.",
                "Choose repair: linear, which solves for the hidden size, or scale.",
            )
        device = self._ids.device
        diagonal = method == "scale"
        fit, held_out = (NormalEquations(features, outputs, device, diagonal) for _ in range(2))
        for equations in (fit, held_out):
            for batch in self._batches(equations is held_out):
                with projection.observed() as calls:
                    output = self._run(layer, batch, target)  # (B, T, D)
                missing = (reference[batch].to(device) - output).flatten(0, -2)
                a = _with_ones(calls[0], projection) if method == "sequential" else calls[1]
                equations.add(a, missing / projection.factor)
        rows = self._ids.numel()
        if not diagonal:
            self.flops += 2.0 * rows * features * (features + outputs)
            each = features**3 / 3 + 4.0 * features**2 * outputs
            self.flops += (len(ridges) + 1) * each
        return solve_by_held_out(fit, held_out, ridges)


def _with_ones(inputs: Tensor, projection: Projection) -> Tensor:
    if projection.bias is None:
        return inputs
    return torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)


def _fold(
    projection: Projection, method: str, solution: Tensor, dtypes: Sequence[torch.dtype]
) -> None:
    """Change the projection in place, rounded to the dtypes of its weight and bias."""
    weight, bias = projection.weight, projection.bias
    if method == "sequential":
        new_weight = weight.double() + solution[: weight.shape[1]].T
        new_bias = None if bias is None else bias.double() + solution[-1]
    else:
        matrix = torch.diag(solution) if method == "scale" else solution  # T - I
        new_weight = weight.double() + matrix.T @ weight.double()
        new_bias = None if bias is None else bias.double() + bias.double() @ matrix
    weight.copy_(new_weight.to(dtypes[0]))
    if bias is not None and new_bias is not None:
        bias.copy_(new_bias.to(dtypes[1]))
