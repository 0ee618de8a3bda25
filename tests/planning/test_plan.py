"""What a recipe would take, and the commit that it is held to."""

import json
import shutil
import subprocess
import sys

import hub_server
import pytest
import tiny_models
import tiny_recipe
from hub_server import MODEL, Hub

from inheritune.api import plan
from inheritune.cli.plan_text import candidates_table, cut_table, recipe_tables
from inheritune.errors import DataError, RecipeError, SourceError
from inheritune.planning.candidates import (
    Budget,
    Candidates,
    CutPlan,
    list_candidates,
    plan_cut,
)
from inheritune.planning.recipe_plan import plan_recipe
from inheritune.recipe.load import RecipeFile
from inheritune.run.execute import execute
from inheritune.run.one_step import prepare_only
from inheritune.run_directory import Run
from inheritune.steps.reference_store import open_pinned, pinned_commit
from inheritune.system.devices import DEVICES, Speed
from inheritune.training.models import describe

FIRST, SECOND = "1" * 40, "2" * 40


def recipe_of(model, text, **sections):
    """Two rounds of ten steps and a bit, and three controls; `sections` are merged in."""
    variants = {
        "inherit": {"start": "inherit"},
        "scratch": {"start": "fresh"},
        "equal": {"start": "fresh", "tokens": "equal_compute"},
    }
    train = {"tokens": 1290} | sections.pop("train", {})
    variants |= sections.pop("variants", {})
    return tiny_recipe.recipe_of(model, text, train=train, variants=variants, **sections)


def test_a_plan_says_what_the_run_then_does(tiny_reference, tiny_text, tmp_path):
    recipe = recipe_of(tiny_reference, tiny_text, grow={"max_rounds": 1})
    plan = plan_recipe(recipe, tmp_path / "planned")
    execute(RecipeFile(None, "# a test\n", recipe, {}), tmp_path / "run")
    record = Run(tmp_path / "run").read()
    done = [*record["rounds"], *record["variants"][2:]]
    planned = [(t.name, t.start, t.layers, t.params, t.tokens) for t in plan.trainings]
    assert len(record["rounds"]) == plan.most_rounds == 1
    keys = ("name", "start", "layers", "params", "tokens")
    assert planned == [tuple(row[key] for key in keys) for row in done]
    assert [t.flops for t in plan.trainings] == [r["flops_per_token"] * r["tokens"] for r in done]
    assert [t.steps for t in plan.trainings] == [recipe.train.num_steps(r["tokens"]) for r in done]
    # The text is prepared now: epochs are known, and they are the run's.
    again = plan_recipe(recipe, tmp_path / "run")
    assert [t.epochs for t in again.trainings] == pytest.approx([r["epochs"] for r in done])


@pytest.mark.parametrize(
    ("grow", "layers"),
    [
        ({"add": 1, "max_rounds": None}, [1, 2, 3, 4]),
        ({"add": 2, "max_rounds": None}, [1, 3, 4]),
        ({"add": 1, "max_rounds": None, "max_layers": 2}, [1, 2]),
        ({"add": 0, "max_rounds": None}, [1]),
        ({"add": 1, "max_rounds": 2}, [1, 2]),
    ],
)
def test_every_round_that_can_become_necessary_is_planned(
    grow, layers, tiny_reference, tiny_text, tmp_path
):
    recipe = recipe_of(tiny_reference, tiny_text, grow=grow, inherit={"layers": 1})
    plan = plan_recipe(recipe, tmp_path / "run")
    assert [t.layers for t in plan.trainings if t.round] == layers
    assert [t.layers for t in plan.trainings if not t.round] == [layers[-1]] * 2


