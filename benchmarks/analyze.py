"""Attention ranks beside plain batched SVD: one model of GPT-2 small's size, taking turns.

    python benchmarks/analyze.py [--sequences 100] [--lengths 100,512,1024] [--rounds 3]
        [--layers 12] [--heads 12] [--width 768] [--kinds low,random] [--svd-sequences 10]

Two kinds of weights: random ones, whose attention is nearly uniform over the past, and ones whose
queries and keys are scaled up layer by layer towards a sink, so that ranks fall from dozens to 1 as
in trained models. Both ways see the same matrices within the same forward passes and must give the
same ranks. Plain SVD of all sequences would take long: it is timed on --svd-sequences of them, and
its time for all is in proportion. A round is one way after the other, every second one in the other
order; a ratio is the median of the rounds' ratios.
"""

import argparse
import statistics
from collections.abc import Sequence
from unittest import mock

import numpy as np
import torch
from measuring.roofline import clock, layer_weights, roofline
from measuring.table import head, machine, row, software
from training.shapes import Shape
from transformers import GPT2Config, GPT2LMHeadModel

from inheritune.analysis import attention
from inheritune.analysis.rank import attention_rank
from inheritune.training.hardware import keep_freed_memory

_VOCABULARY = 50_257


def model_of(kind: str, options: argparse.Namespace, length: int) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=_VOCABULARY,
            n_embd=options.width,
            n_layer=options.layers,
            n_head=options.heads,
            n_positions=max(length, 1024),
        )
    ).eval()
    if kind == "low":
        _fall(model)
    return model


def _fall(model: GPT2LMHeadModel) -> None:
    """Queries like position 0 more, and keys of others less, the deeper the layer."""
    with torch.no_grad():
        mark = torch.randn(model.config.n_embd)
        model.transformer.wpe.weight[0] += 4 * mark / mark.norm()
        direction = torch.zeros(model.config.n_embd)
        for depth, block in enumerate(model.transformer.h):
            attention, size = block.attn.c_attn, model.config.n_embd
            attention.weight[:, :size] *= 3
            attention.weight[:, size : 2 * size] *= 3
            direction.normal_()
            unit = direction / direction.norm()
            share = depth / max(len(model.transformer.h) - 1, 1)
            attention.bias[:size] += 6 * share * unit * size**0.5 / 4
            attention.weight[:, size : 2 * size] += (
                torch.outer(mark / mark.norm(), unit) * 8 * share
            )


def svd_rank(matrices: torch.Tensor, thresholds: Sequence[float]) -> torch.Tensor:
    """What one would write: batched svdvals in fp32."""
    energies = torch.linalg.svdvals(matrices).square()
    share = energies.cumsum(-1) / energies.sum(-1, keepdim=True)  # (M, T)
    below = share[:, :, None] < torch.tensor(thresholds)
    return below.sum(1) + 1


class Timed:
    """A way to compute ranks, with the seconds it took."""

    def __init__(self, way) -> None:
        self.way, self.seconds = way, 0.0

    def __call__(self, matrices: torch.Tensor, thresholds: Sequence[float]) -> torch.Tensor:
        began = clock()
        found = self.way(matrices, thresholds)
        self.seconds += clock() - began
        return found


def turn(model: GPT2LMHeadModel, ids: np.ndarray, way) -> tuple[float, float, list[list[float]]]:
    """Seconds in all, seconds for ranks, and the ranks."""
    timed, began = Timed(way), clock()
    with mock.patch.object(attention, "attention_rank", timed):
        found = attention.measure_attention(model, model.config.n_layer, ids)
    wall = clock() - began
    return wall, timed.seconds, [layer.rank.tolist() for layer in found.layers]


def measure(kind: str, length: int, options: argparse.Namespace) -> str:
    model = model_of(kind, options, length)
    ids = np.random.default_rng(0).integers(0, _VOCABULARY, (options.sequences, length))
    few = ids[: min(options.svd_sequences, len(ids))]
    walls, ratios, same = [], [], True
    shown: list[list[float]] = []
    for number in range(options.rounds):
        ways = [("ours", attention_rank), ("svd", svd_rank)]
        seconds, ranks = {}, {}
        for name, way in ways if number % 2 == 0 else ways[::-1]:
            _, seconds[name], ranks[name] = turn(model, few, way)
        wall, _, shown = turn(model, ids, attention_rank)
        walls.append(wall)
        ratios.append(seconds["svd"] / seconds["ours"])
        same = same and ranks["ours"] == ranks["svd"]
        print(f"{kind}, T {length}, round {number + 1}: {wall:.1f} s", flush=True)
    fullest = [max(layer) for layer in shown]
    return row(
        [
            kind,
            str(length),
            f"{fullest[0]:.0f} to {fullest[-1]:.0f}",
            f"{statistics.median(walls):.1f} s",
            f"{statistics.median(ratios):.1f}x",
            "identical" if same else "DIFFERENT",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=100)
    parser.add_argument("--svd-sequences", type=int, default=10)
    parser.add_argument("--lengths", default="100,512,1024")
    parser.add_argument("--kinds", default="low,random")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    options = parser.parse_args()
    keep_freed_memory()  # as `analyze` does on a CPU
    rows = [
        measure(kind, int(length), options)
        for length in options.lengths.split(",")
        for kind in options.kinds.split(",")
    ]
    print(
        f"\n{machine()}; {software(['torch', 'transformers'])}; {torch.get_num_threads()} threads"
    )
    shape = Shape("", "gpt2", _VOCABULARY, options.layers, options.width, options.heads,
                  4 * options.width, 1, 512, True)  # fmt: skip
    print(roofline(layer_weights(shape), shape.tokens).line())
    print(
        f"{options.layers} layers, {options.heads} heads, width {options.width}, "
        f"{options.sequences} sequences\n"
    )
    titles = ("weights", "T", "MaxRank, first to last layer", "whole", "ranks against svdvals",
              "ranks")  # fmt: skip
    print(head(titles))
    print("\n".join(rows))


if __name__ == "__main__":
    main()
