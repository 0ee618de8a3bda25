"""The stages of a run stand in run.json while it goes on."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_recipe import recipe_of

from inheritune.run.execute import execute
from inheritune.run_directory import Run
from inheritune.system.files import write_json
from inheritune.system.progress import Progress


@pytest.fixture(scope="module")
def seen(
    tiny_reference: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, list[Progress], list[dict[str, Any]]]:
    """A finished run, its events, and its record at each of them."""
    run = Run(tmp_path_factory.mktemp("stages") / "tiny")
    events: list[Progress] = []
    records: list[dict[str, Any]] = []

    def listen(progress: Progress) -> None:
        events.append(progress)
        records.append(run.read())

    variants = {"inherit": {"start": "inherit"}, "scratch": {"start": "fresh"}}
    execute(recipe_of(tiny_reference, tiny_text, variants=variants), run.root, listen)
    return run, events, records


def _at(seen: tuple[Run, list[Progress], list[dict[str, Any]]], task: str) -> dict[str, Any]:
    _, events, records = seen
    return next(record for event, record in zip(events, records, strict=True) if event.task == task)


def test_what_is_known_is_recorded_before_the_next_stage(seen: Any) -> None:
    first = _at(seen, "inherit, 2 layers")
    assert first["reference"]["layers"] == 4 and first["benchmark"]["val_loss"] > 0
    assert first["tokens"]["train_tokens"] > 0 and "rounds" not in first
    control = next(name for name in (e.task for e in seen[1]) if name.startswith("scratch, "))
    at_control = _at(seen, control)
    assert at_control["rounds"][0]["layers"] == 2
    assert "result" not in at_control


def test_the_stages_are_those_that_ended_that_goes_on_and_those_to_come(seen: Any) -> None:
    stages = _at(seen, "inherit, 2 layers")["stages"]
    assert [stage["name"] for stage in stages] == [
        *("reference", "text", "reference loss", "inherit, 2 layers", "inherit, 3 layers"),
        "scratch",
    ]
    assert [stage.get("seconds") is not None for stage in stages] == [True] * 3 + [False] * 3
    assert [bool(stage.get("began_at")) for stage in stages] == [True] * 4 + [False] * 2
    assert [stage.get("optional", False) for stage in stages[3:]] == [False, True, False]
    assert stages[3]["tokens"] == stages[5]["tokens"] == 1280


def test_a_finished_run_has_the_time_of_every_stage(seen: Any) -> None:
    stages = seen[0].read()["stages"]
    assert all(stage["seconds"] >= 0 for stage in stages)
    assert "scratch" not in [stage["name"] for stage in stages]  # its size is known
    before = seen[0].record_file.read_bytes()
    assert b'"stages"' in before


def test_a_run_stopped_behind_its_result_gets_the_time_of_the_stages_that_were_left(
    seen: Any, tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path / "tiny")
    shutil.copytree(seen[0].root, run.root)
    record = run.read()
    del record["stages"][-1]["began_at"], record["stages"][-1]["seconds"]
    write_json(run.record_file, record)
    variants = {"inherit": {"start": "inherit"}, "scratch": {"start": "fresh"}}
    execute(recipe_of(tiny_reference, tiny_text, variants=variants), run.root)
    assert all(stage["seconds"] >= 0 and stage["began_at"] for stage in run.read()["stages"])


def test_a_training_names_its_round_its_distance_and_the_time_of_the_run(seen: Any) -> None:
    facts = [event.facts for event in seen[1] if event.task == "inherit, 2 layers" and event.facts]
    assert facts[-1]["round"] == "1 of 2"
    assert facts[-1]["done in"].startswith("about ")
    level = seen[0].read()["benchmark"]["val_loss"]
    assert list(facts[-1])[:3] == ["round", "val", "done in"]
    told = next(fact["val"] for fact in reversed(facts) if "val" in fact)
    assert f"(reference {level:.2f}, " in told
