"""run.json as a type: runs of this version and of earlier and later ones."""

import json
from pathlib import Path

import pytest

from inheritune.run_directory import Run
from inheritune.run_record.record import FORMAT, RunRecord
from inheritune.run_record.trainings import TrainedModel

OLD_RUNS = Path(__file__).parent / "fixtures" / "old_runs"


@pytest.mark.parametrize("name", ["finished", "half"])
def test_runs_of_the_version_before_fit_the_type_exactly(name: str) -> None:
    content = json.loads((OLD_RUNS / name / "old" / "run.json").read_bytes())
    record = RunRecord.model_validate(content)
    assert record.as_json() == content
    assert bool(record.result) is (name == "finished")
    assert not record.model_extra


def test_what_follows_from_the_record_of_an_old_run() -> None:
    record = Run(OLD_RUNS / "finished" / "old").record()
    assert record.format == FORMAT
    assert record.target.is_target
    assert record.target_row.name == record.target_name
    assert record.outcome == record.result.outcome
    assert record.reference_loss == record.benchmark.val_loss
    paid = [entry.tokens or 0 for entry in record.paid_entries]
    assert sum(paid) == record.result.tokens


def test_unknown_fields_are_kept_and_values_of_the_wrong_kind_count_as_missing() -> None:
    content = {"format": 1, "new": {"a": 1}, "rounds": [{"layers": 3, "later": [1]}, "x"]}
    record = RunRecord.model_validate(content | {"seconds": "long", "notes": 5})
    assert record.as_json() == content | {
        "rounds": [{"layers": 3, "later": [1]}],
        "seconds": None,
        "notes": [],
    }


def test_an_update_leaves_the_fields_of_another_version_alone(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    run.record_file.write_text(json.dumps({"format": 1, "new": [1], "rounds": [{"later": 2}]}))
    run.update(RunRecord(status="done", error=None))
    assert run.read() == {
        "format": 1,
        "new": [1],
        "rounds": [{"later": 2}],
        "status": "done",
        "error": None,
    }


def test_a_section_is_false_until_something_of_it_is_recorded() -> None:
    assert not RunRecord().result
    assert RunRecord.model_validate({"result": {"layers": None}}).result
    assert not TrainedModel()


def test_planned_tokens_are_the_variants_own_else_those_of_the_recipe() -> None:
    variants = {"a": {"tokens": 5}, "b": {"tokens": "equal_compute"}, "c": {"tokens": None}}
    record = RunRecord(recipe={"train": {"tokens": 7}, "variants": variants})
    assert [record.planned_tokens(name) for name in "abc"] == [5, None, 7]
