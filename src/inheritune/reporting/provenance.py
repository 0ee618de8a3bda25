"""List where a result comes from: text, reference, machine, settings, recipe."""

import json
from typing import Any

from inheritune.recipe.load import leaves
from inheritune.reporting.quantities import (
    MISSING,
    amount,
    data_size,
    duration,
    exact,
    loss,
    percent,
)
from inheritune.run_record.fields import finite_number
from inheritune.run_record.record import RunRecord
from inheritune.run_record.trainings import ReferenceLoss, StartRecord


def facts_of_data(record: RunRecord) -> list[tuple[str, str]]:
    """List facts about the text that was trained and measured on, as names and values."""
    tokens = record.tokens
    return _known(
        ("source", _text(tokens.source, 500)),
        ("training tokens", exact(tokens.train_tokens)),
        ("validation tokens", exact(tokens.val_tokens)),
        ("documents", exact(tokens.documents)),
        ("of them held out", exact(tokens.val_documents)),
        ("validation windows", exact(record.benchmark.windows)),
        ("reference loss", _reference_loss(record.benchmark)),
        ("fingerprint", _text(tokens.fingerprint, 100)),
    )


def _reference_loss(measured: ReferenceLoss) -> str:
    if measured.val_loss is None:
        return ""
    spread = "" if measured.val_loss_se is None else f" ± {loss(measured.val_loss_se)}"
    bits = f", {measured.bits_per_byte:.3f} bits per byte" if measured.bits_per_byte else ""
    return f"{loss(measured.val_loss)}{spread} nats per token{bits}"


def overlap(record: RunRecord) -> list[str]:
    """Say how much of the held-out text is also in the training text."""
    measured = record.tokens.overlap
    if measured is None:
        return []
    sentences = []
    if measured.duplicate_documents is not None:
        share = percent(measured.duplicate_documents)
        sentences.append(f"{share} of held-out documents are also in the training text.")
    if measured.share is not None:
        length = f"{measured.ngram:.0f}-token" if measured.ngram else "token"
        sentences.append(
            f"{percent(measured.share)} of held-out {length} sequences also occur in the training "
            "text."
        )
    if measured.method:
        sentences.append(f"Measured as: {measured.method[:500]}.")
    return sentences


def provenance(record: RunRecord) -> list[tuple[str, str]]:
    """List dates, machine, versions and reference of the run, as names and values."""
    machine, reference = record.machine, record.reference
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return _known(
        ("started", _text(record.started_at)),
        ("finished", _text(record.finished_at)),
        ("time", duration(record.seconds)),
        ("status", _text(record.status)),
        ("exit code", _text(record.exit_code)),
        ("error", _text(record.error, 2000)),
        ("reference", _text(reference.model, 300)),
        ("reference parameters", amount(reference.params)),
        ("reference digest", _text(reference.digest, 200)),
        ("versions", versions[:500]),
        ("processor", _text(machine.get("processor"), 200)),
        ("cores", _text(machine.get("cores"))),
        ("memory", data_size(finite_number(machine.get("memory_bytes")))),
        ("device", _text(machine.get("device"))),
        ("system", _text(machine.get("system"), 200)),
        ("earlier starts, with other", "; ".join(_earlier_differences(record))[:500]),
    )


def _earlier_differences(record: RunRecord) -> list[str]:
    """List versions and hardware of earlier starts that differ from the last; equal ones once."""
    last = _environment(record)
    differences = [
        ", ".join(
            f"{key} {value}"
            for key, value in _environment(start).items()
            if value and last.get(key) != value
        )
        for start in record.earlier
    ]
    return list(dict.fromkeys(difference for difference in differences if difference))


def _environment(start: StartRecord) -> dict[str, str]:
    environment = {key: str(value) for key, value in start.versions.items()}
    environment["processes"] = _text(start.processes)
    environment |= {key: _text(start.machine.get(key)) for key in ("processor", "cores", "system")}
    if (memory := finite_number(start.machine.get("memory_bytes"))) is not None:
        environment["memory"] = data_size(memory)
    return environment


def settings(record: RunRecord) -> list[tuple[str, str, str]]:
    """List the settings in force: name, value, reason."""
    reasons = record.settings.get("reasons")
    reasons = reasons if isinstance(reasons, dict) else {}
    return [
        (key, _value(value), str(reasons.get(key, ""))[:500])
        for key, value in record.settings.items()
        if key != "reasons"
    ][:100]


def recipe(record: RunRecord) -> list[tuple[str, str, str]]:
    """List the resolved recipe: dotted key, value, origin."""
    values = [(".".join(map(str, path))[:200], v) for path, v in leaves(record.recipe) if path]
    return [(key, _value(v), str(record.origins.get(key, ""))) for key, v in values[:500]]


def _value(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))[:1000]


def _text(value: Any, limit: int = 1000) -> str:
    return "" if value is None else str(value)[:limit]


def _known(*pairs: tuple[str, str]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in pairs if value and value != MISSING]
