"""Arithmetic on ranges of bytes: which parts of a file are wanted, present, or still missing."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

__all__ = ["Range", "bridged", "byte_count", "merged", "pieces", "subtracted"]

Range = tuple[int, int]
"""First byte, and the byte after the last one."""


def merged(ranges: Iterable[Range]) -> list[Range]:
    """The same bytes as ascending ranges that neither overlap nor touch; empty ones are dropped."""
    result: list[Range] = []
    for start, end in sorted(ranges):
        if start >= end:
            continue
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def subtracted(ranges: Iterable[Range], taken: Iterable[Range]) -> list[Range]:
    """The bytes of some ranges that are in none of others, merged."""
    result: list[Range] = []
    holes = merged(taken)
    first = 0  # holes before this one end before every range that is left
    for start, end in merged(ranges):
        while first < len(holes) and holes[first][1] <= start:
            first += 1
        for hole in range(first, len(holes)):
            if holes[hole][0] >= end:
                break
            result.append((start, holes[hole][0]))
            start = holes[hole][1]
        result.append((start, end))
    return merged(result)


def bridged(ranges: Sequence[Range], budget: int, widest: int) -> list[Range]:
    """Join ranges over small gaps: fewer requests for a few bytes more.

    Args:
        ranges: Merged.
        budget: Most bytes that all bridged gaps may have together; the smallest come first.
        widest: Most bytes of one gap.

    Returns:
        Merged ranges that hold every byte of the given ones.
    """
    gaps = [(a[1], b[0]) for a, b in pairwise(ranges)]
    joined = list(ranges)
    for start, end in sorted(gaps, key=lambda gap: (gap[1] - gap[0], gap)):
        budget -= end - start
        if budget < 0 or end - start > widest:
            break
        joined.append((start, end))
    return merged(joined)


def pieces(ranges: Iterable[Range], size: int) -> list[Range]:
    """Cut ranges into parts of at most ``size`` bytes, in order."""
    return [(at, min(at + size, end)) for start, end in ranges for at in range(start, end, size)]


def byte_count(ranges: Iterable[Range]) -> int:
    """Bytes of ranges that do not overlap."""
    return sum(end - start for start, end in ranges)
