"""Least squares by normal equations: the same solution as numpy's on the whole matrices."""

import numpy as np
import pytest
import torch

from inheritune.repair.least_squares import NormalEquations

ROWS, FEATURES, OUTPUTS = 200, 12, 5


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    a = torch.randn(ROWS, FEATURES, generator=draw, dtype=torch.float64)
    return a, torch.randn(ROWS, OUTPUTS, generator=draw, dtype=torch.float64)


def equations(a: torch.Tensor, e: torch.Tensor, pieces: int = 7, diagonal: bool = False):
    sums = NormalEquations(a.shape[1], e.shape[1], a.device, diagonal)
    for rows, errors in zip(a.chunk(pieces), e.chunk(pieces), strict=True):
        sums.add(rows, errors)
    return sums


@pytest.mark.parametrize("ridge", [1e-12, 1e-2, 1.0])
def test_the_streamed_solution_is_that_of_numpy_on_the_whole_matrices(problem, ridge):
    a, e = problem
    # min ‖A X - E‖² + r ‖X‖² is min ‖[A; sqrt(r) I] X - [E; 0]‖²
    root = np.sqrt(ridge * float((a.T @ a).diagonal().mean()))
    whole = np.vstack([a.numpy(), root * np.eye(FEATURES)])
    expected = np.linalg.lstsq(whole, np.vstack([e.numpy(), np.zeros((FEATURES, OUTPUTS))]))[0]
    np.testing.assert_allclose(
        equations(a, e).solve(ridge)[0].numpy(), expected, rtol=0, atol=1e-13
    )


def test_a_diagonal_solution_is_numpys_of_each_channel_alone(problem):
    a, e = problem[0][:, :OUTPUTS], problem[1]
    expected = [np.linalg.lstsq(a[:, [i]].numpy(), e[:, i].numpy())[0][0] for i in range(OUTPUTS)]
    solution, _ = equations(a, e, diagonal=True).solve(1e-15)
    np.testing.assert_allclose(solution.numpy(), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("diagonal", [False, True])
def test_the_error_is_that_of_the_rows(problem, diagonal):
    a, e = problem[0][:, :OUTPUTS], problem[1]
    sums = equations(a, e, diagonal=diagonal)
    x, error = sums.solve(0.1)
    matrix = torch.diag(x) if diagonal else x
    assert error == pytest.approx(float((a @ matrix - e).square().sum()), rel=1e-12)


def test_fp32_products_keep_to_their_bound_and_wide_matrices_are_summed_whole():
    """Of two blocks of columns; rows of very different sizes, as massive activations have."""
    draw = torch.Generator().manual_seed(2)
    rows, features = 600, 300
    a = torch.randn(rows, features, generator=draw) * torch.logspace(-3, 3, features)
    e = torch.randn(rows, OUTPUTS, generator=draw)
    sums = NormalEquations(features, OUTPUTS, a.device, products=torch.float32)
    for part in (slice(0, 256), slice(256, rows)):
        sums.add(a[part], e[part])
    gram, cross = a.double().T @ a.double(), a.double().T @ e.double()
    sizes, size = gram.diagonal().sqrt(), e.double().square().sum(0).sqrt()
    bound = 344 * 2.0**-24
    assert ((sums.gram - gram).triu().abs() <= bound * sizes[:, None] * sizes).all()
    assert ((sums.cross - cross).abs() <= bound * sizes[:, None] * size).all()
    x, _ = sums.solve(0.1)
    gram.diagonal().add_(0.1 * float(gram.diagonal().mean()))
    expected = torch.linalg.solve(gram, cross)
    assert float((x - expected).norm() / expected.norm()) < 1e-6
