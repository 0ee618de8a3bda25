"""The projection that a repair is folded into: found by what it does, refused where not exact."""

import pytest
import tiny_models
import torch

from inheritune.errors import UnsupportedModelError
from inheritune.repair.layer_passes import LayerPasses
from inheritune.repair.projection import find_projection

IDS = torch.arange(1, 41).view(2, 20)
FOUND = {
    "llama": "mlp.down_proj",
    "llama-tied": "mlp.down_proj",
    "qwen3": "mlp.down_proj",
    "smollm3": "mlp.down_proj",
    "gpt2": "mlp.c_proj",
    "gpt-neo": "mlp.c_proj",
    "gpt-neox": "mlp.dense_4h_to_h",
    "opt": "fc2",
}
REFUSED = {"gemma3", "olmo3", "mixtral"}


def passes_of(model) -> tuple[LayerPasses, int]:
    total = model.config.num_hidden_layers
    return LayerPasses(model, total, IDS), total


def test_every_family_is_judged():
    assert FOUND.keys() | REFUSED == tiny_models.FAMILIES.keys()


@pytest.mark.parametrize("family", FOUND)
@torch.no_grad()
def test_a_layer_runs_alone_as_in_its_model_and_its_projection_is_found(family):
    model = tiny_models.build(family)
    passes, total = passes_of(model)
    states = model(IDS, output_hidden_states=True).hidden_states  # the last one is after the norm
    hidden = passes.embed(IDS)
    for number in range(total):
        projection = find_projection(passes, number, IDS, hidden)
        assert (projection.name, projection.factor) == (FOUND[family], 1.0)
        assert projection.weight.shape == (32, {"gpt2": 128, "gpt-neo": 128}.get(family, 64))
        hidden = passes.run(number, IDS, hidden)
        if number + 1 < total:
            assert torch.equal(hidden, states[number + 1])


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_a_class_with_a_norm_or_experts_behind_its_mlp_is_refused(family):
    passes, _ = passes_of(tiny_models.build(family))
    with pytest.raises(UnsupportedModelError, match="no projection that a repair can be folded"):
        find_projection(passes, 0, IDS, passes.embed(IDS))


@torch.no_grad()
def test_the_factor_of_a_residual_branch_is_measured():
    from transformers import GraniteConfig, GraniteForCausalLM

    sizes = tiny_models.FAMILIES["llama"][1]
    model = GraniteForCausalLM(GraniteConfig(**sizes, residual_multiplier=0.25))
    passes, _ = passes_of(model)
    projection = find_projection(passes, 0, IDS, passes.embed(IDS))
    assert projection.name == "mlp.down_proj"
    assert projection.factor == pytest.approx(0.25, rel=1e-5)


@torch.no_grad()
def test_a_matrix_that_two_layers_share_is_left_alone():
    model = tiny_models.build("llama")
    layers = model.model.layers
    layers[1].mlp.down_proj.weight = layers[0].mlp.down_proj.weight
    passes, _ = passes_of(model)
    with pytest.raises(UnsupportedModelError, match=r"mlp\.down_proj is shared with other layers"):
        find_projection(passes, 0, IDS, passes.embed(IDS))


def test_a_model_that_changes_the_hidden_state_between_layers_is_refused():

    model = tiny_models.build("llama")
    model.model.layers[1].register_forward_pre_hook(lambda m, args: (args[0] / 2, *args[1:]))
    with pytest.raises(UnsupportedModelError, match="changes the hidden state between its layers"):
        passes_of(model)


def test_running_a_layer_leaves_the_model_as_it_was():
    model = tiny_models.build("gpt2")
    with torch.no_grad():
        before = model(IDS).logits
        passes, _ = passes_of(model)
        passes.run(2, IDS, passes.embed(IDS))
        assert torch.equal(model(IDS).logits, before)
    assert not any("forward" in vars(module) for module in model.modules())
