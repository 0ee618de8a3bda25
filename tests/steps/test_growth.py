"""The sizes of a growing target."""

import math
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from inheritune.cli.plan_text import recipe_notes
from inheritune.errors import RecipeError, UnsupportedModelError
from inheritune.model_files.directory import open_model
from inheritune.planning.recipe_plan import plan_recipe
from inheritune.recipe.load import RecipeFile
from inheritune.recipe.schema import Recipe
from inheritune.recipe.variants import Grow
from inheritune.reporting.run_tables import ledger_table
from inheritune.run.execute import execute
from inheritune.run.one_step import train_only
from inheritune.run_directory import Run
from inheritune.run_record.record import RunRecord
from inheritune.steps.growth import Growth
from inheritune.verification.model import verify_model

STEP = {"tokens": 128, "learning_rate": 1e-3, "min_learning_rate": 1e-4}


def fields_of(model: Path, text: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """One step on the tiny reference, from one layer on; `sections` are merged in."""
    fields: dict[str, Any] = {
        "name": "tiny",
        "reference": {"model": str(model)},
        "inherit": {"layers": 1},
        "data": {"source": str(text), "val_fraction": 0.2},
        "train": {
            "seq_len": 16,
            "batch_tokens": 128,
            "micro_batch": 8,
            "precision": "fp32",
            "eval_every": 1_000_000,
            **STEP,
        },
        "grow": {"add": 1},
        "variants": {"inherit": {"start": "inherit"}},
        "analyze": None,
        "evaluate": {"gains": False},
    }
    for name, section in sections.items():
        fields[name] = fields.get(name, {}) | section
    return fields


def recipe_of(model: Path, text: Path, **sections: dict[str, Any]) -> RecipeFile:
    fields = fields_of(model, text, **sections)
    return RecipeFile(None, "# made by a test\n", Recipe.model_validate(fields), {})


@pytest.fixture
def matches_from(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the size from which on a target matches."""

    def at(layers: int) -> None:
        def judge(trial: Any, tolerance: float) -> str:
            return "matched" if trial.layers >= layers else "not_matched"

        monkeypatch.setattr("inheritune.run.derive.judge", judge)

    return at


@pytest.fixture(scope="module")
def eight_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("eight") / "reference"
    return tiny_models.tiny_reference(path, num_hidden_layers=8)


# -- which sizes


def sizes_tried(growth: Growth, smallest: int) -> list[int]:
    tried: dict[int, bool] = {}
    while (size := growth.next_size(tried)) is not None:
        assert size not in tried
        tried[size] = size >= smallest
    return [*tried]


@given(
    sizes=st.lists(st.integers(1, 99), min_size=1, max_size=40, unique=True).map(sorted),
    data=st.data(),
)
def test_bisect_finds_the_smallest_that_matches_in_as_few_rounds_as_promised(sizes, data):
    growth = Growth(Grow(search="bisect"), tuple(sizes))
    smallest = data.draw(st.sampled_from([*sizes, 100]))
    tried = sizes_tried(growth, smallest)
    most = 1 + math.ceil(math.log2(len(sizes)))
    assert len(tried) <= len(growth.longest()) <= most
    assert tried[0] == sizes[0]
    matched = [size for size in tried if size >= smallest]
    assert min(matched, default=100) == smallest
    if not matched:
        assert tried[-1] == sizes[-1]
        assert tried == growth.longest()


def test_linear_adds_layers_and_ends_at_the_largest():
    assert sizes_tried(Growth(Grow(add=2), tuple(range(3, 9))), 99) == [3, 5, 7, 8]
    assert sizes_tried(Growth(Grow(add=2), tuple(range(3, 9))), 4) == [3, 5]
    assert sizes_tried(Growth(Grow(add=0), tuple(range(3, 9))), 99) == [3]
    assert sizes_tried(Growth(Grow(add=0, search="bisect"), tuple(range(3, 9))), 99) == [3]


@pytest.mark.parametrize("search", ["linear", "bisect"])
def test_the_limit_of_rounds_holds_for_both_searches(search):
    growth = Growth(Grow(add=1, search=search, max_rounds=3), tuple(range(1, 30)))
    assert len(sizes_tried(growth, 99)) == 3


def test_bisect_ends_once_the_size_above_the_last_miss_has_matched():
    growth = Growth(Grow(search="bisect"), (1, 2, 3))
    assert growth.next_size({1: False, 2: True}) is None


def test_a_hybrid_is_cut_between_its_patterns_only(tiny_model):
    reference = open_model(str(tiny_model("gpt-neo")))  # global, local, global, local

    def growth(first: int | None, start: int, **grow: Any) -> Growth:
        fields = fields_of(Path("there"), Path("there"), inherit={"layers": first}, grow=grow)
        return Growth.of(Recipe.model_validate(fields), reference, start, 4)

    told = growth(1, 1)
    assert (told.sizes, told.longest()) == ((1, 2, 4), [1, 2, 4])  # the first as it was asked for
    assert told.notes == (
        "Rounds have 1, 2, 4 layers, where the reference is safe to cut: layers come in a pattern "
        "of 2.",
    )
    moved = growth(None, 1)
    assert moved.sizes == (2, 4)
    assert moved.notes[0].startswith("The first round has 2 layers, not 1: the last pattern has 1")
    assert growth(2, 2, add=1, search="bisect").ends() == (2, 4)
    assert growth(1, 1, add=0).notes == ()


def test_growth_of_uniform_layers_has_no_notes(tiny_reference):
    recipe = recipe_of(tiny_reference, Path("there")).recipe
    growth = Growth.of(recipe, open_model(str(tiny_reference)), 1, 4)
    assert (growth.sizes, growth.notes) == ((1, 2, 3, 4), ())


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"grow": {"search": "bisect", "weights": "keep"}}, "also tries smaller sizes"),
        (
            {"grow": {"weights": "keep"}, "variants": {"kept": {"start": "grown"}}},
            "variants.kept starts grown: with grow.weights keep that is the target itself",
        ),
        ({"variants": {"kept": {"start": "grown", "layers": 3}}}, "the target's later rounds"),
    ],
)
def test_contradictions_in_grow_are_refused_with_the_reason(sections, said, tiny_reference):
    with pytest.raises(ValueError, match=said):
        Recipe.model_validate(fields_of(tiny_reference, Path("there"), **sections))


# -- whole runs


def test_the_target_of_a_bisection_is_the_smallest_that_matched(
    eight_layers, tiny_text, tmp_path, matches_from
):
    matches_from(4)
    variants = {"scratch": {"start": "fresh"}, "kept": {"start": "grown"}}
    sections = {"grow": {"search": "bisect"}, "variants": variants}
    recipe, root = recipe_of(eight_layers, tiny_text, **sections), tmp_path / "run"
    plan = plan_recipe(recipe.recipe, root)
    assert [t.layers for t in plan.trainings if t.round] == [1, 5, 7, 8]
    assert any(
        line == "rounds: 4 at most, of 1 to 8 layers: each halves the range of 8 safe cut points, "
        "and the smallest that matches is the target."
        for line in recipe_notes(plan)
    )
    result = execute(recipe, root)
    final = result.summary
    record = Run(root).read()
    rounds = [(r["layers"], r["outcome"], r["is_target"]) for r in record["rounds"]]
    assert rounds == [
        (1, "not_matched", False),
        (5, "matched", False),
        (3, "not_matched", False),
        (4, "matched", True),
    ]
    assert (final["outcome"], final["layers"], final["rounds"]) == ("matched", 4, 4)
    assert not result.is_missed
    published = load_file(root / "target" / "model.safetensors")
    trained = load_file(root / "variants/inherit/4-layers/model/model.safetensors")
    assert published.keys() == trained.keys()
    assert final["val_loss"] == record["rounds"][3]["val_loss"]
    rows = [(row["name"], row["layers"]) for row in record["variants"]]
    assert rows == [("reference", 8), ("inherit", 4), ("scratch", 4), ("kept", 3), ("kept", 4)]
    assert any("searched by bisection" in note for note in record["notes"])
    assert execute(recipe, root) == result


def test_a_bisection_without_a_match_ends_with_the_largest(
    tiny_reference, tiny_text, tmp_path, matches_from
):
    matches_from(99)
    recipe = recipe_of(tiny_reference, tiny_text, grow={"search": "bisect", "max_layers": 3})
    result = execute(recipe, tmp_path / "run")
    assert (result.verdict, result.layers, result.is_missed) == ("not_matched", 3, True)
    assert result.summary["rounds"] == 3


# -- the control that keeps its layers


def steps_of(folder: Path, layer: int) -> float:
    end = next((folder / "checkpoints").glob("step-*"))
    return float(
        load_file(end / "optimizer.safetensors")[f"step.model.layers.{layer}.mlp.up_proj.weight"]
    )


def test_a_grown_control_equals_a_target_that_keeps_its_layers(
    tiny_reference, tiny_text, tmp_path, matches_from
):
    matches_from(3)
    longer = {"tokens": 256}
    control = {"variants": {"kept": {"start": "grown"}}, "train": longer}
    root, other = tmp_path / "run", tmp_path / "keep"
    recipe = recipe_of(tiny_reference, tiny_text, **control)
    plan = plan_recipe(recipe.recipe, root)
    execute(recipe, root)
    keep = {"grow": {"weights": "keep"}, "train": longer}
    execute(recipe_of(tiny_reference, tiny_text, **keep), other)
    for layers in (2, 3):
        folders = (
            root / f"variants/kept/{layers}-layers",
            other / f"variants/inherit/{layers}-layers",
        )
        mine, theirs = (load_file(folder / "model/model.safetensors") for folder in folders)
        assert mine.keys() == theirs.keys()
        assert all((mine[name] == theirs[name]).all() for name in mine)
    target, reference = open_model(str(other / "target")), open_model(str(tiny_reference))
    findings = {finding.part: finding for finding in verify_model(target, reference)}
    assert findings["digests"].proven
    assert findings["bytes"].text == "not compared: the target was trained"
    record = Run(root).read()
    done = [row for row in record["variants"] if row["name"] == "kept"]
    assert [(row["layers"], row["first_sample"]) for row in done] == [(2, 16), (3, 32)]
    assert [row["made_of"] for row in done] == [
        "1 trained layers of inherit, and layer 1 of the reference",
        "2 trained layers of kept, and layer 2 of the reference",
    ]
    planned = [t for t in plan.trainings if t.name == "kept"]
    assert [(t.layers, t.tokens) for t in planned] == [(2, 256), (3, 256), (4, 256)]
    assert steps_of(root / "variants/inherit/1-layers", 0) == 2  # kept for the control
    for no_more in ("inherit/2-layers", "inherit/3-layers", "kept/3-layers"):
        assert not [*(root / "variants" / no_more / "checkpoints").glob("step-*")]
    items = [row[0] for row in ledger_table(RunRecord.model_validate(record)).values]
    assert items.count("kept, 2 layers") == items.count("kept, 3 layers") == 1


def test_a_grown_control_is_left_out_with_a_note_where_one_round_was_enough(
    tiny_reference, tiny_text, tmp_path, matches_from
):
    matches_from(1)
    recipe = recipe_of(tiny_reference, tiny_text, variants={"kept": {"start": "grown"}})
    execute(recipe, tmp_path / "run")
    record = Run(tmp_path / "run").read()
    assert "kept was not trained: the target needed one size only." in record["notes"]
    assert not (tmp_path / "run" / "variants" / "kept").exists()
    with pytest.raises(RecipeError, match=r"variants.kept continues from the rounds of inherit"):
        train_only(recipe, tmp_path / "run", variant="kept")


def test_a_reference_that_cannot_grow_is_refused_before_training(tmp_path, tiny_text):
    tiny_models.save_gemma3n(tmp_path / "gemma3n")
    recipe = recipe_of(tmp_path / "gemma3n", tiny_text, variants={"kept": {"start": "grown"}})
    with pytest.raises(UnsupportedModelError, match=r"variants.kept.*a part for each of them"):
        plan_recipe(recipe.recipe, tmp_path / "run")
