"""Write the repaired start of a training, and measure the cut before its repair.

Both are made once in a run for all trainings that have the same: they lie in ``repairs/`` until
the last training is complete.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from inheritune.data.calibration import calibration_windows, ids_digest
from inheritune.data.sources import most_ids
from inheritune.data.tokens import TokenDirectory
from inheritune.errors import DataError
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.flops import EVALUATION_SHARE
from inheritune.recipe.schema import Recipe
from inheritune.run_directory import Run
from inheritune.steps.training_task import TrainingTask
from inheritune.steps.validation import val_loss_of
from inheritune.surgery.cut import Options, inherit
from inheritune.system.files import new_directory, write_json
from inheritune.system.files import sha256 as file_digest
from inheritune.system.progress import Progress
from inheritune.system.strict_json import read_json_object

RECORD = "repair.json"  # in the start: what the repair took, and val_loss of the cut before it
_MADE = "made.json"  # in a shared part: what decided it, the files beside it, and its result
_VERSION = 1  # of what is fitted and measured, given the same inputs


def refuse_short_text(recipe: Recipe, tokens: TokenDirectory | None) -> None:
    """Refuse training tokens that do not suffice for a repair, before anything is trained on them.

    Args:
        tokens: None: they are not prepared yet, and the bytes of the text are a bound.

    Raises:
        DataError: There are fewer than the repair asks for.
    """
    repairs = {recipe.inherit.repair, *(variant.repair for variant in recipe.variants.values())}
    if repairs == {"none"}:
        return
    train, count = recipe.train, recipe.inherit.repair_tokens
    if tokens is not None:
        calibration_windows(tokens.train, count, train.seq_len, train.seed)
    elif (most := most_ids(recipe.data)) is not None and most < count:
        raise DataError(
            f"the text has at most {most // train.seq_len} windows of {train.seq_len} tokens, "
            f"{count // train.seq_len} are asked for to repair the cut.",
            "Give more text, or lower inherit.repair_tokens.",
        )


def write_repaired(task: TrainingTask, reference: ModelDirectory) -> None:
    """Write ``start/`` repaired on windows of the training tokens, and what that took.

    Another training of the run may have had the same cut, or the same repair of it: then it is
    taken from ``repairs/``, and the record says whose it is.

    Raises:
        UnsupportedModelError: A layer has no projection that a repair can be folded into exactly.
        DataError: There are fewer training tokens than the repair asks for.
    """
    from inheritune.repair.inherit import Calibration, fit_repair, inherit_fitted

    spec, train, job, start = task.spec, task.train, task.job, task.directory / "start"
    windows = calibration_windows(task.tokens.train, spec.repair_tokens, train.seq_len, train.seed)
    calibration = Calibration(spec.repair, windows, task.tokens.fingerprint, train.seed)
    options, title = Options(seed=train.seed), f"{task.title}, repair"

    def fit(folder: Path) -> dict[str, Any]:
        args = options, job.stop, job.on_progress, title
        return {"flops": fit_repair(reference, spec.layer_map, folder, calibration, *args)}

    cut = _cut_loss(task, reference, options)
    inputs = {"method": spec.repair, "windows": windows.shape, "ids_sha256": ids_digest(windows)}
    folder, repair = _made_once(task, reference, {"repair": inputs}, fit)
    began = time.monotonic()
    inherit_fitted(reference, spec.layer_map, start, folder, calibration, options, job.on_progress)
    record = {"method": spec.repair, "tokens": int(windows.size), "cut_val_loss": cut["val_loss"]}
    record |= _cost(task, {"repair": repair, "cut_val_loss": cut}, time.monotonic() - began)
    write_json(start / RECORD, record)
    done = f"it was repaired in {record['seconds']:.0f} s"
    if "repair" in record.get("shared", {}):
        done = f"its repair is the one made for {repair['made_for']}"
    message = f"val_loss of the cut {cut['val_loss']:.4f}; {done}"
    job.on_progress(Progress(task.title, message=message))


def _cost(
    task: TrainingTask, parts: Mapping[str, Mapping[str, Any]], seconds: float
) -> dict[str, Any]:
    """Add up what was made for this training, and name what was made for others.

    Args:
        seconds: What was not shared took.
    """
    own = [part for part in parts.values() if part["made_for"] == _path_of(task)]
    cost: dict[str, Any] = {
        "flops": sum(part["flops"] for part in own),
        "seconds": sum(part["seconds"] for part in own) + seconds,
    }
    others = {what: part for what, part in parts.items() if part not in own}
    shared = {
        what: {"made_for": part["made_for"], "flops": part["flops"]}
        for what, part in others.items()
    }
    return cost | ({"shared": shared} if shared else {})


def _cut_loss(task: TrainingTask, reference: ModelDirectory, options: Options) -> dict[str, Any]:
    """Measure the cut as it is: a row for no token of training, beside the repaired start's."""
    from inheritune.training.models import describe

    job, seq_len = task.job, task.train.seq_len

    def measure(folder: Path) -> dict[str, Any]:
        cut = folder / "cut"
        inherit(reference, task.spec.layer_map, cut, options)
        loss, _ = val_loss_of(job, cut, task.tokens, f"{task.title}, val_loss of the cut")
        flops_each = describe(cut, seq_len).flops_per_token
        shutil.rmtree(cut)
        return {"val_loss": loss.mean, "flops": loss.tokens * flops_each * EVALUATION_SHARE}

    inputs = {
        "tokens": task.tokens.val_fingerprint,
        "seq_len": seq_len,
        "batch_size": job.recipe.evaluate.batch_size,
    }
    return _made_once(task, reference, {"cut_val_loss": inputs}, measure)[1]


def _made_once(
    task: TrainingTask,
    reference: ModelDirectory,
    inputs: Mapping[str, Any],
    make: Callable[[Path], dict[str, Any]],
) -> tuple[Path, dict[str, Any]]:
    """Make a part of a repair, unless the run has made the same one for this or another training.

    Args:
        inputs: What decides it, beside the reference and the kept layers.
        make: Writes files to a new directory, and returns the result, with its ``"flops"``.

    Returns:
        The directory, and the result with the seconds that it took and whom it was made for.
    """
    kept = list(task.spec.layer_map)
    decided = {"version": _VERSION, "reference": reference.digest, "kept": kept} | dict(inputs)
    text = json.dumps(decided, sort_keys=True)
    decided = json.loads(text)  # as it is read again
    folder = task.job.run.repairs / sha256(text.encode()).hexdigest()[:16]
    # A part that is missing, or not what was written, is made again.
    with suppress(DataError, OSError, KeyError, TypeError):
        stored = read_json_object(folder / _MADE)
        if stored.get("inputs") == decided and stored.get("files") == _digests(folder):
            return folder, dict(stored["result"])
    began = time.monotonic()
    with new_directory(folder, replace=True) as staging:
        result = make(staging) | {"made_for": _path_of(task)}
        result["seconds"] = time.monotonic() - began
        files = _digests(staging)
        write_json(staging / _MADE, {"inputs": decided, "files": files, "result": result})
    return folder, result


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.name != _MADE)
    return {path.name: file_digest(path) for path in files}


def _path_of(task: TrainingTask) -> str:
    return task.directory.relative_to(task.job.run.root).as_posix()


def remove_shared(run: Run) -> None:
    """Remove what trainings of a run could share: all of them are complete."""
    shutil.rmtree(run.repairs, ignore_errors=True)
