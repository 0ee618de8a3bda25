"""How tasks, snapshots, samples, notes and seeds of one run affect each other."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_recipe
from tiny_tasks import write_tasks

from inheritune.errors import Interrupted
from inheritune.evaluation.suites import SUITES
from inheritune.publishing.card import write_card
from inheritune.recipe.load import RecipeFile
from inheritune.reporting.curves import read_curves
from inheritune.reporting.task_tables import published_table
from inheritune.reporting.training_tables import reach_table
from inheritune.run.execute import execute
from inheritune.run.one_step import train_only
from inheritune.run_directory import Run
from inheritune.run_record.record import RunRecord
from inheritune.steps.seeds import repeat_specs
from inheritune.steps.training_spec import specs_for
from inheritune.surgery.ways import LayerFacts
from inheritune.system.progress import Progress
from inheritune.training.checkpoint_files import drop_later_snapshots

typed = RunRecord.model_validate


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def asked(tiny_reference: Path, tiny_text: Path, questions: Path) -> Callable[..., RecipeFile]:
    """A recipe of one round of four steps, of whose models tasks are asked; sections are merged."""

    def make(**sections: Any) -> RecipeFile:
        evaluate = {"tasks": ["piqa"], "task_data": str(questions)} | sections.pop("evaluate", {})
        given: dict[str, Any] = {
            "train": {"tokens": 512, "eval_every": 1_000_000},
            "grow": {"add": 0},
            "variants": {"inherit": {"start": "inherit"}},
            "evaluate": evaluate,
        }
        recipe = tiny_recipe.recipe_of(tiny_reference, tiny_text, **(given | sections))
        return tiny_recipe.as_file(recipe)

    return make


def stop_when(told: Callable[[Progress], bool]) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        if told(progress):
            os.kill(os.getpid(), signal.SIGTERM)

    return on_progress


def test_notes_of_scaling_and_of_the_analysis_outlive_the_tasks(asked, tmp_path):
    looked_at = {"sequences": 5000, "tokens_per_sequence": 24}
    recipe = replace(asked(analyze=looked_at), scaled="Scaled by 0.1.")
    execute(recipe, tmp_path / "run")
    record = Run(tmp_path / "run").read()
    assert record["evaluation"]["models"] and record["analysis"]
    assert record["notes"][0] == "Scaled by 0.1."
    assert any(note.startswith("Attention was analysed on") for note in record["notes"])


def test_the_card_has_the_scores_of_the_target_alone(asked, tmp_path):
    root = tmp_path / "run"
    execute(asked(variants={"inherit": {"start": "inherit"}, "a": {"start": "fresh"}}), root)
    record = Run(root).read()
    # The reference's answers, and those of a control, must not pass for the target's.
    for model in record["evaluation"]["models"]:
        value = {"reference": 0.1234, "target": 0.4321, "control": 0.5678}[model["role"]]
        model["scores"][0]["metrics"]["acc"]["value"] = value
    (root / "run.json").write_text(json.dumps(record), "utf-8")
    text = write_card(root, {}).read_text("utf-8")
    assert text.count("`piqa` | `acc` |") == 1 and "0.4321" in text
    assert "0.1234" not in text and "0.5678" not in text


def test_snapshots_outlive_a_stop_while_the_end_is_measured(asked, tmp_path):
    root, recipe = tmp_path / "run", asked(evaluate={"at": [128, 256]})
    measured = stop_when(lambda p: p.task == "inherit, 2 layers, val_loss" and p.done > 0)
    with pytest.raises(Interrupted):
        execute(recipe, root, measured)
    execute(recipe, root)
    folder = root / "variants/inherit/2-layers"
    assert [row["tokens"] for row in Run(root).read()["evaluation"]["at"]] == [128, 256]
    assert sorted(path.name for path in (folder / "at").iterdir()) == [
        "0000000000000128-tokens",
        "0000000000000256-tokens",
    ]
    assert not (folder / "moments").exists()


def test_repeats_keep_no_snapshots(asked, tmp_path):
    execute(asked(evaluate={"at": [128]}, seeds=[0, 1]), tmp_path / "run")
    assert [p.parent.name for p in tmp_path.glob("run/variants/inherit/*/at")] == ["2-layers"]
    assert [row["tokens"] for row in Run(tmp_path / "run").read()["evaluation"]["at"]] == [128]


def test_a_finished_run_is_left_as_it_is(asked, tmp_path, monkeypatch):
    root = tmp_path / "run"
    recipe = asked(
        analyze={"sequences": 4, "tokens_per_sequence": 16},
        report={"prompts": ["the small"], "sample_tokens": 2},
        seeds=[0, 1],
        evaluate={"at": [128]},
    )
    execute(recipe, root)
    before = Run(root).read()
    own = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.suffix == ".safetensors"}
    said: list[str] = []

    loaded: list[object] = []

    def no_model(*args: Any, **kwargs: Any) -> None:
        loaded.append(args[0])  # an error alone would be taken for one of samples or tasks
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("inheritune.training.models.load_model", no_model)
    monkeypatch.setattr("inheritune.evaluation.samples.continue_prompts", no_model)
    monkeypatch.setattr("inheritune.evaluation.task_scores.load_lm", no_model)
    execute(recipe, root, lambda p: said.append(p.message))
    assert loaded == []
    after = Run(root).read()
    times = ("started_at", "finished_at", "seconds")
    assert {k: v for k, v in after.items() if k not in times} == {
        k: v for k, v in before.items() if k not in times
    }
    assert own == {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.suffix == ".safetensors"}
    assert before["samples"] and after["samples"] == before["samples"]


def test_samples_are_made_again_for_other_prompts(asked, tmp_path):
    root = tmp_path / "run"
    execute(asked(report={"prompts": ["the small"], "sample_tokens": 1}), root)
    execute(asked(report={"prompts": ["the small"], "sample_tokens": 3}), root)
    longer = Run(root).read()["samples"]
    execute(asked(report={"prompts": ["the large"], "sample_tokens": 3}), root)
    other = Run(root).read()["samples"]
    assert [row["model"] for row in longer] == ["reference", "inherit"]
    assert {row["prompt"] for row in other} == {"the large"}


@pytest.mark.parametrize("search", ["linear", "bisect"])
def test_a_run_takes_over_the_round_that_train_has_trained(search, asked, tmp_path):
    grow = {"add": 1, "search": search, "tolerance": 9.0}
    recipe = asked(grow=grow, evaluate={"tasks": []})
    trained = train_only(recipe, tmp_path / "run").training
    final = execute(recipe, tmp_path / "run").summary
    assert (final["rounds"], final["val_loss"]) == (1, trained.val_loss)


def test_train_begins_with_the_size_that_a_run_begins_with(tiny_text, tmp_path):
    # Global, local, global, local, global, local: half of them is no place to cut.
    layers = {"num_layers": 6, "attention_types": [[["global", "local"], 3]]}
    reference = tiny_models.tiny_reference(tmp_path / "reference", "gpt-neo", **layers)
    asked = {"grow": {"add": 0}, "analyze": None, "variants": {"inherit": {"start": "inherit"}}}
    recipe = tiny_recipe.as_file(tiny_recipe.recipe_of(reference, tiny_text, **asked))
    trained = train_only(recipe, tmp_path / "run").training
    final = execute(recipe, tmp_path / "run").summary
    assert (trained.layers, final["layers"]) == (4, 4)
    assert [path.name for path in (tmp_path / "run/variants/inherit").iterdir()] == ["4-layers"]


def test_each_training_of_a_chain_begins_at_the_tokens_of_its_own_seed(tiny_reference, tiny_text):
    recipe = tiny_recipe.recipe_of(
        tiny_reference, tiny_text, grow={"weights": "keep"}, seeds=[0, 1]
    )
    first = specs_for(recipe, "inherit", LayerFacts(4), 2, 1280)[0]
    # The first seed's round is recorded with half of the tokens.
    second = replace(
        specs_for(recipe, "inherit", LayerFacts(4), 3, 1280)[0],
        grown_from="variants/inherit/2-layers",
        first_sample=640 // 16,
    )
    again = repeat_specs(recipe, [first, second], [])
    assert [(spec.first_sample, spec.grown_from) for spec in again] == [
        (0, None),
        (1280 // 16, "variants/inherit/2-layers-seed-1"),
    ]


def test_snapshots_of_another_branch_are_dropped(tmp_path):
    for step in (2, 4):
        (tmp_path / f"{step:010d}" / f"step-{step:08d}").mkdir(parents=True)
    (tmp_path / "0000000004-copy").mkdir()  # somebody's own
    drop_later_snapshots(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"0000000002", "0000000004-copy"}
    drop_later_snapshots(tmp_path / "none", 0)


def test_each_size_of_a_variant_has_its_own_val_loss_beside_its_tasks():
    def row(layers: int, loss: float) -> dict[str, Any]:
        return {"name": "stack", "start": "stacking", "layers": layers, "val_loss": loss}

    models = [{"name": "stack", "role": "control", "layers": n, "scores": []} for n in (1, 2)]
    record = {"variants": [row(1, 4.5), row(2, 3.5)], "evaluation": {"models": models}}
    table = published_table(typed(record), SUITES["full-data"])
    column = [column.title for column in table.columns].index("val_loss")
    assert [row[column] for row in table.values if "this run" in str(row[0])] == [4.5, 3.5]


def course(folder: Path, *losses: float) -> None:
    """The metrics of a training of a step for each loss, of 100 tokens."""
    folder.mkdir(parents=True)
    rows = [
        {"step": n, "tokens": 100 * n, "elapsed_s": n, "epoch": 0.1, "val_loss": loss}
        for n, loss in enumerate(losses)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text, "utf-8")


def test_tokens_to_reach_a_loss_count_what_a_control_goes_on_from_and_one_seed(tmp_path):
    def row(name: str, layers: int, first_sample: int) -> dict[str, Any]:
        path = f"variants/{name}/{layers}-layers"
        own = {"name": name, "start": "x", "layers": layers, "tokens": 200, "path": path}
        return own | {"first_sample": first_sample, "flops_per_token": 2.0}

    target = row("inherit", 4, 0) | {"start": "inherit"}
    record = {
        "rounds": [target],
        "variants": [target, row("stack", 2, 0), row("stack", 4, 20), row("grown", 6, 20)],
        "recipe": {"variants": {"inherit": {"start": "inherit"}}},
        "benchmark": {"val_loss": 3.0},
    }
    course(tmp_path / "variants/inherit/4-layers", 6.0, 5.0, 4.0)
    course(tmp_path / "variants/inherit/4-layers-seed-1", 6.0, 5.0, 2.0)
    course(tmp_path / "variants/stack/2-layers", 9.0, 8.0, 7.0)
    course(tmp_path / "variants/stack/4-layers", 7.0, 5.0, 3.0)
    course(tmp_path / "variants/grown/6-layers", 4.0, 3.5, 3.0)
    curves = read_curves(tmp_path, typed(record))
    assert {c.label: c.offset for c in curves} == {
        "inherit, round 1, 4 layers": 0, "stack, 2 layers": 0, "stack, 4 layers": 200,
        "grown, 6 layers": 200, "inherit, 4 layers, seed 1": 0,
    }  # fmt: skip
    assert curves[2].position(100)["flops"] == 600
    table = reach_table(typed(record), curves)
    names = [column.title for column in table.columns]
    of = {row[0]: dict(zip(names, row, strict=True)) for row in table.values}
    assert of["the reference loss"]["stack"] == of["the reference loss"]["grown"] == 400
    assert of["the reference loss"]["inherit (target)"] is None  # the second seed is not the target
    assert "inherit (target)" in of and "stack, training 1" in of


def test_tokens_named_after_the_training_are_noted_and_others_not_asked(asked, tmp_path):
    execute(asked(evaluate={"at": [128]}), tmp_path / "run")
    execute(asked(evaluate={"at": [256]}), tmp_path / "run")
    record = Run(tmp_path / "run").read()
    assert record["evaluation"]["at"] == []
    assert "asked after of inherit, 2 layers: it was trained before" in record["notes"][-1]
