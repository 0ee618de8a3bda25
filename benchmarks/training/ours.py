"""Run the real loop of `inheritune.training.loop`: `python ours.py JOB`, driven by driver.py."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measuring.roofline import layer_weights, roofline
from training.device import waiting_for
from training.shapes import Shape, without_dropout
from training.stream import random_stream, recipe_of
from training.turns import Turns
from transformers import AutoModelForCausalLM

from inheritune.system.progress import Progress
from inheritune.system.signals import StopFlag
from inheritune.training import loop
from inheritune.training.distillation import Distillation, FrozenReference
from inheritune.training.hardware import Settings, choose_device, choose_settings
from inheritune.training.loop_config import LoopConfig
from inheritune.training.setup import TrainingSetup
from inheritune.training.throughput import flops_per_token


def main(job: dict[str, Any]) -> None:
    shape, folder, device = Shape(**job["shape"]), Path(job["folder"]), choose_device()
    turns = Turns(*waiting_for(device, job))
    if device == "cpu":  # before the model, whose peak memory is reported
        limits = roofline(layer_weights(shape), shape.tokens, folder)
        turns.note(limits=limits.line(), bf16_limit=limits.bf16)
    recipe = recipe_of(shape, job.get("recipe", {}), job.get("accumulate", 1))
    settings = choose_settings(recipe, planned_flops=1e18)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(without_dropout(shape), dtype=torch.float32)
    flops = flops_per_token(model, shape.length) * shape.tokens
    stream = random_stream(shape, folder)
    config = LoopConfig("bench", recipe, settings, stream, recipe.tokens, folder, {})
    if "reference" in job:
        config = replace(config, distillation=_distillation(Shape(**job["reference"]), settings))
    make_setup = loop.make_setup

    def noted(*args: Any) -> TrainingSetup:
        """The loop would say at its end what it used: it never gets there."""
        setup = make_setup(*args)
        turns.note(settings=used(setup), step_flops=flops)
        return setup

    def on_progress(progress: Progress) -> None:
        if progress.done:
            turns.step_done()

    loop.make_setup = noted
    # Validating is left out: nothing else trains between two of its steps either.
    loop.train(model, config, lambda _: 0.0, StopFlag(), on_progress=on_progress)


def _distillation(shape: Shape, settings: Settings) -> Distillation:
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    reference = AutoModelForCausalLM.from_config(without_dropout(shape), dtype=dtype)
    return Distillation(FrozenReference(reference, settings, 1.0), alpha=0.0)


def used(setup: TrainingSetup) -> str:
    """Settings and fallbacks, in words."""
    record = {key: value for key, value in setup.settings.record().items() if key != "reasons"}
    return "; ".join([", ".join(f"{key} {value}" for key, value in record.items()), *setup.notes])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
