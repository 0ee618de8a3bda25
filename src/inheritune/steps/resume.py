"""Reuse finished results when a run is started again, and check the checkpoint of ``--from``.

Trainings, the reference loss and samples end with a file that holds the result and the inputs that
decided it. A step whose file exists is skipped; where its inputs have changed, the run is refused,
never overwritten. Tokens, task scores and the analysis compare inputs of their own. A training
without a result continues from its newest whole checkpoint, which `training.checkpoint.load_newest`
chooses, or from the one of ``--from``.
"""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from inheritune.errors import CheckpointError, DataError, RecipeError, escape
from inheritune.recipe.schema import Recipe
from inheritune.recipe.training import Train
from inheritune.run_directory import Run
from inheritune.steps.job import Job
from inheritune.system.files import write_json
from inheritune.system.inputs import refuse_differences
from inheritune.system.progress import Progress
from inheritune.system.strict_json import read_json_object

# Keys of `train` that do not change where a training ends, beyond rounding.
_FREE = {
    "activation_checkpointing",
    "keep",
    "max_skips",
    "micro_batch",
    "nonfinite",
    "offload",
    "parallel",
    "save_minutes",
    "shard_size",
    "timeout_minutes",
}
# Keys of `train` that only move the validations: a change is named in a note.
_NOTED = {"eval_every"}
# Every other key of `train`, and this one, may change only where the user allows it by name...
_MEASURE = "evaluate.batch_size"
# ...but never these: a step is a number of sequences of a length, and positions count steps.
_NEVER = {"train.seq_len", "train.batch_tokens"}


# -- results


def saved_result(job: Job, path: Path, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the result of a step from the file that it ends with; None if it was not completed.

    Changes that the user allows are logged.

    Args:
        inputs: Everything that decides the step's result now.

    Raises:
        RecipeError: The result was made from other inputs.
        DataError: The file is broken.
    """
    if not path.exists():
        return None
    stored = read_json_object(path)
    if not all(isinstance(stored.get(part), dict) for part in ("inputs", "result")):
        raise DataError(
            f"{escape(path, 300)} is not the result of a step.",
            "Restore it from a copy, or remove it to make it again.",
        )
    for key, before, now in refuse_differences(path, stored["inputs"], inputs, job.allowed):
        message = f"allowed: it was made with {key} = {before!r}, now it is {now!r}"
        job.on_progress(Progress(path.parent.name, message=message))
    result: dict[str, Any] = stored["result"]
    return result


def save_result(path: Path, inputs: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Write the file that a step ends with: its result and the inputs that decided it."""
    write_json(path, {"inputs": dict(inputs), "result": dict(result)})


# -- keys that may change


def decisive(train: Train) -> dict[str, Any]:
    """The keys of `train` that decide where a training ends; tokens are given per training."""
    # What is trained is left out where it is all, as in inputs of older versions.
    whole = {"only"} if train.only is None else set()
    return train.model_dump(mode="json", exclude=_FREE | _NOTED | {"tokens"} | whole)


def noted_inputs(recipe: Recipe) -> dict[str, Any]:
    """The keys of `train` that may differ from a checkpoint's, with a note."""
    values = recipe.train.model_dump(mode="json", include=_NOTED)
    return {f"train.{key}": value for key, value in values.items()}


def allowed_inputs(recipe: Recipe, keys: Collection[str]) -> frozenset[str]:
    """Translate keys of ``--allow-change``, as in a recipe, to their names among inputs.

    Raises:
        RecipeError: There is no such key, or its change would make finished work meaningless.
    """
    changeable = {f"train.{key}" for key in recipe.resolved()["train"]} | {_MEASURE}
    for key in keys:
        if key not in changeable - _NEVER:
            reason = "gives steps their meaning" if key in _NEVER else "is none of those that may"
            raise RecipeError(
                f"--allow-change {key}: this key {reason}.",
                f"{_MEASURE} and keys of train may change, but {', '.join(sorted(_NEVER))}.",
            )
    return frozenset(keys) | ({"variant_tokens"} if "train.tokens" in keys else set())


# -- the checkpoint of --from


def find_checkpoint(run: Run, path: Path) -> Path:
    """Check that a path is a checkpoint of an unfinished training of this run.

    Args:
        run: May be reached through links.
        path: As the user wrote it.

    Returns:
        Its real path.

    Raises:
        RecipeError: It is no checkpoint of this run, or its training is finished.
        CheckpointError: It does not exist.
    """
    from inheritune.training.checkpoint_files import CHECKPOINT_NAME, newest_first

    real, root = Path(os.path.realpath(path)), Path(os.path.realpath(run.root))
    is_named_so = CHECKPOINT_NAME.fullmatch(real.name) and real.parent.name == "checkpoints"
    if not is_named_so or not real.is_relative_to(root):
        raise RecipeError(
            f"--from {escape(path, 120)} is no checkpoint of a training in {escape(run.root)}.",
            "Name a directory such as checkpoints/step-00001000 of the training to continue.",
        )
    training_dir = real.parent.parent
    if (training_dir / "result.json").exists():
        raise RecipeError(
            f"the training in {training_dir} is finished: nothing continues from {real.name}.",
            "Leave --from out.",
        )
    if not real.is_dir():
        names = ", ".join(path.name for path in reversed(newest_first(real.parent)[:5])) or "none"
        raise CheckpointError(f"there is no checkpoint {path}.", f"There are: {names}.")
    return real


def checkpoint_for(job: Job, directory: Path) -> Path | None:
    """Return the checkpoint of ``--from`` if it belongs to the next training, in ``directory``.

    None if no checkpoint was named, or if the training that it belongs to is finished by now.

    Raises:
        RecipeError: It belongs to another training, which is not finished.
    """
    if job.checkpoint is None:
        return None
    training_dir = job.checkpoint.parent.parent
    if training_dir == Path(os.path.realpath(directory)):
        return job.checkpoint
    if not (training_dir / "result.json").exists():
        raise RecipeError(
            f"--from names a checkpoint of {training_dir}, but the training that continues is that "
            f"in {directory}.",
            f"Leave --from out, or name one of {directory / 'checkpoints'}.",
        )
    return None
