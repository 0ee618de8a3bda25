"""Make the table of what a target gains and loses: size, memory, speed and fidelity."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from inheritune.reporting.quantities import (
    MISSING,
    amount,
    data_size,
    exact,
    formatted,
    percent,
)
from inheritune.reporting.section import PageSection
from inheritune.reporting.speed_chart import quality_against_speed
from inheritune.reporting.table import Column, Field, Mark, Table
from inheritune.run_record.measurements import GainsRecord, SpeedRecord, SpreadRecord
from inheritune.run_record.record import RunRecord

GENERATING = "at generating text"  # what a speed is of
# A column, and the field of a fidelity that it shows.
_FIDELITY = (
    (Column("KL to the first", "nats/token", formatted(".4f")), "kl"),
    (Column("same likeliest token", "share", formatted(".4f")), "top1"),
    (Column("sum of min(p, q)", "share", formatted(".4f")), "overlap"),
)


def gains_table(gains: GainsRecord) -> Table:
    """Make a table with a row for each model; fidelity stands where it was measured."""
    fields: list[Field] = [
        (Column("model"), "name"),
        (Column("layers", show=exact), "layers"),
        (Column("parameters", show=amount), "params"),
        (Column("weights on disk", "bytes", data_size, self_explaining=True), "disk_bytes"),
        (Column("peak memory", "bytes", data_size, self_explaining=True), "peak_bytes"),
        (
            Column("cache per token", "bytes", data_size, self_explaining=True),
            "cache_bytes_per_token",
        ),
        (Column("prefill", "tokens/s", _spread(1)), "prefill"),
        (Column("decode", "tokens/s", _spread(1)), "decode"),
        (Column("first token", "ms", _spread(1000)), "first_token"),
    ]
    marks: dict[tuple[int, int], Mark] = {}
    if any(model.fidelity for model in gains.models):
        for column, key in _FIDELITY:
            for row, model in enumerate(gains.models):
                if model.fidelity and (error := getattr(model.fidelity, f"{key}_se")) is not None:
                    marks[row, len(fields)] = Mark(se=error)
            fields.append((column, _fidelity(key)))
    table = Table.of("gains", gains.models, fields, _notes(gains))
    return replace(table, marks=marks)


def gains_section(record: RunRecord) -> PageSection | None:
    """The page's section on size and speed; None where they were not measured."""
    if record.gains is None or not record.gains.models:
        return None
    sentence = gains_sentence(record.gains)
    text = [sentence] if sentence else []
    chart = quality_against_speed(record)
    charts = [chart] if chart else []
    return PageSection("gains", "Size and speed", text, charts, [gains_table(record.gains)])


def gains_sentence(gains: GainsRecord) -> str:
    """Say what the last model gains against the first; empty where the record does not tell."""
    parts = [f"{ratio:.2f} {what}" for what, ratio in gain_ratios(gains)]
    return f"Target against reference: {', '.join(parts)}." if parts else ""


def gain_ratios(gains: GainsRecord) -> list[tuple[str, float]]:
    """List what is compared, and the last model's value over the first's, where both are known."""
    if len(gains.models) < 2:
        return []
    reference, target = gains.models[0], gains.models[-1]
    pairs = [
        ("of the bytes on disk", target.disk_bytes, reference.disk_bytes),
        ("of the memory", target.peak_bytes, reference.peak_bytes),
        ("times the decode speed", target.decode.median, reference.decode.median),
    ]
    return [(what, new / old) for what, new, old in pairs if new is not None and old]


def gained_words(record: RunRecord) -> list[str]:
    """Say how much faster and smaller a target is: on disk where it was measured, else in weights.

    Nothing is said of what is not known.
    """
    ratios = {} if record.gains is None else dict(gain_ratios(record.gains))
    speed, size = ratios.get("times the decode speed"), ratios.get("of the bytes on disk")
    params, reference_params = record.target.params, record.reference.params
    if size is None and params and reference_params:
        size = params / reference_params
    words = [] if speed is None else [f"{speed:.2f}× as fast {GENERATING}"]
    if size is None or size == 1:
        return words
    return [*words, f"{percent(abs(1 - size))} {'smaller' if size < 1 else 'larger'}"]


def _spread(scale: float) -> Callable[[SpreadRecord], str]:
    """Make a function that shows a median with the lowest and highest value."""

    def show(spread: SpreadRecord) -> str:
        values = (spread.median, spread.low, spread.high)
        if any(value is None for value in values):
            return MISSING
        median, low, high = (_short((value or 0.0) * scale) for value in values)
        return f"{median} ({low} to {high})"

    return show


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.3g}"


def _fidelity(key: str) -> Callable[[SpeedRecord], Any]:
    return lambda model: None if model.fidelity is None else getattr(model.fidelity, key)


def _notes(gains: GainsRecord) -> list[str]:
    notes = [
        f"Plain transformers on {gains.device}, {gains.dtype}: prompts of {gains.prompt_tokens} "
        f"tokens and {gains.new_tokens} new ones, {gains.repeats} repeats of all models in turn; "
        "medians, with the lowest and the highest. Peak memory holds weights, cache and "
        "activations."
    ]
    if any(model.fidelity for model in gains.models):
        windows = next(model.fidelity.windows for model in gains.models if model.fidelity)
        notes.append(
            "p: the first model's distribution of the next token, q: another's. KL(p || q) and the "
            f"other two are means over {windows} validation windows in fp32, with standard errors."
        )
    return notes
