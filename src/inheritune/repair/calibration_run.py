"""Calibration windows of a repair: what layers make of them, and what that costs.

N windows of T tokens, D hidden. Every eighth window is held out: nothing is fitted on it before the
ridge is chosen.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from inheritune.errors import UnsupportedModelError
from inheritune.repair.layer_passes import LayerPasses
from inheritune.repair.least_squares import NormalEquations
from inheritune.repair.places import HELD_OUT
from inheritune.repair.projection import Projection
from inheritune.system.progress import Listener, Progress
from inheritune.system.signals import StopFlag
from inheritune.training.kl_divergence import Full

_BATCH = 8  # windows per forward
# Its Gram matrix takes 2 GiB, of which three are held at a time.
_MOST_FEATURES = 16_384


class CalibrationRun:
    """Runs single layers on the windows, and counts that.

    Attributes:
        passes: The model's layers.
        ids: The windows, (N, T).
        flops: FLOPs so far: of forward passes, products and solutions.
    """

    def __init__(
        self,
        passes: LayerPasses,
        ids: Tensor,
        stop: StopFlag | None,
        on_progress: Listener,
        task: str,
    ) -> None:
        self.passes, self.ids, self.flops = passes, ids, 0.0
        self._stop, self._on_progress, self._task = stop, on_progress, task
        self._done, self._total = 0, 0

    def expect(self, layers: int) -> None:
        """Announce so many calls of `count`."""
        self._total += layers

    def count(self) -> None:
        """Report that one more layer is done."""
        self._done += 1
        self._on_progress(Progress(self._task, self._done, self._total, "layers"))

    def _batches(self, held_out: bool | None = None) -> Iterator[Tensor]:
        numbers = torch.arange(len(self.ids))
        if held_out is not None:
            # From the last window on, so that two windows are one and one.
            is_held_out = (len(numbers) - 1 - numbers) % HELD_OUT == 0
            numbers = numbers[is_held_out == held_out]
        for batch in numbers.split(_BATCH):
            if self._stop is not None:
                self._stop.check(f"{self._task} is done again")
            yield batch

    def embedded(self) -> Tensor:
        """Compute the input of the first layer on all windows, (N, T, D), in main memory."""
        return torch.cat([self.passes.embed(self.ids[b]).cpu() for b in self._batches()])

    def advance(self, hidden: Tensor, layers: Sequence[int]) -> None:
        """Replace hidden states, (N, T, D), by what some layers in turn make of them."""
        for layer in layers:
            for batch in self._batches():
                hidden[batch] = self._run(layer, batch, hidden).cpu()

    def _run(self, layer: int, batch: Tensor, hidden: Tensor) -> Tensor:
        ids = self.ids[batch]
        # Two for each weight and token: the products of a layer, but for those within attention.
        weights = sum(p.numel() for p in self.passes.layers[layer].parameters())
        self.flops += 2.0 * weights * ids.numel()
        return self.passes.run(layer, ids, hidden[batch].to(ids.device))

    @torch.no_grad()
    def divergence(self, reference: Tensor, target: Tensor) -> float:
        """Compute the mean KL(reference || target) per token of the held-out windows.

        Args:
            reference: Outputs of the last layers, (N, T, D), as ``target``.
        """
        head: Any = self.passes.model.get_output_embeddings()
        kl, tokens = 0.0, 0
        for batch in self._batches(held_out=True):
            ids = self.ids[batch]
            p, q = (
                self.passes.predict(ids, hidden[batch].to(ids.device))
                for hidden in (reference, target)
            )
            for part in q.chunks():
                z = q.rows(part).float()
                distances = Full(p, 1.0).divergence(z, z.log_softmax(-1), part).kl
                kl += float(distances.double().sum())
            tokens += ids.numel()
            self.flops += 2 * 2.0 * head.weight.numel() * ids.numel()
        return kl / tokens

    def solve(
        self,
        layer: int,
        projection: Projection,
        method: str,
        target: Tensor,
        reference: Tensor,
        ridge: float,
        on_all: bool,
    ) -> tuple[Tensor, float]:
        """Fit the layer's output on its input ``target`` to ``reference``, both (N, T, D).

        Args:
            on_all: Whether to fit on all windows, or without those held out.

        Returns:
            X, fp64, and the share of the error that is left: ‖A X - E‖² / ‖E‖².
        """
        features, outputs = projection.features(method), len(projection.weight)
        if features > _MOST_FEATURES and method != "scale":
            raise UnsupportedModelError(
                f"{projection.name} of layer {layer} has {features:,} features, of at most "
                f"{_MOST_FEATURES:,} that {method} solves for.",
                "Choose repair: linear, which solves for the hidden size, or scale.",
            )
        device = self.ids.device
        diagonal = method == "scale"
        equations = NormalEquations(features, outputs, device, diagonal)
        for batch in self._batches(held_out=None if on_all else False):
            with projection.observed() as calls:
                output = self._run(layer, batch, target)  # (B, T, D)
            missing = (reference[batch].to(device) - output).flatten(0, -2)
            a = _with_ones(calls[0], projection) if method == "sequential" else calls[1]
            equations.add(a, missing / projection.factor)
            if not diagonal:
                self.flops += 2.0 * len(a) * features * (features + outputs)
        if not diagonal:
            self.flops += features**3 / 3 + 4.0 * features**2 * outputs
        solution = equations.solve(ridge)
        left = equations.error(solution) / equations.square if equations.square else 1.0
        return solution, left


def _with_ones(inputs: Tensor, projection: Projection) -> Tensor:
    if projection.bias is None:
        return inputs
    return torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
