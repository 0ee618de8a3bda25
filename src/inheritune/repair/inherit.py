"""Inherit layers of a reference, repaired: fit them, and write them with the rest of the cut.

N windows of T tokens. A fit is a directory of its own, from which several targets may be written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from inheritune.data.calibration import (
    calibration_windows,
    ids_digest,
    text_ids,
    window_tokens,
)
from inheritune.data.sources import describe_text
from inheritune.data.tokenizer import open_tokenizer
from inheritune.errors import UnsupportedModelError, escape
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.safetensors import DTYPES, read_header, torch_name
from inheritune.model_files.write import TargetTensor
from inheritune.recipe.data import Data
from inheritune.repair.places import repaired_places
from inheritune.repair.refusals import refuse_repair
from inheritune.repair.repair import repair_layers
from inheritune.surgery.cut import Options, check_inherit, inherit, refuse_options
from inheritune.surgery.plan import plan_inherit
from inheritune.surgery.repaired import UNREPAIRED, RepairedTensors
from inheritune.surgery.selection import choose_layers
from inheritune.surgery.ways import LayerFacts
from inheritune.system.files import (
    make_directory,
    scratch_directory,
    sync_file,
    write_errors,
    write_json,
)
from inheritune.system.progress import Listener, silent
from inheritune.system.signals import StopFlag
from inheritune.system.strict_json import OWN_FILE, read_json_object
from inheritune.training.hardware import choose_device
from inheritune.training.layers import find_layers
from inheritune.training.models import load_model

if TYPE_CHECKING:
    import numpy as np

_DEFAULTS = Options()
_VALUES, _FIT = "repaired.safetensors", "fit.json"  # changed tensors of a fit, and how it was made


@dataclass(frozen=True)
class Calibration:
    """How a cut is repaired, and on what."""

    method: str  # one of `refusals.METHODS`
    windows: "NDArray[np.int64]"  # ids of training text, (N, T)
    source: str  # the text in words, or the fingerprint of its tokens
    seed: int = 0  # seed by which the windows were drawn
    # The recipe's section `data` that reads the text again; None: `source` does, or a run has it
    text: Mapping[str, Any] | None = None


def calibration_of_text(
    reference: ModelDirectory, method: str, text: Data, tokens: int
) -> Calibration:
    """Draw calibration windows from a text, in the reference's tokens.

    Raises:
        DataError: The text has fewer tokens.
    """
    length = window_tokens(reference.config)
    # Whole windows: by their number, which is recorded, `verify` reads as much of the text again.
    tokens = max(1, tokens // length) * length
    ids = text_ids(text, open_tokenizer(reference.path), tokens)
    windows = calibration_windows(ids, tokens, length)
    keys = text.model_dump(mode="json", exclude_defaults=True)
    is_named = keys == {"source": describe_text(text)}
    return Calibration(method, windows, describe_text(text), text=None if is_named else keys)


@dataclass(frozen=True)
class RepairedTarget:
    """A target, and what its repair took."""

    target: ModelDirectory
    flops: float


def inherit_repaired(
    reference: ModelDirectory,
    layers: int | str | Sequence[int],
    out: Path,
    calibration: Calibration,
    options: Options = _DEFAULTS,
    stop: StopFlag | None = None,
    on_progress: Listener = silent,
    task: str = "repair",
) -> RepairedTarget:
    """Write a cut as `surgery.cut.inherit` does, its layers at gaps fitted to the reference.

    The fit is computed in fp32, with sums in fp64, and stored in the dtype that the cut has; see
    `repair_layers`. The reference is loaded whole.

    Raises:
        RecipeError: The options contradict each other, or ``out`` is in use.
        UnsupportedModelError: A layer has no projection that a repair can be folded into exactly.
        MachineError: The disk has no room for the hidden states, or refuses to be written.
        Interrupted: ``stop`` was set; nothing was written.
    """
    refuse_options(reference, out, options)
    layer_map = choose_layers(layers, LayerFacts(reference.layers))
    refuse_repair(reference, layer_map, calibration.method, options.parts)
    check_inherit(reference, layer_map, options)
    make_directory(out.absolute().parent)
    with write_errors(out), scratch_directory(out.absolute()) as fit:
        flops = fit_repair(reference, layer_map, fit, calibration, options, stop, on_progress, task)
        target = inherit_fitted(reference, layer_map, out, fit, calibration, options, on_progress)
    return RepairedTarget(target, flops)


def fit_repair(
    reference: ModelDirectory,
    layer_map: Sequence[int],
    fit: Path,
    calibration: Calibration,
    options: Options = _DEFAULTS,
    stop: StopFlag | None = None,
    on_progress: Listener = silent,
    task: str = "repair",
) -> float:
    """Fit the layers of a cut, and write those that change to a directory; returns the FLOPs.

    Args:
        fit: An empty directory, for `inherit_fitted`; hidden states lie there meanwhile.

    Raises:
        As `inherit_repaired`.
    """
    reference.download(reference.tensors.values(), on_progress)
    model: Any = load_model(reference.path)
    files = _Files(reference, layer_map, DTYPES[options.dtype] if options.dtype else None)
    repair = repair_layers(
        model.to(choose_device()),
        reference.layers,
        layer_map,
        calibration.windows,
        calibration.method,
        stored_dtype=files.dtype_of,
        stop=stop,
        on_progress=on_progress,
        task=task,
        folder=fit,
    )
    values: dict[str, Tensor] = {}
    entries = []
    for one in repair.layers:
        layer, names = find_layers(model, reference.layers)[one.layer], []
        for parameter in one.parameters:
            name, dtype = files.stored(one.layer, parameter)
            # The fit has rounded them to the dtype that the target has.
            values[name] = layer.get_parameter(parameter).detach().cpu().to(dtype).contiguous()
            names.append(name)
        places = {"layer": one.place, "reference_layer": one.layer, "tensors": names}
        entries.append(places | {"error": one.error})
    if values:
        save_file(values, fit / _VALUES)
        sync_file(fit / _VALUES)
    trials = [asdict(trial) for trial in repair.trials]
    fitted = {"ridge": repair.ridge, "trials": trials, "layers": entries}
    write_json(fit / _FIT, fitted, infinity=True)
    return repair.flops


def inherit_fitted(
    reference: ModelDirectory,
    layer_map: Sequence[int],
    out: Path,
    fit: Path,
    calibration: Calibration,
    options: Options = _DEFAULTS,
    on_progress: Listener = silent,
) -> ModelDirectory:
    """Write a cut with the layers that `fit_repair` has fitted to the same windows."""
    fitted, tensors = read_json_object(fit / _FIT, replace(OWN_FILE, infinity=True)), {}
    if (fit / _VALUES).exists():
        stored = read_header(fit / _VALUES)[0]
        tensors = {t.name: TargetTensor(t.name, t, t.dtype) for t in stored}
    windows = calibration.windows
    record = {
        "method": calibration.method,
        "source": calibration.source,
        **({} if calibration.text is None else {"text": dict(calibration.text)}),
        "tokens": windows.size,
        "seq_len": windows.shape[1],
        "seed": calibration.seed,
        "ids_sha256": ids_digest(windows),
        **fitted,
    }
    repaired = RepairedTensors(tensors, record) if fitted["layers"] else UNREPAIRED
    return inherit(reference, layer_map, out, options, on_progress, repaired)


def refit_first_layer(
    reference: ModelDirectory,
    record: Mapping[str, Any],
    windows: "NDArray[np.int64]",
    folder: Path,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Fit the first layer that a repair changed again, with the ridge of its record.

    Args:
        record: inherit.json of the target.
        windows: Ids of the recorded text, (N, T).
        folder: For hidden states, see `repair_layers`.

    Returns:
        By name in the target, each changed parameter in the reference, and fitted, fp32.

    Raises:
        MachineError: The folder's disk has no room for the hidden states.
    """
    layer_map, repair = record["layer_map"], record["repair"]
    reference.download(reference.tensors.values())
    files = _Files(reference, layer_map, record.get("dtype"))
    model: Any = load_model(reference.path)
    first = layer_map[repaired_places(layer_map, reference.layers, repair["method"])[0]]
    layer = find_layers(model, reference.layers)[first]
    before = {name: value.detach().clone() for name, value in layer.named_parameters()}
    with write_errors(folder):
        fitted = repair_layers(
            model.to(choose_device()),
            reference.layers,
            layer_map,
            windows,
            repair["method"],
            stored_dtype=files.dtype_of,
            ridges=[repair["ridge"]],
            most=1,
            folder=folder,
        )
    (one,) = fitted.layers
    return {
        files.stored(first, name)[0]: (before[name], layer.get_parameter(name).detach().cpu())
        for name in one.parameters
    }


