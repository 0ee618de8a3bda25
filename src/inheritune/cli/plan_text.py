"""Lay plans out as tables, with explanations below."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from inheritune.errors import listed
from inheritune.model_files.config import Edit
from inheritune.model_files.training_memory import SAVED_BYTES_PER_S
from inheritune.planning.candidates import Candidate, Candidates, CutPlan
from inheritune.planning.cluster import ClusterPlan
from inheritune.planning.recipe_plan import RecipePlan
from inheritune.planning.trainings import PlannedTraining
from inheritune.reporting.quantities import (
    MISSING,
    amount,
    counted,
    data_size,
    duration,
    epochs,
    exact,
    flops,
    money,
)
from inheritune.reporting.table import Column, Field, Table
from inheritune.surgery.selection import describe_selection
from inheritune.system.devices import Price, Speed

_MAX_VALUE = 60  # characters of a config value


def candidates_table(plan: Candidates) -> Table:
    """Make a table of a reference with every number of layers worth considering."""
    notes = [
        *problems(plan),
        *unsafe_cuts(plan),
        *plan.notes,
        *_size_notes(plan),
        _cache_note(plan),
        _flops_note(plan),
        *_time_note(plan),
        "A cut is safe if the config can be cut there and no pattern of layers is broken off; the "
        "second is advice. Of one cut, plan and `inherit` also ask the model's class.",
    ]
    return _table(plan, notes)


def problems(plan: Candidates | CutPlan) -> list[str]:
    """Say what later steps would refuse, and where the target would not be the same."""
    table = plan.table if isinstance(plan, CutPlan) else plan
    found = [] if table.problem is None else [f"no training: {table.problem}"]
    if isinstance(plan, CutPlan) and plan.by_number:
        found.append(f"elsewhere: {plan.by_number}.")
    return found


def cut_table(plan: CutPlan) -> Table:
    """Make a table of one cut, with what it reads, writes and changes."""
    table, candidate = plan.table, plan.candidate
    files = [f"{name}, {data_size(size)}" for name, size in plan.shards.items()]
    if len(files) > 5:
        files = [*files[:4], f"and {len(files) - 4} more"]
    notes = [
        *([plan.goal] if plan.goal else []),
        *problems(plan),
        *table.notes,
        f"kept: {describe_selection(plan.kept)} of {table.layers}; {candidate.cut.reason}",
        f"copied: {data_size(candidate.counts.bytes)} in {counted(plan.ranges, 'byte range')}"
        + download(candidate.download_bytes),
        f"written: {'; '.join(files)}; beside them {listed(plan.side_files) or 'no other files'}",
        *([f"left behind: {listed(plan.left_behind)}"] if plan.left_behind else []),
        *_edit_notes(plan.edits),
    ]
    if plan.dropped_prediction:
        names = plan.dropped_prediction
        notes.append(
            f"dropped: {counted(len(names), 'tensor')} of multi-token-prediction layers, such as "
            f"{names[0]}: they read the output of the whole model."
        )
    notes.append(f"class: {plan.check}.")
    return _table(table, [*notes, _cache_note(table), _flops_note(table), *_time_note(table)])


def recipe_tables(plan: RecipePlan) -> list[Table]:
    """Make a table of a recipe's trainings, and one of their time on usual devices.

    The second is missing if devices were named. Notes stand below the last table.
    """
    title = (
        f"{plan.name}: {plan.reference}, {plan.reference_layers} layers, "
        f"{amount(plan.reference_params)} parameters{download(plan.download_bytes)}"
    )
    notes = recipe_notes(plan)
    more = _hours_table(plan, notes) or _clusters_table(plan, notes)
    trainings = _trainings_table(plan, title, [] if more else notes)
    return [trainings, more] if more else [trainings]


def _clusters_table(plan: RecipePlan, notes: Sequence[str]) -> Table | None:
    """Make a table with a row for each number of devices; None where one device was named."""
    if not plan.clusters:
        return None
    priced = plan.clusters[0].dollars is not None
    fields: list[tuple[bool, Field]] = [
        (True, (Column("devices", show=exact), "devices")),
        (True, (Column("a copy on", show=exact, dispensable=1), "shards")),
        (True, (Column("memory each", show=data_size), "memory.total")),
        (True, (Column("micro-batch", dispensable=2), _micro_batch)),
        (True, (Column("fits"), lambda row: "yes" if row.fits else row.change or "no")),
        (True, (Column("time", show=lambda hours: duration(3600 * hours)), "hours")),
        (True, (Column("device hours", show=lambda hours: f"{hours:,.0f}"), "device_hours")),
        (priced, (Column("price", show=lambda paid: f"${paid:,.0f}"), "dollars")),
        (True, (Column("waits", show=_share, dispensable=3), "waiting")),
        (True, (Column("lost", show=_share, dispensable=2), "lost")),
        (True, (Column("one save", show=duration, dispensable=4), "save_s")),
    ]
    shown = [field for is_shown, field in fields if is_shown]
    title = "projected for more devices: bytes are counted, speeds assumed"
    return Table.of("clusters", plan.clusters, shown, [*_cluster_notes(plan), *notes], title)


def _micro_batch(row: ClusterPlan) -> str:
    return exact(row.micro_batch) + ", recomputed" * row.recomputes


def _share(share: float) -> str:
    return f"{share:.1%}"


def _cluster_notes(plan: RecipePlan) -> list[str]:
    last = plan.clusters[-1]
    return [
        f"{last.devices:,} devices lose the least with train.save_minutes "
        f"{last.best_save_minutes:.0f}; they read {data_size(last.text_bytes_per_s)}/s of text.",
        "waits: share of the time for which the network is slower than the computation, which "
        "otherwise hides it; lost: for checkpoints, failures and restarts of ten minutes. "
        "--mtbf and --network name what is known of the machines.",
    ]


# --- Tables ---------------------------------------------------------------------------------


def _table(plan: Candidates, notes: Sequence[str]) -> Table:
    has_experts = any(c.counts.active != c.counts.params for c in plan.candidates)
    downloads = any(c.download_bytes for c in plan.candidates)
    training = plan.candidates[0].training
    is_priced = training is not None and training.dollars is not None
    fields: list[tuple[bool, Field]] = [
        (True, (Column("layers", show=exact), "layers")),
        (True, (Column("params", show=amount), "counts.params")),
        (has_experts, (Column("active", show=amount, dispensable=2), "counts.active")),
        (True, (Column("size", show=data_size), "counts.bytes")),
        (downloads, (Column("to download", show=data_size, dispensable=3), "download_bytes")),
        (True, (Column("cache/token", show=data_size, dispensable=4), "cache.bytes_per_token")),
        (True, (Column("FLOPs/token", show=flops, dispensable=5), "counts.flops_per_token")),
        (training is not None, (Column("time", show=hours_of), "training")),
        (is_priced, (Column("price", show=dollars), "training")),
        (True, (Column("safe cut"), _verdict)),
    ]
    shown = [field for is_shown, field in fields if is_shown]
    commit = f" at {plan.revision[:12]}" if plan.revision else ""
    dtype = f", {plan.dtype}" if plan.dtype else ""
    title = f"{plan.reference}{commit}: {plan.model_type}, {plan.layers} layers{dtype}"
    return Table.of("candidates", plan.candidates, shown, notes, title)


def _verdict(candidate: Candidate) -> str:
    cut = candidate.cut
    if not cut.is_safe:
        return "better not" if cut.allowed else "no"
    return "yes (half: the paper's start)" if candidate.is_paper_default else "yes"


def unsafe_cuts(plan: Candidates) -> list[str]:
    """Say of each cut that is not safe why, a sentence each."""
    return [
        f"{counted(c.layers, 'layer')}: {c.cut.reason.rstrip('.')}."
        for c in plan.candidates
        if not c.cut.is_safe
    ]


def _trainings_table(plan: RecipePlan, title: str, notes: Sequence[str]) -> Table:
    fields: list[Field] = [
        (Column("training"), _name),
        (Column("layers", show=exact), "layers"),
        (Column("params", show=amount), "params"),
        (Column("size", show=data_size, dispensable=2), "bytes"),
        (Column("tokens", show=amount), "tokens"),
        (Column("steps", show=exact, dispensable=4), "steps"),
        (Column("epochs", show=epochs, dispensable=3), "epochs"),
        (Column("FLOPs", show=flops, dispensable=5), "flops"),
    ]
    if plan.speed is not None:
        fields.append((Column("time", show=hours_of), "price"))
    if plan.speed is not None and plan.speed.rate is not None:
        fields.append((Column("price", show=dollars), "price"))
    return Table.of("trainings", plan.trainings, fields, notes, title)


def _hours_table(plan: RecipePlan, notes: Sequence[str]) -> Table | None:
    """Lay out the time of each training on each of the usual devices, if none was named."""
    if plan.speed is not None:
        return None
    costs = [(_name(training), training.flops) for training in plan.trainings]
    if plan.selection_flops:
        costs.append(("choice of layers", plan.selection_flops))
    columns = [Column("one device alone")]
    columns += [
        Column(
            speed.device.name, show=hours_of, dispensable=int(speed is not plan.usual_speeds[-1])
        )
        for speed in plan.usual_speeds
    ]
    values = [
        [name, *(speed.price(cost) for speed in plan.usual_speeds)]
        for name, cost in [*costs, ("together", plan.flops)]
    ]
    return Table("hours", columns, values, notes)


def _name(training: PlannedTraining) -> str:
    name = training.name if training.round is None else f"{training.name}, round {training.round}"
    return name if training.seed is None else f"{name}, seed {training.seed}"


# --- Notes ----------------------------------------------------------------------------------


def _size_notes(plan: Candidates) -> list[str]:
    least, most = plan.layer_params
    per_layer = amount(least) if least == most else f"{amount(least)} to {amount(most)}"
    notes = [
        f"parameters: {per_layer} per layer, {amount(plan.embedding)} looked up in embeddings; a "
        "tied head counts once.",
        f"layers: {plan.pattern}.",
    ]
    if plan.dropped_prediction:
        tensors = counted(plan.dropped_prediction, "tensor")
        notes.append(f"{tensors} of multi-token-prediction layers would be dropped.")
    return notes


def _cache_note(plan: Candidates) -> str:
    cache = plan.candidates[-1].cache
    note = f"cache/token: keys and values in {plan.dtype or 'F32'}"
    if cache.bytes_beyond_window != cache.bytes_per_token:
        window = f" of {cache.window:,} tokens" if cache.window else ""
        beyond = data_size(cache.bytes_beyond_window)
        return f"{note}, until windows{window} are full; {beyond} for each token after that."
    if not cache.bytes_per_token:
        return f"{note}: none; the layers keep a state of fixed size."
    return f"{note}."


def _flops_note(plan: Candidates) -> str:
    return (
        "FLOPs/token: 6 x (parameters used by a token, less the input embedding) + 6 x layers x "
        f"heads x head size x {plan.seq_len} (causal attention over {plan.seq_len} tokens)."
    )


def _time_note(plan: Candidates) -> list[str]:
    budget = plan.budget
    if budget.tokens is None or budget.speed is None:
        return []
    return [f"time: {amount(budget.tokens)} tokens. {_speed_note(budget.speed)}"]


def _speed_note(speed: Speed) -> str:
    device = speed.device
    return (
        f"assumed: {speed.count} x {device.title}, {device.peak_flops / 1e12:,.4g} TFLOP/s dense "
        f"{device.precision} at best, of which {speed.mfu:.0%} are reached; validation is extra."
    )


def recipe_notes(plan: RecipePlan) -> list[str]:
    """Explain a recipe's plan: rounds, cost, memory, disk, config edits, assumptions."""
    memory, disk, price = plan.memory, plan.disk, plan.price
    together = "" if price is None else f", {hours_of(price)}"
    if price is not None and price.dollars is not None:
        together += f", {dollars(price)}"
    parts = ", ".join(f"{part} {data_size(size)}" for part, size in asdict(memory).items() if size)
    places = ", ".join(f"{name} {data_size(size)}" for name, size in disk.items())
    disk_total = sum(size for size in disk.values() if size is not None)
    notes = [f"rounds: {plan.growth}.", f"together: {flops(plan.flops)} FLOPs{together}"]
    if plan.selection_flops:
        notes.append(f"choice of layers by scores: {flops(plan.selection_flops)} FLOPs of these")
    if plan.cost is not None:
        notes.append(
            f"cost: {money(plan.cost)} {plan.currency} at {money(plan.price_per_hour)} per hour of "
            "the machine, without validation and loading."
        )
    notes += [
        f"memory, estimated for the largest: {data_size(memory.total)} ({parts})",
        f"disk, estimated: {data_size(disk_total)} ({places})",
        f"one save, estimated: {data_size(plan.save_bytes)}, "
        f"{duration(plan.save_bytes / SAVED_BYTES_PER_S)} at {data_size(SAVED_BYTES_PER_S)}/s; "
        "stopping by a signal takes one step and one save.",
        *_edit_notes(plan.edits),
        *(f"{t.name}, {t.layers} layers: {t.made_of}" for t in plan.trainings if _is_made(t)),
    ]
    if plan.speed is not None:
        notes.append(_speed_note(plan.speed))
    else:
        usual = plan.usual_speeds
        notes += [
            f"cpu: {usual[-1].device.title}.",
            f"assumed: {usual[0].mfu:.0%} of the device's dense peak; an H200 multiplies as fast "
            "as an H100. Validation is extra. Choose yours with --device, --devices and --mfu.",
        ]
    notes += plan.notes
    if plan.commit is not None:
        notes.append(f"pinned: {plan.run} will use commit {plan.commit}.")
    return notes


def _is_made(training: PlannedTraining) -> bool:
    return bool(training.made_of) and training.seed is None


def _edit_notes(edits: Sequence[Edit]) -> list[str]:
    return [f"config: {e.key} {_short(e.before)} -> {_short(e.after)} ({e.reason})" for e in edits]


# --- Cells ----------------------------------------------------------------------------------


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 6:
        return f"[{len(value)} entries]"
    text = "removed" if value is None else str(value)
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}…"


def download(size: int) -> str:
    """Add what is still to be downloaded, if anything is."""
    return f", {data_size(size)} to download" if size else ""


def hours_of(price: Price | None) -> str:
    """Format the wall-clock time of a training."""
    return MISSING if price is None else duration(price.hours * 3600)


def dollars(price: Price | None) -> str:
    """Format what the devices cost; a dash without a rate."""
    return MISSING if price is None or price.dollars is None else f"${price.dollars:,.2f}"
