"""Trainings with several seeds, and the rows that summarise them."""

import json
import statistics
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tiny_recipe import as_file, recipe_of

from inheritune.cli.terminal import show_record
from inheritune.planning.recipe_plan import plan_recipe
from inheritune.recipe.schema import Recipe
from inheritune.reporting.run_tables import variants_table
from inheritune.run.execute import execute
from inheritune.run_directory import Run
from inheritune.run_record.record import RunRecord
from inheritune.steps.seeds import Repeated

typed = RunRecord.model_validate

SHORT: dict[str, Any] = {"tokens": 256, "eval_every": 1_000_000}
VARIANTS = {
    "inherit": {"start": "inherit"},
    "scratch": {"start": "fresh"},
    "stacking": {"start": "stacking", "layers": 2, "seeds": [0, 5]},
    "equal": {"start": "fresh", "tokens": "equal_compute", "seeds": [4]},
}


def short(model: Path, text: Path, **sections: Any) -> Recipe:
    sections = {"train": SHORT, "inherit": {"layers": 1}} | sections
    return recipe_of(model, text, **sections)


def trained(root: Path) -> list[str]:
    folders = (path.parent for path in (root / "variants").glob("*/*/result.json"))
    return sorted(folder.relative_to(root / "variants").as_posix() for folder in folders)


def times(root: Path) -> dict[str, int]:
    return {
        path.relative_to(root).as_posix(): path.stat().st_mtime_ns
        for path in root.glob("variants/*/*/model/model.safetensors")
    }


@pytest.fixture(scope="module")
def several(
    tiny_reference: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], dict[str, int]]:
    """A run with one seed that is continued with three; and the times of its first models."""
    root = tmp_path_factory.mktemp("seeds") / "run"
    alone = {name: {k: v for k, v in f.items() if k != "seeds"} for name, f in VARIANTS.items()}
    del alone["equal"]  # it begins with another seed
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("inheritune.run.derive.judge", lambda trial, tolerance: "not_matched")
        execute(as_file(short(tiny_reference, tiny_text, variants=alone)), root)
        before = times(root)
        recipe = short(tiny_reference, tiny_text, variants=VARIANTS, seeds=[0, 1, 2])
        final = execute(as_file(recipe), root).summary
    return root, final, before


def test_a_run_of_one_seed_goes_on_with_three_and_trains_nothing_twice(several) -> None:
    root, _, before = several
    after = times(root)
    assert before and {name: after[name] for name in before} == before
    assert trained(root) == [
        "equal/2-layers",
        "inherit/1-layers",
        "inherit/2-layers",
        "inherit/2-layers-seed-1",
        "inherit/2-layers-seed-2",
        "scratch/2-layers",
        "scratch/2-layers-seed-1",
        "scratch/2-layers-seed-2",
        "stacking/1-layers",
        "stacking/1-layers-seed-5",
        "stacking/2-layers",
        "stacking/2-layers-seed-5",
    ]


def test_the_first_seeds_inputs_are_those_of_a_run_without_seeds(several) -> None:
    root = several[0] / "variants" / "inherit"
    first, other = (
        json.loads((root / folder / "result.json").read_text())["inputs"]
        for folder in ("2-layers", "2-layers-seed-1")
    )
    assert first["train"].pop("seed") == 0 and other["train"].pop("seed") == 1
    assert first == other


def test_a_seed_decides_fresh_weights_and_the_order_of_the_data(several) -> None:
    root = several[0] / "variants"
    for name in ("scratch", "inherit"):  # inherited weights are the same: it is the order
        models = [
            load_file(root / name / f"2-layers{seed}" / "model" / "model.safetensors")
            for seed in ("", "-seed-1", "-seed-2")
        ]
        first = next(iter(models[0]))
        assert not torch.equal(models[0][first], models[1][first])
        assert not torch.equal(models[1][first], models[2][first])


