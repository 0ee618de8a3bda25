"""Solve least-squares problems by normal equations that are summed in fp64, piece by piece.

R rows, P features, D outputs.
"""

import torch
from torch import Tensor

_BLOCK = 256  # columns of A^T A that are computed together: about half of it, as it is symmetric


class NormalEquations:
    """The sums A^T A, A^T E and ‖E‖² of min ‖A X - E‖² + a ‖X‖², without the rows themselves.

    With ``products`` in fp32, pieces of R rows are multiplied in fp32 and their products summed in
    fp64. An element of A^T A is then off by R 2^-24 sqrt(d_i d_j) at most, d its diagonal, and
    so is one of A^T E: by 1.2e-4 of that for 2,048 rows, by 1e-6 as a rule.

    Attributes:
        gram: A^T A, (P, P) fp64, of which only what is on the diagonal and right of it is
            summed; with ``diagonal``, its diagonal alone, (P,), for which X is diagonal as well.
        cross: A^T E, (P, D) fp64, or its diagonal.
        square: ‖E‖².
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        device: torch.device,
        diagonal: bool = False,
        products: torch.dtype = torch.float64,
    ) -> None:
        shapes = ((features,), (features,)) if diagonal else ((features,) * 2, (features, outputs))
        self.diagonal, self._products = diagonal, products
        self.gram, self.cross = (
            torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes
        )
        self.square = 0.0

    def add(self, inputs: Tensor, errors: Tensor) -> None:
        """Add rows of A, (R, P), and of E, (R, D)."""
        self.square += float(errors.double().square().sum())
        if self.diagonal:
            a, e = inputs.double(), errors.double()
            self.gram += a.square().sum(0)
            self.cross += (a * e).sum(0)
            return
        a, e = inputs.to(self._products), errors.to(self._products)
        for first in range(0, a.shape[1], _BLOCK):
            rows = slice(first, first + _BLOCK)
            self.gram[rows, first:] += a[:, rows].T @ a[:, first:]
        self.cross += a.T @ e

    def solve(self, ridge: float) -> tuple[Tensor, float]:
        """Compute X = (A^T A + a I)^-1 A^T E, of the shape of ``cross``, and ‖A X - E‖².

        As (A^T A + a I) X = A^T E, the latter is ‖E‖² - <X, A^T E> - a ‖X‖².

        Args:
            ridge: a, in units of the mean of the diagonal of A^T A; above 0.
        """
        diagonal = self.gram if self.diagonal else self.gram.diagonal()
        added = max(ridge * float(diagonal.mean()), torch.finfo(torch.float64).tiny)
        if self.diagonal:
            solution = self.cross / (self.gram + added)
        else:
            matrix = self.gram.clone()
            matrix.diagonal().add_(added)
            factor = torch.linalg.cholesky(matrix, upper=True)
            solution = torch.cholesky_solve(self.cross, factor, upper=True)
        explained = float((solution * self.cross).sum()) + added * float(solution.square().sum())
        return solution, max(0.0, self.square - explained)
