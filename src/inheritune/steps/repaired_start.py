"""Write the repaired start of a training, and measure the cut before its repair."""

import shutil
import time
from pathlib import Path
from typing import Any

from inheritune.data.calibration import calibration_windows
from inheritune.data.sources import most_ids
from inheritune.data.tokens import TokenDirectory
from inheritune.errors import DataError
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.flops import EVALUATION_SHARE
from inheritune.recipe.schema import Recipe
from inheritune.steps.training_task import TrainingTask
from inheritune.steps.validation import val_loss_of
from inheritune.surgery.cut import Options, inherit
from inheritune.system.files import write_json
from inheritune.system.progress import Progress

RECORD = "repair.json"  # in the start: what the repair took, and val_loss of the cut before it


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

    Raises:
        UnsupportedModelError: A layer has no projection that a repair can be folded into exactly.
        DataError: There are fewer training tokens than the repair asks for.
    """
    from inheritune.repair.inherit import Calibration, inherit_repaired
    from inheritune.training.models import describe

    spec, train, job = task.spec, task.train, task.job
    began = time.monotonic()
    windows = calibration_windows(task.tokens.train, spec.repair_tokens, train.seq_len, train.seed)
    calibration = Calibration(spec.repair, windows, task.tokens.fingerprint, train.seed)
    # --- the cut as it is: a row for no token of training, beside that of the repaired start ---
    options, cut = Options(seed=train.seed), cut_directory(task)
    inherit(reference, spec.layer_map, cut, options)
    loss, _ = val_loss_of(job, cut, task.tokens, f"{task.title}, val_loss of the cut")
    shutil.rmtree(cut)
    # --- repaired ---
    repaired = inherit_repaired(
        reference,
        spec.layer_map,
        task.directory / "start",
        calibration,
        options,
        job.stop,
        job.on_progress,
        f"{task.title}, repair",
    )
    flops_each = describe(task.directory / "start", train.seq_len).flops_per_token
    record: dict[str, Any] = {
        "method": spec.repair,
        "tokens": int(windows.size),
        "cut_val_loss": loss.mean,
        "flops": repaired.flops + loss.tokens * flops_each * EVALUATION_SHARE,
        "seconds": time.monotonic() - began,
    }
    write_json(task.directory / "start" / RECORD, record)
    message = f"val_loss of the cut {loss.mean:.4f}; it was repaired in {record['seconds']:.0f} s"
    job.on_progress(Progress(task.title, message=message))


def cut_directory(task: TrainingTask) -> Path:
    """Where the cut lies while it is measured."""
    return task.directory / "cut"
