"""Repair a cut: fit what the kept layers write to what the reference has at the same places.

N windows of T tokens, F features of an MLP, D hidden. Layer j of the target is layer map[j] of the
reference. What follows it there is layer map[j + 1], or the final norm. E is the reference's hidden
state before that, minus the target's.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from numpy.typing import NDArray
from torch import Tensor

from inheritune.errors import DataError
from inheritune.repair.calibration_run import CalibrationRun, refuse_width
from inheritune.repair.layer_passes import LayerPasses
from inheritune.repair.places import RIDGES, first_place, repaired_places
from inheritune.repair.projection import Projection, find_projection
from inheritune.repair.spilled import Spilled
from inheritune.system.disk_space import refuse_full_disk
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
    # KL(reference || target) on the held-out windows, nats per token; infinite where not finite
    kl: float


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
    most: int | None = None,
    stop: StopFlag | None = None,
    on_progress: Listener = silent,
    task: str = "repair",
    folder: Path | None = None,
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
        most: Change so many layers at most, the first ones, with a single ridge; None: all.
        stop: Checked between batches.
        folder: For files without names, as hidden states are not held in memory: up to (places +
            5) D + F fp32 values for each token; None: the system's temporary files.

    Raises:
        UnsupportedModelError: A layer has no projection to fold into, or one too wide.
        DataError: There are fewer than two windows.
        MachineError: The folder's disk has no room for the hidden states.
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
    run = CalibrationRun(LayerPasses(model, total, ids[:1]), ids, stop, on_progress, task, folder)
    if not places:
        return Repair((), None, (), run.flops)
    candidates = RIDGES[method] if ridges is None else tuple(ridges)
    end = len(layer_map) if most is None else places[:most][-1] + 1
    _refuse_full_disk(run, layer_map, places[:most], end, len(candidates), folder)
    target = _Target(run, tuple(layer_map), places[:most], end, method, stored_dtype)
    if len(candidates) == 1:
        return Repair(tuple(target.change(candidates[0])), candidates[0], (), run.flops)
    # The cut stands first: a ridge has to do better.
    trials = tuple(target.tried([None, *candidates]))
    ridge = min(trials, key=lambda trial: trial.kl).ridge
    return Repair(tuple(target.change(ridge)), ridge, trials, run.flops)


class _Target:
    """A target that is made of a reference's layers, from the first layer that changes on.

    On the disk are the reference's hidden states for each place, those of each target that was
    tried for one, and what a projection reads.
    """

    def __init__(
        self,
        run: CalibrationRun,
        layer_map: Sequence[int],
        places: Sequence[int],
        end: int,
        method: str,
        stored_dtype: StoredDtype,
    ) -> None:
        self._run, self._map, self._places, self._method = run, layer_map, places, method
        self._stored_dtype = stored_dtype
        self._projections: dict[int, tuple[Projection, list[torch.dtype]]] = {}
        # Up to the first gap, target and reference have the same hidden states.
        self._first, self._end = first_place(layer_map, places), end
        self._start = run.embedded()
        run.advance(self._start, range(self._first))
        # By place: what the reference has where the next kept layer begins.
        self._reference: dict[int, Spilled] = {}
        hidden, depth = run.copy(self._start), self._first
        following = [*layer_map[1:], len(run.passes.layers)]
        for place in range(self._first, self._end):
            run.advance(hidden, range(depth, following[place]))
            self._reference[place], depth = run.copy(hidden), following[place]

    def tried(self, ridges: Sequence[float | None]) -> list[Trial]:
        """Make a target with each ridge; leave the model as it was."""
        self._run.expect((self._end - self._first) * (len(ridges) + 1))
        outputs = [self._made(ridge, on_all=False)[0] for ridge in ridges]
        kl = self._run.divergences(self._reference[len(self._map) - 1], outputs)
        finite = [value if math.isfinite(value) else math.inf for value in kl]
        return [Trial(*pair) for pair in zip(ridges, finite, strict=True)]

    def change(self, ridge: float | None) -> list[RepairedLayer]:
        """Change the layers for good, fitted on all windows."""
        if ridge is None:
            return [RepairedLayer(place, self._map[place], (), 1.0) for place in self._places]
        _, repaired = self._made(ridge, on_all=True)
        return repaired

    def _made(self, ridge: float | None, on_all: bool) -> tuple[Spilled, list[RepairedLayer]]:
        """Compute a target's last hidden states, (N, T, D), and change its layers if ``on_all``.

        Of the cut itself, without a ridge, only those of the held-out windows are computed.
        """
        hidden, repaired = self._run.copy(self._start), []
        for place in range(self._first, self._end):
            if ridge is None or place not in self._places:
                self._run.advance(hidden, [self._map[place]], only_held_out=ridge is None)
            else:
                repaired.append(self._fit(place, hidden, ridge, on_all))
            self._run.count()
        return hidden, repaired

    def _fit(self, place: int, hidden: Spilled, ridge: float, on_all: bool) -> RepairedLayer:
        """Fit the layer at a place, and replace its input by its output, changed."""
        layer, run = self._map[place], self._run
        projection, dtypes = self._projection(place, hidden)
        solution, error, read = run.fit(
            layer, projection, self._method, hidden, self._reference[place], ridge, on_all
        )
        weight, bias = _folded(projection, self._method, solution, dtypes)
        run.shift(hidden, read, projection, weight, bias)
        if on_all:
            projection.replace(weight, bias)
        return RepairedLayer(place, layer, tuple(projection.parameters()), error)

    def _projection(self, place: int, hidden: Spilled) -> tuple[Projection, list[torch.dtype]]:
        """Find what changes at a place, and the dtypes that it is stored in, once."""
        if place not in self._projections:
            layer, ids, passes = self._map[place], self._run.ids[:1], self._run.passes
            first = hidden[torch.tensor([0])].to(ids.device)
            projection = find_projection(passes, layer, ids, first)
            refuse_width(layer, projection, self._method)
            names = projection.parameters()
            weights = [passes.layers[layer].get_parameter(name) for name in names]
            dtypes = [self._stored_dtype(layer, *pair) for pair in zip(names, weights, strict=True)]
            self._projections[place] = projection, dtypes
        return self._projections[place]


def _refuse_full_disk(
    run: CalibrationRun,
    layer_map: Sequence[int],
    places: Sequence[int],
    end: int,
    ridges: int,
    folder: Path | None,
) -> None:
    """Refuse a repair whose hidden states, see `_Target`, would not fit on the disk."""
    width = run.passes.embed(run.ids[:1]).shape[-1]
    layers = [run.passes.layers[layer_map[place]] for place in places]
    matrices = [weight for layer in layers for weight in layer.parameters() if weight.dim() == 2]
    # What a projection reads; see `find_projection`.
    read = max((m.numel() // width for m in matrices if width in m.shape), default=0)
    targets = 1 if ridges == 1 else ridges + 1  # with each ridge, and without
    kept = 1 + end - first_place(layer_map, places) + targets
    tokens = run.ids.numel()
    refuse_full_disk(
        folder or Path(tempfile.gettempdir()),
        4 * tokens * (kept * width + read),
        f"the hidden states of a repair on {tokens:,} tokens",
        "Free some space there; a repair on fewer tokens needs less.",
    )


def _folded(
    projection: Projection, method: str, solution: Tensor, dtypes: Sequence[torch.dtype]
) -> tuple[Tensor, Tensor | None]:
    """Compute a projection's new weight, (D, F), and bias, rounded to the dtypes of both."""
    weight, bias = projection.weight.double(), projection.bias
    if method == "sequential":
        new_weight = weight + solution[: weight.shape[1]].T
        new_bias = None if bias is None else bias.double() + solution[-1]
    else:
        matrix = torch.diag(solution) if method == "scale" else solution  # T - I
        new_weight = weight + matrix.T @ weight
        new_bias = None if bias is None else bias.double() + bias.double() @ matrix
    rounded_bias = None if new_bias is None else new_bias.to(dtypes[1]).float()
    return new_weight.to(dtypes[0]).float(), rounded_bias
