"""Repair a cut: fit what the kept layers write to what the reference has at the same places.

N windows of T tokens, F features of an MLP, D hidden. Layer j of the target is layer map[j] of the
reference. What follows it there is layer map[j + 1], or the final norm. E is the reference's hidden
state before that, minus the target's.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from numpy.typing import NDArray
from torch import Tensor

from inheritune.errors import DataError
from inheritune.repair.calibration_run import CalibrationRun
from inheritune.repair.layer_passes import LayerPasses
from inheritune.repair.places import RIDGES, first_place, repaired_places
from inheritune.repair.projection import Projection, find_projection
from inheritune.system.progress import Listener, silent
from inheritune.system.signals import StopFlag

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

# Called with a layer, a parameter's name in it, and its values.
StoredDtype = Callable[[int, str, Tensor], torch.dtype]


@dataclass(frozen=True)
class RepairedLayer:
    """A layer that was to be changed, and what is left of its error."""

    place: int  # index in the target
    layer: int  # index in the reference
    parameters: tuple[str, ...]  # names of the changed parameters within it; empty: none is changed
    error: float  # ‖E‖² after the change / before it, on the windows that it was fitted on


@dataclass(frozen=True)
class Trial:
    """The whole target with one ridge, fitted without the held-out windows."""

    ridge: float | None  # None: the cut as it is
    kl: float  # KL(reference || target) on the held-out windows, nats per token


@dataclass(frozen=True)
class Repair:
    """What `repair_layers` did."""

    layers: tuple[RepairedLayer, ...]
    ridge: float | None  # of all layers; None: none does better than the cut, which is as it was
    trials: tuple[Trial, ...]  # what the ridge was chosen by; none where only one was given
    flops: float  # of forward passes, products and solutions


def repair_layers(
    model: "PreTrainedModel",
    total: int,
    layer_map: Sequence[int],
    windows: "NDArray[np.int64]",
    method: str,
    *,
    stored_dtype: StoredDtype = lambda layer, name, weight: torch.float32,
    ridges: Sequence[float] | None = None,
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

    The ridge a draws dW to 0 and T to I. All layers have the same, in units of the mean diagonal:
    the one with which the whole target, fitted on seven eighths of the windows, has the least KL
    divergence from the reference on the others. Then all is fitted on all windows. The cut stays as
    it was where no ridge does better. With no layer left out, E = 0, and no weight moves.

    Args:
        model: fp32; its changed layers are those of the target, the others stay as they were.
        total: Number of its layers.
        layer_map: Indices of the kept layers, ascending.
        windows: Ids of training text, (N, T); N >= 2.
        method: One of ``sequential``, ``linear``, ``scale``.
        stored_dtype: Called with a layer, the name of a parameter in it, and its values before
            their change; returns the dtype that it is stored in. Later layers see it rounded.
        ridges: Values of a to choose from, in units of the mean diagonal; None: those in `RIDGES`.
            A single one is taken as it is.
        stop: Checked between batches.

    Raises:
        UnsupportedModelError: A layer has no projection to fold into, or one too wide.
        DataError: There are fewer than two windows.
        Interrupted: ``stop`` was set.

    Sources: linear, Shopkhoev et al., ReplaceMe, arXiv 2505.02819, with the ridge towards I instead
    of 0; scale after Chen et al., LinearPatch, arXiv 2505.24680, which scales the whole hidden
    state, where no tensor of the model could hold it; sequential is our own. The error of a layer's
    hidden states on held-out windows ranks neither ridges nor layers to change; see docs/log.md.
    """
    places = repaired_places(layer_map, total, method)
    if len(windows) < 2:
        raise DataError(
            f"the calibration text has {len(windows)} window, a repair needs two: one to choose "
            "the ridge on.",
            "Give more text, or more tokens of it.",
        )
    ids = torch.from_numpy(windows).to(next(model.parameters()).device)
    run = CalibrationRun(LayerPasses(model, total, ids[:1]), ids, stop, on_progress, task)
    if not places:
        return Repair((), None, (), run.flops)
    target = _Target(run, tuple(layer_map), places, method, stored_dtype)
    candidates: list[float | None] = [*(RIDGES[method] if ridges is None else ridges)]
    ridge, trials = candidates[0], tuple[Trial, ...]()
    if len(candidates) > 1:
        # The cut stands first: a ridge has to do better.
        trials = tuple(target.tried([None, *candidates]))
        ridge = min(trials, key=lambda trial: trial.kl).ridge
    return Repair(tuple(target.changed(ridge)), ridge, trials, run.flops)


