"""Rank and mass against their definitions, and on matrices whose values are known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inheritune.analysis import rank
from inheritune.analysis.rank import (
    attention_mass,
    attention_rank,
    calibration,
    exact_rank,
    sink_share,
)

THRESHOLDS = (0.80, 0.85, 0.90, 0.95)


def test_shown_calibration_is_that_of_known_attention():
    assert {name: (one["rank"], one["mass"]) for name, one in calibration(100, 0.90).items()} == {
        "pure sink": (1, 1),
        "half sink and half uniform": (1, 1),
        "uniform over the past": (5, 30),
        "window of 8": (20, 86),
        "half sink and half the token itself": (79, 80),
        "previous token": (89, 89),
        "the token itself": (90, 90),
    }


def uniform(size: int) -> torch.Tensor:
    past = torch.ones(size, size).tril()
    return past / past.sum(-1, keepdim=True)


def pure_sink(size: int) -> torch.Tensor:
    sink = torch.zeros(size, size)
    sink[:, 0] = 1
    return sink


def previous_token(size: int) -> torch.Tensor:
    matrix = torch.diag(torch.ones(size - 1), -1)
    matrix[0, 0] = 1
    return matrix


def window(size: int, width: int) -> torch.Tensor:
    past = torch.ones(size, size).tril().triu(1 - width)
    return past / past.sum(-1, keepdim=True)


def random_logits(size: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, size, generator=draw) * scale
    return logits.masked_fill(torch.ones(size, size).triu(1).bool(), -torch.inf).softmax(-1)


# The table of calibration, at T = 100: rank and mass.
KNOWN = {
    "identity": (torch.eye(100), 90, 90),
    "previous token": (previous_token(100), 89, 89),
    "window of 8": (window(100, 8), 20, 86),
    "random logits": (random_logits(100), 21, 35),
    "uniform over the past": (uniform(100), 5, 30),
    "pure sink": (pure_sink(100), 1, 1),
    "sink, half leaked evenly": ((pure_sink(100) + uniform(100)) / 2, 1, 1),
    "sink, half leaked to the diagonal": ((pure_sink(100) + torch.eye(100)) / 2, 79, 80),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_matrices_have_their_known_rank_and_mass(name):
    matrix, rank, mass = KNOWN[name]
    # Random logits are one draw of many.
    slack = 2 if name == "random logits" else 0
    assert abs(int(attention_rank(matrix[None], [0.90])[0, 0]) - rank) <= slack
    assert abs(int(attention_mass(matrix[None], 0.90)[0]) - mass) <= slack
    assert torch.equal(
        attention_rank(matrix[None], THRESHOLDS), exact_rank(matrix[None], THRESHOLDS)
    )


def test_a_mixed_batch_gives_each_matrix_its_own_rank():
    matrices = torch.stack([matrix for matrix, _, _ in KNOWN.values()])
    assert torch.equal(attention_rank(matrices, THRESHOLDS), exact_rank(matrices, THRESHOLDS))


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(2, 130),
    scale=st.floats(0, 8),
    kept=st.floats(0, 1),
    sink=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_the_fast_rank_never_differs_from_the_svd(size, scale, kept, sink, seed):
    low = random_logits(size, scale, seed)
    low[:, : max(1, int(kept * size))] *= 3
    low = low.tril() / low.tril().sum(-1, keepdim=True)
    matrix = sink * pure_sink(size) + (1 - sink) * low
    assert torch.equal(
        attention_rank(matrix[None], THRESHOLDS), exact_rank(matrix[None], THRESHOLDS)
    )


@settings(max_examples=40, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 70), min_size=1, max_size=4),
    decay=st.floats(0, 3),
    seed=st.integers(0, 2**31),
)
def test_the_fast_rank_equals_the_svd_for_any_spectrum(ranks, decay, seed):
    draw = torch.Generator().manual_seed(seed)
    matrices = []
    for number in ranks:
        left = torch.randn(96, number, generator=draw)
        right = torch.randn(number, 96, generator=draw)
        matrices.append((left / torch.arange(1, number + 1) ** decay) @ right)
    stacked = torch.stack(matrices)
    assert torch.equal(attention_rank(stacked, THRESHOLDS), exact_rank(stacked, THRESHOLDS))


@pytest.mark.parametrize("size", [64, 101, 200])
def test_bounds_hold_for_every_count_of_every_matrix(size):
    known = rank.known_attention(size).values()
    drawn = [random_logits(size, scale, seed) for scale in (0.1, 1, 6) for seed in range(3)]
    matrices = torch.stack([*known, *drawn, torch.randn(size, size) / size])
    sums = torch.linalg.svdvals(matrices.double()).square().cumsum(-1)
    near = rank._CLEAR * sums[:, -1]
    for bounds in (rank._on_few(matrices), rank._on_part(rank._gram(matrices))):
        least = bounds.largest.cumsum(-1)
        for k in range(1, bounds.largest.shape[-1] + 1):
            assert (least[:, k - 1] <= sums[:, k - 1] + near).all()
            assert (bounds.most(torch.full((len(matrices),), k)) >= sums[:, k - 1] - near).all()


def test_a_wide_basis_settles_what_a_narrow_one_leaves_open():
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 256, 3, generator=draw) @ torch.randn(4, 3, 256, generator=draw)
    past = torch.ones(256, 256).tril().bool()
    matrices = scores.masked_fill(~past, -torch.inf).softmax(-1)
    few, part = rank._on_few(matrices), rank._on_part(rank._gram(matrices))
    assert not rank._counts(few, [0.9])[1].any()
    assert rank._counts(part, [0.9])[1].all()
    assert torch.equal(rank._counts(part, [0.9])[0], exact_rank(matrices, [0.9]))


def test_products_of_causal_matrices_leave_out_only_zeros():
    causal = torch.stack([random_logits(150, seed=seed) for seed in range(3)])
    full = torch.rand(3, 150, 150)
    nearly = torch.stack([causal[0]] * 2)
    nearly[0, 0, 1] = nearly[1, 80, 140] = 0.5  # within a block of the diagonal; behind it
    for matrices in (causal, full, nearly[:1], nearly[1:]):
        expected = matrices.double() @ matrices.double().mT
        torch.testing.assert_close(rank._gram(matrices).double(), expected, rtol=1e-5, atol=1e-6)


def test_the_sink_share_is_the_mean_weight_on_the_heaviest_column():
    half = (pure_sink(4) + torch.eye(4)) / 2
    assert sink_share(torch.stack([pure_sink(4), half, torch.eye(4)])).tolist() == [1, 0.625, 0.25]
