"""Rank and mass of attention matrices, without a singular value decomposition where that is safe.

M matrices, T tokens, r columns of a basis, Q thresholds.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["attention_mass", "attention_rank", "exact_rank", "sink_share"]

# Share of the squared singular values by which two ways of reaching a threshold count as a tie:
# above the rounding of fp64, below anything that an fp32 softmax can tell.
_TIE = 1e-9
# What is decided in fp32 must be this clear of the threshold; all else is computed again in fp64.
_CLEAR = 5e-5
# Columns of the basis in each attempt, as far as they are few beside T.
_TIERS = (16, 48)
_TURNS = 2  # of the block through the gram matrix


def exact_rank(matrices: "Tensor", thresholds: Sequence[float]) -> "Tensor":
    """Fewest singular values that make up a share of the squared ones, by fp64 SVD.

    The definition; `attention_rank` gives the same and is faster.

    Args:
        matrices: (M, T, T).
        thresholds: Q shares, in (0, 1).

    Returns:
        (M, Q) int64, from 1 to T.
    """
    energies = torch.linalg.svdvals(matrices.double()).square()
    return _count(energies, energies.sum(-1), thresholds)


def attention_rank(matrices: "Tensor", thresholds: Sequence[float]) -> "Tensor":
    """As `exact_rank`, by the cheapest way that proves the answer for each matrix.

    First the largest eigenvalues of A A^T on a small basis (block subspace iteration): they are
    lower bounds, and with what is left outside the basis they give upper bounds too (Ky Fan), so
    that a count is taken only where both agree. Then all eigenvalues of A A^T in fp32. What lies
    too near a threshold for fp32 is decided in fp64.

    Args:
        matrices: (M, T, T), fp32 or fp64, finite and not zero.
        thresholds: Q shares, in (0, 1).

    Returns:
        (M, Q) int64, from 1 to T.

    Source of the measure: Sanyal et al., Inheritune, arXiv 2404.08634, section 2; of the bounds:
    Fan, On a theorem of Weyl, 1949.
    """
    size = matrices.shape[-1]
    ranks = torch.zeros(len(matrices), len(thresholds), dtype=torch.int64, device=matrices.device)
    left = torch.arange(len(matrices), device=matrices.device)
    gram = torch.bmm(matrices, matrices.mT)  # (M, T, T)
    for columns in (*(c for c in _TIERS if 4 * c <= size), size):
        if not len(left):
            break
        found, proven = _by_basis(gram, columns, thresholds)
        ranks[left[proven]] = found[proven]
        left, gram = left[~proven], gram[~proven]
    if len(left):
        ranks[left] = exact_rank(matrices[left], thresholds)
    return ranks


def _by_basis(
    gram: "Tensor", columns: int, thresholds: Sequence[float]
) -> "tuple[Tensor, Tensor]":
    """Counts that a basis of so many columns gives, and which matrices they are proven for."""
    total = torch.diagonal(gram, dim1=-2, dim2=-1).sum(-1)  # (M,)
    if columns == gram.shape[-1]:
        values = torch.linalg.eigvalsh(gram).flip(-1)
        outside = outside_squared = torch.zeros_like(total)
    else:
        values, outside, outside_squared = _largest(gram, columns, total)
    reached = values.clamp_min(0).cumsum(-1)  # (M, r), lower bounds of the sums of the largest
    counts, proven = [], torch.ones(len(gram), dtype=torch.bool, device=gram.device)
    for threshold in thresholds:
        wanted = threshold * total
        enough = reached >= (wanted + _CLEAR * total)[:, None]
        count = enough.int().argmax(-1)  # one less than the rank
        # The k - 1 largest sum up to at most those of the basis and those outside of it.
        fewer = torch.where(
            count > 0, reached.gather(1, (count - 1).clamp_min(0)[:, None])[:, 0], torch.zeros(())
        )
        rest = torch.minimum(outside, (count * outside_squared).sqrt())
        too_few = (count == 0) | (fewer + rest <= wanted - _CLEAR * total)
        proven &= enough.any(-1) & too_few
        counts.append(count + 1)
    return torch.stack(counts, -1), proven


def _largest(gram: "Tensor", columns: int, total: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
    """The largest eigenvalues on a basis, and trace and squared norm of what is outside of it."""
    draw = torch.Generator().manual_seed(columns)
    block = torch.randn(gram.shape[-1], columns, generator=draw, dtype=gram.dtype).to(gram.device)
    basis = block.expand(len(gram), -1, -1)
    for _ in range(_TURNS):
        basis = torch.linalg.qr(torch.bmm(gram, basis)).Q  # (M, T, r)
    image = torch.bmm(gram, basis)
    inner = torch.bmm(basis.mT, image)  # (M, r, r)
    values = torch.linalg.eigvalsh(inner).flip(-1)
    outside = (total - values.sum(-1)).clamp_min(0)
    # |(I - P) G (I - P)|^2 for P = Q Q^T
    squared = gram.square().sum((-1, -2)) - 2 * image.square().sum((-1, -2))
    squared = (squared + inner.square().sum((-1, -2))).clamp_min(0)
    # Its rounding is that of the largest term, not of the small difference.
    squared += 8 * torch.finfo(gram.dtype).eps * total.square()
    return values, outside, squared


def attention_mass(matrices: "Tensor", threshold: float) -> "Tensor":
    """Fewest columns, heaviest first, that hold a share of a matrix' squared norm.

    Args:
        matrices: (M, T, T).
        threshold: The share, in (0, 1).

    Returns:
        (M,) int64, from 1 to T.
    """
    energies = matrices.double().square().sum(-2).sort(-1, descending=True).values
    return _count(energies, energies.sum(-1), [threshold])[:, 0]


def sink_share(matrices: "Tensor") -> "Tensor":
    """Mean weight on the heaviest column of each matrix, (M,), in [1 / T, 1]."""
    return matrices.mean(-2).amax(-1)


def _count(energies: "Tensor", total: "Tensor", thresholds: Sequence[float]) -> "Tensor":
    reached = energies.cumsum(-1)
    wanted = torch.tensor(thresholds, dtype=torch.float64, device=energies.device) - _TIE
    enough = reached[:, :, None] >= (total[:, None] * wanted)[:, None, :]  # (M, T, Q)
    return enough.int().argmax(1) + 1
