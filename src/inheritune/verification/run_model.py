"""Proof that a target loads, runs, and computes what its reference does."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from inheritune.errors import SourceError, escape
from inheritune.model_files.directory import ModelDirectory
from inheritune.surgery.class_check.ask_class import ask, check_cut, check_whole
from inheritune.surgery.plan import InheritPlan

__all__ = ["Finding", "ask_class", "run_target"]


@dataclass(frozen=True)
class Finding:
    """One part of the proof.

    Attributes:
        part: What was looked at.
        text: What was found, or why it was not looked at.
        proven: False where it was not looked at.
    """

    part: str
    text: str
    proven: bool = True


def ask_class(
    target: ModelDirectory, reference: ModelDirectory | None, plan: InheritPlan | None
) -> Finding:
    """What the model's class says of a target, beside its reference where there is one."""
    if reference is None or plan is None:
        check = check_whole(target)
    else:
        check = str(check_cut(reference, plan.kept, plan.config, plan.tensors)["check"])
    return Finding("class", check, proven=not check.startswith("not checked"))


def run_target(
    target: ModelDirectory,
    record: Mapping[str, Any],
    reference: ModelDirectory | None,
    trained: bool,
) -> Iterator[Finding]:
    """Load a target as a user would, run it, and compare what its layers give with the reference.

    Raises:
        SourceError: It does not load or run, or gives something else.
    """
    check = check_whole(target)
    if check.startswith("not checked"):
        yield Finding("reload", check, proven=False)
        return
    found = ask("reload", directory=str(target.path.resolve()))
    if extra := found["unexpected"]:
        text = f"{found['class']}, {len(extra)} left-over tensors such as {escape(extra[0])}"
    else:
        text = f"{found['class']}, no tensor missing or left over"
    tied = "tied" if found["tied"] else "untied"
    yield Finding("reload", f"{text}; logits finite; head {tied}")
    yield _judge_cache(found, reference)
    yield _prove(target, record, reference, trained)


def _judge_cache(found: Mapping[str, Any], reference: ModelDirectory | None) -> Finding:
    if found["cache"] is None:
        return Finding("cache", "not compared: the class keeps none for keys", proven=False)
    if found["cache_agrees"]:
        return Finding("cache", "the logits with it are those without")
    apart = f"{found['class']} gives logits {found['cache']:.1%} apart with its cache"
    if math.isinf(found["cache"]):
        apart = f"{found['class']} does not run with its cache"
    if reference is None or not _is_whole(reference):
        return Finding("cache", f"{apart}; the reference may do so, too", proven=False)
    if ask("reload", directory=str(reference.path.resolve()))["cache_agrees"]:
        raise SourceError(f"{apart}; the reference does not.", "Choose other layers.")
    return Finding("cache", f"{apart}, as in the reference", proven=False)


def _is_whole(reference: ModelDirectory) -> bool:
    return not reference.missing_bytes(reference.tensors.values())


def _prove(
    target: ModelDirectory,
    record: Mapping[str, Any],
    reference: ModelDirectory | None,
    trained: bool,
) -> Finding:
    changed = {
        "the reference was not named": reference is None,
        "the target was trained": trained or "grown_from" in record,
        f"its weights were cast to {record.get('dtype')}": record.get("dtype") is not None,
        "parts of it are fresh": record.get("parts") != "all",
        "the reference is not whole on this machine": reference is not None
        and not _is_whole(reference),
    }
    if reason := next((text for text, holds in changed.items() if holds), None):
        return Finding("function", f"not compared: {reason}", proven=False)
    assert reference is not None
    text = ask(
        "prove",
        target=str(target.path.resolve()),
        reference=str(reference.path.resolve()),
        kept=record["layer_map"],
    )
    if text is None:
        return Finding("function", "not compared: the class skips layers for text", proven=False)
    return Finding("function", str(text))
