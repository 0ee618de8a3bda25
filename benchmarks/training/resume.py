"""Time the start of a process that continues a stopped training.

The first one saves a model directory and trains it for a few steps until it is asked to stop. The
other one loads both as `inheritune train` does, and ends after a few steps.
"""

import json
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from training.shapes import Shape, without_dropout
from training.stream import random_stream, recipe_of
from training.turns import Turns
from transformers import AutoModelForCausalLM

from inheritune.errors import Interrupted
from inheritune.system.progress import Progress
from inheritune.system.signals import StopFlag
from inheritune.training.hardware import choose_settings
from inheritune.training.loop import train
from inheritune.training.loop_config import LoopConfig
from inheritune.training.models import load_model

imported = time.time()
_STEPS = 4


def main(job: dict[str, Any]) -> None:
    shape, folder, turns = Shape(**job["shape"]), Path(job["run"]), Turns()
    if not (folder / "start").is_dir():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(without_dropout(shape), dtype=torch.float32)
        model.save_pretrained(folder / "start")
    recipe = recipe_of(shape, job["recipe"])
    before = time.time()
    model = load_model(folder / "start")
    loaded = time.time()
    stream = random_stream(shape, Path(job["folder"]))
    prepared = time.time()
    ends: list[float] = []
    messages: list[str] = []
    stop = StopFlag()

    def on_progress(progress: Progress) -> None:
        if progress.facts:  # of a step; the word that it continues has none
            ends.append(time.time())
        elif progress.message:
            messages.append(progress.message)
        if len(ends) == _STEPS:
            stop.heed(True)

    settings = choose_settings(recipe, planned_flops=1e18)
    config = LoopConfig("bench", recipe, settings, stream, recipe.tokens, folder, {})
    try:
        train(model, config, lambda _: 0.0, stop, on_progress=on_progress)
    except Interrupted:
        step = statistics.median(b - a for a, b in pairwise(ends))
        turns.end(
            messages=messages,
            imports=imported - job["started"],
            load=loaded - before,
            rest=ends[0] - prepared - step,
            step=step,
            checkpoint_mib=sum(f.stat().st_size for f in folder.rglob("step-*/*")) / 2**20,
        )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
