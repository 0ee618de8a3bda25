"""Scores of cuts against models that lack the layers and are run whole."""

import numpy as np
import pytest
import tiny_models
import torch
from torch import nn

from inheritune.analysis.cut_scores import score_cuts
from inheritune.analysis.cut_walk import count_layers
from inheritune.analysis.distances import measure_distances
from inheritune.errors import Interrupted
from inheritune.model_files.directory import open_model
from inheritune.surgery.cut import inherit
from inheritune.surgery.removal import block_cuts, without
from inheritune.system.signals import StopFlag
from inheritune.training.models import load_model

IDS = np.random.default_rng(0).integers(0, 300, (5, 24))
CUTS = [
    *(without(4, [layer]) for layer in range(4)),
    *((0, 3), (0, 1), (1, 2), (3,), (0,), (0, 1, 2, 3)),
]


def cut_by_hand(family, cut) -> nn.Module:
    model = tiny_models.build(family)
    inner = model.model if hasattr(model, "model") else model.transformer
    name = "layers" if hasattr(inner, "layers") else "h"
    setattr(inner, name, nn.ModuleList([getattr(inner, name)[layer] for layer in cut]))
    inner.config.num_hidden_layers = len(cut)
    return model.eval()


def log_probabilities(model) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.from_numpy(IDS)[:, :-1], use_cache=False).logits
    return logits.flatten(0, 1).log_softmax(-1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_a_score_is_exactly_that_of_the_model_without_the_layers(family):
    scored = score_cuts(tiny_models.build(family), 4, IDS, CUTS)
    labels = torch.from_numpy(IDS)[:, 1:].flatten()
    log_p = log_probabilities(cut_by_hand(family, range(4)))
    for cut, score in zip(CUTS, scored.cuts, strict=True):
        log_q = log_probabilities(cut_by_hand(family, cut))
        kl = (log_p.exp() * (log_p - log_q)).sum(-1).double().mean()
        loss = -log_q.gather(1, labels[:, None]).double().mean()
        # The sums are the same; a mean is divided in another place.
        assert score.kl == pytest.approx(float(kl), rel=1e-12, abs=1e-15)
        assert score.loss == pytest.approx(float(loss), rel=1e-12)
    assert scored.whole.kl == 0 and scored.whole == scored.cuts[-1]


@pytest.mark.parametrize(
    ("family", "kept"), [("gemma3", (0, 1, 2, 4, 6)), ("olmo3", (0, 3, 5)), ("gpt-neo", (0, 2, 3))]
)
def test_layers_of_different_kinds_score_as_in_the_target_that_is_written(
    tiny_model, tmp_path, family, kept
):
    reference = open_model(str(tiny_model(family)))
    model = load_model(reference.path)
    score = score_cuts(model, reference.layers, IDS, [kept]).cuts[0]
    log_p = log_probabilities(model)
    log_q = log_probabilities(load_model(inherit(reference, kept, tmp_path / "cut").path).eval())
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).double().mean()
    assert score.kl == pytest.approx(float(kl), rel=1e-12)


def test_scores_do_not_depend_on_the_cuts_that_are_measured_beside_them():
    model = tiny_models.build("llama")
    together = score_cuts(model, 4, IDS, CUTS).cuts
    assert [score_cuts(model, 4, IDS, [cut]).cuts[0] for cut in CUTS] == together


def test_layers_that_cuts_have_in_common_are_run_once():
    model = tiny_models.build("llama")
    count = 0

    def counted(*_) -> None:
        nonlocal count
        count += 1

    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(counted)
    singles = [without(4, [layer]) for layer in range(4)]
    scored = score_cuts(model, 4, IDS, singles)
    # The whole model runs 4 layers, the cuts without layer 3, 2, 1, 0 run 0, 1, 2, 3 more.
    own_check = 2 * 4  # that the logits are the head's product
    assert (scored.layers_run, scored.heads_run, count - own_check) == (10, 5, 10)


@pytest.mark.parametrize(("total", "length"), [(30, 1), (30, 4), (12, 3)])
def test_a_block_search_runs_only_what_lies_behind_the_blocks(total, length):
    order = [tuple(range(total)), *reversed(block_cuts(total, length))]
    assert count_layers(order) == total + sum(
        total - start - length for start in range(1, total - length)
    )


def test_a_model_is_its_own_again_afterwards():
    model = tiny_models.build("llama")
    before = log_probabilities(model)
    score_cuts(model, 4, IDS, CUTS)
    assert torch.equal(log_probabilities(model), before)
    assert not any("forward" in vars(layer) for layer in model.model.layers)


def test_scoring_stops_between_two_cuts_when_asked_to():
    stop = StopFlag()
    seen = []

    def listen(progress) -> None:
        seen.append(progress)
        stop.signal_number = 15

    with pytest.raises(Interrupted):
        score_cuts(tiny_models.build("llama"), 4, IDS, CUTS, stop, listen)
    assert len(seen) == 1


def test_distances_are_those_of_the_hidden_states():
    model = tiny_models.build("llama")
    distances = measure_distances(model, 4, IDS)
    with torch.no_grad():
        outputs = model(torch.from_numpy(IDS), output_hidden_states=True)
    states = [state.double() for state in outputs.hidden_states[:4]]  # the last one is normed
    for i, one in enumerate(states):
        for j, other in enumerate(states):
            cosine = torch.cosine_similarity(one, other, dim=-1).clamp(-1, 1)
            assert distances.cosines[i, j] == pytest.approx(float(cosine.mean()), abs=1e-12)
            angle = float(cosine.arccos().mean() / torch.pi)
            assert distances.angles[i, j] == pytest.approx(angle, abs=1e-7)
    for layer in range(3):
        ratio = states[layer + 1].norm(dim=-1) / states[layer].norm(dim=-1)
        assert distances.norm_ratios[layer] == pytest.approx(float(ratio.mean()), rel=1e-12)
    assert distances.influence.tolist() == [1 - distances.cosines[i, i + 1] for i in range(4)]
