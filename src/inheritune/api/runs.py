"""Run recipes, whole or one step, and report and publish their runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from inheritune.api.call import (
    AnyRecipe,
    PathLike,
    ProgressOption,
    StoredModel,
    call,
    optional_path,
    path_of,
    paths_of,
    texts_of,
    tokenizer_directory,
)
from inheritune.errors import DataError, RecipeError
from inheritune.system.progress import Progress

if TYPE_CHECKING:
    from inheritune.data.import_tokens import FlatFiles
    from inheritune.data.token_parts import TokenParts
    from inheritune.data.tokens import TokenDirectory
    from inheritune.reporting.comparison import Comparison
    from inheritune.run.execute import RunResult
    from inheritune.run.listing import RunList
    from inheritune.steps.result import TrainedVariant


def derive(
    recipe: "AnyRecipe | None" = None,
    *,
    runs: PathLike = "runs",
    allow_change: str | Sequence[str] = (),
    checkpoint: PathLike | None = None,
    progress: ProgressOption = True,
    **sections: Any,
) -> "RunResult":
    """Run a recipe from start to finish, or resume it: inherit, train, grow until matched.

    Args:
        recipe: Path of a recipe, name of a preset such as ``"demo"``, or a `Recipe`; None: the
            sections alone are the recipe.
        runs: Directory of runs; this one gets a subdirectory with the recipe's name.
        allow_change: Recipe keys that may differ from those that the run was started with.
        checkpoint: Continue the unfinished training from this checkpoint; None: from the newest.
        progress: True draws a bar, False is silent, a function is called with each event.
        **sections: Keys of the recipe that replace the file's, such as ``train={"tokens": "1M"}``
            or ``name="mine"``.

    Returns:
        The result, complete whether or not the reference was matched. Under torchrun, None in every
        process but the first.

    Raises:
        RecipeError: The recipe is wrong, or differs from the one that the run was started with.
        Interrupted: Stopped by Ctrl-C or SIGTERM; the same call continues.
        InherituneError: A step failed; what was done stays, and the same call continues.

    Source: Sanyal et al., Inheritune, arXiv 2404.08634, algorithm 1.
    """
    from inheritune.recipe.sections import recipe_with
    from inheritune.run.execute import execute

    with call(progress) as on_progress:
        recipe_file = recipe_with(recipe, sections)
        result = execute(
            recipe_file,
            Path(runs) / recipe_file.recipe.name,
            on_progress,
            allowed=texts_of(allow_change),
            checkpoint=optional_path(checkpoint),
        )
        return cast("RunResult", result)


def prepare_recipe(
    recipe: AnyRecipe,
    *,
    runs: PathLike = "runs",
    files: "FlatFiles | None" = None,
    tokenizer: "StoredModel | None" = None,
    progress: ProgressOption = True,
    **sections: Any,
) -> "TokenDirectory":
    """Prepare the tokens of a recipe and stop; `derive` goes on from there.

    Args:
        recipe: As for `derive`.
        runs: Directory of runs; the tokens go into the one with the recipe's name.
        files: Token ids of another program to import instead of the recipe's text.
        tokenizer: The model, or the directory, whose tokenizer made these ids; None: the
            reference's.
        progress: True draws a bar, False is silent, a function is called with each event.
        **sections: Keys of the recipe that replace the file's, as for `derive`.

    Raises:
        RecipeError: The recipe is wrong, or differs from the one that the run was started with.
        DataError: The text is missing, broken or too short.
    """
    from inheritune.recipe.sections import recipe_with
    from inheritune.run.one_step import prepare_only

    with call(progress) as on_progress:
        recipe_file = recipe_with(recipe, sections)
        home = None if tokenizer is None else tokenizer_directory(tokenizer)
        run = Path(runs) / recipe_file.recipe.name
        return prepare_only(recipe_file, run, on_progress, files, home)


def prepare_parts(
    recipe: AnyRecipe,
    worker: str,
    *,
    runs: PathLike = "runs",
    progress: ProgressOption = True,
    **sections: Any,
) -> "TokenParts":
    """Prepare the tokens of a recipe on several machines that share the directory of runs.

    Each calls this with a number of its own. The one that makes the last part joins all of them;
    the bytes do not depend on the number of workers.

    Args:
        recipe: As for `derive`.
        worker: ``"2/8"`` for the second of eight; at most 64.
        runs: Directory of runs; the tokens go into the one with the recipe's name.
        progress: True draws a bar, False is silent, a function is called with each event.
        **sections: Keys of the recipe that replace the file's, as for `derive`.

    Raises:
        RecipeError: The recipe or the worker is wrong, or the text cannot be cut: it is a
            stream of the Hub or a mixture, or data.tokens limits it.
        DataError: The text is missing, broken or too short.
    """
    from inheritune.data.token_parts import Worker
    from inheritune.recipe.sections import recipe_with
    from inheritune.run.one_step import prepare_one_worker

    with call(progress) as on_progress:
        recipe_file = recipe_with(recipe, sections)
        run = Path(runs) / recipe_file.recipe.name
        return prepare_one_worker(recipe_file, run, Worker.of(worker), on_progress)


def train_variant(
    recipe: AnyRecipe,
    variant: str | None = None,
    layers: int | None = None,
    *,
    runs: PathLike = "runs",
    allow_change: str | Sequence[str] = (),
    checkpoint: PathLike | None = None,
    progress: ProgressOption = True,
    **sections: Any,
) -> "TrainedVariant":
    """Train one variant of a recipe at one size and stop; `derive` takes it over.

    Args:
        recipe: As for `derive`.
        variant: Name of the variant; None: the target.
        layers: Number of layers; None: as in the first round of a run.
        runs: Directory of runs; the training goes into the one with the recipe's name.
        allow_change: Recipe keys that may differ from those that the run was started with.
        checkpoint: Continue the unfinished training from this checkpoint; None: from the newest.
        progress: True draws a bar, False is silent, a function is called with each event.
        **sections: Keys of the recipe that replace the file's, as for `derive`.

    Raises:
        RecipeError: There is no such variant, or its tokens depend on other variants.
        Interrupted: Stopped by Ctrl-C or SIGTERM; the same call continues.
    """
    from inheritune.recipe.sections import recipe_with
    from inheritune.run.one_step import train_only

    with call(progress) as on_progress:
        recipe_file = recipe_with(recipe, sections)
        run = Path(runs) / recipe_file.recipe.name
        from_checkpoint = optional_path(checkpoint)
        result = train_only(
            recipe_file, run, variant, layers, on_progress, texts_of(allow_change), from_checkpoint
        )
        return cast("TrainedVariant", result)


def report(run: PathLike, *, progress: ProgressOption = True) -> Path:
    """Write the page, tables, figures and card of a run again.

    Args:
        run: The run's directory.
        progress: True draws a bar, False is silent, a function is called with each event.

    Returns:
        The page.

    Raises:
        DataError: The directory is no run.
    """
    from inheritune.publishing.card import write_card
    from inheritune.reporting.page import read_report, write_report

    with call(progress) as on_progress:
        content = read_report(path_of(run))
        page = write_report(path_of(run), content)
        try:
            write_card(path_of(run), content.card_figures)
        except DataError as error:
            message = f"the target's card is left unchanged: {error.message}"
            on_progress(Progress("report", message=message))
        return page


def compare(
    runs: Sequence[PathLike], out: PathLike = "report-comparison/index.html"
) -> "Comparison":
    """Write one page about several runs, with their loss curves in one figure.

    Args:
        runs: The runs' directories; an unfinished or broken run is shown as such.
        out: The page; ``figures/`` and ``tables/`` go into its directory.

    Returns:
        A row for each run.

    Raises:
        RecipeError: There are more runs than a page can show, or one is named twice.
        DataError: A directory is no run.
    """
    from inheritune.reporting.comparison import write_comparison

    if not runs:
        raise RecipeError("no run is named.", "Name the directories of two runs or more.")
    with call(progress=False):
        return write_comparison(paths_of(runs), Path(out))


def list_runs(parent: PathLike = "runs") -> "RunList":
    """List the runs of a directory with their state, loss and size.

    Args:
        parent: The directory that the runs lie in.

    Raises:
        DataError: There is no such directory.
    """
    from inheritune.run.listing import list_runs

    return list_runs(path_of(parent))


def clean(runs: PathLike | Sequence[PathLike]) -> dict[str, int]:
    """Delete checkpoints of finished runs; results, models and pages stay.

    The end of the last round stays where the target has not matched, so that it can still grow.

    Args:
        runs: A run's directory, or several. All are looked at before anything is deleted.

    Returns:
        The bytes that became free, by run.

    Raises:
        RecipeError: A run is not finished; nothing is deleted.
        DataError: A directory is no run.
    """
    from inheritune.run.listing import clean_runs

    return clean_runs(paths_of(runs))


def push(
    path: StoredModel,
    repo_id: str,
    *,
    public: bool = False,
    licence: str | None = None,
    dry_run: bool = False,
    progress: ProgressOption = True,
) -> dict[str, Any]:
    """Verify a target and upload it to the Hugging Face Hub, privately by default.

    After an interruption, the same call sends what is still missing.

    Args:
        path: A run, or its target.
        repo_id: Hub repository, as ``"owner/name"``; created if it is missing.
        public: Make the repository public.
        licence: Licence as the Hub names it, such as ``"apache-2.0"``; None: the reference's.
        dry_run: Only choose the files and write the card; nothing is sent.
        progress: True draws a bar, False is silent, a function is called with each event.

    Returns:
        ``repo``, ``private``, ``licence`` and ``files``; also ``url`` and ``commit`` of an upload,
        and the text ``card`` of a dry run.

    Raises:
        SourceError: There is no target, or it differs from its record.
        RecipeError: Its licence is unknown, or does not allow this.
        MachineError: The Hub refuses, or cannot be reached.
    """
    from inheritune.publishing.push import pack
    from inheritune.publishing.push import push as send

    with call(progress) as on_progress:
        parcel = pack(path_of(path), licence, public, repo_id)
        if not dry_run:
            return send(parcel, repo_id, public, on_progress)
        return {
            "repo": repo_id,
            "private": not public,
            "licence": parcel.licence,
            "files": parcel.files,
            "card": parcel.card,
        }
