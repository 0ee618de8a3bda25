"""Analysis within a run, and what a run takes from it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers

from inheritune.analysis.advice import laziest_first
from inheritune.analysis.attention import measure_attention
from inheritune.analysis.sequences import draw_sequences
from inheritune.cli.plan_text import recipe_notes
from inheritune.data.tokens import open_tokens
from inheritune.errors import UnsupportedModelError
from inheritune.planning.recipe_plan import plan_recipe
from inheritune.recipe.load import RecipeFile
from inheritune.recipe.schema import Recipe
from inheritune.run.execute import execute
from inheritune.run_directory import Run
from inheritune.steps import analysis as step
from inheritune.training.models import load_model


def recipe_of(model: Path, text: Path, **sections: Any) -> RecipeFile:
    fields: dict[str, Any] = {
        "name": "tiny",
        "reference": {"model": str(model)},
        "data": {"source": str(text), "val_fraction": 0.2},
        "train": {"tokens": 256, "seq_len": 16, "batch_tokens": 128, "precision": "fp32"},
        "grow": {"add": 0},
        "variants": {"inherit": {"start": "inherit"}},
        "analyze": {"sequences": 6, "tokens_per_sequence": 24},
        "evaluate": {"gains": False},  # three quarters of such a run's time
    }
    return RecipeFile(None, "# a test\n", Recipe.model_validate(fields | sections), {})


@pytest.fixture(scope="module")
def lazy_reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of 4 layers whose layers 1 and 3 look at the first position only."""
    path = tmp_path_factory.mktemp("lazy") / "lazy"
    rows = tiny_models.train_tokenizer(path)
    model = tiny_models.build("gpt2", vocab_size=rows)
    with torch.no_grad():
        model.transformer.wpe.weight[0] = 0
        model.transformer.wpe.weight[0, 0] = 500
        for layer in (1, 3):
            attention = model.transformer.h[layer].attn
            attention.c_attn.weight[:, :64] = 0
            attention.c_attn.bias[:64] = 0
            attention.c_attn.bias[:32] = 10
            attention.c_attn.weight[0, 32:64] = 5
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def sharp_reference(tiny_reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 4 layers that attend to single tokens, so that ranks move with the text."""
    path = tmp_path_factory.mktemp("sharp") / "sharp"
    shutil.copytree(tiny_reference, path)
    model = load_model(path)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(100)
    model.save_pretrained(path)
    return path


LAZY = {"inherit": {"start": "inherit"}, "lazy": {"start": "inherit", "select": "lazy"}}


def lazy_layers(root: Path) -> list[int]:
    """The layers that the control of the lowest attention rank inherited."""
    record = root / "variants/lazy/2-layers/inherit.json"
    return json.loads(record.read_text("utf-8"))["layer_map"]


def laziest_two(reference: Path, stream: Any) -> list[int]:
    ids = draw_sequences(stream, 2, 32, None, "a text").ids
    ranks = measure_attention(load_model(reference), 4, ids).max_ranks
    return sorted(laziest_first(ranks)[:2])


def test_reference_and_target_are_analysed_after_training(tiny_reference, tiny_text, tmp_path):
    recipe, root = recipe_of(tiny_reference, tiny_text), tmp_path / "run"
    execute(recipe, root)
    record = Run(root).read()
    analysis = record["analysis"]
    assert [model["role"] for model in analysis["models"]] == ["reference", "target"]
    assert [model["layers"] for model in analysis["models"]] == [4, 2]
    assert analysis["advice"]["paper"] == 2
    assert analysis["sequences"] == {
        "sequences": 6, "asked": 6, "tokens_per_sequence": 24, "seed": 0, "bos": False,
        "source": "the run's validation set",
    }  # fmt: skip
    stored = json.loads((root / "analysis.json").read_text("utf-8"))
    assert stored["models"]["reference"]["result"] == analysis["models"][0]
    # A second start finds it there.
    written = (root / "analysis.json").stat().st_mtime_ns
    execute(recipe, root)
    assert (root / "analysis.json").stat().st_mtime_ns == written
    assert Run(root).read()["analysis"] == analysis


def test_a_result_that_does_not_fit_is_made_again(tiny_reference, tiny_text, tmp_path):
    recipe, root = recipe_of(tiny_reference, tiny_text), tmp_path / "run"
    execute(recipe, root)
    before = Run(root).read()["analysis"]
    (root / "analysis.json").write_text("{ broken", "utf-8")
    execute(recipe, root)
    assert Run(root).read()["analysis"] == before


def test_fewer_sequences_than_asked_are_a_note(tiny_reference, tiny_text, tmp_path):
    asked = {"sequences": 5000, "tokens_per_sequence": 24}
    execute(recipe_of(tiny_reference, tiny_text, analyze=asked), tmp_path / "run")
    record = Run(tmp_path / "run").read()
    count = record["analysis"]["sequences"]["sequences"]
    assert 6 < count < 5000
    assert f"on {count} sequences of 24 tokens, not on 5000" in " ".join(record["notes"])


def test_a_text_without_a_sequence_is_a_note_and_the_result_stands(
    tiny_reference, tiny_text, tmp_path
):
    asked = {"sequences": 5, "tokens_per_sequence": 100_000}
    final = execute(recipe_of(tiny_reference, tiny_text, analyze=asked), tmp_path / "run").summary
    record = Run(tmp_path / "run").read()
    assert record["analysis"] is None and final["layers"] == 2
    assert any(note.startswith("Attention was not analysed") for note in record["notes"])


def test_analyze_null_leaves_the_analysis_out(tiny_reference, tiny_text, tmp_path):
    execute(recipe_of(tiny_reference, tiny_text, analyze=None), tmp_path / "run")
    assert Run(tmp_path / "run").read()["analysis"] is None
    assert not (tmp_path / "run" / "analysis.json").exists()


def mamba(path: Path) -> Path:
    rows = tiny_models.train_tokenizer(path)
    config = transformers.MambaConfig(
        vocab_size=rows, hidden_size=16, num_hidden_layers=2, state_size=4, use_mambapy=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    transformers.MambaForCausalLM(config).save_pretrained(path)
    return path


def test_a_model_without_attention_trains_and_is_noted(tiny_text, tmp_path):
    recipe = recipe_of(mamba(tmp_path / "mamba"), tiny_text)
    final = execute(recipe, tmp_path / "run").summary
    record = Run(tmp_path / "run").read()
    assert final["layers"] == 1 and record["analysis"] is None
    assert "MambaForCausalLM cannot be observed" in " ".join(record["notes"])


def test_lazy_layers_of_a_model_without_attention_are_refused_before_training(tiny_text, tmp_path):
    recipe = recipe_of(mamba(tmp_path / "mamba"), tiny_text, variants=LAZY)
    with pytest.raises(UnsupportedModelError, match="cannot be observed"):
        execute(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "variants").exists()


def test_a_run_begins_with_the_advised_layers(lazy_reference, tiny_text, tmp_path):
    recipe = recipe_of(lazy_reference, tiny_text, inherit={"layers": "advice"})
    final = execute(recipe, tmp_path / "run").summary
    analysis = Run(tmp_path / "run").read()["analysis"]
    ranks = [row["max_rank"] for row in analysis["models"][0]["attention"]["layers"]]
    assert ranks[1] == ranks[3] == 1 and ranks[2] > 3
    # Layer 3 alone is lazy; with layer 2 the mean is above 2.
    assert analysis["advice"]["advice"] == final["layers"] == 3
    assert analysis["advice"]["paper"] == 2
    stored = json.loads((tmp_path / "run/analysis.json").read_text("utf-8"))
    assert stored["models"]["choice"]["inputs"]["sequences"]["source"] == "the run's training text"


def test_a_lazy_control_inherits_the_layers_of_lowest_rank(lazy_reference, tiny_text, tmp_path):
    recipe = recipe_of(lazy_reference, tiny_text, variants=LAZY)
    plan = plan_recipe(recipe.recipe, tmp_path / "run")
    said = "the 2 layers of the reference with the lowest attention rank"
    assert any(said in line for line in recipe_notes(plan))
    execute(recipe, tmp_path / "run")
    assert lazy_layers(tmp_path / "run") == [1, 3]
    row = Run(tmp_path / "run").read()["variants"][2]
    assert row["made_of"] == f"{said}: layers 1, 3"


@pytest.mark.parametrize("select", ["lazy", "lazy:2"])
def test_a_lazy_control_is_measured_whichever_way_its_number_is_given(
    select, lazy_reference, tiny_text, tmp_path
):
    control = {"start": "inherit", "select": select} | ({"layers": 2} if select == "lazy" else {})
    recipe = recipe_of(
        lazy_reference, tiny_text, variants={"inherit": {"start": "inherit"}, "lazy": control}
    )
    assert execute(recipe, tmp_path / "run") is not None
    assert lazy_layers(tmp_path / "run") == [1, 3]


def test_layers_are_chosen_on_training_text_and_reported_on_the_validation_set(
    sharp_reference, tiny_text, tmp_path
):
    root, two = tmp_path / "run", {"sequences": 2, "tokens_per_sequence": 32}
    execute(recipe_of(sharp_reference, tiny_text, analyze=two), root)
    before = Run(root).read()["analysis"]
    # The reference's ranks on the validation set are known by now.
    execute(recipe_of(sharp_reference, tiny_text, analyze=two, variants=LAZY), root)
    tokens = open_tokens(root / "tokens")
    on_training, on_validation = (
        laziest_two(sharp_reference, stream) for stream in (tokens.train, tokens.val)
    )
    assert lazy_layers(root) == on_training != on_validation
    assert Run(root).read()["analysis"] == before
    assert before["sequences"]["source"] == "the run's validation set"


def test_a_run_whose_layers_an_earlier_version_chose_on_the_validation_set_keeps_them(
    sharp_reference, tiny_text, tmp_path, monkeypatch
):
    root, two = tmp_path / "run", {"sequences": 2, "tokens_per_sequence": 32}
    recipe = recipe_of(sharp_reference, tiny_text, analyze=two, variants=LAZY)
    with monkeypatch.context() as earlier:
        earlier.setattr(step, "_chose_by_validation", lambda job: True)
        execute(recipe, root)
    layers, record = lazy_layers(root), Run(root).read()
    assert layers == laziest_two(sharp_reference, open_tokens(root / "tokens").val)
    execute(recipe, root)
    assert lazy_layers(root) == layers
    assert Run(root).read()["variants"] == record["variants"]
