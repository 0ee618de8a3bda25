"""Calibration windows of a repair: what layers make of them, and what that costs.

N windows of T tokens, D hidden. Every eighth window is held out: nothing is fitted on it before the
ridge is chosen. What layers make of all windows lies in files, and a batch of it in memory.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inheritune.errors import UnsupportedModelError
from inheritune.repair.layer_passes import LayerPasses
from inheritune.repair.least_squares import NormalEquations
from inheritune.repair.places import HELD_OUT
from inheritune.repair.projection import Projection
from inheritune.repair.spilled import Spilled
from inheritune.system.progress import Listener, Progress
from inheritune.system.signals import StopFlag
from inheritune.training.kl_divergence import token_divergence

_BATCH_TOKENS = 4096  # per forward, or a longer window
# Its Gram matrix takes 2 GiB, of which three are held at a time.
_MOST_FEATURES = 16_384
# From here on the error of fp32 products, see `NormalEquations`, is far below the ridge.
_FP32_RIDGE = 0.05


class CalibrationRun:
    """Runs single layers on the windows, and counts that.

    A window is always computed together with the same others, so that equal layers give equal bits.

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
        folder: Path | None = None,
    ) -> None:
        self.passes, self.ids, self.flops = passes, ids, 0.0
        self._folder = folder
        self._stop, self._on_progress, self._task = stop, on_progress, task
        self._done, self._total = 0, 0
        numbers = torch.arange(len(ids))
        # From the last window on, so that two windows are one and one.
        is_held_out = (len(numbers) - 1 - numbers) % HELD_OUT == 0
        each = max(1, _BATCH_TOKENS // ids.shape[1])
        self._fitted = numbers[~is_held_out].split(each)
        self._held_out = numbers[is_held_out].split(each)
        self._batches = (*self._fitted, *self._held_out)

    def expect(self, layers: int) -> None:
        """Announce so many calls of `count`."""
        self._total += layers

    def count(self) -> None:
        """Report that one more layer is done."""
        self._done += 1
        self._on_progress(Progress(self._task, self._done, self._total, "layers"))

    def embedded(self) -> Spilled:
        """Compute the input of the first layer on all windows, (N, T, D)."""
        hidden = self._spilled()
        for batch in self._batches:
            hidden[batch] = self.passes.embed(self.ids[batch])
        return hidden

    def copy(self, hidden: Spilled) -> Spilled:
        """Copy hidden states, (N, T, D)."""
        copied = self._spilled()
        for batch in self._batches:
            copied[batch] = hidden[batch]
        return copied

    def advance(self, hidden: Spilled, layers: Sequence[int], only_held_out: bool = False) -> None:
        """Replace hidden states, (N, T, D), by what some layers in turn make of them."""
        for batch in self._held_out if only_held_out else self._batches:
            states = hidden[batch]
            for layer in layers:
                states = self._run(layer, batch, states)
            hidden[batch] = states

    def _spilled(self) -> Spilled:
        return Spilled(len(self.ids), self._folder)

    def _run(self, layer: int, batch: Tensor, states: Tensor) -> Tensor:
        """Compute what a layer makes of the states of a batch, (B, T, D)."""
        if self._stop is not None:
            self._stop.check(f"{self._task} is done again")
        ids = self.ids[batch]
        # Two for each weight and token: the products of a layer, but for those within attention.
        weights = sum(p.numel() for p in self.passes.layers[layer].parameters())
        self.flops += 2.0 * weights * ids.numel()
        return self.passes.run(layer, ids, states.to(ids.device))

    @torch.no_grad()
    def divergences(self, reference: Spilled, targets: Sequence[Spilled]) -> list[float]:
        """Compute the mean KL(reference || target) per token of the held-out windows.

        Args:
            reference: Outputs of the last layers, (N, T, D), as each of ``targets``.
        """
        head: Any = self.passes.model.get_output_embeddings()
        kl, tokens = [0.0] * len(targets), 0
        for batch in self._held_out:
            ids = self.ids[batch]
            p, *qs = (
                self.passes.predict(ids, hidden[batch].to(ids.device))
                for hidden in (reference, *targets)
            )
            for part in p.chunks():
                log_p = p.rows(part).float().log_softmax(-1)
                probabilities = log_p.exp()
                for number, q in enumerate(qs):
                    log_q = q.rows(part).float().log_softmax(-1)
                    kls = token_divergence(log_p, probabilities, log_q)
                    kl[number] += float(kls.double().sum())
            tokens += ids.numel()
            self.flops += (1 + len(targets)) * 2.0 * head.weight.numel() * ids.numel()
        return [one / tokens for one in kl]

    def fit(
        self,
        layer: int,
        projection: Projection,
        method: str,
        hidden: Spilled,
        reference: Spilled,
        ridge: float,
        on_all: bool,
    ) -> tuple[Tensor, float, Spilled]:
        """Run a layer, and fit what its projection adds to what its output, (N, T, D), misses.

        Args:
            hidden: The layer's input; becomes its output.
            reference: What it should be.
            on_all: Whether to fit on all windows, or without those held out.

        Returns:
            X, fp64; the share of the error that is left: ‖A X - E‖² / ‖E‖²; and what the projection
            read, (N, T, F).
        """
        features, outputs = projection.features(method), len(projection.weight)
        device, diagonal = self.ids.device, method == "scale"
        products = torch.float32 if ridge >= _FP32_RIDGE else torch.float64
        equations = NormalEquations(features, outputs, device, diagonal, products)
        read = self._spilled()
        for number, batch in enumerate(self._batches):
            with projection.observed() as calls:
                output = self._run(layer, batch, hidden[batch])
            hidden[batch] = output
            inputs, results = calls
            read[batch] = inputs.view(*output.shape[:-1], -1)
            if not on_all and number >= len(self._fitted):
                continue
            a = _with_ones(inputs, projection) if method == "sequential" else results
            missing = reference[batch].to(device) - output
            equations.add(a, missing.flatten(0, -2) / projection.factor)
            if not diagonal:
                self.flops += float(len(a)) * features * (features + 2 * outputs)
        if not diagonal:
            self.flops += features**3 / 3 + 2.0 * features**2 * outputs
        solution, error = equations.solve(ridge)
        return solution, error / equations.square if equations.square else 1.0, read

    def shift(
        self,
        hidden: Spilled,
        read: Spilled,
        projection: Projection,
        weight: Tensor,
        bias: Tensor | None,
    ) -> None:
        """Change a layer's outputs, (N, T, D), to what another weight and bias give."""
        factor, own = projection.factor, projection.bias
        moved = (weight - projection.weight) * factor
        of_bias = 0.0 if bias is None or own is None else ((bias - own) * factor).cpu()
        for batch in self._batches:
            inputs = read[batch].to(moved.device)
            hidden[batch] = hidden[batch] + ((inputs @ moved.T).cpu() + of_bias)
            tokens = inputs.shape[0] * inputs.shape[1]
            self.flops += 2.0 * tokens * projection.features("sequential") * len(moved)


def refuse_width(layer: int, projection: Projection, method: str) -> None:
    """Refuse a projection whose Gram matrix would not fit.

    Raises:
        UnsupportedModelError: It has too many features.
    """
    features = projection.features(method)
    if features > _MOST_FEATURES and method != "scale":
        raise UnsupportedModelError(
            f"{projection.name} of layer {layer} has {features:,} features, of at most "
            f"{_MOST_FEATURES:,} that {method} solves for.",
            "Choose repair: linear, which solves for the hidden size, or scale.",
        )


def _with_ones(inputs: Tensor, projection: Projection) -> Tensor:
    if projection.bias is None:
        return inputs
    return torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
