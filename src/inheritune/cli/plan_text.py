"""Plans as text: headers and rows for tables, and lines around them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from inheritune.model_files.config import Edit
from inheritune.planning.candidates import Candidate, Detail, Table
from inheritune.planning.memory import SAVED_BYTES_PER_S
from inheritune.planning.recipe_plan import RecipePlan
from inheritune.planning.trainings import PlannedTraining
from inheritune.reporting.quantities import MISSING, amount, data_size, duration, flops, money
from inheritune.surgery.selection import describe_selection
from inheritune.system.devices import Price, Speed

__all__ = ["Page", "candidates_page", "detail_page", "recipe_page"]

_LONGEST_VALUE = 60


@dataclass(frozen=True)
class Page:
    """What a plan looks like.

    Attributes:
        title: One line above.
        headers: Of the columns; the first is of words, the last too where `last_is_text`.
        rows: A text for each column.
        lines: Below the table.
        last_is_text: Whether the last column is of words.
        times: A second table of each training on usual devices, its headers first; may be empty.
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[str, ...]
    last_is_text: bool = True
    times: tuple[tuple[str, ...], ...] = ()


def candidates_page(table: Table) -> Page:
    """A reference with every number of layers worth a look."""
    return Page(
        title=_title(table),
        headers=_headers(table),
        rows=tuple(_row(table, candidate) for candidate in table.candidates),
        lines=(*_facts(table), _cache_line(table), _flops_line(table), *_time_line(table), *_GATE),
    )


_GATE = (
    "A cut is safe where the config can be cut and no pattern of layers is broken off; the second "
    "is advice. `inherit` also asks the model's class, which plan does not load.",
)


def detail_page(detail: Detail) -> Page:
    """One candidate from close up."""
    table, candidate = detail.table, detail.candidate
    files = [f"{name}, {data_size(size)}" for name, size in detail.shards.items()]
    some = [*files[:4], f"and {len(files) - 4} more"] if len(files) > 5 else files
    lines = [
        f"kept: {describe_selection(detail.kept)} of {table.layers}; {candidate.cut.reason}",
        f"copied: {data_size(candidate.counts.bytes)} in {_count(detail.ranges, 'range')} of bytes"
        + _download(candidate.download_bytes),
        f"written: {'; '.join(some)}",
        *_edit_lines(detail.edits),
    ]
    if detail.dropped_prediction:
        names = detail.dropped_prediction
        lines.append(
            f"dropped: {_count(len(names), 'tensor')} of multi-token-prediction layers, such as "
            f"{names[0]}: they read the last state of the full depth."
        )
    if detail.needs_class:
        lines.append(
            "Layers move: the model's class decides in `inherit` whether that is possible, and "
            "fields that it derives from a layer's number are then written out, too."
        )
    lines += [_cache_line(table), _flops_line(table), *_time_line(table)]
    return Page(
        _title(table), _headers(table), (_row(table, candidate),), tuple(line for line in lines)
    )


def recipe_page(plan: RecipePlan) -> Page:
    """A recipe's trainings, and what they take together."""
    headers = ["training", "layers", "params", "tokens", "steps", "epochs", "FLOPs"]
    headers += ["time"] if plan.speed is not None else []
    headers += ["price"] if plan.speed is not None and plan.speed.rate is not None else []
    memory, disk = plan.memory, plan.disk
    parts = ", ".join(f"{name} {data_size(size)}" for name, size in disk.items())
    known = sum(size for size in disk.values() if size is not None)
    lines = [
        f"rounds: {plan.growth}.",
        f"together: {flops(plan.flops)} FLOPs{_in_all(plan)}",
        *_cost_lines(plan),
        f"memory, estimated for the largest: {data_size(memory.total)} ("
        + ", ".join(f"{part} {data_size(size)}" for part, size in asdict(memory).items() if size)
        + ")",
        f"disk, estimated: {data_size(known)} ({parts})",
        f"one save, estimated: {data_size(plan.save_bytes)}, "
        f"{duration(plan.save_bytes / SAVED_BYTES_PER_S)} at {data_size(SAVED_BYTES_PER_S)}/s; a "
        "stop by a signal takes a save longer than the step it comes in.",
        *_edit_lines(plan.edits),
        *_start_lines(plan.trainings),
        *_speed_lines(plan.speed),
        *_usual_lines(plan),
        *plan.notes,
    ]
    if plan.commit is not None:
        lines.append(f"pinned: {plan.run} will use commit {plan.commit}.")
    return Page(
        title=f"{plan.name}: {plan.reference}, {plan.reference_layers} layers, "
        f"{amount(plan.reference_params)} parameters{_download(plan.download_bytes)}",
        headers=tuple(headers),
        rows=tuple(_training_row(plan, training) for training in plan.trainings),
        lines=tuple(lines),
        last_is_text=False,
        times=_times(plan),
    )


