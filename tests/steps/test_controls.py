"""The start of every kind of variant, and what a run makes of it."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_recipe
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from inheritune.cli.plan_text import recipe_notes, recipe_tables
from inheritune.errors import RecipeError, UnsupportedModelError
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.planning.recipe_plan import plan_recipe
from inheritune.recipe.load import RecipeFile
from inheritune.recipe.schema import Recipe
from inheritune.recipe.variants import Parts
from inheritune.reporting.run_tables import ledger_table, variants_table
from inheritune.run.execute import execute
from inheritune.run.one_step import train_only
from inheritune.run_directory import Run
from inheritune.run_record.record import RunRecord
from inheritune.steps.initial_weights import write_start
from inheritune.steps.job import Job
from inheritune.steps.training_spec import layers_of, specs_for
from inheritune.steps.training_task import TrainingTask
from inheritune.surgery.selection import choose_layers
from inheritune.surgery.ways import LayerFacts
from inheritune.system.signals import StopFlag
from inheritune.training.models import fresh_model, load_model
from inheritune.verification.model import verify_model

typed = RunRecord.model_validate

FAMILIES = ("llama", "gpt2")
OUTSIDE = {
    "llama": ("model.embed_tokens", "model.norm", "lm_head"),
    "gpt2": ("transformer.wte", "transformer.wpe", "transformer.ln_f"),
}
ATTENTION = {"llama": ("self_attn.", "input_layernorm"), "gpt2": (".attn.", "ln_1")}
MLP = {"llama": (".mlp.", "post_attention_layernorm"), "gpt2": (".mlp.", "ln_2")}
NORMS = {"llama": ("layernorm",), "gpt2": ("ln_1", "ln_2")}
PREFIX = {"llama": "model.layers.", "gpt2": "transformer.h."}


def recipe_of(model: Path | str, text: Path | str, **sections: dict[str, Any]) -> Recipe:
    """Trainings of two steps; `sections` are merged in, `variants` beside the target."""
    own = {
        "data": {"val_fraction": 0.1},
        "train": {"tokens": 256, "eval_every": 1_000_000},
        "grow": {"add": 0, "max_rounds": None},
        "variants": {"inherit": {"start": "inherit"}},
    }
    merged = {name: own.get(name, {}) | sections.get(name, {}) for name in own | sections}
    return tiny_recipe.recipe_of(model, text, **merged)


def start_of(
    model: Path, root: Path, variant: dict[str, Any], layers: int = 2
) -> tuple[ModelDirectory, dict[str, torch.Tensor]]:
    """The start directory of a control, and its weights as a training takes them."""
    recipe = recipe_of(model, "no text", variants={"it": variant})
    reference = open_model(str(model))
    job = Job(recipe, Run.create(root), StopFlag(), lambda progress: None)
    layers = layers_of(recipe.variants["it"], reference.layers, layers)
    spec = specs_for(recipe, "it", LayerFacts(reference.layers), layers, 256)[-1]
    folder = job.run.variant("it", layers)
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task = TrainingTask(job, spec, folder, tokens=None, inputs={})
        write_start(task, reference)
    start = open_model(str(folder / "start"))
    return start, load_file(start.path / "model.safetensors")


def in_reference(name: str, family: str, kept: list[int]) -> str:
    """The name that a tensor of a target has in its reference."""
    if not name.startswith(PREFIX[family]):
        return name
    number, _, rest = name.removeprefix(PREFIX[family]).partition(".")
    return f"{PREFIX[family]}{kept[int(number)]}.{rest}"


def is_fresh(name: str, family: str, parts: str) -> bool:
    """What each of the parts leaves to the class; of two layers."""
    inside = name.startswith(PREFIX[family])
    marks = {
        "attention": MLP[family],
        "mlp": ATTENTION[family],
        "attention+mlp": NORMS[family],
        "paper-code-gpt2": ("wpe", "ln_f"),
        "paper-code-llama": ("embed_tokens", "model.norm"),
    }.get(parts, ())
    halves = {"first-half": f"{PREFIX[family]}1.", "outer-only": PREFIX[family]}
    if parts == "layers-only":
        return not inside
    if parts in halves:
        return name.startswith(halves[parts])
    return any(mark in name for mark in marks) and (inside or "paper" in parts)


# -- starts, tensor by tensor


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("select", "kept"),
    [
        ("first", [0, 1]),
        ("last", [2, 3]),
        ("middle", [1, 2]),
        ("first+last", [0, 3]),
        ("strided", [0, 3]),
        ("0,2-3", [0, 2, 3]),
    ],
)
def test_a_selection_is_those_layers_bit_for_bit(tiny_model, tmp_path, family, select, kept):
    model = tiny_model(family)
    start, found = start_of(model, tmp_path / "run", {"start": "inherit", "select": select})
    before = load_file(model / "model.safetensors")
    assert start.layers == len(kept)
    assert found.keys() == {n for n in before if in_target(n, family, len(kept))}
    for name, tensor in found.items():
        assert torch.equal(tensor, before[in_reference(name, family, kept)]), name
    record = json.loads((start.path.parent / "inherit.json").read_text())
    assert record["layer_map"] == kept and "layers as in the reference" in record["check"]


def in_target(name: str, family: str, layers: int) -> bool:
    number = name.removeprefix(PREFIX[family]).partition(".")[0]
    return not name.startswith(PREFIX[family]) or int(number) < layers


PARTS = [
    *((family, parts) for family in FAMILIES for parts in (
        "attention", "mlp", "attention+mlp", "first-half", "layers-only", "outer-only")),
    ("gpt2", "paper-code-gpt2"),
    ("llama", "paper-code-llama"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "parts"), PARTS)
def test_parts_not_inherited_are_initialised_as_by_the_class_at_the_targets_size(
    tiny_model, tmp_path, family, parts
):
    model = tiny_model(family)
    start, found = start_of(model, tmp_path / "run", {"start": "inherit", "parts": parts})
    before = load_file(model / "model.safetensors")
    made = fresh_model(start.path, seed=0).state_dict()
    fresh = {name for name in found if is_fresh(name, family, parts)}
    assert fresh and fresh != set(found)
    for name, tensor in found.items():
        if name not in fresh:
            assert torch.equal(tensor, before[name]), name
        elif "paper-code-llama" in parts and "embed" in name:
            # As torch makes an embedding: far wider than the class would.
            assert 0.9 < float(tensor.std()) < 1.1
        else:
            assert torch.equal(tensor, made[name]), name
            assert not torch.equal(tensor, before[name]), name
    findings = {f.part: f.text for f in verify_start(start, open_model(str(model)))}
    assert f"{len(fresh)} are fresh" in findings["bytes"]


def verify_start(start, reference):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shutil.copyfile(start.path.parent / "inherit.json", start.path / "inherit.json")
        return list(verify_model(start, reference))


@pytest.mark.parametrize("family", FAMILIES)
def test_hybrid_stacking_has_the_first_layers_twice(tiny_model, tmp_path, family):
    model = tiny_model(family)
    start, found = start_of(model, tmp_path / "run", {"start": "hybrid-stacking"}, layers=4)
    before = load_file(model / "model.safetensors")
    for name, tensor in found.items():
        assert torch.equal(tensor, before[in_reference(name, family, [0, 1, 0, 1])]), name
    assert found.keys() == before.keys()
    record = json.loads((start.path.parent / "start.json").read_text())
    assert record["layer_map"] == [0, 1, 0, 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_stacking_has_the_trained_layers_twice(tiny_model, tmp_path, family):
    trained = tmp_path / "run" / "variants" / "it" / "2-layers" / "model"
    Run.create(tmp_path / "run")
    small = {"gpt2": {"n_layer": 2}, "llama": {"num_hidden_layers": 2}}[family]
    tiny_models.build(family, **small).save_pretrained(trained)
    before = load_file(trained / "model.safetensors")
    model = tiny_model(family)
    start, found = start_of(model, tmp_path / "run", {"start": "stacking"}, layers=4)
    for name, tensor in found.items():
        assert torch.equal(tensor, before[in_reference(name, family, [0, 1, 0, 1])]), name
    assert start.layers == 4
    assert not torch.equal(*(t[f"{first_matrix(family)}"] for t in (before, whole(model))))


def first_matrix(family: str) -> str:
    return {"llama": "lm_head.weight", "gpt2": "transformer.wte.weight"}[family]


def whole(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "model.safetensors")


def test_half_width_of_gpt2_is_the_first_half_of_heads_units_and_coordinates(tiny_model, tmp_path):
    model = tiny_model("gpt2")
    start, found = start_of(model, tmp_path / "run", {"start": "half-width"})
    before = whole(model)
    assert (start.layers, start.config["n_embd"], start.config["n_head"]) == (4, 16, 2)
    layer = "transformer.h.3."
    fused = before[f"{layer}attn.c_attn.weight"]
    queries, keys, values = (fused[:16, i * 32 : i * 32 + 16] for i in range(3))
    assert torch.equal(found[f"{layer}attn.c_attn.weight"], torch.cat([queries, keys, values], 1))
    bias = before[f"{layer}attn.c_attn.bias"].view(3, 32)[:, :16].reshape(-1)
    assert torch.equal(found[f"{layer}attn.c_attn.bias"], bias)
    for name, shape in [
        ("attn.c_proj.weight", (16, 16)),
        ("mlp.c_fc.weight", (16, 64)),
        ("mlp.c_proj.weight", (64, 16)),
        ("ln_1.weight", (16,)),
        ("mlp.c_fc.bias", (64,)),
    ]:
        assert torch.equal(found[layer + name], first(before[layer + name], shape)), name
    assert torch.equal(found["transformer.wpe.weight"], before["transformer.wpe.weight"][:, :16])
    assert sum(t.numel() for t in load_model(start.path).parameters()) == start.params


def first(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    for axis, size in enumerate(shape):
        tensor = tensor.narrow(axis, 0, size)
    return tensor


def test_half_width_of_llama_is_the_beginning_of_every_axis(tiny_model, tmp_path):
    model = tiny_model("llama")
    start, found = start_of(model, tmp_path / "run", {"start": "half-width"})
    before = whole(model)
    assert found.keys() == before.keys()
    for name, tensor in found.items():
        vocabulary = name in ("lm_head.weight", "model.embed_tokens.weight")
        rows = before[name].shape[0] // (1 if vocabulary else 2)
        shape = (rows, *(size // 2 for size in before[name].shape[1:]))
        assert torch.equal(tensor, first(before[name], shape)), name
    assert start.config["head_dim"] == 8  # a head stays what it was
    assert load_model(start.path).config.num_key_value_heads == 1


@pytest.mark.parametrize(
    ("count", "total", "kept"),
    [
        (1, 5, (0,)),
        (2, 5, (0, 4)),
        (3, 4, (0, 2, 3)),
        (5, 5, (0, 1, 2, 3, 4)),
        (3, 24, (0, 12, 23)),
    ],
)
def test_strided_layers_are_spread_from_the_first_to_the_last(count, total, kept):
    assert choose_layers("strided", LayerFacts(total), count) == kept
    assert choose_layers(f"strided:{count}", LayerFacts(total)) == kept


# -- refusals, before anything is trained


@pytest.mark.parametrize(
    ("family", "variant", "said", "code"),
    [
        ("llama", {"start": "inherit", "select": "lazy", "layers": 5}, "layers is 5", 2),
        ("llama", {"start": "inherit", "select": "every"}, "which layers", 2),
        ("llama", {"start": "inherit", "select": "0-9"}, "no layer 4", 2),
        ("llama", {"start": "inherit", "select": "2", "layers": 3}, "keeps 2 layers, not 3", 2),
        ("llama", {"start": "inherit", "select": "0-2", "layers": 2}, "keeps 3 layers, not 2", 2),
        ("llama", {"start": "inherit", "select": "first+last", "layers": 1}, "two layers", 2),
        ("llama", {"start": "inherit", "parts": "first-half", "layers": 1}, "no first half", 2),
        ("llama", {"start": "stacking", "layers": 3}, "half of 3 layers", 2),
        ("llama", {"start": "hybrid-stacking", "layers": 3}, "half of 3 layers", 2),
        ("llama", {"start": "fresh", "layers": 9}, "layers is 9", 2),
        ("llama", {"start": "inherit", "parts": "paper-code-gpt2"}, "with a GPT-2", 3),
        ("gpt2", {"start": "inherit", "parts": "paper-code-llama"}, "with a LLaMA", 3),
        ("llama-tied", {"start": "inherit", "parts": "paper-code-llama"}, "with a LLaMA", 3),
        ("mixtral", {"start": "half-width"}, "half-width is defined for", 3),
        ("smollm3", {"start": "hybrid-stacking", "layers": 4}, "layer ", 3),
        ("gpt-neo", {"start": "stacking", "layers": 2}, "layer 0", 3),
    ],
)
def test_impossible_controls_are_refused_at_plan_time(
    tiny_model, tmp_path, family, variant, said, code
):
    recipe = recipe_of(tiny_model(family), "no text", variants={"it": variant})
    with pytest.raises((RecipeError, UnsupportedModelError), match=said) as error:
        plan_recipe(recipe, tmp_path / "run")
    assert error.value.exit_code == code
    assert "variants.it" in error.value.message
    assert not (tmp_path / "run").exists()


def test_half_of_an_odd_number_of_heads_is_refused(tmp_path):
    config = GPT2Config(vocab_size=64, n_embd=30, n_layer=2, n_head=3, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "odd")
    recipe = recipe_of(tmp_path / "odd", "no text", variants={"half": {"start": "half-width"}})
    with pytest.raises(UnsupportedModelError, match=r"variants.half: .*even n_head; .* has 3"):
        plan_recipe(recipe, tmp_path / "run")


def test_layers_whose_attention_depends_on_their_position_are_not_moved(tmp_path):
    config = GPT2Config(
        vocab_size=64, n_embd=32, n_layer=4, n_head=2, n_positions=32,
        scale_attn_by_inverse_layer_idx=True,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "scaled")
    for variant in ({"start": "inherit", "select": "last"}, {"start": "hybrid-stacking"}):
        recipe = recipe_of(tmp_path / "scaled", "no text", variants={"it": variant})
        with pytest.raises(UnsupportedModelError, match=r"variants.it: layer"):
            plan_recipe(recipe, tmp_path / "run")


def test_controls_are_checked_at_every_size_that_the_target_may_end_with(tiny_model, tmp_path):
    stacked = {"stacked": {"start": "stacking"}}
    recipe = recipe_of(tiny_model("llama"), "no text", variants=stacked, grow={"add": 1})
    with pytest.raises(RecipeError, match=r"variants.stacked, with 3 layers: half of 3 layers"):
        plan_recipe(recipe, tmp_path / "run")


def test_a_run_refuses_impossible_controls_before_the_text_is_prepared(
    tiny_reference, tiny_text, tmp_path
):
    recipe = recipe_of(tiny_reference, tiny_text, variants={"it": {"start": "inherit",
        "select": "2-9"}})  # fmt: skip
    with pytest.raises(RecipeError, match=r"variants.it: .*no layer"):
        execute(RecipeFile(None, "# a test\n", recipe, {}), tmp_path / "run")
    assert not (tmp_path / "run" / "tokens").exists()


def test_recipe_values_of_parts_are_the_parts_of_the_surgery():
    from typing import get_args

    from inheritune.surgery.parts import PARTS as KNOWN

    assert set(get_args(Parts)) == set(KNOWN)


# -- whole runs

ARMS = {
    "scratch": {"start": "fresh"},
    "scratch-2t": {"start": "fresh", "tokens": "2x"},
    "full": {"start": "fresh", "layers": "all"},
    "equal": {"start": "fresh", "tokens": "equal_compute"},
    "gentle": {"start": "inherit", "select": "first", "lr_scale": 0.5, "warmup_tokens": 128},
    "last": {"start": "inherit", "select": "last"},
    "outer": {"start": "inherit", "parts": "outer-only"},
    "paper-code": {"start": "inherit", "parts": "paper-code-llama"},
    "stacking": {"start": "stacking"},
    "hybrid": {"start": "hybrid-stacking"},
    "narrow": {"start": "half-width"},
}


@pytest.fixture(scope="module")
def finished(tiny_reference, tiny_text, tmp_path_factory):
    recipe = recipe_of(tiny_reference, tiny_text, variants=ARMS)
    root = tmp_path_factory.mktemp("runs") / "tiny"
    plan = plan_recipe(recipe, root)
    final = execute(RecipeFile(None, "# a test\n", recipe, {}), root).summary
    return root, recipe, plan, final


def test_a_run_trains_every_variant_as_planned(finished):
    root, _, plan, _ = finished
    record = Run(root).read()
    done = [*record["rounds"], *record["variants"][2:]]
    keys = ("name", "start", "layers", "params", "tokens", "made_of")
    planned = [tuple(getattr(t, key) for key in keys) for t in plan.trainings]
    assert planned == [tuple(row[key] for key in keys) for row in done]
    assert [t.flops for t in plan.trainings] == [r["flops_per_token"] * r["tokens"] for r in done]
    rows = {row["name"]: row for row in done}
    assert rows["scratch-2t"]["tokens"] == 2 * rows["scratch"]["tokens"] == 512
    assert rows["full"]["layers"] == rows["narrow"]["layers"] == 4


def test_the_plan_lists_every_training_with_tokens_flops_and_start(finished):
    table, notes = recipe_tables(finished[2])[0], recipe_notes(finished[2])
    assert [row[0] for row in table.rows][:3] == ["inherit, round 1", "scratch", "scratch-2t"]
    assert [row[0] for row in table.rows].count("stacking") == 2
    assert {"tokens", "FLOPs"} <= set(table.headers)
    assert "last, 2 layers: layers 2-3 of the reference" in notes
    assert any(line.startswith("paper-code, 2 layers: paper-code-llama: ") for line in notes)


def test_the_report_names_what_each_variant_began_with(finished):
    record = Run(finished[0]).read()
    table = variants_table(typed(record))
    starts = {row[0]: row[table.headers.index("start")] for row in table.rows}
    assert starts["inherit"] == "first layers of the reference"
    assert starts["scratch"] == "fresh weights"
    assert starts["last"] == "layers 2-3 of the reference"
    assert starts["paper-code"].startswith("paper-code-llama: the first 2 layers of the reference")
    assert "x 0.5; warm-up 128 tokens" in starts["gentle"]
    assert starts["hybrid"] == "the first layer of the reference, twice"
    assert any("paper-code is a control" in note for note in record["notes"])
    assert (finished[0] / "report" / "index.html").is_file()


def test_stacking_costs_both_of_its_trainings(finished):
    record = Run(finished[0]).read()
    items = {row[0]: row[1] for row in ledger_table(typed(record)).values}
    assert items["stacking, 1 layers"] == items["stacking, 2 layers"] == 256
    assert any("their sum" in note for note in variants_table(typed(record)).notes)
    rows = [row for row in record["variants"] if row["name"] == "stacking"]
    assert [row["first_sample"] for row in rows] == [0, 16]  # it goes on where the first ended


def test_gap_closed_compares_with_scratch_of_the_same_tokens(finished):
    assert Run(finished[0]).record().scratch.name == "scratch"


def test_a_variant_has_its_own_peak_and_warm_up(finished):
    root = finished[0]

    def rates(name):
        lines = (root / "variants" / name / "2-layers" / "metrics.jsonl").read_text().splitlines()
        return [row["learning_rate"] for row in map(json.loads, lines) if "learning_rate" in row]

    assert rates("gentle") == [5e-4, 1e-4]
    assert rates("inherit")[0] == pytest.approx(5.5e-4)
    result = json.loads((root / "variants/gentle/2-layers/result.json").read_text())
    assert result["inputs"]["train"]["learning_rate"] == 5e-4
    assert result["inputs"]["train"]["warmup_tokens"] == 128


def test_inputs_in_result_json_keep_their_names(finished):
    root, recipe, _, _ = finished
    known = {"train", "tokens", "evaluate", "reference", "start", "layers", "variant_tokens"}
    known |= {"dtype"}
    for name in ("inherit", "scratch"):
        inputs = json.loads((root / f"variants/{name}/2-layers/result.json").read_text())["inputs"]
        assert set(inputs) == known
        assert inputs["train"]["learning_rate"] == recipe.train.learning_rate
    inputs = json.loads((root / "variants/last/2-layers/result.json").read_text())["inputs"]
    assert (set(inputs) - known, inputs["kept"]) == ({"kept"}, [2, 3])


def test_a_finished_run_of_many_variants_trains_nothing_again(finished):
    root, recipe, _, final = finished
    before = {p: p.stat().st_mtime_ns for p in root.glob("variants/**/*") if p.is_file()}
    assert execute(RecipeFile(None, "# a test\n", recipe, {}), root).summary == final
    assert {p: p.stat().st_mtime_ns for p in root.glob("variants/**/*") if p.is_file()} == before
    changed = recipe.model_dump() | {"variants": recipe.model_dump()["variants"] | {
        "gentle": ARMS["gentle"] | {"lr_scale": 0.25}}}  # fmt: skip
    with pytest.raises(RecipeError, match=r"train.learning_rate = 0.0005; now it is 0.00025"):
        execute(RecipeFile(None, "# a test\n", Recipe.model_validate(changed), {}), root)


def test_one_variant_can_be_trained_alone(tiny_reference, tiny_text, tmp_path):
    recipe = recipe_of(tiny_reference, tiny_text, variants=ARMS)
    file = RecipeFile(None, "# a test\n", recipe, {})
    trained = train_only(file, tmp_path / "run", variant="stacking").training
    assert (trained.start, trained.layers, trained.first_sample) == ("stacking", 2, 16)
    assert (tmp_path / "run/variants/stacking/1-layers/result.json").exists()
    with pytest.raises(RecipeError, match="equal_compute, which only a whole run"):
        train_only(file, tmp_path / "run", variant="equal")


def test_files_without_the_inner_models_name_can_be_partly_fresh_too(tiny_model, tmp_path):
    # As the GPT-2 on the Hub: "wte.weight", not "transformer.wte.weight".
    model = Path(shutil.copytree(tiny_model("gpt2"), tmp_path / "bare"))
    bare = {name.removeprefix("transformer."): t for name, t in whole(model).items()}
    save_file(bare, model / "model.safetensors", {"format": "pt"})
    _, found = start_of(model, tmp_path / "code", {"start": "inherit", "parts": "paper-code-gpt2"})
    assert not torch.equal(found["wpe.weight"], bare["wpe.weight"])
    assert torch.equal(found["wte.weight"], bare["wte.weight"])
    start, found = start_of(model, tmp_path / "half", {"start": "half-width"})
    assert torch.equal(found["wte.weight"], bare["wte.weight"][:, :16])
    load_model(start.path)
    _, found = start_of(model, tmp_path / "twice", {"start": "hybrid-stacking"}, layers=4)
    assert torch.equal(found["h.3.mlp.c_fc.weight"], bare["h.1.mlp.c_fc.weight"])


def test_the_authors_gpt2_code_knows_tied_heads_only(tmp_path):
    config = GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=32, tie_word_embeddings=False
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "untied")
    variants = {"code": {"start": "inherit", "parts": "paper-code-gpt2"}}
    recipe = recipe_of(tmp_path / "untied", "no text", variants=variants)
    with pytest.raises(UnsupportedModelError, match=r"variants.code: .*does not tie"):
        plan_recipe(recipe, tmp_path / "run")
