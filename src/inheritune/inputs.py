"""What a result was made from, compared with what it would be made from now."""

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["first_difference"]


def first_difference(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> tuple[str, Any, Any] | None:
    """Where two sets of inputs first differ.

    Args:
        before: As read from a file.
        now: JSON values, not yet written.

    Returns:
        Dotted key, value before, value now; None where both say the same.
    """
    return _difference(before, json.loads(json.dumps(dict(now))), "")


def _difference(before: Any, now: Any, key: str) -> tuple[str, Any, Any] | None:
    if before == now:
        return None
    if not isinstance(before, dict) or not isinstance(now, dict):
        return key, before, now
    name = next(name for name in {**before, **now} if before.get(name) != now.get(name))
    return _difference(before.get(name), now.get(name), f"{key}.{name}" if key else name)
