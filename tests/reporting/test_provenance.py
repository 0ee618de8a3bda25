"""Where a run was made: the last start, and what earlier ones had that it had not."""

from typing import Any

from inheritune.reporting.provenance import provenance
from inheritune.run_record.record import RunRecord

typed = RunRecord.model_validate


def start(torch: str = "2.13.0", memory: int = 8_000_000_000, **more: Any) -> dict[str, Any]:
    machine = {"processor": "P", "cores": 2, "memory_bytes": memory, "system": "Linux"} | more
    return {"versions": {"torch": torch}, "machine": machine, "processes": 1}


def said_of(*earlier: dict[str, Any]) -> str | None:
    return dict(provenance(typed(start() | {"earlier": list(earlier)}))).get(
        "earlier starts, with other"
    )


def test_of_earlier_starts_only_what_was_other_is_said() -> None:
    assert said_of() is None
    two = said_of(start("2.12.0"), start("2.11.0", cores=4))
    assert two == "torch 2.12.0; torch 2.11.0, cores 4"
    assert said_of(start(memory=16_000_000_000)) == "memory 16 GB"


def test_what_cannot_be_seen_in_what_is_shown_leaves_no_trace() -> None:
    a_page_less = start(memory=8_000_000_000 - 4096)
    assert said_of(a_page_less) is None
    assert said_of(a_page_less, start("2.12.0"), start("2.12.0", memory=7_999_990_000)) == (
        "torch 2.12.0"
    )


def test_an_earlier_start_may_be_garbled() -> None:
    assert said_of({}, {"versions": [], "machine": "fast", "processes": None}) is None
