"""The command that trains: a variant of a recipe, or any model on prepared tokens."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Annotated, NoReturn

import typer

from inheritune.cli.console import (
    DEFAULT_RUNS,
    AllowChange,
    Debug,
    From,
    Json,
    NumberOfProcesses,
    Runs,
    Sets,
    print_json,
    progress,
    reported,
    say,
)
from inheritune.errors import RecipeError

__all__ = ["Asked", "train"]


def train(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|MODEL",
            help="A recipe alone; or a Hub id, model directory or embedded:demo, with TOKENS OUT.",
        ),
    ],
    tokens: Annotated[
        Path | None, typer.Argument(metavar="[TOKENS]", help="A directory made by prepare.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Argument(metavar="[OUT]", help="Directory of the training; the model is OUT/model."),
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Which variant of the recipe; default: the target.")
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="How many layers the variant has.")
    ] = None,
    processes: NumberOfProcesses = 1,
    allow_change: AllowChange = None,
    checkpoint: From = None,
    sets: Sets = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train one variant of a recipe at one size; or MODEL further on TOKENS, without a recipe.

    Without a recipe: one epoch, unless --set train.tokens=10M says otherwise; steps and sequences
    are chosen by what there is, and --set takes any key of train and evaluate. The same command
    goes on where it was stopped.
    """
    with reported(as_json, debug):
        asked = Asked(processes, allow_change or [], checkpoint, sets or [], as_json, debug)
        if tokens is None:
            _train_variant(Path(what), variant, layers, runs, asked)
        elif out is None:
            raise RecipeError(
                "train was given two arguments.",
                "Give a recipe alone, or three: inheritune train MODEL TOKENS OUT",
            )
        elif variant or layers:
            raise RecipeError(
                "--variant and --layers are of a recipe.", f"Leave them out to train {what}."
            )
        else:
            _train_model(what, tokens, out, asked)


@dataclass(frozen=True)
class Asked:
    """What `run` and `train` both take.

    Attributes:
        processes: On this machine.
        allowed: Keys that may have changed.
        checkpoint: To go on from.
        sets: Overrides.
        as_json: Whether the result is printed as JSON.
        debug: Whether tracebacks are shown.
    """

    processes: int
    allowed: list[str]
    checkpoint: Path | None
    sets: list[str]
    as_json: bool
    debug: bool

    def launch(self, command: Sequence[str], root: Path) -> NoReturn:
        """Give the same command to several processes, and end with their exit code."""
        from inheritune.cli.launch import launch

        options = [option for text in self.sets for option in ("--set", text)]
        options += [option for key in self.allowed for option in ("--allow-change", key)]
        options += ["--from", str(self.checkpoint)] if self.checkpoint else []
        options += [*["--json"] * self.as_json, *["--debug"] * self.debug]
        raise typer.Exit(launch([*command, *options], self.processes, root))


def _train_variant(
    recipe: Path, variant: str | None, layers: int | None, runs: Path, asked: Asked
) -> None:
    from inheritune.recipe.load import read_recipe
    from inheritune.run.execute import train_only

    wanted = read_recipe(recipe, asked.sets)
    root = runs / wanted.recipe.name
    if asked.processes > 1:
        command = ["train", str(recipe), "--runs", str(runs)]
        command += ["--variant", variant] if variant else []
        command += ["--layers", str(layers)] if layers else []
        asked.launch(command, root)
    with progress() as on_progress:
        trial = train_only(
            wanted, root, variant, layers, on_progress, asked.allowed, checkpoint=asked.checkpoint
        )
    if asked.as_json and trial:
        print_json(trial)
    elif trial:  # the first process has it
        say(
            f"{trial['model']}: val_loss {trial['val_loss']:.4f}, "
            f"{trial['difference']:+.4f} against the reference loss."
        )
        say(f"next: inheritune run {recipe}")


def _train_model(model: str, tokens: Path, out: Path, asked: Asked) -> None:
    from inheritune.cli.launch import process_count
    from inheritune.run.pretraining import plan_pretraining, pretrain

    processes = max(asked.processes, process_count())
    plan = plan_pretraining(model, tokens, out, asked.sets, processes)
    if asked.processes > 1:
        asked.launch(["train", model, str(tokens), str(out)], out)
    with progress() as on_progress:
        result = pretrain(plan, out, on_progress, asked.allowed, asked.checkpoint)
    if result is None:  # the first process has it
        return
    if asked.as_json:
        print_json(asdict(result))
        return
    error = result.difference_se
    spread = "" if error is None else f" +- {error:.4f}"
    say(
        f"{result.model}: val_loss {result.val_loss:.4f}, before {result.val_loss_before:.4f} "
        f"({result.difference:+.4f}{spread}), after {result.tokens:,} tokens."
    )
    say(f"next: inheritune plan {quote(result.model)}")
