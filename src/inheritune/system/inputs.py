"""Compare the stored inputs of a result with today's, to decide whether it can be reused."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from inheritune.errors import RecipeError

Difference = tuple[str, Any, Any]  # dotted key, value before, value now


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """List the leaves in which two sets of inputs differ.

    Args:
        before: Inputs as read from a file.
        now: Today's inputs, as JSON values.

    Returns:
        The differences in the order of the keys; the value of a missing key is None.
    """
    return _differences(before, json.loads(json.dumps(dict(now))), "")


def _differences(before: Any, now: Any, key: str) -> list[Difference]:
    if before == now:
        return []
    if not isinstance(before, dict) or not isinstance(now, dict):
        return [(key, before, now)]
    leaves = []
    for name in {**before, **now}:
        inner = f"{key}.{name}" if key else name
        leaves += _differences(before.get(name), now.get(name), inner)
    return leaves


def describe_differences(changes: Collection[Difference]) -> str:
    """Return differences as the end of a sentence: the value before, and the value now."""
    return ", and with ".join(
        f"{key} = {before!r}; now it is {now!r}" for key, before, now in changes
    )


def refuse_differences(
    path: object,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    allowed: Collection[str] = (),
) -> list[Difference]:
    """Refuse to continue from a result that was made from other inputs.

    Args:
        path: File that records the inputs of the result, for the message.
        before: Inputs of the result.
        now: Today's inputs.
        allowed: Keys that may differ all the same (``--allow-change``).

    Returns:
        The differences that were allowed.

    Raises:
        RecipeError: Other keys differ; all of them are named.
    """
    changes = differences(before, now)
    refused = [change for change in changes if change[0] not in allowed]
    if refused:
        raise RecipeError(
            f"{path} was made with {describe_differences(refused)}.",
            "Put it back, or give the run another name: --set name=..., or another OUT "
            "(--allow-change KEY goes on all the same, and is recorded).",
        )
    return changes
