"""Which keys of a recipe may change between two starts of one run."""

from collections.abc import Collection
from typing import Any

from inheritune.errors import RecipeError
from inheritune.recipe.schema import Recipe, Train

__all__ = ["allowed_inputs", "decisive", "warned"]

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
