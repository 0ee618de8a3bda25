"""Train with the same model, kernels and optimizer as ours, in the shortest loop there is."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training.plain_loop import plain_loop
from training.shapes import Shape, without_dropout
from training.stream import random_stream, recipe_of
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

    def loss_of(ids: Tensor, labels: Tensor) -> Tensor:
        with setup.settings.autocast():
            return setup.objective(ids, labels) / shape.tokens

    plain_loop(turns, shape, setup.params, setup.optimizer, loss_of, recipe.clip_norm)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
