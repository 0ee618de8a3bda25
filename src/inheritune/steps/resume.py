"""The checkpoint that `--from` names, and whether the next training may go on from it.

Which keys of a recipe may change between two starts of one run.
"""

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from inheritune.errors import CheckpointError, RecipeError, escape
from inheritune.recipe.schema import Recipe, Train
from inheritune.run_directory import Run
from inheritune.steps.job import Job

__all__ = ["allowed_inputs", "checkpoint_for", "decisive", "find_checkpoint", "warned"]

# Of `train`; they do not decide where a training ends, beyond rounding.
_FREE = {
    "activation_checkpointing",
    "keep",
    "max_skips",
    "micro_batch",
    "nonfinite",
    "save_minutes",
}
# Of `train`; a change moves the validations only, and is said.
_WARN = {"eval_every"}
# All others of `train` are refused, and this one, unless each is allowed by name.
_MEASURE = "evaluate.batch_size"
# A step is so many sequences of such a length: without that, a position means nothing.
_NEVER = {"train.seq_len", "train.batch_tokens"}


def decisive(train: Train) -> dict[str, Any]:
    """The keys of `train` that decide where a training ends; tokens are each variant's own."""
    return train.model_dump(mode="json", exclude=_FREE | _WARN | {"tokens"})


def warned(recipe: Recipe) -> dict[str, Any]:
    """The keys of `train` that may differ from a checkpoint's, and are named where they do."""
    values = recipe.train.model_dump(mode="json", include=_WARN)
    return {f"train.{key}": value for key, value in values.items()}


def allowed_inputs(recipe: Recipe, keys: Collection[str]) -> frozenset[str]:
    """Keys that a user lets change, by the names that they have among the inputs.

    Args:
        recipe: Has the keys.
        keys: Such as ``"train.learning_rate"``.

    Raises:
        RecipeError: There is no such key, or its change would make what was done meaningless.
    """
    known = {f"train.{key}" for key in recipe.resolved()["train"]} | {_MEASURE}
    for key in keys:
        if key not in known - _NEVER:
            why = "gives steps their meaning" if key in _NEVER else "is none of those that may"
            raise RecipeError(
                f"--allow-change {key}: this key {why}.",
                f"{_MEASURE} and keys of train may change, but {', '.join(sorted(_NEVER))}.",
            )
    return frozenset(keys) | ({"variant_tokens"} if "train.tokens" in keys else set())


_NAME = re.compile(r"step-[0-9]{8,}")


def find_checkpoint(run: Run, named: Path) -> Path:
    """Look whether a checkpoint is one of a training of this run that is not finished.

    Args:
        run: Its directory may be reached by links.
        named: As the user wrote it.

    Returns:
        Its real path.

    Raises:
        RecipeError: It is not of this run, or its training is finished.
        CheckpointError: It is not there.
    """
    real, root = Path(os.path.realpath(named)), Path(os.path.realpath(run.root))
    is_one = _NAME.fullmatch(real.name) and real.parent.name == "checkpoints"
    if not is_one or not real.is_relative_to(root):
        raise RecipeError(
            f"--from {escape(named, 120)} is no checkpoint of a training in {escape(run.root)}.",
            "Name a directory such as checkpoints/step-00001000 of the training to go on with.",
        )
    folder = real.parent.parent
    if (folder / "result.json").exists():
        raise RecipeError(
            f"the training in {folder} is finished: nothing goes on from {real.name}.",
            "Leave --from out.",
        )
    if not real.is_dir():
        there = ", ".join(sorted(p.name for p in real.parent.glob("step-*"))[-5:]) or "none"
        raise CheckpointError(f"there is no checkpoint {named}.", f"There are: {there}.")
    return real


def checkpoint_for(job: Job, folder: Path) -> Path | None:
    """The checkpoint that was named for a training.

    Args:
        job: Has the checkpoint, if one was named.
        folder: The training's own directory; it is the next one to be done.

    Returns:
        None where none was named, or where the training it was named for is finished by now.

    Raises:
        RecipeError: It is of a training that is not the next one.
    """
    if job.checkpoint is None:
        return None
    its = job.checkpoint.parent.parent
    if its == Path(os.path.realpath(folder)):
        return job.checkpoint
    if not (its / "result.json").exists():
        raise RecipeError(
            f"--from names a checkpoint of {its}, but the training that goes on is that in "
            f"{folder}.",
            f"Leave --from out, or name one of {folder / 'checkpoints'}.",
        )
    return None
