"""Importance of layers against models that lack them."""

import numpy as np
import pytest
import tiny_models
import torch
from torch import nn
from torch.nn import functional as F

from inheritune.analysis.importance import measure_importance

IDS = np.random.default_rng(0).integers(0, 300, (5, 24))


def loss_of(model) -> float:
    ids = torch.from_numpy(IDS)
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return float(losses.double().mean())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_loss_without_a_layer_is_that_of_the_model_that_lacks_it(family):
    model = tiny_models.build(family)
    found = measure_importance(model, 4, IDS)
    whole = loss_of(model)
    assert found.loss == pytest.approx(whole, abs=1e-6)
    for number in range(4):
        shallow = tiny_models.build(family)
        inner = shallow.model if family == "llama" else shallow.transformer
        name = "layers" if family == "llama" else "h"
        kept = [layer for i, layer in enumerate(getattr(inner, name)) if i != number]
        setattr(inner, name, nn.ModuleList(kept))
        shallow.config.num_hidden_layers = 3
        expected = loss_of(shallow) - whole
        assert found.layers[number].removal_loss == pytest.approx(expected, abs=1e-6)


def test_influence_and_angle_are_those_of_the_hidden_states():
    model = tiny_models.build("llama")
    found = measure_importance(model, 4, IDS, removal_sequences=0)
    with torch.no_grad():
        states = model(torch.from_numpy(IDS), output_hidden_states=True).hidden_states
    # The last one is normed; the others are what goes into and out of the layers.
    for number in range(3):
        cosine = F.cosine_similarity(states[number], states[number + 1], dim=-1).double()
        layer = found.layers[number]
        assert layer.influence == pytest.approx(float(1 - cosine.mean()), abs=1e-5)
        assert layer.angle == pytest.approx(float((cosine.arccos() / torch.pi).mean()), abs=1e-5)
    assert found.loss is None and found.layers[0].removal_loss is None


def test_a_layer_that_does_nothing_has_no_importance():
    model = tiny_models.build("llama")
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[2].mlp.down_proj.weight.zero_()
    layer = measure_importance(model, 4, IDS).layers[2]
    assert abs(layer.influence) < 1e-12 and layer.removal_loss == 0


@pytest.mark.parametrize("family", ["gemma3", "gpt-neo", "mixtral", "olmo3"])
def test_other_families_are_measured_too(family):
    model = tiny_models.build(family)
    total = model.config.num_hidden_layers
    found = measure_importance(model, total, IDS)
    assert len(found.layers) == total
    assert all(layer.removal_loss is not None for layer in found.layers)
