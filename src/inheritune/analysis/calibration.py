"""What rank and mass are of attention whose form is known, to read others by."""

from typing import TYPE_CHECKING

import torch

from inheritune.analysis.rank import attention_mass, attention_rank

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["calibration", "known_attention"]

_WINDOW = 8


def known_attention(tokens: int) -> "dict[str, Tensor]":
    """Causal attention of known forms, (T, T) fp32 each, by name.

    Args:
        tokens: T, at least 2.
    """
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
    """Rank and mass of `known_attention`.

    Args:
        tokens: T.
        threshold: Of the rank.
    """
    known = known_attention(tokens)
    matrices = torch.stack(list(known.values()))
    ranks = attention_rank(matrices, [threshold])[:, 0].tolist()
    masses = attention_mass(matrices, 0.90).tolist()
    return {
        name: {"rank": rank, "mass": mass}
        for name, rank, mass in zip(known, ranks, masses, strict=True)
    }
