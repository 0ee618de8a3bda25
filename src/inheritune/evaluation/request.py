"""Define a request to evaluate models, and refuse one that measures nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inheritune.errors import RecipeError
from inheritune.evaluation.suites import VAL_LOSS, tasks_with_shots
from inheritune.recipe.data import Data

_DTYPES = ("auto", "fp32", "bf16", "fp16")
_BOS_CHOICES = ("auto", "yes", "no")


@dataclass(frozen=True)
class EvaluationRequest:
    """Measurements and their settings, as the parameters of `inheritune.api.evaluate`."""

    tasks: Sequence[str] = ()
    tokens: Path | None = None
    text: Data | None = None
    seq_len: int | None = None
    shots: int | None = None
    limit: int | None = None
    batch_size: int = 16
    dtype: str = "auto"
    add_bos: str = "auto"
    task_data: Path | None = None
    allow_code: bool = False
    speed: bool = False
    one_tokenizer: bool = False  # refuse models of several: a figure compares nats per token

    @property
    def lm_eval_tasks(self) -> list[tuple[str, int | None]]:
        """The tasks that lm-eval asks, with their shots."""
        return [p for p in tasks_with_shots(self.tasks, self.shots) if p[0] != VAL_LOSS]

    @property
    def has_held_out_text(self) -> bool:
        """Whether there is text to measure val_loss on."""
        return self.tokens is not None or self.text is not None

    def check(self) -> None:
        """Raise RecipeError for a request that measures nothing or contradicts itself."""
        for option, value, choices in (
            ("--dtype", self.dtype, _DTYPES),
            ("--add-bos", self.add_bos, _BOS_CHOICES),
        ):
            if value not in choices:
                raise RecipeError(f"{option} is {value!r}.", f"Choose {', '.join(choices)}.")
        for option, number, least in (
            ("--batch-size", self.batch_size, 1),
            ("--seq-len", self.seq_len, 2),
            ("--limit", self.limit, 1),
            ("--shots", self.shots, 0),
        ):
            if number is not None and number < least:
                raise RecipeError(f"{option} is {number}.", f"Choose {least} or more.")
        if self.tokens is not None and self.text is not None:
            raise RecipeError("--tokens and --text are both given.", "Choose one.")
        if self.has_held_out_text or (self.speed and not self.tasks):
            return
        tasks = [task for task, _ in tasks_with_shots(self.tasks)]
        if not tasks:
            raise RecipeError(
                "there is nothing to measure.",
                "Give --tasks, --tokens DIR, --text FILE or --speed.",
            )
        if VAL_LOSS in tasks:
            raise RecipeError(
                f"{', '.join(self.tasks)}: val_loss needs held-out tokens.",
                "Give --tokens DIR or --text FILE, or name the other tasks.",
            )
