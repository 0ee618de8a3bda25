"""One reference, trained by the first of several runs and taken over by the others."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tiny_recipe import as_file, recipe_of

from inheritune.errors import DataError, Interrupted, MachineError, SourceError
from inheritune.planning.recipe_plan import plan_recipe
from inheritune.recipe.schema import Recipe
from inheritune.reporting.remarks import remarks
from inheritune.run.execute import execute
from inheritune.run_directory import Run
from inheritune.run_record.record import RunRecord
from inheritune.steps import reference_store
from inheritune.steps.reference_store import training_lock
from inheritune.system.progress import Progress

typed = RunRecord.model_validate

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def wishing(tokenizer: Path, text: Path, kept: Path, **sections: Any) -> Recipe:
    trained = {"config": CONFIG, "tokenizer": str(tokenizer), "tokens": 512}
    trained |= {"keep_in": str(kept)}
    wanted: dict[str, Any] = {
        "reference": {"model": None, "train": trained},
        "train": {"tokens": 256, "eval_every": 1_000_000},
        "grow": {"add": 0},
        "variants": {"inherit": {"start": "inherit"}},
    }
    for name, section in sections.items():
        wanted[name] = wanted.get(name, {}) | section
    return recipe_of("unused", text, **wanted)


@pytest.fixture(scope="module")
def two(
    tiny_reference: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Path]:
    """A run that trained the reference, one of another target that took it, and where it lies."""
    root = tmp_path_factory.mktemp("shared")
    kept = root / "kept"
    execute(as_file(wishing(tiny_reference, tiny_text, kept)), root / "first")
    other = wishing(tiny_reference, tiny_text, kept, variants={"scratch": {"start": "fresh"}})
    execute(as_file(other), root / "second")
    return root / "first", root / "second", kept


def test_a_second_recipe_takes_over_the_reference_of_the_first(two) -> None:
    first, second, kept = two
    place = next(path for path in kept.iterdir() if not path.name.startswith("."))
    assert place.name.startswith("llama-2-layers-")
    for name in ("model.safetensors", "training.json", "tokenizer.json"):
        assert (place / name).read_bytes() == (first / "reference" / "model" / name).read_bytes()
    assert not (second / "reference" / "model").exists()
    taken = json.loads((second / "reference" / "taken.json").read_text())
    assert taken["result"] == {"taken_from": str(place)}
    records = [Run(root).read() for root in (first, second)]
    assert records[0]["reference"]["digest"] == records[1]["reference"]["digest"]
    assert records[0]["benchmark"] == records[1]["benchmark"]


def test_the_cost_of_a_shared_reference_is_paid_in_one_run_and_borrowed_in_the_other(two) -> None:
    paid, borrowed = (Run(root).read() for root in two[:2])
    assert paid["ledger"][0]["item"] == "reference training" and not paid["ledger"][0]["borrowed"]
    entry = borrowed["ledger"][0]
    assert (entry["item"], entry["borrowed"]) == ("reference training, by another run", True)
    assert (entry["tokens"], entry["flops"]) == (512, paid["ledger"][0]["flops"])
    assert paid["result"]["tokens"] == 512 + 256
    assert borrowed["result"]["tokens"] == 2 * 256
    assert any("trained by another run and taken from" in note for note in borrowed["notes"])
    assert any("trained by another run" in said for said in remarks(typed(borrowed)))


def test_both_runs_of_a_shared_reference_train_nothing_again(
    two, tiny_reference, tiny_text
) -> None:
    first, second, kept = two
    before = [Run(root).read()["ledger"] for root in (first, second)]
    execute(as_file(wishing(tiny_reference, tiny_text, kept)), first)
    variants = {"scratch": {"start": "fresh"}}
    execute(as_file(wishing(tiny_reference, tiny_text, kept, variants=variants)), second)
    assert [Run(root).read()["ledger"] for root in (first, second)] == before


@pytest.mark.parametrize(
    "changes",
    [{"data": {"val_fraction": 0.3}}, {"train": {"seed": 3}}],
    ids=["text", "seed"],
)
def test_a_change_of_inputs_leads_to_another_stored_reference(
    two, tiny_reference, tiny_text, tmp_path, changes
) -> None:
    kept = two[2]
    before = {path.name for path in kept.iterdir()}
    execute(as_file(wishing(tiny_reference, tiny_text, kept, **changes)), tmp_path / "run")
    assert Run(tmp_path / "run").read()["reference"]["trained_here"]
    new = {path.name for path in kept.iterdir()} - before
    assert len([name for name in new if not name.startswith(".")]) == 1


def test_a_plan_does_not_count_a_reference_that_was_taken_over(
    two, tiny_reference, tiny_text
) -> None:
    recipe = wishing(tiny_reference, tiny_text, two[2])
    assert [t.name for t in plan_recipe(recipe, two[1]).trainings] == ["inherit"]
    fresh = plan_recipe(recipe, two[1].with_name("not-begun"))
    assert [t.name for t in fresh.trainings] == ["reference", "inherit"]
    assert any("costs nothing" in note for note in fresh.notes)


def test_only_one_of_two_simultaneous_runs_trains_the_reference(
    two, tiny_reference, tiny_text, tmp_path
) -> None:
    recipe = wishing(tiny_reference, tiny_text, tmp_path / "kept")
    place = tmp_path / "kept" / place_name(two[2])
    with training_lock(place), pytest.raises(MachineError, match=f"process {os.getpid()} on"):
        execute(as_file(recipe), tmp_path / "run")
    execute(as_file(recipe), tmp_path / "run")
    assert (place / "training.json").exists()


def place_name(kept: Path) -> str:
    """Of the reference that the first run left."""
    first = kept.parent / "second" / "reference" / "taken.json"
    return Path(json.loads(first.read_text())["result"]["taken_from"]).name


def test_a_stopped_training_of_the_reference_continues_and_is_stored_at_its_end(
    two, tiny_reference, tiny_text, tmp_path
) -> None:
    recipe, kept = wishing(tiny_reference, tiny_text, tmp_path / "kept"), tmp_path / "kept"

    def stop(progress: Progress) -> None:
        if progress.task.startswith("reference,") and progress.done:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        execute(as_file(recipe), tmp_path / "run", stop)
    assert not any(path.is_dir() for path in kept.iterdir())
    assert list((tmp_path / "run" / "reference" / "checkpoints").glob("step-*"))
    execute(as_file(recipe), tmp_path / "run")
    weights = kept / place_name(two[2]) / "model.safetensors"
    assert weights.read_bytes() == (two[2] / place_name(two[2]) / weights.name).read_bytes()


def test_a_kill_during_storing_leaves_nothing_and_the_next_start_stores_it(
    two, tiny_reference, tiny_text, tmp_path
) -> None:
    recipe = as_file(wishing(tiny_reference, tiny_text, tmp_path / "kept"))
    child = os.fork()
    if not child:
        try:
            reference_store.sync_file = lambda path: os.kill(os.getpid(), signal.SIGKILL)
            execute(recipe, tmp_path / "run")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    kept = tmp_path / "kept"
    assert not (kept / place_name(two[2])).exists()
    execute(recipe, tmp_path / "run")
    assert Run(tmp_path / "run").read()["reference"]["trained_here"]
    places = [path.name for path in kept.iterdir() if path.is_dir()]
    assert places == [place_name(two[2])]  # and what the killed one left is swept


def test_a_missing_reference_that_was_taken_over_is_an_error(
    two, tiny_reference, tiny_text, tmp_path
) -> None:
    kept = tmp_path / "kept"
    recipe = as_file(wishing(tiny_reference, tiny_text, kept))
    execute(recipe, tmp_path / "first")
    execute(recipe, tmp_path / "second")
    place = kept / place_name(two[2])
    place.rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match=r"not in .* any more"):
        execute(recipe, tmp_path / "second")
    place.mkdir()
    (place / "made_from.json").write_text('{"made_from": {}}')
    with pytest.raises(DataError, match="does not hold the reference"):
        execute(recipe, tmp_path / "third")
