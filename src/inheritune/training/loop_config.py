"""Hold the inputs and the result of a training."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inheritune.data.tokens import TokenStream
from inheritune.recipe.training import Train
from inheritune.training.checkpoint import Position
from inheritune.training.distillation import Distillation
from inheritune.training.hardware import Settings


@dataclass(frozen=True)
class LoopConfig:
    """A training: on which tokens, for how long, with which settings."""

    task: str
    train: Train
    settings: Settings
    stream: TokenStream
    tokens: int  # number to train on, repeats counted; rounded down to whole steps
    folder: Path  # receives `metrics.jsonl` and `checkpoints/`, from process 0
    inputs: Mapping[str, Any]  # what decides the result: a checkpoint of others is refused
    noted_inputs: Mapping[str, Any] = field(default_factory=dict)  # a change is only noted
    allowed_changes: Collection[str] = ()  # keys of `inputs` that may differ from a checkpoint's
    first_sample: int = 0  # place in the order of samples at which this training begins
    moments_from: Path | None = None  # checkpoint whose AdamW moments are taken over
    # Place of each layer of the model that these are of; empty: it has the first layers
    moments_at: Sequence[int] = ()
    resume_from: Path | None = None  # checkpoint to go on from; None: the newest that is whole
    distillation: Distillation | None = None
    snapshot_steps: Collection[int] = ()  # their checkpoints are kept under ``moments/``
    peak_flops: float | None = None  # FLOP/s of the device, for `mfu`; None: not known

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the training."""
        return self.train.num_steps(self.tokens)

    @property
    def total_tokens(self) -> int:
        """Tokens of the training, in whole steps."""
        return self.num_steps * self.train.batch_tokens


@dataclass(frozen=True)
class LoopResult:
    """The result of a training."""

    position: Position
    seconds: float  # training, compiling and validating on the way, over all restarts
    start_val_loss: float | None  # nats per token before the first step; None: not measured
    restarts: int
    settings: Settings  # as used in the end: a fallback shows here
    notes: tuple[str, ...]  # fallbacks, checkpoints that were passed over
