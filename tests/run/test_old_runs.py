"""Runs written by version 0.1.0 before its files were typed are read, continued and reported.

`tests/fixtures/old_runs` holds one recipe carried out twice by that version: `finished`, and
`half`, which was stopped at step 3 of 6 of its second round. Figures and pages were deleted.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from inheritune.cli.app import app

OLD_RUNS = Path(__file__).resolve().parents[1] / "fixtures" / "old_runs"


@pytest.fixture
def old_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of both runs beside their recipe and text, as the current directory."""
    copy = tmp_path / "old_runs"
    shutil.copytree(OLD_RUNS, copy)
    monkeypatch.chdir(copy)
    return copy


def invoke(*arguments: object) -> dict[str, Any]:
    """The JSON that a command prints, which must not end with an error."""
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code in (0, 6), done.output
    return json.loads(done.stdout)


def losses(run: Path) -> dict[str, float]:
    """The val_loss of every training that run.json names."""
    record = json.loads((run / "run.json").read_text())
    return {result["path"]: result["val_loss"] for result in record["rounds"] + record["variants"]}


def test_a_finished_old_run_is_reported(old_runs: Path) -> None:
    before = losses(Path("finished/old"))
    invoke("report", "finished/old")
    page = Path("finished/old/report/index.html").read_text()
    assert "2 of 3 layers" in page
    assert losses(Path("finished/old")) == before


def test_a_finished_old_run_is_verified(old_runs: Path) -> None:
    invoke("verify", "finished/old")


def test_a_finished_old_run_is_watched_as_text(old_runs: Path) -> None:
    done = CliRunner().invoke(app, ["watch", "finished/old", "--text"])
    assert done.exit_code == 0 and "2.91" in done.output, done.output


def test_running_a_finished_old_run_again_trains_nothing(old_runs: Path) -> None:
    weights = Path("finished/old/variants/inherit/2-layers/model/model.safetensors")
    before, written = losses(Path("finished/old")), weights.stat().st_mtime_ns
    again = invoke("run", "recipe.yaml", "--runs", "finished")
    assert again["outcome"] == "matched_within_noise" and again["layers"] == 2
    assert losses(Path("finished/old")) == before
    assert weights.stat().st_mtime_ns == written


def test_a_half_finished_old_run_is_reported_as_it_stands(old_runs: Path) -> None:
    invoke("report", "half/old")
    assert "interrupted" in Path("half/old/report/index.html").read_text()


def test_a_half_finished_old_run_continues_to_the_losses_of_the_unbroken_one(
    old_runs: Path,
) -> None:
    invoke("run", "recipe.yaml", "--runs", "half")
    # Other processors add in another order: equal here, close elsewhere.
    assert losses(Path("half/old")) == pytest.approx(losses(Path("finished/old")), abs=1e-4)
    rows = Path("half/old/variants/inherit/2-layers/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows if "continued" in row]