class _Target:
    """A target that is made of a reference's layers, from the first layer that changes on."""

    def __init__(
        self,
        run: CalibrationRun,
        layer_map: Sequence[int],
        places: Sequence[int],
        method: str,
        stored_dtype: StoredDtype,
    ) -> None:
        self._run, self._map, self._places, self._method = run, layer_map, places, method
        self._following = [*layer_map[1:], len(run.passes.layers)]
        self._stored_dtype = stored_dtype
        self._projections: dict[int, tuple[Projection, list[torch.dtype]]] = {}
        # Up to the first gap, target and reference have the same hidden states.
        self._first = first_place(layer_map, places)
        self._start = run.embedded()
        run.advance(self._start, range(self._first))

    def tried(self, ridges: Sequence[float | None]) -> list[Trial]:
        """Make a target with each ridge, beside one reference, and leave no layer changed."""
        self._run.expect((len(self._map) - self._first) * len(ridges))
        reference = self._start.clone()
        targets = [self._start.clone() for _ in ridges]
        depth = self._first
        for place in range(self._first, len(self._map)):
            self._run.advance(reference, range(depth, self._following[place]))
            depth = self._following[place]
            for ridge, hidden in zip(ridges, targets, strict=True):
                with self._kept(place, hidden):
                    self._change(place, hidden, reference, ridge, on_all=False)
                    self._run.advance(hidden, [self._map[place]])
                self._run.count()
        return [
            Trial(ridge, self._run.divergence(reference, hidden))
            for ridge, hidden in zip(ridges, targets, strict=True)
        ]

    def changed(self, ridge: float | None) -> list[RepairedLayer]:
        """Change the layers for good, fitted on all windows."""
        if ridge is None:
            return [RepairedLayer(place, self._map[place], (), 1.0) for place in self._places]
        self._run.expect(len(self._map) - self._first)
        reference, hidden = self._start.clone(), self._start
        repaired, depth = [], self._first
        for place in range(self._first, len(self._map)):
            # The reference passes through this layer before it changes.
            self._run.advance(reference, range(depth, self._following[place]))
            depth = self._following[place]
            if place in self._places:
                repaired.append(self._change(place, hidden, reference, ridge, on_all=True))
            if place + 1 < len(self._map):
                self._run.advance(hidden, [self._map[place]])
            self._run.count()
        return repaired

    def _change(
        self, place: int, hidden: Tensor, reference: Tensor, ridge: float | None, on_all: bool
    ) -> RepairedLayer:
        """Fit the layer at a place of the target, if it is one that changes."""
        layer = self._map[place]
        if ridge is None or place not in self._places:
            return RepairedLayer(place, layer, (), 1.0)
        projection, dtypes = self._projection(place, hidden)
        solution, error = self._run.solve(
            layer, projection, self._method, hidden, reference, ridge, on_all
        )
        _fold(projection, self._method, solution, dtypes)
        return RepairedLayer(place, layer, tuple(projection.parameters()), error)

    def _projection(self, place: int, hidden: Tensor) -> tuple[Projection, list[torch.dtype]]:
        """Find what changes at a place, and the dtypes that it is stored in, once."""
        if place not in self._projections:
            layer, ids, passes = self._map[place], self._run.ids[:1], self._run.passes
            projection = find_projection(passes, layer, ids, hidden[:1].to(ids.device))
            names = projection.parameters()
            weights = [passes.layers[layer].get_parameter(name) for name in names]
            dtypes = [self._stored_dtype(layer, *pair) for pair in zip(names, weights, strict=True)]
            self._projections[place] = projection, dtypes
        return self._projections[place]

    @contextmanager
    def _kept(self, place: int, hidden: Tensor) -> Iterator[None]:
        """Let a layer be as it was once the block ends."""
        if place not in self._places:
            yield
            return
        projection, _ = self._projection(place, hidden)
        values = [v for v in (projection.weight, projection.bias) if v is not None]
        before = [value.clone() for value in values]
        try:
            yield
        finally:
            for value, old in zip(values, before, strict=True):
                value.copy_(old)


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