def test_planning_writes_nothing_for_a_model_on_this_machine(tiny_reference, tiny_text, tmp_path):
    plan = plan_recipe(recipe_of(tiny_reference, tiny_text), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert (plan.commit, plan.download_bytes, plan.unique_tokens) == (None, 0, None)
    assert all(training.epochs is None for training in plan.trainings)
    assert plan.price is None


def test_hours_memory_and_disk_are_estimated(tiny_reference, tiny_text, tmp_path):
    recipe = recipe_of(tiny_reference, tiny_text, data={"tokens": 645})
    speed = Speed(DEVICES["rtx3090"], rate=0.5)
    plan = plan_recipe(recipe, tmp_path / "run", speed)
    largest = max(t.params for t in plan.trainings)
    assert plan.memory.moments == 8 * largest
    assert plan.memory.weights == 4 * largest
    assert plan.disk["checkpoints"] == 12 * largest * 4  # two newest, best, one being written
    assert plan.save_bytes == 12 * largest
    assert plan.disk["tokens"] == 645 * 2
    assert plan.price.hours == pytest.approx(plan.flops / (71e12 * 0.4) / 3600)
    assert plan.price.dollars == pytest.approx(plan.price.hours / 2)
    assert plan.trainings[0].epochs == 1280 / 645
    assert "data.allow_repeat" in plan.notes[0]
    assert json.loads(json.dumps(plan.as_json(), allow_nan=False))["memory"]["total"] > 0


@pytest.mark.parametrize("weights", ["keep", "reinherit"])
def test_rounded_models_have_their_fp32_weights_beside_them(
    weights, tiny_reference, tiny_text, tmp_path
):
    plans = [
        plan_recipe(
            recipe_of(
                *(tiny_reference, tiny_text),
                grow={"add": 1, "max_rounds": 2, "weights": weights},
                target={"dtype": dtype},
            ),
            tmp_path / "run",
        )
        for dtype in ("fp32", "bf16")
    ]
    params = [training.params for training in plans[0].trainings]
    rounds = [training.params for training in plans[0].trainings if training.round]
    models = [plan.disk["models"] for plan in plans]
    assert models[0] == 4 * (sum(params) + max(rounds))
    others = [training.params for training in plans[0].trainings if not training.round]
    masters = sum(rounds) + max(others) if weights == "keep" else max(params)
    assert models[1] == models[0] // 2 + 4 * masters


def test_one_function_plans_a_model_a_cut_and_a_recipe(tiny_reference, tiny_text, tmp_path):
    recipe = recipe_of(tiny_reference, tiny_text)
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe.resolved()))
    candidates, cut = plan(str(tiny_reference)), plan(tiny_reference, 3, tokens=10**9)
    assert (type(candidates), type(cut)) == (Candidates, CutPlan)
    assert [row["layers"] for row in candidates.rows()] == [1, 2, 3, 4]
    assert cut.rows() == cut.as_json()["candidates"]
    by_path, by_object = plan(path, runs=tmp_path), plan(recipe, runs=tmp_path)
    assert by_path == by_object == plan_recipe(recipe, tmp_path / "tiny")
    assert [row["name"] for row in by_path.rows()] == [t.name for t in by_path.trainings]
    assert "<table" in by_path._repr_html_()


def test_a_misspelt_setting_of_a_model_is_refused(tiny_reference):
    with pytest.raises(RecipeError, match="no setting devicee, token for a model"):
        plan(tiny_reference, devicee="h100", token="1B")


def test_too_many_layers_are_refused(tiny_reference, tiny_text, tmp_path):
    with pytest.raises(RecipeError, match=r"inherit\.layers is 9"):
        plan_recipe(recipe_of(tiny_reference, tiny_text, inherit={"layers": 9}), tmp_path / "run")


def trained_here(model_type, tokenizer, text):
    config = {
        "model_type": model_type, "num_hidden_layers": 4, "hidden_size": 32,
        "intermediate_size": 64, "num_attention_heads": 4, "max_position_embeddings": 64,
    }  # fmt: skip
    wanted = {"config": config, "tokenizer": str(tokenizer), "tokens": 1280}
    return recipe_of(None, text, reference={"model": None, "train": wanted})


def test_a_reference_that_is_trained_here_is_counted_and_planned(
    tiny_reference, tiny_text, tmp_path
):
    recipe = trained_here("llama", tiny_reference, tiny_text)
    plan = plan_recipe(recipe, tmp_path / "run")
    assert [t.name for t in plan.trainings] == [
        "reference",
        "inherit",
        "inherit",
        "scratch",
        "equal",
    ]
    execute(RecipeFile(None, "# a test\n", recipe, {}), tmp_path / "run")
    shape = describe(tmp_path / "run" / "reference" / "model", 16)
    assert plan.reference_params == shape.params
    assert plan.trainings[0].flops == shape.flops_per_token * 1280
    again = plan_recipe(recipe, tmp_path / "run")
    assert again.reference_params == shape.params


def test_an_untrained_reference_of_any_family_is_planned_by_its_class(
    tiny_reference, tiny_text, tmp_path
):
    plan = plan_recipe(trained_here("olmo2", tiny_reference, tiny_text), tmp_path / "run")
    layer = 4 * 32 * 32 + 3 * 32 * 64 + 4 * 32  # attention, MLP, norms of states, queries and keys
    assert plan.reference_params == 2 * 320 * 32 + 4 * layer + 32


def test_a_plan_loads_neither_torch_nor_transformers(tiny_reference, tiny_text, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe_of(tiny_reference, tiny_text).resolved()))
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from inheritune.cli.plan_text import recipe_tables\n"
        "from inheritune.planning.recipe_plan import plan_recipe\n"
        "from inheritune.recipe.load import read_recipe\n"
        f"recipe = read_recipe(Path({str(path)!r})).recipe\n"
        f"recipe_tables(plan_recipe(recipe, Path({str(tmp_path / 'run')!r})))\n"
        "print(sorted({'torch', 'transformers'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


# --------------------------------------------------------------------------------------- pages


