"""Verify that a model loads, runs, and computes what its reference computes."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from inheritune.errors import SourceError, escape
from inheritune.model_files.directory import ModelDirectory
from inheritune.surgery.class_check.ask_class import ask_class, check_cut, check_whole
from inheritune.surgery.class_check.tokenizer_ids import PROBES
from inheritune.surgery.plan import InheritPlan, stored_dtype
from inheritune.surgery.repaired import repaired_names
from inheritune.training.tokenization import compare_tokenization


@dataclass(frozen=True)
class Finding:
    """The result of verifying one part; a difference raises an error instead."""

    part: str  # ``"bytes"``, ``"config"``, ``"class"``, ...
    text: str  # the result in words, or why the part was not checked
    proven: bool = True  # whether the part was checked
    loader: str | None = None  # what a user loads the model with; None: another part


def check_class(
    target: ModelDirectory, reference: ModelDirectory | None, plan: InheritPlan | None
) -> Finding:
    """Check a target against its class, and its layers against the reference's if there is one."""
    if reference is None or plan is None:
        check = check_whole(target)
    else:
        check = check_cut(reference, plan.layer_map, plan.config, plan.tensors)
    return Finding("class", check.summary, proven=not check.skipped)


def check_tokenizer(target: ModelDirectory) -> Iterator[Finding]:
    """Compare the ids that transformers gives with those that text is prepared with."""
    if (found := compare_tokenization(target.path)) is not None:
        same = f"transformers gives the ids of prepared text for {len(PROBES)} texts, and its BOS"
        text = " ".join(found.differences) or same
        yield Finding("tokenizer", text, proven=not found.differences)


def run_target(
    target: ModelDirectory,
    record: Mapping[str, Any],
    reference: ModelDirectory | None,
    trained: bool,
) -> Iterator[Finding]:
    """Load a target as a user would, run it, and compare its layers' outputs with the reference's.

    Args:
        record: Content of its inherit.json; empty if it has none.
        trained: Whether its weights were trained since, so that its outputs differ.
    """
    check = check_whole(target)
    if check.skipped:
        yield Finding("reload", check.summary, proven=False)
        return
    loaded = ask_class("reload", directory=str(target.path.resolve()))
    if extra := loaded["unexpected"]:
        text = f"{loaded['class']}, {len(extra)} left-over tensors such as {escape(extra[0])}"
    else:
        text = f"{loaded['class']}, no tensor missing or left over"
    head = f"; head {'tied' if loaded['tied'] else 'untied'}" if loaded["gives"] == "logits" else ""
    head = head or "; no language-model head"
    yield Finding("reload", f"{text}; {loaded['gives']} finite{head}", loader=loaded["loader"])
    yield _judge_cache(loaded, reference)
    yield _compare_outputs(target, record, reference, trained)


def _judge_cache(loaded: Mapping[str, Any], reference: ModelDirectory | None) -> Finding:
    if loaded["cache"] is None:
        return Finding("cache", "not compared: the class keeps none for keys", proven=False)
    if loaded["cache_agrees"]:
        return Finding("cache", "the logits with it are those without")
    apart = f"{loaded['class']} gives logits {loaded['cache']:.1%} apart with its cache"
    if math.isinf(loaded["cache"]):
        apart = f"{loaded['class']} does not run with its cache"
    if reference is None or not _is_whole(reference):
        return Finding("cache", f"{apart}; the reference may do so, too", proven=False)
    # Some classes are inexact with a cache: that is no fault of the cut.
    if ask_class("reload", directory=str(reference.path.resolve()))["cache_agrees"]:
        raise SourceError(f"{apart}; the reference does not.", "Choose other layers.")
    return Finding("cache", f"{apart}, as in the reference", proven=False)


def _is_whole(reference: ModelDirectory) -> bool:
    return not reference.missing_bytes(reference.tensors.values())


def _compare_outputs(
    target: ModelDirectory,
    record: Mapping[str, Any],
    reference: ModelDirectory | None,
    trained: bool,
) -> Finding:
    places = None if reference is None else _unchanged_layers(target, record)
    dtypes = [stored_dtype([*m.tensors.values()]) for m in (target, reference) if m is not None]
    obstacles = {
        "the reference was not named": reference is None,
        "the target was trained": trained,
        "no layer is as in the reference": places == [],
        f"its weights were cast to {record.get('dtype') or dtypes[0]}": len(set(dtypes)) > 1,
        "parts of it are fresh": record.get("parts") != "all",
        "the reference is not whole on this machine": reference is not None
        and not _is_whole(reference),
    }
    if reason := next((text for text, holds in obstacles.items() if holds), None):
        return Finding("function", f"not compared: {reason}", proven=False)
    assert reference is not None
    text = ask_class(
        "compare_outputs",
        target=str(target.path.resolve()),
        reference=str(reference.path.resolve()),
        layer_map=record["layer_map"],
        places=places,
        text_only=reference.text_only,
    )
    if text is None:
        return Finding("function", "not compared: the class skips layers for text", proven=False)
    return Finding("function", str(text))


def _unchanged_layers(target: ModelDirectory, record: Mapping[str, Any]) -> list[int] | None:
    """List the layers that are as in the reference; None: all, and what is around them.

    The others were repaired, or trained before the target was grown or patched.
    """
    entries = record.get("tensors", {})
    own = {name for name, entry in entries.items() if entry.get("from") == "target"}
    if not (changed := own | repaired_names(dict(record))):
        return None
    layers = {target.container.layer_of(name) for name in changed}
    return [layer for layer in range(target.layers) if layer not in layers]
