"""What a recipe's values may be: amounts of tokens, names, rates, shares."""

import json
import re
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

__all__ = [
    "Amount",
    "AmountOrZero",
    "Multiple",
    "Name",
    "Rate",
    "Section",
    "Seed",
    "Seeds",
    "Share",
    "Switch",
    "parse_amount",
    "writable",
]

_MULTIPLES = {"K": 10**3, "M": 10**6, "B": 10**9}
_AMOUNT = r"^[0-9]+(\.[0-9]+)?[KMBkmb]$"
_MOST = 10**18  # of tokens, and of seeds; fits 64 bits


def parse_amount(value: object) -> object:
    """Read a token amount: an integer, or a number followed by K, M or B (10^3, 10^6, 10^9).

    Args:
        value: What the recipe holds, such as ``2_000_000`` or ``"2M"`` or ``"1.5B"``.

    Returns:
        The amount as an integer; anything that is not such a text is returned as it is, so that
        the type check that follows names it.
    """
    if not isinstance(value, str) or len(value) > 40 or not re.fullmatch(_AMOUNT, value):
        return value
    # Decimal: 2.01 * 10**6 is not a whole number in binary floating point.
    amount = Decimal(value[:-1]) * _MULTIPLES[value[-1].upper()]
    return int(amount) if amount == amount.to_integral_value() else value


def _parse_amount(value: object) -> object:
    amount = parse_amount(value)
    if isinstance(amount, str):
        raise PydanticCustomError(
            "amount", "Input should be an integer or an amount such as 500K, 2M or 1.5B"
        )
    return amount


def _plain_name(value: str) -> str:
    # The name becomes a directory, on every system.
    if not all(c.isalnum() or c in "-_." for c in value):
        raise ValueError("use letters, digits, '-', '_' and '.' only")
    if re.match(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", value) or value.endswith("."):
        raise ValueError("no file system takes this name everywhere; choose another")
    if len(value.encode()) > 200:
        raise ValueError("use at most 200 bytes")
    return value


def _different(value: list[int]) -> list[int]:
    if len(set(value)) < len(value):
        raise ValueError("each seed once: a second training with it would be the same")
    return value


def writable(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Refuse numbers that JSON cannot write.

    Raises:
        ValueError: One of them is NaN or infinite.
    """
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError("every number in it must be finite, as JSON has no other") from None
    return value


def _amount_schema(least: int) -> WithJsonSchema:
    integer = {"type": "integer", "minimum": least, "maximum": _MOST}
    return WithJsonSchema({"anyOf": [integer, {"type": "string", "pattern": _AMOUNT}]})


Amount = Annotated[
    int, Field(ge=1, le=_MOST), BeforeValidator(_parse_amount), _amount_schema(least=1)
]
AmountOrZero = Annotated[
    int, Field(ge=0, le=_MOST), BeforeValidator(_parse_amount), _amount_schema(least=0)
]
Name = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_plain_name)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, le=_MOST)]
Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_different)]
Switch = Literal["auto", "on", "off"]
Multiple = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,2}x$")]


class Section(BaseModel):
    """Part of a recipe: its keys are known, of one type each, and never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
