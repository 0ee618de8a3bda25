import math

import pytest
import torch

from inheritune.recipe.training import Train
from inheritune.training.optimizer import learning_rate, make_optimizer, mean_and_clip


def recipe(**fields: object) -> Train:
    base = {"tokens": 10_000, "seq_len": 10, "batch_tokens": 100, "micro_batch": 10}
    rates = {"learning_rate": 1.0, "min_learning_rate": 0.1, "warmup_tokens": 1000}
    return Train.model_validate(base | rates | fields)


def test_the_rate_rises_linearly_through_the_warmup() -> None:
    assert [learning_rate(recipe(), t, 10_000) for t in (100, 500, 1000)] == [0.1, 0.5, 1.0]


def test_cosine_ends_at_the_floor_and_is_halfway_in_the_middle() -> None:
    assert learning_rate(recipe(), 10_000, 10_000) == pytest.approx(0.1, abs=1e-15)
    assert learning_rate(recipe(), 5500, 10_000) == pytest.approx(0.55)


def test_wsd_is_flat_until_its_last_fifth() -> None:
    wsd = recipe(schedule="wsd", warmup_tokens=0)
    assert learning_rate(wsd, 7900, 10_000) == 1.0
    assert learning_rate(wsd, 9000, 10_000) == pytest.approx(0.55)
    assert learning_rate(wsd, 10_000, 10_000) == pytest.approx(0.1)


def test_constant_stays_at_the_peak_after_the_warmup() -> None:
    assert learning_rate(recipe(schedule="constant"), 10_000, 10_000) == 1.0


def test_a_warmup_longer_than_the_training_never_passes_its_peak() -> None:
    short = recipe(warmup_tokens=100_000)
    assert learning_rate(short, 10_000, 10_000) <= 1.0


def test_only_matrices_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    groups = make_optimizer(model, recipe(weight_decay=0.3), fused=False).param_groups
    assert [(g["weight_decay"], sorted(p.ndim for p in g["params"])) for g in groups] == [
        (0.3, [2]),
        (0.0, [1, 1, 1]),
    ]


def test_gradients_are_divided_once_and_clipped_to_the_norm() -> None:
    param = torch.nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor([30.0, 40.0])
    assert mean_and_clip([param], tokens=10, clip_norm=1.0) == 5.0
    assert param.grad.norm().item() == pytest.approx(1.0, rel=1e-5)


def test_small_gradients_are_only_divided() -> None:
    param = torch.nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor([3.0, 4.0])
    assert mean_and_clip([param], tokens=8, clip_norm=1.0) == 0.625
    assert param.grad.tolist() == [0.375, 0.5]


def test_nonfinite_gradient_is_left_alone() -> None:
    param = torch.nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor([math.inf, 4.0])
    assert not math.isfinite(mean_and_clip([param], tokens=8, clip_norm=1.0))
    assert param.grad.tolist() == [math.inf, 4.0]
