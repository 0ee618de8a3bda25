from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_recipe import as_file, recipe_of

from inheritune.cli.plan_text import recipe_notes
from inheritune.planning.recipe_plan import plan_recipe
from inheritune.recipe.schema import Recipe
from inheritune.reporting.remarks import remarks
from inheritune.reporting.run_tables import ledger_table
from inheritune.run.execute import execute
from inheritune.run.ledger import gap_closed, trained_reference
from inheritune.run_directory import Run
from inheritune.run_record.record import RunRecord
from inheritune.system.devices import DEVICES, Speed

typed = RunRecord.model_validate


def trial(name: str, losses: list[float], layers: int = 4, tokens: int = 100) -> Any:
    mean = sum(losses) / len(losses)
    known = {"layers": layers, "tokens": tokens, "first_sample": 0, "start": "fresh"}
    known |= {"made_of": "", "distill": None, "seed": 0, "is_patched": False}
    return SimpleNamespace(name=name, windows=losses, val_loss=mean, **known)


def outcome(target: Any, *controls: Any) -> Any:
    benchmark = SimpleNamespace(windows=[2.0, 2.2, 2.4])
    known: dict[str, Any] = {"benchmark": benchmark, "repeats": []}
    return SimpleNamespace(target=target, controls=list(controls), **known)


TARGET = trial("inherit", [2.1, 2.3, 2.5])
SCRATCH = trial("scratch", [3.0, 3.2, 3.4])


def test_the_gap_is_closed_by_the_share_of_it_that_is_gone() -> None:
    assert gap_closed(outcome(TARGET, SCRATCH)) == pytest.approx(0.9)


def test_with_several_seeds_the_gap_is_that_of_the_means_over_seeds() -> None:
    several = outcome(TARGET, SCRATCH)
    several.repeats = [trial("inherit", [2.3, 2.5, 2.7]), trial("scratch", [3.2, 3.4, 3.6])]
    assert gap_closed(several) == pytest.approx((3.3 - 2.4) / (3.3 - 2.2))


def test_better_than_the_reference_is_above_one() -> None:
    better = trial("inherit", [1.9, 2.1, 2.3])
    assert gap_closed(outcome(better, SCRATCH)) == pytest.approx(1.1)


def test_a_target_that_went_on_from_smaller_ones_saw_more_tokens_than_the_control() -> None:
    kept = trial("inherit", TARGET.windows)
    kept.first_sample = 80
    assert gap_closed(outcome(kept, SCRATCH)) is None


def test_a_patched_target_is_compared_with_the_tokens_of_the_round_that_it_was_made_from() -> None:
    patched = trial("inherit", TARGET.windows, layers=6, tokens=0)
    patched.is_patched = True
    ended = outcome(patched, trial("scratch", SCRATCH.windows, layers=6))
    made = trial("inherit", TARGET.windows)
    ended.rounds, ended.target_round = [made, patched], 1
    assert gap_closed(ended) == pytest.approx(0.9)
    made.first_sample = 80
    assert gap_closed(ended) is None


@pytest.mark.parametrize("changes", [{"layers": 6}, {"tokens": 200}])
def test_the_gap_needs_a_control_of_the_targets_size_and_tokens(changes: dict[str, int]) -> None:
    assert gap_closed(outcome(TARGET, trial("scratch", SCRATCH.windows, **changes))) is None


@pytest.mark.parametrize(
    "changes",
    [{"start": "inherit"}, {"made_of": "fresh weights; a rate"}, {"distill": {"alpha": 0.6}}],
)
def test_the_gap_takes_plain_scratch_among_controls_of_that_size(changes: dict[str, Any]) -> None:
    other = trial("other", [2.5, 2.7, 2.9])
    vars(other).update(changes)
    assert gap_closed(outcome(TARGET, other, SCRATCH)) == pytest.approx(0.9)
    assert gap_closed(outcome(TARGET, other)) is None


def test_a_gap_within_three_standard_errors_is_not_divided_by() -> None:
    assert gap_closed(outcome(TARGET, trial("scratch", [2.9, 2.0, 2.5]))) is None


def test_one_window_has_no_standard_error_and_so_no_gap() -> None:
    one = outcome(trial("inherit", [2.1]), trial("scratch", [3.0]))
    one.benchmark = SimpleNamespace(windows=[2.0])
    assert gap_closed(one) is None


def paired(target: Any, control: Any, **changes: Any) -> Any:
    """The target beside a control that is the whole reference, trained as ``changes`` say."""
    ended = outcome(target, SCRATCH, control)
    ended.reference = SimpleNamespace(layers=8)
    variant = SimpleNamespace(**({"distill": None, "parts": "all", "only": None} | changes))
    return trained_reference(ended, SimpleNamespace(variants={"whole": variant}))  # type: ignore[arg-type]


def whole(**changes: Any) -> Any:
    control = trial("whole", [2.0, 2.1, 2.5], layers=8)
    vars(control).update({"start": "inherit", **changes})
    return control