def test_tables_have_a_text_for_every_column(tiny_model, tiny_reference, tiny_text, tmp_path):
    from inheritune.model_files.directory import open_model

    speed = Speed(DEVICES["h100"], rate=2.0)
    for family in ("llama", "mixtral", "gemma3"):
        reference = open_model(str(tiny_model(family)))
        for budget in (Budget(), Budget(tokens=10**9, speed=speed)):
            for table in (
                candidates_table(list_candidates(reference, budget)),
                cut_table(plan_cut(reference, "2", budget)),
            ):
                assert {len(row) for row in table.rows} == {len(table.headers)}
    assert ("active" in table.headers, "price" in table.headers) == (False, True)
    plan = plan_recipe(recipe_of(tiny_reference, tiny_text), tmp_path / "run", speed)
    (table,) = recipe_tables(plan)
    assert table.rows[0][:2] == ["inherit, round 1", "2"]
    assert table.rows[0][3:6] == ["156 KB", "1.28K", "10"]
    trainings, hours = recipe_tables(
        plan_recipe(recipe_of(tiny_reference, tiny_text), tmp_path / "run")
    )
    assert "price" not in trainings.headers
    assert hours.headers == ["one device alone", "h100", "a100", "rtx4090", "cpu"]
    assert hours.rows[-1][0] == "together"


# ----------------------------------------------------------------------------- the pinned commit


@pytest.fixture
def hub(tiny_reference, tmp_path):
    """A Hub whose main branch is at the first of two commits."""
    second = shutil.copytree(tiny_reference, tmp_path / "second")
    tiny_models.build("llama", vocab_size=tiny_models.VOCAB, num_hidden_layers=3).save_pretrained(
        second
    )
    commits = {FIRST: tiny_reference, SECOND: second}
    with (
        hub_server.serve(Hub(MODEL, commits, {"main": FIRST})) as server,
        hub_server.taken_for_the_hub(server, tmp_path / "hf"),
    ):
        yield server


def test_planning_pins_a_branch_to_its_commit_and_downloads_headers_only(hub, tiny_text, tmp_path):
    plan = plan_recipe(recipe_of(MODEL, tiny_text), tmp_path / "run")
    assert (plan.commit, plan.reference_layers) == (FIRST, 4)
    assert plan.download_bytes == 4 * plan.reference_params
    assert hub.sent(".safetensors") < plan.download_bytes
    pin = json.loads((tmp_path / "run" / "reference.json").read_text())
    assert pin == {"format": 1, "model": MODEL, "revision": None, "commit": FIRST}


def test_a_run_takes_the_commit_that_was_planned(hub, tiny_text, tmp_path):
    recipe = recipe_of(MODEL, tiny_text)
    plan = plan_recipe(recipe, tmp_path / "run")
    hub.revisions["main"] = SECOND
    assert plan_recipe(recipe, tmp_path / "run").commit == FIRST
    final = execute(RecipeFile(None, "# a test\n", recipe, {}), tmp_path / "run").summary
    assert final["reference_layers"] == 4
    record = json.loads((tmp_path / "run" / "variants/inherit/2-layers/inherit.json").read_text())
    assert record["reference"]["revision"] == FIRST
    done = Run(tmp_path / "run").read()["rounds"][0]
    assert plan.trainings[0].params == done["params"]
    # Another run is free to take what the branch means now.
    assert plan_recipe(recipe, tmp_path / "other").commit == SECOND


def test_a_run_that_was_begun_keeps_its_commit(hub, tiny_text, tmp_path):
    recipe = RecipeFile(None, "# a test\n", recipe_of(MODEL, tiny_text), {})
    prepare_only(recipe, tmp_path / "run")
    hub.revisions["main"] = SECOND
    final = execute(recipe, tmp_path / "run").summary
    assert final["reference_layers"] == 4


def test_a_commit_that_is_gone_is_refused(hub, tiny_text, tmp_path):
    recipe = recipe_of(MODEL, tiny_text)
    plan_recipe(recipe, tmp_path / "run")
    hub.revisions["main"] = SECOND
    hub.commits.pop(FIRST)
    shutil.rmtree(tmp_path / "hf")
    with pytest.raises(SourceError, match="began with commit 111111111111") as error:
        execute(RecipeFile(None, "# a test\n", recipe, {}), tmp_path / "run")
    assert error.value.exit_code == 3
    assert "another name" in error.value.hint


def test_another_revision_in_the_recipe_is_pinned_anew(hub, tiny_text, tmp_path):
    hub.revisions["next"] = SECOND
    run = Run.create(tmp_path / "run")
    assert open_pinned(run, MODEL, None, whole=False).revision == FIRST
    assert pinned_commit(run, MODEL, "next") is None
    assert open_pinned(run, MODEL, "next", whole=False).revision == SECOND
    assert pinned_commit(run, MODEL, "next") == SECOND


def test_a_directory_in_the_place_of_the_pinned_model_is_refused(
    hub, tiny_reference, tmp_path, monkeypatch
):
    run = Run.create(tmp_path / "run")
    open_pinned(run, MODEL, None, whole=False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_reference, tmp_path / MODEL)
    with pytest.warns(UserWarning), pytest.raises(SourceError, match="is in its place"):
        open_pinned(run, MODEL, None, whole=False)


def test_a_broken_pin_is_named(tmp_path):
    run = Run.create(tmp_path / "run")
    run.pin.write_text('{"format": 1, "commit": "../x"}')
    with pytest.raises(DataError, match=r"reference\.json"):
        pinned_commit(run, MODEL, None)
