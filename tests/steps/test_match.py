"""A target is judged by every criterion of the recipe, each measured once and counted."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_recipe import as_file, fields_of, recipe_of

from inheritune.data.tokens import open_tokens
from inheritune.errors import DataError, MachineError, RecipeError
from inheritune.evaluation.fidelity import measure_fidelity
from inheritune.recipe.load import parse_recipe
from inheritune.recipe.sections import yaml_value
from inheritune.recipe.variants import Grow, Match
from inheritune.reporting.run_tables import rounds_table, summary_table, variants_table
from inheritune.run.derive import judge
from inheritune.run.execute import execute
from inheritune.run_directory import Run
from inheritune.steps import match as room
from inheritune.steps.match import verdicts_of
from inheritune.steps.result import TrainingResult
from inheritune.training.models import load_model

CLOSE = {"kl": 0.10, "kl_se": 0.01, "top1": 0.80, "top1_se": 0.02}


def result(**fields: Any) -> TrainingResult:
    known = {"difference": 0.0, "difference_se": 0.01, "fidelity": CLOSE}
    return TrainingResult(**(dict.fromkeys(TrainingResult.__dataclass_fields__) | known | fields))


# --- verdicts ---


@pytest.mark.parametrize(
    ("match", "verdict"),
    [
        ({"kl": 0.10}, "matched"),
        ({"kl": 0.081}, "matched_within_noise"),
        ({"kl": 0.079}, "not_matched"),
        ({"top1": 0.80}, "matched"),
        ({"top1": 0.83}, "matched_within_noise"),
        ({"top1": 0.85}, "not_matched"),
        ({"tasks": 0.02}, "matched"),
        ({"tasks": 0.01}, "matched_within_noise"),
        ({"tasks": 0.0}, "not_matched"),
        ({"kl": 0.2, "top1": 0.83, "tasks": 0.0}, "not_matched"),  # the worst decides
        ({"kl": 0.081, "top1": 0.5, "tasks": 0.5}, "matched_within_noise"),
    ],
)
def test_a_limit_is_kept_or_passed_by_noise_or_by_more(
    match: dict[str, float], verdict: str
) -> None:
    trained = result(task_loss={"mean": 0.02, "se": 0.006})
    assert judge(trained, Match(**match)) == verdict
    # val_loss counts beside the others, unless it is null.
    worse = result(task_loss={"mean": 0.02, "se": 0.006}, difference=1.0)
    assert judge(worse, Match(**match)) == "not_matched"
    assert judge(worse, Match(val_loss=None, **match)) == verdict


def test_each_criterion_has_a_verdict_of_its_own() -> None:
    match = Match(val_loss=0.1, kl=0.05, top1=0.79)
    assert verdicts_of(result(difference=0.11), match) == {
        "val_loss": "matched_within_noise",
        "kl": "not_matched",
        "top1": "matched",
    }


def test_what_rounding_cost_counts_against_val_loss_alone() -> None:
    rounded = result(difference=-1.0, val_loss=2.0, val_loss_se=0.1, fp32_val_loss=1.5)
    assert judge(rounded, Match(kl=0.2)) == "not_matched"
    assert judge(rounded.in_fp32, Match(kl=0.2)) == "matched"
    assert judge(rounded, Match(val_loss=None, kl=0.2)) == "matched"


# --- the recipe ---


def test_the_older_name_of_the_criterion_is_read() -> None:
    assert Grow.model_validate({"tolerance": 0.1}).match == Match(val_loss=0.1)
    both = Grow.model_validate({"tolerance": 0.1, "match": {"kl": 1}}).match
    assert both == Match(val_loss=0.1, kl=1)


@pytest.mark.parametrize(
    ("grow", "words"),
    [
        ({"tolerance": 0.1, "match": {"val_loss": 0.2}}, ["older name of match.val_loss"]),
        ({"match": {"val_loss": None}}, ["all criteria are null", "such as kl"]),
        ({"match": {"tasks": 0.01}}, ["no task is asked", "evaluate.tasks, such as"]),
        ({"match": {"top1": 1.5}}, ["grow.match.top1", "1.5"]),
        ({"match": {"kl": -1}}, ["grow.match.kl", "-1"]),
        ({"match": {"perplexity": 3}}, ["perplexity"]),
    ],
)
def test_criteria_that_make_no_sense_are_refused_when_the_recipe_is_read(
    grow: dict[str, Any], words: list[str]
) -> None:
    fields = fields_of("model", "text", grow=grow)
    text = "\n".join(f"{key}: {yaml_value(value)}" for key, value in fields.items())
    with pytest.raises(RecipeError) as error:
        parse_recipe(text, Path("recipe.yaml"))
    for word in words:
        assert word in str(error.value)


# --- a run ---


@pytest.fixture(scope="module")
def run(tiny_reference: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two rounds that miss by their KL divergence alone, and a control."""
    match = {"val_loss": 100.0, "kl": 1e-9, "top1": 0.0}
    variants = {"inherit": {"start": "inherit"}, "scratch": {"start": "fresh"}}
    recipe = recipe_of(tiny_reference, tiny_text, grow={"match": match}, variants=variants)
    root = tmp_path_factory.mktemp("run") / "run"
    execute(as_file(recipe), root)
    return recipe, root