class _Files:
    """Where the parameters of a reference's layers lie on disk, and under which names they go."""

    def __init__(
        self, reference: ModelDirectory, layer_map: Sequence[int], dtype: str | None
    ) -> None:
        tensors = plan_inherit(reference, layer_map, dtype=dtype).tensors
        self._targets = {tensor.source.name: tensor for tensor in tensors}
        self._reference = reference

    def dtype_of(self, layer: int, parameter: str, weight: Tensor) -> torch.dtype:
        """Return the dtype that the cut stores a parameter in; refuse one that is not on disk."""
        return _dtype(self._find(layer, parameter, weight))

    def stored(self, layer: int, parameter: str) -> tuple[str, torch.dtype]:
        """Return the name and dtype that a parameter has in the target."""
        target = self._find(layer, parameter)
        return target.name, _dtype(target)

    def _find(self, layer: int, parameter: str, weight: Tensor | None = None) -> TargetTensor:
        name = f"{self._reference.container.prefix}{layer}.{parameter}"
        target = self._targets.get(name)
        if weight is not None and target is not None:
            with safe_open(target.source.file, "pt") as file:
                values = file.get_tensor(name).float()
            if not torch.equal(values, weight.detach().cpu()):
                target = None
        if target is None:
            raise UnsupportedModelError(
                f"{self._reference.name} keeps {escape(parameter)} of layer {layer} in another "
                "form than its class, so a repair of it cannot be stored.",
                "Leave the repair out (repair: none).",
            )
        return target


def _dtype(tensor: TargetTensor) -> torch.dtype:
    return getattr(torch, torch_name(tensor.dtype))  # type: ignore[no-any-return]
