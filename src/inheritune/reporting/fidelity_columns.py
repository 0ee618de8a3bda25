"""Columns on how close each model's predictions are to its reference's, for every table."""

from collections.abc import Sequence
from typing import Any

from inheritune.reporting.quantities import formatted
from inheritune.reporting.table import Column, Field, Mark
from inheritune.run_record.trainings import TrainedModel

NOTE = (
    "Closeness to the reference, as means over all validation windows with standard errors. With p "
    "and q, the next-token distributions of reference and model: KL(p || q); how often both have "
    "the same likeliest token; sum of min(p, q), the share of the model's tokens that speculative "
    "decoding would keep."
)
_share = formatted(".3f")
_FIELDS = (
    (Column("KL to the reference", "nats", _share), "kl"),
    (Column("same likeliest token", show=_share), "top1"),
    (Column("sum of min(p, q)", show=_share), "overlap"),
)


def has_fidelity(rows: Sequence[TrainedModel]) -> bool:
    """Whether any of the models was compared."""
    return any(row.fidelity for row in rows)


def fidelity_fields(rows: Sequence[TrainedModel], short: bool = False) -> list[Field]:
    """Three columns, or in short the divergence; none where no model was compared."""
    if not has_fidelity(rows):
        return []
    if short:
        return [(Column("KL", show=_share), _value("kl"))]
    return [(column, _value(key)) for column, key in _FIELDS]


def fidelity_marks(rows: Sequence[TrainedModel], first: int) -> dict[tuple[int, int], Mark]:
    """Standard errors of these columns, of which the first has the index ``first``."""
    return {
        (place, first + offset): Mark(se=error)
        for place, row in enumerate(rows)
        for offset, (_, key) in enumerate(_FIELDS)
        if row.fidelity and (error := getattr(row.fidelity, f"{key}_se")) is not None
    }


def _value(key: str) -> Any:
    return lambda row: None if row.fidelity is None else getattr(row.fidelity, key)
