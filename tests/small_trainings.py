"""Trainings of small models by the loop itself, and what tests read of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from inheritune.data.tokens import TokenStream
from inheritune.recipe.schema import Train
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.signals import StopFlag
from inheritune.training.hardware import Settings
from inheritune.training.loop import train
from inheritune.training.loop_config import LoopConfig, LoopResult


def start_training(
    model: Any,
    recipe: Train,
    folder: Path,
    stream: TokenStream,
    settings: Settings,
    stop_after: int | None = None,
    measure: Callable[[torch.nn.Module], float] = lambda model: 1.0,
    heard: Listener = silent,
    **fields: Any,
) -> LoopResult:
    """Train as a new process would, in ``folder``; after ``stop_after`` steps it is asked to stop.

    ``fields`` are further ones of `LoopConfig`.
    """
    stop = StopFlag()
    folder.mkdir(parents=True, exist_ok=True)

    def on_progress(progress: Progress) -> None:
        heard(progress)
        if stop_after is not None and progress.done >= stop_after * recipe.batch_tokens:
            stop.signal_number = 15

    config = LoopConfig(
        task="test",
        train=recipe,
        settings=settings,
        stream=stream,
        tokens=recipe.tokens,
        folder=folder,
        **({"inputs": {}} | fields),
    )
    return train(model, config, measure, stop, on_progress=on_progress)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def values_of(folder: Path, key: str) -> list[float]:
    return [row[key] for row in rows_of(folder) if key in row]


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
