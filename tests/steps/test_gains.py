"""A run measures what its target gained once, counts the cost, and never fails for it."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_recipe import recipe_of

import inheritune
from inheritune.errors import Interrupted
from inheritune.reporting.page import write_report
from inheritune.run_directory import Run
from inheritune.steps.fidelity import stored_result

pytestmark = pytest.mark.usefixtures("quick_gains")


def derive(reference: Path, text: Path, runs: Path, **evaluate: Any) -> Any:
    recipe = recipe_of(reference, text, grow={"add": 0}, evaluate={"gains": True} | evaluate)
    return inheritune.derive(recipe, runs=runs, progress=False)


@pytest.fixture(scope="module")
def run(tiny_reference: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return derive(tiny_reference, tiny_text, tmp_path_factory.mktemp("runs")).run


def test_the_record_has_reference_and_target_with_their_sizes(
    run: Path, tiny_reference: Path
) -> None:
    record = Run(run).record()
    reference, target = record.gains.models
    assert [reference.name, target.name] == ["reference", "target"]
    assert reference.disk_bytes == (tiny_reference / "model.safetensors").stat().st_size
    assert target.disk_bytes == (run / "target/model.safetensors").stat().st_size
    assert [reference.params, target.params] == [record.reference.params, record.target.params]
    assert target.cache_bytes_per_token * 2 == reference.cache_bytes_per_token
    assert target.fidelity.kl > 0
    assert target.fidelity.windows == record.benchmark.windows
    assert [row["name"] for row in record.result.gains] == ["reference", "target"]
    assert record.result.gains[1]["kl"] == target.fidelity.kl


def test_the_fidelity_that_is_known_is_taken(
    run: Path, tiny_reference: Path, tiny_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Run(run).read()["gains"]["models"][1]["fidelity"]
    Run(run).gains.unlink()
    monkeypatch.setattr("inheritune.evaluation.gains.measure_fidelity", None)
    derive(tiny_reference, tiny_text, run.parent)
    record = Run(run).record()
    assert Run(run).read()["gains"]["models"][1]["fidelity"] == before
    assert record.result.gains[1]["kl"] == before["kl"]
    assert any(
        e.item.startswith("inherit, round 1") and "fidelity" in e.item for e in record.ledger
    )


def test_the_cost_is_counted(run: Path) -> None:
    record = Run(run).record()
    entry = record.ledger[-1]
    assert (entry.item, entry.tokens, entry.processes) == ("size, speed and fidelity", 0, 1)
    assert entry.flops > 0
    assert record.result.flops == sum(e.flops for e in record.ledger if not e.borrowed)


def test_it_is_not_measured_twice(
    run: Path, tiny_reference: Path, tiny_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Run(run).read()
    monkeypatch.setattr("inheritune.evaluation.gains.measure_gains", None)
    again = derive(tiny_reference, tiny_text, run.parent)
    assert again.summary["gains"] == before["result"]["gains"]
    assert Run(run).read()["gains"] == before["gains"]
    assert Run(run).read()["ledger"] == before["ledger"]


def test_page_card_and_files_show_it(run: Path) -> None:
    page = write_report(run).read_text("utf-8")
    card = (run / "target/README.md").read_text("utf-8")
    for text in (page, card):
        assert "Size and speed" in text
        assert "Target against reference: 0." in text
        assert "weights on disk" in text
    assert (run / "report/tables/gains.csv").is_file()


def test_a_failure_is_a_note(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("inheritune.evaluation.gains.measure_gains", broken)
    record = derive(tiny_reference, tiny_text, tmp_path).record
    assert record.gains is None
    assert "Size and speed were not measured: RuntimeError: no such kernel." in record.notes
    assert "gains" not in record.as_json()["result"]
    assert record.status == "done"


def test_models_that_the_memory_does_not_hold_are_not_loaded(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inheritune.steps.fidelity.free_memory", lambda: 1000)
    monkeypatch.setattr("inheritune.training.hardware.choose_device", lambda: "cpu")
    record = derive(tiny_reference, tiny_text, tmp_path).record
    assert any("bytes of memory are needed for both models, 1,000 are" in n for n in record.notes)


def test_a_stop_while_it_is_measured_leaves_the_result_and_continues(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise Interrupted("stopped", "again")

    with monkeypatch.context() as patch:
        patch.setattr("inheritune.evaluation.gains.measure_gains", stopped)
        with pytest.raises(Interrupted):
            derive(tiny_reference, tiny_text, tmp_path)
    record = Run(tmp_path / "tiny").record()
    assert record.result.val_loss is not None
    assert record.status == "interrupted"
    assert derive(tiny_reference, tiny_text, tmp_path).record.gains is not None


@pytest.mark.parametrize("content", ["", "{}", '{"inputs": 3}', '{"inputs": {}, "result": []}'])
def test_a_broken_file_is_measured_again(content: str, tmp_path: Path) -> None:
    (tmp_path / "gains.json").write_text(content)
    assert stored_result(tmp_path / "gains.json", {}, {"record"}) is None


def test_a_run_can_leave_it_out(tiny_reference: Path, tiny_text: Path, tmp_path: Path) -> None:
    result = derive(tiny_reference, tiny_text, tmp_path, gains=False)
    assert not (result.run / "gains.json").exists()
    assert result.record.gains is None
    assert "gains" not in json.loads((result.run / "run.json").read_text())["result"]
