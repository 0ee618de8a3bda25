"""Compute rank and mass of attention matrices, without singular values where that is safe.

M matrices, T tokens, r columns of a basis, Q thresholds.
"""

from collections.abc import Callable, Sequence
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
# eigenvalues were off by at most 2.3e-6 of the total at T 1024 (1.4e-6 at T 512), norms of what
# a basis leaves by 3.6e-6.
_CLEAR = 1e-5
_FEW = 16  # columns of the first basis
_PART = 4  # the second one has T / _PART
_HOPE = 0.7  # a count of more than this share of a basis is not tried on it
_BLOCK = 64  # rows of a product at a time, of causal matrices
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

    1. The largest eigenvalues of A A^T on a basis of a few columns bound the sums of squared
       singular values from below, and with what is outside of the basis from above, see `_Bounds`.
       Where both bounds give one count, it is taken.
    2. The same on a wider basis.
    3. All eigenvalues of A A^T in fp32.
    4. Singular values in fp64, for sums too near a threshold to decide in fp32.

    On a CPU, each thread takes its own matrices: threads that share such a small one mostly wait.

    Args:
        matrices: (M, T, T), fp32 or fp64, not zero; attention weights, or others whose fourth power
            is far from the ends of fp32's range.
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
    left = torch.ones(len(matrices), dtype=torch.bool, device=matrices.device)

    def take_proven(bounds: _Bounds, of: "Tensor") -> None:
        """Store the counts that are proven, of the matrices whose numbers are given."""
        counts, proven = _counts(bounds, thresholds)
        ranks[of[proven]] = counts[proven]
        left[of[proven]] = False

    everything = left.nonzero()[:, 0]
    hopeful = torch.zeros_like(left)
    if size >= 4 * _FEW:
        few = _on_few(matrices)
        take_proven(few, everything)
        hopeful = few.expected(max(thresholds)) < _HOPE * (size // _PART)
    of = left.nonzero()[:, 0]
    gram = _gram(matrices[of])
    if (promising := hopeful[of]).any():
        take_proven(_on_part(gram[promising]), of[promising])
    if (open_ := left[of]).any():
        take_proven(_all_eigenvalues(gram[open_]), of[open_])
    if left.any():
        ranks[left] = _in_fp64(matrices[left], thresholds)
    return ranks


def _in_fp64(matrices: "Tensor", thresholds: Sequence[float]) -> "Tensor":
    exact = matrices.double()
    energies = torch.linalg.eigvalsh(torch.bmm(exact, exact.mT)).clamp_min(0).flip(-1)
    return _count(energies, energies.sum(-1), thresholds)


@dataclass(frozen=True)
class _Bounds:
    """Bounds on sums of the largest eigenvalues of G = A A^T, from its projection onto a basis.

    In a basis whose first r vectors are those, G = [[H, R^T], [R, C]]. Its k largest eigenvalues
    sum to at least those of H, and to at most those of H and all that is outside, tr C (Ky Fan).
    For any d > 0, G is at most [[H + R^T R / d, 0], [0, C + d]] (a square is never negative); where
    C + d is no larger than the k-th of H, the k largest are in the first part: they sum to at most
    those of H and |R|^2 / d.

    Attributes:
        total: (M,), sum of all eigenvalues.
        largest: (M, r), descending, eigenvalues of H.
        outside: (M,), tr C.
        coupling: (M,), |R|^2, the sum of the squares of its entries.
        rest: (M,), no eigenvalue of C is above it.
    """

    total: "Tensor"
    largest: "Tensor"
    outside: "Tensor"
    coupling: "Tensor"
    rest: "Tensor"

    def expected(self, threshold: float) -> "Tensor":
        """Guess the count, (M,), as if all other eigenvalues were like the least of the basis."""
        lacking = threshold * self.total - self.largest.sum(-1)
        return self.largest.shape[-1] + lacking / self.largest[:, -1].clamp_min(1e-30)

    def most(self, k: "Tensor") -> "Tensor":
        """Bound the sum of the k largest, (M,), from above; k is at least 1."""
        at = (k - 1)[:, None]
        distance = self.largest.gather(1, at)[:, 0] - self.rest
        coupled = torch.where(distance > 0, self.coupling / distance, torch.inf)
        sums = self.largest.clamp_min(0).cumsum(-1).gather(1, at)[:, 0]
        return sums + torch.minimum(self.outside, coupled)


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
        too_few = (count == 0) | (bounds.most(count.clamp_min(1)) <= goal - clear)
        proven &= enough.any(-1) & too_few
        counts.append(count + 1)
    return torch.stack(counts, -1), proven


def _on_few(matrices: "Tensor") -> _Bounds:
    """Bound the eigenvalues by a few columns, without G: thin products are cheap."""

    def times(block: "Tensor") -> "Tensor":
        return torch.bmm(matrices, torch.bmm(matrices.mT, block))

    draw = torch.Generator().manual_seed(_FEW)
    start = torch.randn(matrices.shape[-1], _FEW, generator=draw, dtype=matrices.dtype)
    start = start.to(matrices.device).expand(len(matrices), -1, -1)  # (M, T, r)
    return _on_basis(times, torch.linalg.qr(times(start)).Q, _norm(matrices).square())


def _on_part(gram: "Tensor") -> _Bounds:
    """Bound the eigenvalues by T / _PART columns, which begin as sums of those of G."""
    columns = gram.shape[-1] // _PART
    groups = gram[..., : columns * _PART].unflatten(-1, (_PART, columns))
    start = groups[..., ::2, :].sum(-2) - groups[..., 1::2, :].sum(-2)
    total = torch.diagonal(gram, dim1=-2, dim2=-1).double().sum(-1)
    basis = torch.linalg.qr(torch.bmm(gram, start)).Q
    return _on_basis(lambda block: torch.bmm(gram, block), basis, total, gram)


def _on_basis(
    times: "Callable[[Tensor], Tensor]",
    basis: "Tensor",
    total: "Tensor",
    gram: "Tensor | None" = None,
) -> _Bounds:
    """Project G onto a basis.

    Args:
        times: Multiplies (M, T, r) by G.
        basis: (M, T, r), orthonormal columns.
        total: (M,), the trace of G.
        gram: G, where it was computed.
    """
    image = times(basis)
    inside = torch.bmm(basis.mT, image)
    values = torch.linalg.eigvalsh(inside).flip(-1).double()
    slack = _CLEAR * total
    coupling = _norm(torch.baddbmm(image, basis, inside, alpha=-1)) + slack
    outside = rest = (total - values.sum(-1)).clamp_min(0)
    if gram is not None:  # the columns of G without their part in the basis are those of R and C
        left = _norm(torch.baddbmm(gram, image, basis.mT, alpha=-1))
        rest = torch.minimum(rest, left + slack)
    return _Bounds(total, values, outside, coupling.square(), rest)


def _all_eigenvalues(gram: "Tensor") -> _Bounds:
    total = torch.diagonal(gram, dim1=-2, dim2=-1).double().sum(-1)
    none = torch.zeros_like(total)
    return _Bounds(total, torch.linalg.eigvalsh(gram).flip(-1).double(), none, none, none)


def _norm(matrices: "Tensor") -> "Tensor":
    """Compute Frobenius norms, (M,) fp64: by rows, as a single sum in fp32 drifts."""
    rows: Tensor = torch.linalg.vector_norm(matrices, dim=-1)
    return rows.double().square().sum(-1).sqrt()


def _gram(matrices: "Tensor") -> "Tensor":
    """Multiply by the transposes; of causal matrices, only what is not zero."""
    size = matrices.shape[-1]
    blocks = [(start, start + _BLOCK) for start in range(0, size, _BLOCK)]
    if len(blocks) < 2 or any(matrices[:, start:end, end:].any() for start, end in blocks):
        return torch.bmm(matrices, matrices.mT)
    gram = torch.empty_like(matrices)
    for start, end in blocks:
        below = torch.bmm(matrices[:, start:, :end], matrices[:, start:end, :end].mT)
        gram[:, start:, start:end] = below
        gram[:, start:end, start:] = below.mT
    return gram


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
