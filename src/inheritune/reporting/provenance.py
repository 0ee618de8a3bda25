"""Where a result comes from: text, reference, machine, settings, recipe."""

import json
from typing import Any

from inheritune.reporting.quantities import (
    MISSING,
    amount,
    data_size,
    duration,
    exact,
    loss,
    percent,
)
from inheritune.reporting.record import Record, number, rows, section, text

__all__ = ["facts_of_data", "overlap", "provenance", "recipe", "settings"]


def facts_of_data(record: Record) -> list[tuple[str, str]]:
    """The text that was trained and measured on, as names and values."""
    tokens = section(record, "tokens")
    return _known(
        ("source", text(tokens, "source")[:500]),
        ("training tokens", exact(number(tokens, "train_tokens"))),
        ("validation tokens", exact(number(tokens, "val_tokens"))),
        ("documents", exact(number(tokens, "documents"))),
        ("of them held out", exact(number(tokens, "val_documents"))),
        ("validation windows", exact(number(section(record, "benchmark"), "windows"))),
        ("benchmark", _benchmark(section(record, "benchmark"))),
        ("fingerprint", text(tokens, "fingerprint")[:100]),
    )


def _benchmark(benchmark: Record) -> str:
    value, error = number(benchmark, "val_loss"), number(benchmark, "val_loss_se")
    bits = number(benchmark, "bits_per_byte")
    if value is None:
        return ""
    spread = "" if error is None else f" ± {loss(error)}"
    return f"{loss(value)}{spread} nats per token" + (f", {bits:.3f} bits per byte" if bits else "")


def overlap(record: Record) -> list[str]:
    """Sentences on how much of the held-out text is also in the training text."""
    measured = section(section(record, "tokens"), "overlap")
    found = []
    documents, share = number(measured, "duplicate_documents"), number(measured, "share")
    if documents is not None:
        found.append(f"{percent(documents)} of held-out documents are also in the training text.")
    if share is not None:
        length = number(measured, "ngram")
        of = f"{length:.0f}-token sequences" if length else "token sequences"
        found.append(f"{percent(share)} of held-out {of} also occur in the training text.")
    if measured and text(measured, "method"):
        found.append(f"Measured as: {text(measured, 'method')[:500]}")
    return found


def provenance(record: Record) -> list[tuple[str, str]]:
    """When, where and with what the run was made, as names and values."""
    machine, reference = section(record, "machine"), section(record, "reference")
    versions = section(record, "versions")
    return _known(
        ("started", text(record, "started_at")),
        ("finished", text(record, "finished_at")),
        ("time", duration(number(record, "seconds"))),
        ("status", text(record, "status")),
        ("exit code", text(record, "exit_code")),
        ("error", text(record, "error")[:2000]),
        ("reference", text(reference, "model")[:300]),
        ("reference parameters", amount(number(reference, "params"))),
        ("reference digest", text(reference, "digest")[:200]),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())[:500]),
        ("processor", text(machine, "processor")[:200]),
        ("cores", text(machine, "cores")),
        ("memory", data_size(number(machine, "memory_bytes"))),
        ("device", text(machine, "device")),
        ("system", text(machine, "system")[:200]),
        ("earlier starts, with other", "; ".join(_elsewhere(record))[:500]),
    )


def _elsewhere(record: Record) -> list[str]:
    """Of each environment of earlier starts, what the last start did not have; each once."""
    now = _environment(record)
    told = [
        ", ".join(
            f"{key} {value}"
            for key, value in _environment(was).items()
            if value and now.get(key) != value
        )
        for was in rows(record, "earlier")
    ]
    return list(dict.fromkeys(other for other in told if other))


def _environment(start: Record) -> dict[str, str]:
    machine = section(start, "machine")
    versions = {key: str(value) for key, value in section(start, "versions").items()}
    known = {key: text(machine, key) for key in ("processor", "cores", "system")}
    if (memory := number(machine, "memory_bytes")) is not None:
        known["memory"] = data_size(memory)
    return versions | {"processes": text(start, "processes")} | known


def settings(record: Record) -> list[tuple[str, str, str]]:
    """The settings in force: name, value, reason."""
    chosen = section(record, "settings")
    reasons = section(chosen, "reasons")
    return [
        (key, _value(value), str(reasons.get(key, ""))[:500])
        for key, value in chosen.items()
        if key != "reasons"
    ][:100]


def recipe(record: Record) -> list[tuple[str, str, str]]:
    """The resolved recipe: dotted key, value, origin."""
    origins = section(record, "origins")
    flat = _flattened(section(record, "recipe"), "")
    return [(key, value, str(origins.get(key, ""))) for key, value in flat][:500]


def _flattened(value: dict[str, Any], prefix: str) -> list[tuple[str, str]]:
    found = []
    for key, item in value.items():
        path = f"{prefix}{key}"[:200]
        if isinstance(item, dict) and item:
            found.extend(_flattened(item, f"{path}."))
        else:
            found.append((path, _value(item)))
    return found


def _value(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))[:1000]


def _known(*pairs: tuple[str, str]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in pairs if value and value != MISSING]
