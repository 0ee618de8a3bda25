"""Answer what a user asks of a plan first: what, how long, how much, does it fit."""

from inheritune.cli.plan_text import dollars, download, hours_of, problems, unsafe_cuts
from inheritune.model_files.training_memory import BYTES_PER_PARAMETER
from inheritune.planning.candidates import Candidate, Candidates, CutPlan
from inheritune.planning.recipe_plan import RecipePlan
from inheritune.reporting.quantities import (
    MISSING,
    amount,
    counted,
    data_size,
    duration,
    flops,
    money,
)
from inheritune.surgery.selection import describe_selection
from inheritune.system.devices import Speed
from inheritune.system.memory import training_memory

_ROOM_FOR_ACTIVATIONS = 1.25
_QUESTIONS = ("what", "time", "cost", "fits")


def answers(plan: Candidates | CutPlan | RecipePlan) -> list[str]:
    """Answer the first questions, a line each: what, how long, how much, does it fit."""
    if isinstance(plan, RecipePlan):
        lines = _recipe_answers(plan)
    elif isinstance(plan, CutPlan):
        lines = _cut_answers(plan.table, plan.candidate, describe_selection(plan.kept))
    else:
        lines = _cut_answers(
            plan, plan.proposed, f"proposed: {counted(plan.proposed.layers, 'layer')}"
        )
    return [f"{label + ':':6}{text}" for label, text in zip(_QUESTIONS, lines, strict=True)]


def _cut_answers(plan: Candidates, candidate: Candidate, layers: str) -> list[str]:
    counts, whole = candidate.counts, plan.layers
    price, speed = candidate.training, plan.budget.speed
    if price is None or speed is None:
        time = (
            f"{flops(counts.flops_per_token)} FLOPs per training token; hours: --tokens, --device"
        )
    else:
        time = f"{hours_of(price)} for {amount(plan.budget.tokens)} tokens on {_devices(speed)}"
    paid = "" if price is None or price.dollars is None else f", {dollars(price)}"
    training = BYTES_PER_PARAMETER * counts.params
    verdict = _verdict_on_memory(training, speed, _ROOM_FOR_ACTIVATIONS)
    return [
        f"{layers} of {whole}: {amount(counts.params)} parameters",
        time,
        f"{data_size(counts.bytes)} on disk{download(candidate.download_bytes)}{paid}",
        f"{data_size(candidate.bytes_in_use(plan.seq_len))} to use; {data_size(training)} + "
        f"activations to train{verdict}",
    ]


def _recipe_answers(plan: RecipePlan) -> list[str]:
    tokens = sum(training.tokens for training in plan.trainings)
    if plan.price is not None and plan.speed is not None:
        time = f"{hours_of(plan.price)} on {_devices(plan.speed)}"
    else:
        times = [
            f"{hours_of(s.price(plan.flops))} on one {s.device.name}" for s in plan.usual_speeds
        ]
        time = f"{times[0]}, {times[-1]}"
    paid = dollars(plan.price) if plan.price is not None else MISSING
    if plan.cost is not None:
        paid = f"{money(plan.cost)} {plan.currency}"
    disk = sum(size for size in plan.disk.values() if size is not None)
    return [
        f"{counted(len(plan.trainings), 'training')}, {amount(tokens)} tokens together",
        time,
        f"{data_size(disk)} on disk" + (f", {paid}" if paid != MISSING else ""),
        _recipe_fits(plan),
    ]


def _recipe_fits(plan: RecipePlan) -> str:
    needed, speed = plan.memory.total, plan.speed
    words = f"{data_size(needed)} for the largest training"
    if speed is None or plan.room is None:
        return words + _verdict_on_memory(needed, speed)
    if speed.count > 1:
        words += ", on each device"
    words += f", of {data_size(plan.room)} that it can use"
    if needed <= plan.room:
        return f"{words}: yes"
    if plan.change is None:
        return f"{words}: does not fit, on up to 1,024 devices either"
    changed = plan.change.plan
    paid = changed.dollars
    return (
        f"{words}: does not fit. It does with {plan.change.text}: "
        f"{data_size(changed.memory.total)}, {duration(3600 * changed.hours)}"
        + ("" if paid is None else f", ${paid:,.0f}")
    )


def _devices(speed: Speed) -> str:
    return f"{speed.count} x {speed.device.title}" if speed.count > 1 else speed.device.title


def _verdict_on_memory(needed: int, speed: Speed | None, spare: float = 1.0) -> str:
    """Compare bytes with the memory of the named devices, over which a training is sharded.

    Where none is named, or ``cpu``: with that of this machine.

    Args:
        spare: Factor on the need below which it is called tight, since not all of it is counted.
    """
    if speed is not None and speed.device.memory_bytes is not None:
        room = speed.device.memory_bytes * speed.count
        words = data_size(room)
    else:
        here, is_on_gpu = training_memory()
        if here is None:
            return ""
        room, words = here, f"{data_size(here)} free"
        if is_on_gpu:
            words = f"the GPU's {data_size(here)}"
    verdict = "no" if needed > room else "tight" if needed * spare > room else "yes"
    return f", of {words}: {verdict}"


def warnings(plan: Candidates | CutPlan | RecipePlan) -> list[str]:
    """List what may surprise, which is said even where the figures are not explained."""
    if isinstance(plan, RecipePlan):
        return [f"rounds: {plan.growth}.", *plan.notes]
    if isinstance(plan, CutPlan):
        goal = [plan.goal] if plan.goal else []
        return [*goal, *problems(plan), *unsafe_cuts(plan.table), *plan.table.notes]
    return [*problems(plan), *unsafe_cuts(plan), *plan.notes]
