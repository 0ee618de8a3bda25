"""Define the command train: one variant of a recipe, or any model on prepared tokens."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from inheritune import api
from inheritune.cli.completion import references
from inheritune.cli.console import (
    DEFAULT_RUNS,
    AllowChange,
    Debug,
    From,
    Json,
    NumberOfProcesses,
    Runs,
    Sets,
    load_recipe,
    print_json,
    recipe_option,
    reported,
    say,
)
from inheritune.cli.next_step import command, started_processes
from inheritune.errors import RecipeError


def train(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|MODEL",
            autocompletion=references,
            help="Recipe: a file or a preset; or, with TOKENS and OUT, a Hub id, model directory "
            "or embedded:demo.",
        ),
    ],
    tokens: Annotated[
        Path | None, typer.Argument(metavar="TOKENS", help="Token directory made by prepare.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Argument(metavar="OUT", help="Directory to train in; the model is OUT/model."),
    ] = None,
    variant: Annotated[
        str | None, recipe_option(help="Variant of the recipe to train; default: the target.")
    ] = None,
    layers: Annotated[
        int | None,
        recipe_option(
            min=1, help="Number of layers of the variant; default: as in the first round of a run."
        ),
    ] = None,
    processes: NumberOfProcesses = 1,
    allow_change: AllowChange = None,
    checkpoint: From = None,
    sets: Sets = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train one variant of a recipe, or train a model further on prepared tokens.

    Without a recipe, the model is trained for one epoch, unless --set train.tokens=10M sets
    another length. Batch and sequence length follow from the tokens; --set takes any key of train
    and evaluate. Run the same command again to resume.
    """
    with reported(as_json, debug):
        launch = Launch(processes, allow_change or [], checkpoint, sets or [], as_json, debug)
        if tokens is None:
            _train_variant(Path(what), variant, layers, runs, launch)
        elif out is None:
            raise RecipeError(
                "train was given two arguments.",
                "Give a recipe alone, or three: inheritune train MODEL TOKENS OUT",
            )
        elif variant or layers:
            raise RecipeError(
                "--variant and --layers need a recipe.", f"Leave them out to train {what}."
            )
        else:
            _train_model(what, tokens, out, launch)


@dataclass(frozen=True)
class Launch:
    """Options of `run` and `train` that are passed on to several processes."""

    processes: int
    allowed: list[str]
    checkpoint: Path | None  # step directory to resume from
    sets: list[str]
    as_json: bool
    debug: bool

    def start(self, command: Sequence[str], root: Path) -> NoReturn:
        """Run the same command in several processes, and end with their exit code."""
        from inheritune.cli.launch import launch

        options = [option for text in self.sets for option in ("--set", text)]
        options += [option for key in self.allowed for option in ("--allow-change", key)]
        options += ["--from", str(self.checkpoint)] if self.checkpoint else []
        options += [*["--json"] * self.as_json, *["--debug"] * self.debug]
        raise typer.Exit(launch([*command, *options], self.processes, root))


def _train_variant(
    recipe: Path, variant: str | None, layers: int | None, runs: Path, launch: Launch
) -> None:
    file = load_recipe(recipe, launch.sets)
    if launch.processes > 1:
        words = ["train", str(recipe), "--runs", str(runs)]
        words += ["--variant", variant] if variant else []
        words += ["--layers", str(layers)] if layers else []
        launch.start(words, runs / file.recipe.name)
    result = api.train_variant(
        file,
        variant,
        layers,
        runs=runs,
        allow_change=launch.allowed,
        checkpoint=launch.checkpoint,
    )
    if result is None:  # only the first process has one
        return
    if launch.as_json:
        print_json(result.as_json())
        return
    training = result.training
    say(
        f"{result.model}: val_loss {training.val_loss:.4f}, "
        f"{training.difference:+.4f} against the reference loss."
    )
    options: dict[str, object] = {"set": launch.sets, "allow_change": launch.allowed}
    say(f"next: {command('run', recipe, **options, processes=started_processes(), runs=runs)}")


def _train_model(model: str, tokens: Path, out: Path, launch: Launch) -> None:
    if launch.processes > 1:  # what is wrong is said once, before the processes are started
        api.plan_training(model, tokens, out, processes=launch.processes, sets=launch.sets)
        launch.start(["train", model, str(tokens), str(out)], out)
    result = api.train(
        model,
        tokens,
        out,
        sets=launch.sets,
        allow_change=launch.allowed,
        checkpoint=launch.checkpoint,
    )
    if result is None:  # only the first process has one
        return
    if launch.as_json:
        print_json(asdict(result))
        return
    error = result.difference_se
    spread = "" if error is None else f" +- {error:.4f}"
    say(
        f"{result.model}: val_loss {result.val_loss:.4f}, before {result.val_loss_before:.4f} "
        f"({result.difference:+.4f}{spread}), after {result.tokens:,} tokens."
    )
    say(f"next: {command('plan', result.model)}")