# -- rows


def _headers(table: Table) -> tuple[str, ...]:
    headers = ["layers", "params"]
    headers += ["active"] if _has_experts(table) else []
    headers += ["size"]
    headers += ["to download"] if _downloads(table) else []
    headers += ["cache/token", "FLOPs/token"]
    headers += ["time"] if table.candidates[0].training is not None else []
    headers += ["price"] if _has_price(table) else []
    return (*headers, "safe cut")


def _row(table: Table, candidate: Candidate) -> tuple[str, ...]:
    counts, training = candidate.counts, candidate.training
    row = [str(candidate.layers), amount(counts.params)]
    row += [amount(counts.active)] if _has_experts(table) else []
    row += [data_size(counts.bytes)]
    row += [data_size(candidate.download_bytes)] if _downloads(table) else []
    row += [data_size(candidate.cache.bytes_per_token), flops(counts.flops_per_token)]
    row += [_time(training)] if training is not None else []
    row += [_money(training)] if _has_price(table) else []
    return (*row, _verdict(candidate))


def _verdict(candidate: Candidate) -> str:
    cut = candidate.cut
    word = "yes" if cut.is_safe else "better not" if cut.allowed else "no"
    # Where all are safe for one reason, a column of it says nothing.
    said = word if cut.is_safe and cut.complete and "whole" not in cut.reason else ""
    said = said or f"{word}: {cut.reason}"
    return f"{said} (half: the paper's start)" if candidate.is_paper_default else said


def _training_row(plan: RecipePlan, training: PlannedTraining) -> tuple[str, ...]:
    epochs = MISSING if training.epochs is None else f"{training.epochs:.2f}"
    row = [_name(training), str(training.layers), amount(training.params), amount(training.tokens)]
    row += [f"{training.steps:,}", epochs, flops(training.flops)]
    if plan.speed is not None:
        row.append(_time(plan.speed.price(training.flops)))
    if plan.speed is not None and plan.speed.rate is not None:
        row.append(_money(training.price))
    return tuple(row)


def _name(training: PlannedTraining) -> str:
    name = training.name if training.round is None else f"{training.name}, round {training.round}"
    return name if training.seed is None else f"{name}, seed {training.seed}"


def _times(plan: RecipePlan) -> tuple[tuple[str, ...], ...]:
    """Each training on each of the usual devices, where none was named."""
    if plan.speed is not None:
        return ()
    speeds = plan.usual_speeds

    def row(name: str, cost: float) -> tuple[str, ...]:
        return (name, *(_time(speed.price(cost)) for speed in speeds))

    rows = [row(_name(training), training.flops) for training in plan.trainings]
    names = ("one device alone", *(speed.device.name for speed in speeds))
    return (names, *rows, row("together", plan.flops))


def _has_experts(table: Table) -> bool:
    return any(c.counts.active != c.counts.params for c in table.candidates)


def _downloads(table: Table) -> bool:
    return any(candidate.download_bytes for candidate in table.candidates)


def _has_price(table: Table) -> bool:
    training = table.candidates[0].training
    return training is not None and training.dollars is not None


# -- lines