def test_a_stacked_chain_goes_on_from_its_own_half(several) -> None:
    folder = several[0] / "variants" / "stacking" / "2-layers-seed-5"
    inputs = json.loads((folder / "result.json").read_text())["inputs"]
    assert inputs["grown_from"] == "variants/stacking/1-layers-seed-5"
    assert inputs["train"]["seed"] == 5


def test_a_row_has_mean_spread_and_a_row_of_each_seed(several) -> None:
    root, final, _ = several
    record = Run(root).read()
    rows = {(row["name"], row["layers"]): row for row in record["variants"]}
    row = rows["scratch", 2]
    losses = [seed["val_loss"] for seed in row["seeds"]]
    assert [seed["seed"] for seed in row["seeds"]] == [0, 1, 2] and len(set(losses)) == 3
    assert row["val_loss"] == pytest.approx(statistics.mean(losses))
    assert row["val_loss_sd"] == pytest.approx(statistics.stdev(losses))
    assert (row["val_loss_min"], row["val_loss_max"]) == (min(losses), max(losses))
    assert row["num_seeds"] == 3 and row["val_loss_se"] is None
    alone = rows["equal", 2]
    assert alone["num_seeds"] == 1 and alone["val_loss_sd"] is None and alone["val_loss_se"] > 0
    assert [seed["seed"] for seed in alone["seeds"]] == [4]
    assert rows["stacking", 1]["num_seeds"] == rows["stacking", 2]["num_seeds"] == 2
    assert {row["name"]: row["num_seeds"] for row in final["variants"]}["inherit"] == 3


def test_the_windows_of_all_seeds_are_compared_with_the_reference(several) -> None:
    root = several[0]
    row = next(row for row in Run(root).read()["variants"] if row["name"] == "inherit")
    windows = [
        json.loads((root / seed["path"] / "result.json").read_text())["result"]["windows"]
        for seed in row["seeds"]
    ]
    benchmark = json.loads((root / "benchmark.json").read_text())["result"]["windows"]
    apart = [sum(three) / 3 - b for *three, b in zip(*windows, benchmark, strict=True)]
    assert row["difference"] == pytest.approx(statistics.mean(apart))
    assert row["difference_se"] == pytest.approx(statistics.stdev(apart) / len(apart) ** 0.5)


def test_every_seed_is_in_the_ledger_and_the_totals(several) -> None:
    root, final, _ = several
    entries = {entry["item"]: entry for entry in Run(root).read()["ledger"]}
    assert {"scratch, 2 layers", "scratch, 2 layers, seed 1", "scratch, 2 layers, seed 2"} <= set(
        entries
    )
    assert "inherit, round 1, 1 layers" in entries and "inherit, 2 layers, seed 2" in entries
    assert final["tokens"] == sum(e["tokens"] for e in entries.values() if not e["borrowed"])
    trainings = len(trained(root)) - 1  # equal compute has its own number of tokens
    equal = entries["equal, 2 layers"]["tokens"]
    assert final["tokens"] == trainings * 256 + equal


def test_equal_compute_is_what_the_first_seed_took(several) -> None:
    record = Run(several[0]).read()
    row = next(row for row in record["variants"] if row["name"] == "equal")
    spent = sum(r["flops_per_token"] * r["tokens"] for r in record["rounds"])
    assert row["tokens"] == pytest.approx(spent / row["flops_per_token"], abs=128)


def test_a_note_tells_with_how_many_seeds_the_target_matched(several) -> None:
    root, final, _ = several
    record = Run(root).read()
    row = next(row for row in record["variants"] if row["name"] == "inherit")
    matched = sum(seed["difference"] <= 0 for seed in row["seeds"])
    assert final["seeds"] == [0, 1, 2] and final["seeds_matched"] == matched
    assert f"{matched} of 3 seeds" in " ".join(record["notes"])
    assert "1 seed" in " ".join(record["notes"])  # of equal
    assert final["val_loss"] == row["seeds"][0]["val_loss"]


