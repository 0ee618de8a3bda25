"""Hold the inputs and the result of a training."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inheritune.data.tokens import TokenStream
from inheritune.recipe.schema import Train
from inheritune.training.checkpoint import Position
from inheritune.training.distillation import Distillation
from inheritune.training.hardware import Settings

__all__ = ["LoopConfig", "LoopResult"]


@dataclass(frozen=True)
class LoopConfig:
    """A training: on which tokens, for how long, with which settings."""

    task: str
    train: Train
    settings: Settings
    stream: TokenStream
    tokens: int  # number to train on, repeats counted; rounded down to whole steps
    folder: Path  # receives `metrics.jsonl` and `checkpoints/`, from process 0
    # Whatever decides the result, as JSON values; a checkpoint of other inputs is refused.
    inputs: Mapping[str, Any]
    # Input keys and values whose change is only noted.
    noted_inputs: Mapping[str, Any] = field(default_factory=dict)
    # Keys of `inputs` that may differ from the checkpoint's (`--allow-change`).
    allowed_changes: Collection[str] = ()
    first_sample: int = 0  # place in the order of samples at which this training begins
    # Checkpoint of a smaller model's training whose AdamW moments are taken over.
    moments_from: Path | None = None
    resume_from: Path | None = None  # checkpoint to go on from; None: the newest that is whole
    distillation: Distillation | None = None
    # Steps whose checkpoint is kept under ``moments/`` as well, whatever `train.keep` says.
    snapshot_steps: Collection[int] = ()
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
    # Nats per token before the first step; None when it was not measured.
    start_val_loss: float | None
    restarts: int
    settings: Settings  # as used in the end: a fallback shows here
    # Sentences for the run's record: fallbacks, checkpoints that were passed over.
    notes: tuple[str, ...]
