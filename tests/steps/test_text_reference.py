"""A run on the language model inside of one that also reads images; references that are refused."""

import pytest
import tiny_recipe
from image_text_models import save
from safetensors.torch import load_file, save_file

from inheritune.errors import SourceError, UnsupportedModelError
from inheritune.model_files.directory import open_model
from inheritune.planning.recipe_plan import plan_recipe
from inheritune.run.execute import execute
from inheritune.run.models import models_of_run
from inheritune.verification.model import verify_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "mistral3"
    save("mistral3", directory)
    return directory


def recipe_of(model, text, **reference):
    sections = {"reference": {"model": str(model)} | reference, "grow": {"add": 0}}
    return tiny_recipe.recipe_of(model, text, **sections)


def test_a_run_with_text_only_inherits_from_the_language_model_alone(whole, tiny_text, tmp_path):
    recipe = recipe_of(whole, tiny_text, text_only=True)
    assert plan_recipe(recipe, tmp_path / "run").reference_layers == 4
    result = execute(tiny_recipe.as_file(recipe), tmp_path / "run")
    target = open_model(str(result.target))
    assert target.config["architectures"] == ["MistralForCausalLM"]
    reference, *_ = models_of_run(tmp_path / "run")
    assert open_model(reference.model).config["architectures"] == ["MistralForCausalLM"]
    findings = {finding.part: finding for finding in verify_model(target, open_model(str(whole)))}
    assert findings["config"].proven


def test_a_run_on_the_whole_is_refused_before_any_text_is_read(whole, tiny_text, tmp_path):
    recipe = recipe_of(whole, tiny_text)
    words = "which is no model of text alone.* --text-only"
    with pytest.raises(UnsupportedModelError, match=words):
        plan_recipe(recipe, tmp_path / "run")
    with pytest.raises(UnsupportedModelError, match=words):
        execute(tiny_recipe.as_file(recipe), tmp_path / "run")
    assert not (tmp_path / "run" / "tokens").exists()


def test_a_reference_with_an_infinite_weight_is_refused_before_any_text_is_read(
    reference, tiny_text, tmp_path
):
    held = load_file(reference / "model.safetensors")
    held["model.layers.3.mlp.up_proj.weight"][0, 0] = float("inf")
    save_file(held, reference / "model.safetensors", {"format": "pt"})
    recipe = tiny_recipe.as_file(recipe_of(reference, tiny_text))
    with pytest.raises(SourceError, match=r"up_proj.weight holds NaN or infinite values"):
        execute(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "tokens").exists()