def test_the_target_is_paired_with_the_reference_trained_on_the_same_tokens() -> None:
    found = paired(TARGET, whole(made_of="peak learning rate x 0.3"))
    assert (found.name, found.difference) == ("whole", pytest.approx(0.1))
    assert found.difference_se == pytest.approx(0.1 / 3**0.5)


@pytest.mark.parametrize("changes", [{"layers": 7}, {"tokens": 9}, {"start": "fresh"}])
def test_a_smaller_shorter_or_fresh_training_is_not_taken_for_it(changes: dict[str, Any]) -> None:
    assert paired(TARGET, whole(**changes)) is None


@pytest.mark.parametrize("changes", [{"distill": {}}, {"parts": "mlp"}, {"only": ["head"]}])
def test_nor_is_one_that_learns_from_something_else(changes: dict[str, Any]) -> None:
    assert paired(TARGET, whole(), **changes) is None


def test_a_target_of_all_layers_is_the_trained_reference_itself() -> None:
    assert paired(trial("inherit", [2.1, 2.3, 2.5], layers=8), whole()) is None


# -- a whole run


def costly(model: Path, text: Path, **sections: Any) -> Recipe:
    """Two rounds, of which the first is thrown away, a control, and one that is distilled."""
    variants = {
        "inherit": {"start": "inherit"},
        "scratch": {"start": "fresh"},
        "distilled": {"start": "fresh", "distill": {}},
    }
    short = {"tokens": 256, "eval_every": 1_000_000}
    wanted = {"train": short, "inherit": {"layers": 1}, "variants": variants}
    return recipe_of(model, text, **(wanted | sections))


@pytest.fixture(scope="module")
def priced(
    tiny_reference: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("priced") / "run"
    recipe = costly(tiny_reference, tiny_text, cost={"price_per_hour": 7200.0, "currency": "EUR"})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("inheritune.run.derive.judge", lambda trial, tolerance: "not_matched")
        return root, execute(as_file(recipe), root).summary


def test_everything_is_in_the_ledger_and_the_round_thrown_away_too(priced) -> None:
    entries = Run(priced[0]).read()["ledger"]
    assert [(entry["item"], entry["borrowed"]) for entry in entries] == [
        ("reference training", True),
        ("benchmark", False),
        ("inherit, round 1, 1 layers", False),
        ("inherit, round 2, 2 layers", False),
        ("scratch, 2 layers", False),
        ("distilled, 2 layers", False),
        ("distilled, 2 layers: forwards of the reference", False),
    ]
    assert all(entry["flops"] > 0 for entry in entries[1:])
    assert all(entry["processes"] == 1 for entry in entries[1:])
    assert all(
        entry["device_hours"] == pytest.approx(entry["seconds"] / 3600, abs=0.06 / 3600)
        for entry in entries[1:-1]
    )


def test_a_price_is_that_of_the_machines_time_and_nothing_borrowed_has_one(priced) -> None:
    root, final = priced
    entries = Run(root).read()["ledger"]
    assert entries[0]["price"] is None and entries[-1]["price"] is None  # time unknown, or within
    timed = entries[1:-1]
    assert all(e["price"] == pytest.approx(2 * e["seconds"]) for e in timed)
    assert final["price"]["paid"] == pytest.approx(2 * sum(e["seconds"] for e in timed))
    assert final["price"]["currency"] == "EUR"
    assert final["device_hours"] == pytest.approx(sum(e["device_hours"] for e in timed))


def test_the_price_is_shown_in_the_table_and_said(priced) -> None:
    record = Run(priced[0]).read()
    table = ledger_table(typed(record))
    assert table.headers[4:] == ["device-hours", "price (EUR)", "paid"]
    total = next(row for row in table.values if str(row[0]).startswith("sum of what was spent"))
    assert total[5] == pytest.approx(record["result"]["price"]["paid"])
    assert any(
        "EUR: " in said and "7,200.00 EUR an hour" in said for said in remarks(typed(record))
    )


def test_without_a_price_none_is_shown(priced) -> None:
    record = Run(priced[0]).read()
    record["ledger"] = [entry | {"price": None} for entry in record["ledger"]]
    record["result"]["price"] = None
    assert ledger_table(typed(record)).headers[4:] == ["device-hours", "paid"]
    assert not any(" an hour" in said for said in remarks(typed(record)))


def test_a_plan_has_a_price_where_the_hours_are_known(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    recipe = costly(tiny_reference, tiny_text, cost={"price_per_hour": 3.6e9})
    speed = Speed(DEVICES["h100"], count=2)
    plan = plan_recipe(recipe, tmp_path / "run", speed)
    hours = plan.flops / (989.5e12 * 0.4 * 2) / 3600
    assert plan.cost == plan.as_json()["cost"] == pytest.approx(hours * 3.6e9)
    assert any("USD at 3,600,000,000.00 per hour" in line for line in recipe_notes(plan))
    unknown = plan_recipe(recipe, tmp_path / "run")
    assert unknown.cost is None and not any("cost:" in line for line in recipe_notes(unknown))