def _title(table: Table) -> str:
    commit = f" at {table.revision[:12]}" if table.revision else ""
    dtype = f", {table.dtype}" if table.dtype else ""
    return f"{table.reference}{commit}: {table.model_type}, {table.layers} layers{dtype}"


def _facts(table: Table) -> list[str]:
    least, most = table.layer_params
    of_a_layer = amount(least) if least == most else f"{amount(least)} to {amount(most)}"
    said = [
        f"parameters: {of_a_layer} a layer, {amount(table.embedding)} looked up in embeddings; a "
        "tied head counts once.",
        f"layers: {table.pattern}.",
    ]
    if table.dropped_prediction:
        said.append(
            f"{_count(table.dropped_prediction, 'tensor')} of multi-token-prediction layers "
            "would be dropped."
        )
    return said


def _cache_line(table: Table) -> str:
    cost = table.candidates[-1].cache
    said = f"cache/token: keys and values in {table.dtype or 'F32'}"
    if cost.bytes_beyond_window != cost.bytes_per_token:
        window = f" of {cost.window:,} tokens" if cost.window else ""
        beyond = data_size(cost.bytes_beyond_window)
        return f"{said}, until windows{window} are full; {beyond} for each token beyond them."
    if not cost.bytes_per_token:
        return f"{said}: none; the layers keep a state of fixed size."
    return f"{said}."


def _flops_line(table: Table) -> str:
    return (
        "FLOPs/token: 6 x (parameters used by a token, less the input embedding) + 6 x layers x "
        f"heads x head size x {table.seq_len} (causal attention over {table.seq_len} tokens)."
    )


def _time_line(table: Table) -> list[str]:
    budget = table.budget
    if budget.tokens is None or budget.speed is None:
        return []
    return [f"time: {amount(budget.tokens)} tokens. {_speed_lines(budget.speed)[0]}"]


def _speed_lines(speed: Speed | None) -> list[str]:
    if speed is None:
        return []
    device = speed.device
    return [
        f"assumed: {speed.count} x {device.title}, {device.peak_flops / 1e12:,.4g} TFLOP/s dense "
        f"{device.precision} at best, of which {speed.mfu:.0%} are reached; validation is extra."
    ]


def _usual_lines(plan: RecipePlan) -> list[str]:
    """What the times on usual devices assume, where none was named."""
    if plan.speed is not None:
        return []
    speeds = plan.usual_speeds
    return [
        f"cpu: {speeds[-1].device.title}.",
        f"assumed: {speeds[0].mfu:.0%} of the device's dense peak; an H200 multiplies as fast as "
        "an H100. Validation is extra. --device, --devices and --mfu say it for yours.",
    ]


def _start_lines(trainings: Sequence[PlannedTraining]) -> list[str]:
    """What variants begin with that are not the target, and not fresh weights alone."""
    first = [t for t in trainings if t.made_of and t.seed is None]
    return [f"{t.name}, {t.layers} layers: {t.made_of}" for t in first]


def _edit_lines(edits: Sequence[Edit]) -> list[str]:
    return [f"config: {e.key} {_short(e.before)} -> {_short(e.after)} ({e.reason})" for e in edits]


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 6:
        return f"[{len(value)} entries]"
    text = "removed" if value is None else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def _in_all(plan: RecipePlan) -> str:
    price = plan.price
    if price is None:
        return ""
    return f", {_time(price)}" + (f", {_money(price)}" if price.dollars is not None else "")


def _cost_lines(plan: RecipePlan) -> list[str]:
    if plan.cost is None:
        return []
    return [
        f"cost: {money(plan.cost)} {plan.currency} at {money(plan.price_per_hour)} an hour of the "
        "machine, without validation and loading."
    ]


def _download(size: int) -> str:
    return f", {data_size(size)} to download" if size else ""


def _time(price: Price | None) -> str:
    return MISSING if price is None else duration(price.hours * 3600)


def _money(price: Price | None) -> str:
    return MISSING if price is None or price.dollars is None else f"${price.dollars:,.2f}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
