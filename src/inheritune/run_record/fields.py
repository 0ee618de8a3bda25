"""Define the kinds of values of run.json, and how its fields are declared."""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_TOO_LARGE = 1e100

T = TypeVar("T")


# --- kinds of values: whatever else stands in their place counts as missing ---


def finite_number(value: Any) -> int | float | None:
    """Return a number of which a product still fits into a float as it is, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < _TOO_LARGE else None  # no comparison holds for NaN


def _text(value: Any) -> Any:
    if isinstance(value, dict):  # an error, written as a mapping
        value = " ".join(str(value[part]) for part in ("message", "hint") if value.get(part))
    return value if value is None else str(value)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict | BaseModel)


def mapping_or_empty(value: Any) -> Any:
    """Return a mapping or a section as it is, else an empty mapping."""
    return value if _is_mapping(value) else {}


def _list_of(is_valid: Callable[[Any], bool]) -> BeforeValidator:
    return BeforeValidator(
        lambda value: [item for item in value if is_valid(item)] if isinstance(value, list) else []
    )


Number = Annotated[int | float | None, BeforeValidator(finite_number)]
Text = Annotated[str | None, BeforeValidator(_text)]
Flag = Annotated[bool, BeforeValidator(lambda value: value is True)]
Values = Annotated[dict[str, Any], BeforeValidator(mapping_or_empty)]
Texts = Annotated[list[str], _list_of(lambda item: isinstance(item, str))]
Numbers = Annotated[list[int | float], _list_of(lambda item: finite_number(item) is not None)]
Rows = Annotated[list[T], _list_of(_is_mapping)]
ByName = Annotated[dict[str, T], BeforeValidator(mapping_or_empty)]
Maybe = Annotated[T | None, BeforeValidator(lambda value: value if _is_mapping(value) else None)]


class Part(BaseModel):
    """A section of run.json. It is false where nothing of it is recorded."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _nothing_unless_a_mapping(cls, value: Any) -> Any:
        return mapping_or_empty(value)

    def __bool__(self) -> bool:
        return bool(self.model_fields_set)

    def as_json(self) -> dict[str, Any]:
        """The fields that are recorded, as JSON values; unknown ones included."""
        return self.model_dump(exclude_unset=True)


def key(description: str) -> Any:
    """Declare a value; None where it is missing."""
    return Field(default=None, description=description)


def flag(description: str) -> Any:
    """Declare a truth value; false where it is missing."""
    return Field(default=False, description=description)


def items(description: str) -> Any:
    """Declare a list; empty where it is missing."""
    return Field(default_factory=list, description=description)


def mapping(description: str) -> Any:
    """Declare a mapping; empty where it is missing."""
    return Field(default_factory=dict, description=description)


def part(kind: type[Part], description: str) -> Any:
    """Declare a section; false where it is missing."""
    return Field(default_factory=kind, description=description)