def test_the_table_has_spread_and_number_of_seeds(several) -> None:
    table = variants_table(typed(Run(several[0]).read()))
    rows = {row[0]: dict(zip(table.headers, row, strict=True)) for row in table.rows}
    assert rows["scratch"]["seeds"] == "3" and rows["equal"]["seeds"] == "1"
    assert rows["scratch"]["SD over seeds"] != "—" and rows["scratch"]["SE over windows"] == "—"
    assert rows["equal"]["SD over seeds"] == "—" and rows["equal"]["SE over windows"] != "—"
    tables = several[0] / "report" / "tables"
    by_seed = (tables / "seeds.csv").read_text().splitlines()
    assert len(by_seed) == 1 + 3 + 3 + 2 + 2 + 1
    curves = (tables / "curves.csv").read_text()
    assert '"scratch, 2 layers, seed 1"' in curves and '"inherit, 2 layers, seed 1"' in curves
    assert "round 3" not in curves


def test_kept_layers_are_trained_in_a_chain_of_each_seed(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inheritune.run.derive.judge", lambda trial, tolerance: "not_matched")
    grow = {"weights": "keep", "add": 1, "max_rounds": 2}
    one = {"inherit": {"start": "inherit"}}
    recipe = short(tiny_reference, tiny_text, grow=grow, variants=one, seeds=[0, 7])
    execute(as_file(recipe), tmp_path)
    assert trained(tmp_path) == [
        f"inherit/{n}-layers{seed}" for n in (1, 2) for seed in ("", "-seed-7")
    ]
    folder = tmp_path / "variants" / "inherit" / "2-layers-seed-7"
    inputs = json.loads((folder / "result.json").read_text())["inputs"]
    assert inputs["grown_from"] == "variants/inherit/1-layers-seed-7"
    assert inputs["first_sample"] == 16


def test_a_plan_counts_every_seed_as_the_run_then_does(several, tiny_reference, tiny_text) -> None:
    recipe = short(tiny_reference, tiny_text, variants=VARIANTS, seeds=[0, 1, 2])
    plan = plan_recipe(recipe, several[0])
    names = {(t.name, t.layers, t.seed) for t in plan.trainings}
    assert len(plan.trainings) == len(names) == len(trained(several[0]))
    assert ("scratch", 2, 2) in names and ("inherit", 1, None) in names
    assert plan.flops == pytest.approx(
        sum(r["flops_per_token"] * s["tokens"] for r in spent(several[0]) for s in r["seeds"])
    )


def spent(root: Path) -> list[dict[str, Any]]:
    record = Run(root).read()
    first = [row | {"seeds": [row]} for row in record["rounds"][:-1]]
    return [*first, *record["variants"][1:]]


def test_the_seeds_of_a_variant_come_before_those_of_the_recipe() -> None:
    recipe = recipe_of("m", "t", seeds=[3, 4], variants=VARIANTS, train={"seed": 9})
    assert recipe.seeds_of("scratch") == [3, 4]
    assert recipe.seeds_of("equal") == [4]
    assert recipe_of("m", "t", train={"seed": 9}).seeds_of("scratch") == [9]


def test_the_mean_of_one_seed_is_that_seed_bit_for_bit(several) -> None:
    record = Run(several[0]).read()
    row = next(row for row in record["variants"] if row["name"] == "equal")
    assert row["val_loss"] == row["seeds"][0]["val_loss"] == row["val_loss_min"]
    assert Repeated.__dataclass_fields__.keys() == {"results"}


def test_the_terminal_has_a_row_over_all_seeds(several) -> None:
    said = StringIO()
    show_record(Console(file=said, width=80), Run(several[0]).record())
    lines = said.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    table = " ".join(" ".join(lines).split())
    assert "sd (seeds)" in table and "(3)" in table and "1 seed" in table
    assert "inherit, all seeds" in table
    assert "Over 3 seeds the target's val_loss is" in table
