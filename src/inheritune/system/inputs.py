"""What a result was made from, compared with what it would be made from now."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from inheritune.errors import RecipeError

__all__ = ["Difference", "describe_differences", "differences", "refuse_differences"]

Difference = tuple[str, Any, Any]  # dotted key, value before, value now


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Where two sets of inputs differ.

    Args:
        before: As read from a file.
        now: JSON values, not yet written.

    Returns:
        The leaves that differ, in the order of the keys; a key that is not there is None.
    """
    return _differences(before, json.loads(json.dumps(dict(now))), "")


def _differences(before: Any, now: Any, key: str) -> list[Difference]:
    if before == now:
        return []
    if not isinstance(before, dict) or not isinstance(now, dict):
        return [(key, before, now)]
    found = []
    for name in {**before, **now}:
        inner = f"{key}.{name}" if key else name
        found += _differences(before.get(name), now.get(name), inner)
    return found


def describe_differences(changes: Collection[Difference]) -> str:
    """Return differences as the end of a sentence: the value before, and the value now."""
    return ", and with ".join(
        f"{key} = {before!r}; now it is {now!r}" for key, before, now in changes
    )


def refuse_differences(
    what: object,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    allowed: Collection[str] = (),
) -> list[Difference]:
    """Refuse to go on from something that was made from other inputs.

    Args:
        what: For the message: the file that says what it was made from.
        before: What it was made from.
        now: What it would be made from.
        allowed: Keys that may differ all the same.

    Returns:
        The differences that were allowed.

    Raises:
        RecipeError: There are others; all of them are named.
    """
    found = differences(before, now)
    refused = [difference for difference in found if difference[0] not in allowed]
    if refused:
        raise RecipeError(
            f"{what} was made with {describe_differences(refused)}.",
            "Put it back, or give the run another name: --set name=..., or another OUT "
            "(--allow-change KEY goes on all the same, and is recorded).",
        )
    return found
