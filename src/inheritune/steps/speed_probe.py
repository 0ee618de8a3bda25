"""Measure the speed of a training by some of its steps, which are thrown away."""

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from inheritune.data.text_stream import IdStream
from inheritune.recipe.training import Train
from inheritune.steps.limits import memory_named
from inheritune.steps.training import compiler_files, free_memory
from inheritune.system.devices import this_processor
from inheritune.system.files import write_json
from inheritune.system.processes import ALONE
from inheritune.system.signals import StopFlag

_LEAST_STEPS, _MOST_STEPS, _SECONDS = 3, 10, 5.0  # after the first step, which is not measured
_MOST_SEQUENCES = 8
_STEP_SECONDS, _SHARE_OF_PEAK = 1.0, 0.2  # expected of a step on a CPU, to choose its size


def seconds_per_token(
    config: Mapping[str, Any],
    train: Train,
    stream: IdStream,
    flops_per_token: float,
    stop: StopFlag,
) -> float:
    """Train a model of this shape for some steps on this machine, and return the median speed.

    The class, the sizes, the kernels and the text are those of the training; the weights are fresh,
    since their values do not change the speed, and nothing has to be downloaded for them.

    Args:
        config: Content of the model's config.json.
        train: Sequence length, precision and kernels; the step is one micro-batch.
        flops_per_token: FLOPs of one training token, to choose how many sequences a step has.

    Raises:
        MachineError: The device or the machine ran out of memory.
        UnsupportedModelError: transformers has no causal language model of this config.
        Interrupted: ``stop`` was set.
    """
    import torch

    from inheritune.training.hardware import choose_settings
    from inheritune.training.loop import Loop
    from inheritune.training.loop_config import LoopConfig
    from inheritune.training.models import fresh_model
    from inheritune.training.setup import make_setup

    sequences = _MOST_SEQUENCES
    if not torch.cuda.is_available():
        expected = _STEP_SECONDS * _SHARE_OF_PEAK * this_processor().peak_flops / flops_per_token
        sequences = min(_MOST_SEQUENCES, max(1, int(expected / train.seq_len)))
    batch = {"micro_batch": sequences, "batch_tokens": sequences * train.seq_len}
    train = train.model_copy(update=batch | {"nonfinite": "skip", "max_skips": _MOST_STEPS})
    settings = choose_settings(train, 0.0)
    # A smaller train.micro_batch would change nothing: the probe has its own.
    otherwise = "Choose shorter sequences or fewer layers"
    with (
        TemporaryDirectory(prefix="inheritune-") as name,
        compiler_files(folder := Path(name)),
        memory_named("train.micro_batch", sequences, 0, otherwise),
    ):
        write_json(folder / "config.json", config)
        tokens = (1 + _MOST_STEPS) * train.batch_tokens
        loop_config = LoopConfig("speed", train, settings, stream, tokens, folder, {})
        setup = make_setup(fresh_model(folder, train.seed), train, settings, stream, ALONE)
        # It is given a flag of its own: a loop that is asked to stop saves a checkpoint.
        loop = Loop(loop_config, setup, lambda model: 0.0, StopFlag(), flops_per_token)
        loop.step()
        began = time.monotonic()
        seconds: list[float] = []
        while len(seconds) < _LEAST_STEPS or (
            len(seconds) < _MOST_STEPS and time.monotonic() - began < _SECONDS
        ):
            stop.check("nothing was begun")
            row, _ = loop.step()
            seconds.append(1 / row["tokens_per_s"])
    free_memory()
    return median(seconds)


def speedup(processes: int) -> tuple[float, str]:
    """Say how many times as fast several processes are taken to be as the one that is measured.

    Returns:
        The factor, and words to end a message with; empty for one process.
    """
    if processes == 1:
        return 1.0, ""
    import torch

    if torch.cuda.is_available():
        return processes, f". {processes} GPUs are taken to be {processes} times as fast as one"
    return 1.0, f". {processes} processes share the cores, and are taken to be as fast as one"