def test_fidelity_of_every_model_is_that_of_its_published_weights(
    run: Any, tiny_reference: Path
) -> None:
    _, root = run
    record = Run(root).record()
    rows = [*record.rounds, *record.variants[1:]]
    assert [row.layers for row in rows] == [2, 3, 3, 3]
    for row in rows:
        models = [load_model(tiny_reference), load_model(root / str(row.path) / "model")]
        expected = measure_fidelity(*models, open_tokens(Run(root).tokens).val, 16, 16)
        assert row.fidelity is not None
        assert (row.fidelity.kl, row.fidelity.top1) == (expected.kl, expected.top1)


def test_a_target_grows_until_all_criteria_are_met(run: Any) -> None:
    record = Run(run[1]).record()
    assert [row.outcome for row in record.rounds] == ["not_matched"] * 2
    assert record.rounds[0].criteria == {
        "val_loss": "matched",
        "kl": "not_matched",
        "top1": "matched",
    }
    assert record.result.outcome == "not_matched"
    assert any("Matched means: at most 100.000 nats" in note for note in record.notes)


def test_every_table_of_models_shows_fidelity(run: Any) -> None:
    record = Run(run[1]).record()
    assert "KL" in summary_table(record).headers
    for table in (rounds_table(record), variants_table(record)):
        place = table.headers.index("KL to the reference (nats)")
        assert [("±" in row[place]) for row in table.rows].count(True) == 2


def test_its_cost_is_an_entry_of_the_ledger(run: Any) -> None:
    entries = Run(run[1]).record().ledger
    measured = [entry for entry in entries if str(entry.item).endswith(": fidelity")]
    assert [entry.item for entry in measured] == [
        "inherit, round 1, 2 layers: fidelity",
        "inherit, round 2, 3 layers: fidelity",
        "scratch, 3 layers: fidelity",
    ]
    assert all(entry.flops and entry.tokens == 0 for entry in measured)


def test_it_is_measured_once(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, root = run
    before = Run(root).read()
    monkeypatch.setattr("inheritune.evaluation.fidelity.measure_fidelity", None)
    execute(as_file(recipe), root)
    assert Run(root).read()["rounds"] == before["rounds"]


def test_a_machine_that_cannot_compare_predictions_is_refused_before_any_training(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inheritune.steps.fidelity.free_memory", lambda: 1000)
    recipe = recipe_of(tiny_reference, tiny_text, grow={"match": {"kl": 1.0}})
    with pytest.raises(MachineError, match=r"grow\.match\.kl and top1 compare predictions"):
        execute(as_file(recipe), tmp_path / "run")
    assert not (tmp_path / "run" / "variants").exists()


# --- tasks ---


def scores(*values: float, **more: Any) -> dict[str, Any]:
    """Answers of two models to one task each."""
    rows = [
        {"scores": [{"task": "piqa", "metrics": {"acc": {"value": v, "se": 0.03, "lower": False}}}]}
        for v in values
    ]
    return {"models": rows, "failures": []} | more


def with_tasks(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any], tmp_path: Path
) -> TrainingResult:
    from types import SimpleNamespace

    monkeypatch.setattr(room, "scores_of", lambda *_: answers)
    tasks = {"tasks": ["piqa"]}
    recipe = recipe_of("model", "text", grow={"match": {"tasks": 0.1}}, evaluate=tasks)
    job: Any = SimpleNamespace(recipe=recipe, run=Run(tmp_path))
    model = SimpleNamespace(path=tmp_path)
    reference: Any = SimpleNamespace(training={}, layers=4, model=model)
    trained = result(path="x", layers=2, tokens=1, name="inherit")
    return room.with_task_loss(job, trained, reference)


def test_the_loss_of_tasks_is_the_mean_difference_with_its_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lost = with_tasks(monkeypatch, scores(0.7, 0.65), tmp_path).task_loss
    assert lost is not None and lost["tasks"] == ["piqa"]
    assert lost["mean"] == pytest.approx(0.05)
    assert lost["se"] == pytest.approx(0.03 * 2**0.5)


def test_a_task_that_could_not_be_asked_ends_the_run_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failure = {"model": "inherit", "task": "piqa", "message": "no questions."}
    with pytest.raises(DataError, match=r"inherit was not asked piqa: no questions\."):
        with_tasks(monkeypatch, scores(failures=[failure]), tmp_path)
    worse = scores(0.7, 0.6)
    for row in worse["models"]:
        row["scores"][0]["metrics"]["acc"]["lower"] = True
    with pytest.raises(DataError, match="none of piqa has a score"):
        with_tasks(monkeypatch, worse, tmp_path)


def test_the_record_of_a_round_is_plain_json(run: Any) -> None:
    assert json.loads((run[1] / "run.json").read_text())["rounds"][0]["criteria"]
