"""Train with the same model, kernels and optimizer as ours, in the shortest loop there is."""

import json
import sys
from itertools import count
from pathlib import Path
from typing import Any

import torch
from training.shapes import Shape, without_dropout
from training.stream import random_batches, random_stream, recipe_of
from training.turns import Turns
from transformers import AutoModelForCausalLM

from inheritune.system.processes import ALONE
from inheritune.training.hardware import choose_settings
from inheritune.training.setup import make_setup


def main(job: dict[str, Any]) -> None:
    shape, turns = Shape(**job["shape"]), Turns()
    recipe = recipe_of(shape, job.get("recipe", {}))
    settings = choose_settings(recipe, planned_flops=1e18)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(without_dropout(shape), dtype=torch.float32)
    stream = random_stream(shape, Path(job["folder"]))
    setup = make_setup(model, recipe, settings, stream, ALONE)
    batches = random_batches(shape, extra=1).split(shape.batch)
    for step in count():
        batch = batches[step % len(batches)]
        with setup.settings.autocast():
            loss = setup.objective(batch[:, :-1], batch[:, 1:]) / shape.tokens
        loss.backward()
        torch.nn.utils.clip_grad_norm_(setup.params, recipe.clip_norm)
        setup.optimizer.step()
        setup.optimizer.zero_grad(set_to_none=True)
        turns.step_done()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
