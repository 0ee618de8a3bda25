"""Solve least-squares problems by normal equations that are summed in fp64, piece by piece.

R rows, P features, D outputs.
"""

import torch
from torch import Tensor


class NormalEquations:
    """The sums A^T A, A^T E and ‖E‖² of min ‖A X - E‖² + a ‖X‖², without the rows themselves.

    Attributes:
        gram: A^T A, (P, P) fp64; with ``diagonal``, its diagonal alone, (P,), for which X is
            diagonal as well.
        cross: A^T E, (P, D) fp64, or its diagonal.
        square: ‖E‖².
    """

    def __init__(self, features: int, outputs: int, device: torch.device, diagonal: bool = False):
        shapes = ((features,), (features,)) if diagonal else ((features,) * 2, (features, outputs))
        self.diagonal = diagonal
        self.gram, self.cross = (
            torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes
        )
        self.square = 0.0

    def add(self, inputs: Tensor, errors: Tensor) -> None:
        """Add rows of A, (R, P), and of E, (R, D)."""
        a, e = inputs.double(), errors.double()
        if self.diagonal:
            self.gram += a.square().sum(0)
            self.cross += (a * e).sum(0)
        else:
            self.gram.addmm_(a.T, a)
            self.cross.addmm_(a.T, e)
        self.square += float(e.square().sum())

    def error(self, solution: Tensor) -> float:
        """Compute ‖A X - E‖² = ‖E‖² - 2 <X, A^T E> + <X, A^T A X>."""
        product = self.gram * solution if self.diagonal else self.gram @ solution
        return self.square + float((solution * (product - 2 * self.cross)).sum())

    def solve(self, ridge: float) -> Tensor:
        """Compute X = (A^T A + a I)^-1 A^T E, of the shape of ``cross``.

        Args:
            ridge: a, in units of the mean of the diagonal of A^T A; above 0.
        """
        diagonal = self.gram if self.diagonal else self.gram.diagonal()
        added = max(ridge * float(diagonal.mean()), torch.finfo(torch.float64).tiny)
        if self.diagonal:
            return self.cross / (self.gram + added)
        matrix = self.gram.clone()
        matrix.diagonal().add_(added)
        return torch.cholesky_solve(self.cross, torch.linalg.cholesky(matrix))
