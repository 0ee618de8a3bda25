"""Verify a repair: fit the first layer that it changed again, on the recorded text."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.data.calibration import calibration_windows, ids_digest
from inheritune.data.hub_dataset import is_hub_dataset
from inheritune.data.tokens import open_tokens
from inheritune.errors import DataError, InherituneError, SourceError, escape
from inheritune.model_files.directory import ModelDirectory
from inheritune.recipe.data import Data, TextSource
from inheritune.repair.places import RIDGES
from inheritune.surgery.repaired import repaired_names
from inheritune.verification.run_model import Finding

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Share of a change by which it may differ when it is fitted again: by another order of the sums, on
# another machine, and by their rounding to the dtype of the weights.
_DIFFERENCE = 0.02


def check_repair(
    target: ModelDirectory,
    reference: ModelDirectory | None,
    record: Mapping[str, Any],
    is_trained: bool,
) -> Iterator[Finding]:
    """Fit the first repaired layer of a target again; nothing where none was repaired.

    Raises:
        SourceError: The layer is not what the recorded text, method and ridge give.
        MachineError: The target's disk has no room for hidden states.
    """
    if not repaired_names(record):
        return
    if is_trained or "grown_from" in record:
        yield _unproven("the target was trained or grown since")
        return
    if reference is None:
        yield _unproven("name the reference")
        return
    try:
        windows = _windows(target, reference, record["repair"])
    except InherituneError as error:  # whatever keeps the text from being read
        yield _unproven(error.message)
        return
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise SourceError(
            f"{target.path / 'inherit.json'} holds a garbled repair: {escape(error)}.",
            "Write the target again.",
        ) from error
    yield _compared(target, reference, record, windows)


def _unproven(reason: str) -> Finding:
    text = f"by its digests alone, not fitted again: {reason.rstrip('.')}"
    return Finding("repair", text, proven=False)


def _windows(
    target: ModelDirectory, reference: ModelDirectory, repair: Mapping[str, Any]
) -> "NDArray[np.int64]":
    """Draw the recorded windows again, of the run that the target lies in or of the text.

    Raises:
        DataError: The text is gone or another one, or its windows are drawn in another way now.
    """
    from inheritune.repair.inherit import calibration_of_text

    count, seq_len, seed = (int(repair[key]) for key in ("tokens", "seq_len", "seed"))
    source, ridge = str(repair["source"]), repair["ridge"]
    if not isinstance(ridge, int | float) or not 0 < ridge < float("inf"):
        raise ValueError(f"ridge {ridge!r}")
    if repair["method"] not in RIDGES:
        raise ValueError(f"method {repair['method']!r}")
    int(repair["layers"][0]["layer"])
    for folder in (parent / "tokens" for parent in target.path.absolute().parents):
        if (folder / "manifest.json").is_file() and open_tokens(folder).fingerprint == source:
            windows = calibration_windows(open_tokens(folder).train, count, seq_len, seed)
            reason = "the tokens of its run are as they were; an earlier version of inheritune drew"
            reason += " other windows of them"
            break
    else:
        text = Data.model_validate(repair.get("text", {"source": source}))
        if any(map(is_hub_dataset, _parts(text))):  # a stranger's record names no download
            raise DataError(f"its text {escape(source)} is not on this machine.")
        windows = calibration_of_text(reference, repair["method"], text, count).windows
        reason = f"{escape(source)} gives other windows than those that it was fitted on: it is "
        reason += "another text, or an earlier version of inheritune drew other windows"
    if ids_digest(windows) != repair["ids_sha256"]:
        raise DataError(f"{reason}.")
    return windows


def _parts(text: Data) -> list[TextSource]:
    names = [text.source] if isinstance(text.source, str) else text.source
    return [one if isinstance(one, TextSource) else TextSource(source=one) for one in names]


def _compared(
    target: ModelDirectory,
    reference: ModelDirectory,
    record: Mapping[str, Any],
    windows: "NDArray[np.int64]",
) -> Finding:
    from safetensors import safe_open

    from inheritune.repair.inherit import refit_first_layer

    first = record["repair"]["layers"][0]
    beside = target.path.absolute().parent  # the system's temporary files may lie in memory
    folder = beside if os.access(beside, os.W_OK) else Path(tempfile.gettempdir())
    fitted = refit_first_layer(reference, record, windows, folder)
    if sorted(fitted) != sorted(first["tensors"]):
        raise SourceError(
            f"the record says that {', '.join(first['tensors'])} were repaired first; fitted "
            f"again, it is {', '.join(fitted)}."
        )
    largest = 0.0
    for name, (before, after) in fitted.items():
        with safe_open(target.tensors[name].file, "pt") as file:
            stored = file.get_tensor(name).float()
        change = float((after - before).norm())
        off = float((stored - after).norm())
        share = off / change if change else float(off > 0)
        if share > _DIFFERENCE:
            raise SourceError(
                f"{escape(name)} is not what {record['repair']['method']} gives on the recorded "
                f"text: fitted again it differs by {share:.0%} of its change.",
                "Write the target again; or the reference is another one.",
            )
        largest = max(largest, share)
    layers = len([layer for layer in record["repair"]["layers"] if layer["tensors"]])
    text = f"layer {first['layer']} fitted again on {windows.size:,} tokens, as stored"
    text += f" but for {largest:.1%} of its change" if largest >= 5e-4 else ""
    rest = f"; {layers - 1} more by their digests alone" if layers > 1 else ""
    return Finding("repair", text + rest)
