"""Compute rank and mass of attention matrices, without singular values where that is safe.

M matrices, T tokens, r columns of a basis, Q thresholds.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


_WINDOW = 8


def known_attention(tokens: int) -> "dict[str, Tensor]":
    """Build causal attention of known forms, (T, T) fp32 each, by name; T is at least 2."""
    past = torch.ones(tokens, tokens).tril()
    uniform = past / past.sum(-1, keepdim=True)
    sink = torch.zeros(tokens, tokens)
    sink[:, 0] = 1
    previous = torch.diag(torch.ones(tokens - 1), -1)
    previous[0, 0] = 1
    window = past.triu(1 - _WINDOW)
    return {
        "pure sink": sink,
        "half sink and half uniform": (sink + uniform) / 2,
        "uniform over the past": uniform,
        f"window of {_WINDOW}": window / window.sum(-1, keepdim=True),
        "half sink and half the token itself": (sink + torch.eye(tokens)) / 2,
        "previous token": previous,
        "the token itself": torch.eye(tokens),
    }


def calibration(tokens: int, threshold: float) -> dict[str, dict[str, int]]:
    """Compute rank and mass of `known_attention`, to compare measured values with."""
    forms = known_attention(tokens)
    matrices = torch.stack(list(forms.values()))
    ranks = attention_rank(matrices, [threshold])[:, 0].tolist()
    masses = attention_mass(matrices, 0.90).tolist()
    return {
        name: {"rank": rank, "mass": mass}
        for name, rank, mass in zip(forms, ranks, masses, strict=True)
    }


# A share of the squared singular values within this of a threshold reaches it: above the rounding
# of fp64, below what an fp32 softmax can distinguish.
_TIE = 1e-9
# A count in fp32 must be this far from the threshold, or else is repeated in fp64. Sums of
# eigenvalues were off by at most 2.3e-6 of the total at T 1024 (1.4e-6 at T 512).
_CLEAR = 1e-5
_FEW = 16  # columns of the basis
_TURNS = 2  # multiplications of a basis with the gram matrix
_LEAST = 8  # fewest matrices for another thread


def exact_rank(matrices: "Tensor", thresholds: Sequence[float]) -> "Tensor":
    """Count the fewest singular values that hold a share of the squared ones, by fp64 SVD.

    This is the definition: the smallest r with sum_{i<=r} s_i^2 >= threshold * sum_i s_i^2.
    `attention_rank` gives the same, faster.

    Args:
        matrices: (M, T, T).
        thresholds: Q shares, in (0, 1).

    Returns:
        (M, Q) int64, from 1 to T.
    """
    energies = torch.linalg.svdvals(matrices.double()).square()
    return _count(energies, energies.sum(-1), thresholds)


def attention_rank(matrices: "Tensor", thresholds: Sequence[float]) -> "Tensor":
    """Count as `exact_rank` does, in the cheapest way that proves the count for each matrix.

    1. The largest eigenvalues of A A^T on a small basis (block subspace iteration) bound the sums
       of squared singular values from below, and with the energy outside the basis from above (Ky
       Fan). Where both bounds give one count, it is taken.
    2. All eigenvalues of A A^T in fp32.
    3. Singular values in fp64, for sums too near a threshold to decide in fp32.

    On a CPU, each thread takes its own matrices: threads that share such a small one mostly wait.

    Args:
        matrices: (M, T, T), fp32 or fp64, finite and not zero.
        thresholds: Q shares, in (0, 1).

    Returns:
        (M, Q) int64, from 1 to T.

    Sources: Sanyal et al., Inheritune, arXiv 2404.08634, section 2; Fan, On a theorem of Weyl,
    1949.
    """
    threads = min(torch.get_num_threads(), len(matrices) // _LEAST)
    if matrices.device.type != "cpu" or threads < 2:
        return _rank(matrices, thresholds)
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1)) as pool:
            parts = pool.map(lambda part: _rank(part, thresholds), matrices.chunk(4 * threads))
            return torch.cat(list(parts))
    finally:
        torch.set_num_threads(before)


def _rank(matrices: "Tensor", thresholds: Sequence[float]) -> "Tensor":
    size = matrices.shape[-1]
    ranks = torch.zeros(len(matrices), len(thresholds), dtype=torch.int64, device=matrices.device)
    remaining = torch.arange(len(matrices), device=matrices.device)

    def take_proven(bounds: _Bounds) -> "Tensor":
        """Store the counts that are proven; return the matrices that are left."""
        counts, proven = _counts(bounds, thresholds)
        ranks[remaining[proven]] = counts[proven]
        return remaining[~proven]

    if size >= 4 * _FEW:
        remaining = take_proven(_on_basis(matrices))
    if len(remaining):
        remaining = take_proven(_all_eigenvalues(matrices[remaining]))
    if len(remaining):
        ranks[remaining] = _in_fp64(matrices[remaining], thresholds)
    return ranks


def _in_fp64(matrices: "Tensor", thresholds: Sequence[float]) -> "Tensor":
    exact = matrices.double()
    energies = torch.linalg.eigvalsh(torch.bmm(exact, exact.mT)).clamp_min(0).flip(-1)
    return _count(energies, energies.sum(-1), thresholds)


@dataclass(frozen=True)
class _Bounds:
    """Bounds on the eigenvalues of A A^T from its projection onto a basis.

    Attributes:
        total: (M,), sum of all eigenvalues.
        largest: (M, r), descending, eigenvalues of the projection: their sums are lower bounds.
        outside: (M,), sum of the eigenvalues outside of the basis.
    """

    total: "Tensor"
    largest: "Tensor"
    outside: "Tensor"


def _counts(bounds: _Bounds, thresholds: Sequence[float]) -> "tuple[Tensor, Tensor]":
    """Return counts, (M, Q), and whether the bounds prove them, (M,)."""
    total = bounds.total
    reached = bounds.largest.clamp_min(0).cumsum(-1)  # (M, r), lower bounds
    clear = _CLEAR * total
    counts, proven = [], torch.ones_like(total, dtype=torch.bool)
    for threshold in thresholds:
        goal = threshold * total
        enough = reached >= (goal + clear)[:, None]
        count = enough.int().argmax(-1)  # one less than the rank
        # The k - 1 largest sum to at most those of the basis and all that is outside of it.
        fewer = reached.gather(1, (count - 1).clamp_min(0)[:, None])[:, 0]
        too_few = (count == 0) | (fewer + bounds.outside <= goal - clear)
        proven &= enough.any(-1) & too_few
        counts.append(count + 1)
    return torch.stack(counts, -1), proven


def _on_basis(matrices: "Tensor") -> _Bounds:
    """Bound the eigenvalues by a projection onto a few columns: thin products are cheap."""
    total = matrices.square().sum((-1, -2))
    draw = torch.Generator().manual_seed(_FEW)
    block = torch.randn(matrices.shape[-1], _FEW, generator=draw, dtype=matrices.dtype)
    basis = block.to(matrices.device).expand(len(matrices), -1, -1)  # (M, T, r)
    for _ in range(_TURNS):
        basis = torch.linalg.qr(torch.bmm(matrices, torch.bmm(matrices.mT, basis))).Q
    half = torch.bmm(matrices.mT, basis)
    values = torch.linalg.eigvalsh(torch.bmm(half.mT, half)).flip(-1)
    return _Bounds(total, values, (total - values.sum(-1)).clamp_min(0))


def _all_eigenvalues(matrices: "Tensor") -> _Bounds:
    gram = torch.bmm(matrices, matrices.mT)  # (M, T, T)
    total = torch.diagonal(gram, dim1=-2, dim2=-1).sum(-1)
    return _Bounds(total, torch.linalg.eigvalsh(gram).flip(-1), torch.zeros_like(total))


def attention_mass(matrices: "Tensor", threshold: float) -> "Tensor":
    """Count the fewest columns, heaviest first, that hold a share of a matrix' squared norm.

    Args:
        matrices: (M, T, T).
        threshold: The share, in (0, 1).

    Returns:
        (M,) int64, from 1 to T.
    """
    # One by one: summing all of them over the rows at once, in fp64, takes six times as long.
    columns = torch.stack([matrix.double().square().sum(0) for matrix in matrices])
    energies = columns.sort(-1, descending=True).values
    return _count(energies, energies.sum(-1), [threshold])[:, 0]


def sink_share(matrices: "Tensor") -> "Tensor":
    """Compute the mean weight on the heaviest column of each matrix, (M,), in [1 / T, 1]."""
    return matrices.mean(-2).amax(-1)


def _count(energies: "Tensor", total: "Tensor", thresholds: Sequence[float]) -> "Tensor":
    reached = energies.cumsum(-1)
    shares = torch.tensor(thresholds, dtype=torch.float64, device=energies.device) - _TIE
    enough = reached[:, :, None] >= (total[:, None] * shares)[:, None, :]  # (M, T, Q)
    return enough.int().argmax(1) + 1
