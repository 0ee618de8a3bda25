"""Define the types of recipe values: token amounts, names, rates, shares, seeds."""

import json
import re
from collections.abc import Mapping
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

from inheritune.errors import RecipeError, escape

AMOUNTS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_BYTES = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTES |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_AMOUNT = r"^[0-9]+(\.[0-9]+)?[KMBTkmbt]$"
_LARGEST = 10**18  # token amount or seed; fits into 64 bits
_MOST_NAME_CHARACTERS, _MOST_NAME_BYTES = 100, 200
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)")  # device names of Windows


def parse_amount(value: object, units: Mapping[str, int] = AMOUNTS) -> object:
    """Convert an amount such as ``"2M"`` or ``"1.5B"`` to int: K, M, B, T are 10^3 to 10^12.

    Return any other value unchanged.
    """
    if not isinstance(value, str) or len(value) > 40:
        return value
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]+)", value)
    if match is None or match[2].upper() not in units:
        return value
    # Decimal: 2.01 * 10**6 is not a whole number in binary floating point.
    amount = Decimal(match[1]) * units[match[2].upper()]
    return int(amount) if amount == amount.to_integral_value() else value


def amount_of_tokens(tokens: int | str, option: str = "--tokens") -> int:
    """Read an amount outside a recipe, such as ``--tokens 1B``, of at least 1."""
    return _amount_of(option, tokens, AMOUNTS, "500M, 1B or 1.5T")


def amount_of_bytes(size: int | str, option: str) -> int:
    """Read a size outside a recipe, such as ``--memory 8GB`` (10^9) or ``8GiB`` (2^30)."""
    return _amount_of(option, size, _BYTES, "500MB, 8GB or 8GiB")


def _amount_of(option: str, value: int | str, units: Mapping[str, int], examples: str) -> int:
    text = str(value).strip()
    amount = int(text) if text.isdecimal() and len(text) < 19 else parse_amount(text, units)
    if not isinstance(amount, int) or amount < 1:
        shown = escape(repr(value), 60)
        raise RecipeError(f"{option} {shown} is not an amount.", f"Write it like {examples}.")
    return amount


def _parse_amount(value: object) -> object:
    amount = parse_amount(value)
    if isinstance(amount, str):
        raise PydanticCustomError(
            "amount", "Input should be an integer or an amount such as 500K, 2M, 1.5B or 1T"
        )
    return amount


def _plain_name(value: str) -> str:
    # The name becomes a directory, whose name every file system must accept.
    if not all(c.isalnum() or c in "-_." for c in value):
        raise ValueError("use letters, digits, '-', '_' and '.' only")
    if _RESERVED.match(value) or value.endswith("."):
        raise ValueError("not every file system accepts this name; choose another")
    if len(value.encode()) > _MOST_NAME_BYTES:
        raise ValueError(f"use at most {_MOST_NAME_BYTES} bytes")
    return value


def safe_name(text: str) -> str:
    """Turn any text, such as a file's name or a Hub id, into a valid name of a run."""
    name = re.sub(r"[^\w.-]+", "-", text).strip("-.")
    if _RESERVED.match(name):
        name = f"run-{name}"
    name = (
        name[:_MOST_NAME_CHARACTERS]
        .encode(errors="ignore")[:_MOST_NAME_BYTES]
        .decode(errors="ignore")
    )
    return name.rstrip("-.") or "run"


def name_of_model(model: str) -> str:
    """Name a run after a Hub id without its owner, a directory, or ``embedded:demo``."""
    return safe_name(re.split(r"[/\\]", model.rstrip("/\\"))[-1])


def _distinct(value: list[int]) -> list[int]:
    if len(set(value)) < len(value):
        raise ValueError("give each seed only once: the same seed gives the same training")
    return value


def writable(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the mapping, or raise ValueError if it holds NaN or infinity, which JSON lacks."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError("every number in it must be finite, since JSON has no others") from None
    return value


def _amount_schema(least: int) -> WithJsonSchema:
    integer = {"type": "integer", "minimum": least, "maximum": _LARGEST}
    return WithJsonSchema({"anyOf": [integer, {"type": "string", "pattern": _AMOUNT}]})


Amount = Annotated[
    int, Field(ge=1, le=_LARGEST), BeforeValidator(_parse_amount), _amount_schema(least=1)
]
AmountOrZero = Annotated[
    int, Field(ge=0, le=_LARGEST), BeforeValidator(_parse_amount), _amount_schema(least=0)
]
Name = Annotated[
    str, Field(min_length=1, max_length=_MOST_NAME_CHARACTERS), AfterValidator(_plain_name)
]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, le=_LARGEST)]
Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)]
Only = Annotated[list[str], Field(min_length=1)]
Switch = Literal["auto", "on", "off"]
Multiple = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,2}x$")]


class RecipeSection(BaseModel):
    """Base class of recipe sections: immutable, strictly typed, without unknown keys.

    The docstring below a key is its description in the JSON Schema and the documentation.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )
