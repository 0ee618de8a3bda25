"""The recipes of the papers: they load, they are planned offline, and scaled down they run."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inheritune.cli.app import app
from inheritune.cli.plan_text import recipe_notes, recipe_tables
from inheritune.errors import RecipeError
from inheritune.model_files.config import layer_count
from inheritune.model_files.shapes import class_headers
from inheritune.planning.recipe_plan import RecipePlan, plan_recipe
from inheritune.planning.scale import scale_file, scale_recipe
from inheritune.recipe.known_configs import known_config
from inheritune.recipe.load import RecipeFile, read_recipe
from inheritune.recipe.presets import preset_names, preset_path
from inheritune.recipe.published import deviations, experiment_names
from inheritune.recipe.schema import Recipe
from inheritune.recipe.variants import Match
from inheritune.run.execute import execute
from inheritune.surgery.half_width import half_width_headers

LOW_DATA = ["low-data-1b", "low-data-50b", "low-data-layers", "low-data-repetition"]
GPT2 = [
    "gpt2-medium-openwebtext",
    "gpt2-medium-moved-layers",
    "gpt2-large-openwebtext",
    "gpt2-xlarge-openwebtext",
    "fineweb-edu-medium",
    "fineweb-edu-large",
    "gpt2-small-layers",
    "submodules",
    "distillation",
    "table4-gpu",
]
PAPERS = [*LOW_DATA, *GPT2]
MOVED = ("gpt2-medium-moved-layers", "gpt2-small-layers", "table4-gpu")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def recipe_of(name: str) -> Recipe:
    return read_recipe(preset_path(name)).recipe


@cache  # the model's class is asked about every control, in a process of its own
def plan_of(name: str) -> RecipePlan:
    root = Path("nowhere").absolute()
    plan = plan_recipe(recipe_of(name), root)
    assert not root.exists()
    return plan


# -- as they are meant


@pytest.mark.parametrize("name", PAPERS)
def test_a_recipe_of_the_papers_is_a_preset_that_says_what_it_reproduces(name):
    assert name in preset_names()
    recipe = recipe_of(name)
    assert recipe.name == name
    assert recipe.reproduces in experiment_names()
    assert deviations(recipe.resolved())
    text = preset_path(name).read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=recipe.schema.json\n#")


def test_every_published_experiment_has_its_recipe():
    assert {recipe_of(name).reproduces for name in PAPERS} == set(experiment_names())


@pytest.mark.parametrize("name", PAPERS)
def test_paper_recipe_is_planned_without_network_with_hours_and_disk(name):
    plan = plan_of(name)
    recipe = recipe_of(name)
    planned = {training.name for training in plan.trainings}
    assert planned - {"reference"} == set(recipe.variants)
    trainings, hours_by_device = recipe_tables(plan)
    assert hours_by_device.headers[1:] == ["h100", "a100", "rtx4090", "cpu"]
    assert len(trainings.rows) == len(hours_by_device.rows) - 1 == len(plan.trainings)
    said = "\n".join(recipe_notes(plan))
    assert "40% of the device's dense peak" in said and "disk, estimated" in said
    assert f"Differs from {recipe.reproduces}" in said
    hours = json.loads(json.dumps(plan.as_json()))["hours"]
    assert hours["h100"]["total"] == pytest.approx(sum(hours["h100"]["trainings"]))
    assert hours["a100"]["total"] == pytest.approx(hours["h100"]["total"] * 989.5 / 312)


@pytest.mark.parametrize(
    ("name", "steps", "batch", "rate", "rounds"),
    [
        ("low-data-1b", 61_035, 131_072, 3e-4, [13]),
        ("low-data-50b", 381_469, 131_072, 3e-4, [13]),
        ("gpt2-medium-openwebtext", 100_000, 393_216, 3e-4, [12, 14, 16]),
        ("gpt2-large-openwebtext", 100_000, 131_072, 2e-4, [18, 20]),
        ("gpt2-xlarge-openwebtext", 100_000, 131_072, 1.5e-4, [24, 26]),
        ("fineweb-edu-medium", 100_000, 61_440, 2e-4, [16, 18]),
        ("fineweb-edu-large", 100_000, 61_440, 2e-4, [16, 18]),
        ("gpt2-small-layers", 100_000, 393_216, 3e-4, [4]),
        ("distillation", 50_000, 393_216, 3e-4, [16]),
    ],
)
def test_steps_batch_rate_and_rounds_are_those_of_the_papers(name, steps, batch, rate, rounds):
    plan, train = plan_of(name), recipe_of(name).train
    target = [t for t in plan.trainings if t.round]
    assert [t.layers for t in target] == rounds
    assert {t.steps for t in target} == {steps}
    assert (train.batch_tokens, train.learning_rate) == (batch, rate)
    warm_up = 1000 if name.startswith("low-data") else 2000
    assert train.warmup_tokens == warm_up * batch


@pytest.mark.parametrize("name", GPT2)
def test_attention_is_divided_by_the_layer_where_no_layer_moves(name):
    config = recipe_of(name).reference.train.config
    assert config["scale_attn_by_inverse_layer_idx"] is (name not in MOVED)
    assert config["vocab_size"] == 50304


def test_recipes_that_share_a_reference_train_the_same_one():
    shared: dict[str, set[str]] = {}
    for name in GPT2:
        recipe = recipe_of(name)
        trained = recipe.reference.train
        if trained.keep_in is not None:
            decides = [trained.model_dump(), recipe.data.model_dump()]
            own = recipe.train.model_dump(exclude={"tokens"})
            shared.setdefault(trained.keep_in, set()).add(json.dumps([decides, own]))
    assert all(len(found) == 1 for found in shared.values())
    medium = [n for n in GPT2 if recipe_of(n).reference.train.keep_in == "references/gpt2-medium"]
    assert medium == ["gpt2-medium-openwebtext", "submodules", "distillation"]


def test_thirteen_layers_of_openllama_are_not_the_printed_billion_and_a_half():
    target = plan_of("low-data-1b").trainings[0]
    assert round(target.params / 1e9, 2) == 1.82
    assert "not on this machine" in " ".join(plan_of("low-data-1b").notes)


@pytest.mark.parametrize(
    ("model", "layers"),
    [("./open_llama_7b", 32), ("meta-llama/Llama-2-7b-hf", 32)],
)
def test_the_other_references_of_the_fresh_run_are_a_setting(model, layers, tmp_path):
    sets = [f"reference.model={model}", "inherit.layers=7", "name=other"]
    recipe = read_recipe(preset_path("low-data-50b"), sets).recipe
    plan = plan_recipe(recipe, tmp_path / "run")
    assert (plan.reference_layers, {t.layers for t in plan.trainings}) == (layers, {7})


# -- scaled


def scaled(name: str, factor: float = 1e-8) -> RecipeFile:
    return scale_file(read_recipe(preset_path(name)), factor)


@pytest.mark.parametrize("name", PAPERS)
def test_a_scaled_recipe_has_the_same_rounds_and_variants_of_the_same_sizes(name):
    meant, recipe = recipe_of(name), scaled(name).recipe
    assert (recipe.inherit, recipe.grow, recipe.seeds) == (meant.inherit, meant.grow, meant.seeds)
    assert list(recipe.variants) == list(meant.variants)
    for key, variant in meant.variants.items():
        own = {"tokens": variant.tokens, "warmup_tokens": variant.warmup_tokens}
        assert recipe.variants[key].model_copy(update=own) == variant
    config = recipe.reference.train.config
    before = known_config(meant.reference.model) if meant.reference.model else None
    before = before or meant.reference.train.config
    assert config["model_type"] == before["model_type"]
    assert layer_count(config) == layer_count(before)
    assert config.get("n_positions", config.get("max_position_embeddings")) >= 32
    half_width_headers(class_headers({"vocab_size": 2048} | config))  # heads, widths are even


def test_the_plan_of_a_scaled_recipe_has_the_same_trainings(tmp_path):
    name = "gpt2-medium-openwebtext"
    before, after = plan_of(name), plan_recipe(scaled(name).recipe, tmp_path / "run")
    assert [(t.name, t.round, t.start, t.layers) for t in after.trainings] == [
        (t.name, t.round, t.start, t.layers) for t in before.trainings
    ]
    assert max(t.params for t in after.trainings) < 2_000_000


def test_scaling_is_by_one_factor_and_noted_everywhere():
    file = scaled("gpt2-medium-openwebtext", 1e-4)
    recipe, meant = file.recipe, recipe_of("gpt2-medium-openwebtext")
    assert recipe.name == "gpt2-medium-openwebtext-scaled-0.0001"
    assert (recipe.train.tokens, recipe.reference.train.tokens) == (3_932_160, 3_932_160)
    assert (recipe.train.seq_len, recipe.train.batch_tokens) == (104, 104 * 38)
    config = recipe.reference.train.config
    assert (config["n_layer"], config["n_embd"], config["n_head"]) == (24, 96, 2)
    assert recipe.tokens_of("scratch-2x") == 2 * recipe.train.tokens
    assert recipe.variants["kd"] == meant.variants["kd"]
    assert (recipe.reproduces, recipe.reference.train.keep_in) == (None, None)
    assert (recipe.evaluate.tasks, recipe.data.source) == ([], "stdlib")
    assert "not a result of the method" in file.scaled
    assert file.origins["train.tokens"] == "--scale"
    assert file.origins["train.learning_rate"] == "file"


@pytest.mark.parametrize("factor", [0.0, 1.0, -1.0, 2.0, float("nan"), float("inf")])
def test_a_factor_that_is_no_share_is_refused(factor):
    with pytest.raises(RecipeError, match=r"--scale is"):
        scale_recipe(recipe_of("gpt2-small-layers"), factor)


def test_a_reference_of_unknown_shape_is_not_scaled():
    recipe = recipe_of("low-data-1b").model_copy(update={"reference": recipe_of("demo").reference})
    with pytest.raises(RecipeError, match="shape of embedded:demo is not known"):
        scale_recipe(recipe, 1e-6)
    with pytest.raises(RecipeError, match=r"type mamba cannot be scaled"):
        scale_recipe(recipe, 1e-6, {"model_type": "mamba"})


def test_the_demo_can_be_scaled_too(tmp_path):
    plan = plan_recipe(scale_file(read_recipe(preset_path("demo")), 0.01).recipe, tmp_path / "run")
    assert plan.reference_layers == 8


def test_known_shapes_are_found_by_the_last_part_of_their_name():
    assert known_config("openlm-research/open_llama_3b") == known_config("./open_llama_3b")
    assert known_config("openlm-research/open_llama_3b")["num_hidden_layers"] == 26
    assert known_config("somebody/model") is None


def run_scaled(name: str, root: Path) -> dict:
    """A scaled run through all of its rounds: after two steps, the first would match by chance."""
    file = scaled(name)
    never = file.recipe.grow.model_copy(update={"match": Match.model_construct(val_loss=-1.0)})
    file = replace(file, recipe=file.recipe.model_copy(update={"grow": never}))
    record = execute(file, root).record.as_json()
    assert (record["exit_code"], record["status"]) == (6 if never.add else 0, "done")
    assert record["scaled"] == record["notes"][0] == file.scaled
    planned = {(t.name, t.layers) for t in plan_recipe(file.recipe, root).trainings}
    folders = (root / "variants").glob("*/*-layers/result.json")
    done = {(p.parts[-3], int(p.parts[-2].removesuffix("-layers"))) for p in folders}
    assert done == {(name, layers) for name, layers in planned if name != "reference"}
    assert record["reference"]["trained_here"]
    assert (root / "report" / "index.html").is_file()
    return record


@pytest.mark.recipes  # a quarter of a minute each
@pytest.mark.parametrize("name", PAPERS)
def test_a_scaled_recipe_runs_to_the_end(name, tmp_path):
    run_scaled(name, tmp_path / "run")


def test_plan_and_run_take_the_scale_from_the_command_line(tmp_path):
    recipe = str(preset_path("submodules"))
    asked = ["plan", recipe, "--scale", "1e-8", "--json"]
    answer = CliRunner().invoke(app, asked)
    assert answer.exit_code == 0, answer.stderr
    plan = json.loads(answer.stdout)
    assert plan["name"] == "submodules-scaled-1e-08"
    assert "not a result of the method" in answer.stderr
    refused = CliRunner().invoke(app, ["run", recipe, "--scale", "3"])
    assert refused.exit_code == 2 and "--scale is 3" in refused.stderr


# -- deviations


def test_only_settings_that_differ_from_print_are_listed():
    said = deviations(recipe_of("gpt2-medium-openwebtext").resolved())
    assert said[0].endswith("train.batch_tokens is 393,216; v1 prints 50,000.")
    assert not any("learning_rate" in line for line in said)
    changed = read_recipe(preset_path("gpt2-medium-openwebtext"), ["train.learning_rate=6e-4"])
    assert any(
        "train.learning_rate is 0.0006; the authors' runs: 0.0003" in line
        for line in deviations(changed.recipe.resolved())
    )
    assert deviations(recipe_of("demo").resolved()) == []


def test_settings_that_two_sources_give_differently_are_listed_with_both():
    said = " ".join(deviations(recipe_of("fineweb-edu-medium").resolved()))
    assert "train.betas is [0.9, 0.999]; v4 prints [0.9, 0.95]." in said
    assert "train.tokens is 6,144,000,000; v4 prints 10,000,000,000." in said
    assert "scale_attn_by_inverse_layer_idx is false; the authors' runs: true" in " ".join(
        deviations(recipe_of("gpt2-small-layers").resolved())
    )


def test_an_unknown_experiment_is_refused_with_the_nearest():
    with pytest.raises(RecipeError, match=r"did you mean gpt2-medium-openwebtext\?"):
        read_recipe(preset_path("demo"), ["reproduces=gpt2-medium-openwebtxt"])
    with pytest.raises(RecipeError, match=r"known: distillation, "):
        read_recipe(preset_path("demo"), ["reproduces=xyz"])
