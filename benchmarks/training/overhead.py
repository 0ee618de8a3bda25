"""Divide the time of a step of the real loop: the model, clipping, the optimizer, all the rest.

The loop is as it is. What it calls is timed: the loss, the end of the backward pass (the last
gradient that is added up), clipping, the optimizer's step.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from training.shapes import Shape, without_dropout
from training.stream import random_stream, recipe_of
from training.turns import WARM_UP, Turns
from transformers import AutoModelForCausalLM

from inheritune.system.progress import Progress
from inheritune.system.signals import StopFlag
from inheritune.training import loop
from inheritune.training.hardware import choose_settings
from inheritune.training.loop_config import LoopConfig
from inheritune.training.setup import TrainingSetup

clock = time.perf_counter


class Account:
    """Seconds of one step, by what they went into."""

    def __init__(self) -> None:
        self._began = self._forward = self._backward = self._stepping = clock()
        self._clip = self._optimizer = 0.0
        self.steps: list[dict[str, float]] = []

    def setup(self, make: Callable[..., TrainingSetup]) -> Callable[..., TrainingSetup]:
        def made(*args: Any) -> TrainingSetup:
            setup = make(*args)
            for param in setup.params:
                param.register_post_accumulate_grad_hook(self._gradient_added)
            setup.optimizer.register_step_pre_hook(self._before_optimizer)
            setup.optimizer.register_step_post_hook(self._after_optimizer)
            setup.objective.register_forward_pre_hook(self._before_forward)
            return setup

        return made

    def clip(self, mean_and_clip: Callable[..., float]) -> Callable[..., float]:
        def clipped(*args: Any) -> float:
            began = clock()
            norm = mean_and_clip(*args)
            self._clip = clock() - began
            return norm

        return clipped

    def step_done(self) -> None:
        whole, model = clock() - self._began, self._backward - self._forward
        parts = {"model": model, "clipping": self._clip, "optimizer": self._optimizer}
        rest = whole - sum(parts.values())
        self.steps.append({"whole": whole, **parts, "rest": rest})
        self._began = clock()

    def _before_forward(self, *_args: Any) -> None:
        self._forward = clock()

    def _gradient_added(self, _param: torch.Tensor) -> None:
        self._backward = clock()

    def _before_optimizer(self, *_args: Any) -> None:
        self._stepping = clock()

    def _after_optimizer(self, *_args: Any) -> None:
        self._optimizer = clock() - self._stepping


def main(job: dict[str, Any]) -> None:
    shape, turns, account = Shape(**job["shape"]), Turns(), Account()
    loop.make_setup = account.setup(loop.make_setup)
    loop.mean_and_clip = account.clip(loop.mean_and_clip)
    recipe = recipe_of(shape, job.get("recipe", {}))
    settings = choose_settings(recipe, planned_flops=1e18)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(without_dropout(shape), dtype=torch.float32)
    folder = Path(job["folder"])
    stream = random_stream(shape, folder)
    config = LoopConfig("bench", recipe, settings, stream, recipe.tokens, folder, {})

    def on_progress(progress: Progress) -> None:
        if progress.done:
            account.step_done()
        if len(account.steps) == WARM_UP + job["steps"]:
            steps = account.steps[WARM_UP:]
            medians = {key: statistics.median(step[key] for step in steps) for key in steps[0]}
            turns.end(**medians)

    loop.train(model, config, lambda _: 0.0, StopFlag(), on_progress=on_progress)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
