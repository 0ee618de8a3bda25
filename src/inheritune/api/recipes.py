"""Read recipes, and fill one in from a model and a text."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.api.call import (
    AnyRecipe,
    PathLike,
    ProgressOption,
    StoredModel,
    call,
    paths_of,
    texts_of,
)

if TYPE_CHECKING:
    from inheritune.recipe.load import RecipeFile


def load_recipe(
    recipe: AnyRecipe,
    *,
    sets: str | Sequence[str] = (),
    scale: float | None = None,
    **sections: Any,
) -> "RecipeFile":
    """Read and check a recipe, for the functions that take one.

    Args:
        recipe: Path of a recipe, name of a preset such as ``"demo"``, or a `Recipe`.
        sets: Overrides of the file in the form of ``--set``, such as ``"train.tokens=1M"``.
        scale: Shrink the recipe by this factor to try it: the same trainings with fewer tokens,
            smaller widths, sequences and batches. Shows that it runs; is no result of the method.
        **sections: Keys of the recipe that replace the file's, as for `derive`.

    Raises:
        RecipeError: The recipe is missing or wrong; one to three lines say where.
    """
    from inheritune.planning.scale import scale_file
    from inheritune.recipe.sections import recipe_with

    recipe_file = recipe_with(recipe, sections, texts_of(sets))
    return recipe_file if scale is None else scale_file(recipe_file, scale)


def recipe_for(
    model: StoredModel,
    text: PathLike | Sequence[PathLike],
    *,
    layers: int | str | None = None,
    tokens: int | str | None = None,
    minutes: float | None = None,
    name: str | None = None,
    method: str | None = None,
    sets: str | Sequence[str] = (),
    out: PathLike | None = None,
    runs: PathLike = "runs",
    processes: int = 1,
    progress: ProgressOption = True,
    **sections: Any,
) -> "RecipeFile":
    """Fill in a recipe for a first run, by rules that its comments state; `derive` runs it.

    Sequences and validation follow from model and text, batches from the tokens, the learning rate
    from the parameters.

    Args:
        model: The reference.
        text: Files, folders or globs to train and validate on.
        layers: Layers of the target; None: half of the reference's, growing once.
        tokens: Training tokens of each round, such as ``"20M"``; None: as ``minutes`` says.
        minutes: Time for all rounds on this machine, whose speed is measured by some steps; None,
            without tokens: 15.
        name: Name of the run; None: that of the model.
        method: ``"paper"``: the first layers, trained on text alone; ``"best"``: layers chosen by
            scores, the cut repaired, and the reference's predictions learnt as well, as far as the
            model's class allows; None: best.
        sets: Any key in the form of ``--set``, such as ``"train.seq_len=256"``.
        out: Write it to ``NAME.yaml`` in this directory; what the same call wrote there before is
            read instead. None: write nothing.
        runs: Directory of runs; with ``out``, a run of this name must be of the same call.
        processes: Number of processes, which decides the default of ``train.micro_batch``.
        progress: True draws a bar, False is silent, a function is called with each event.
        **sections: Keys of the recipe, as for `derive`.

    Raises:
        RecipeError: A value is wrong, or the file or run of this name is of something else.
        SourceError: The model cannot be used.
        DataError: The text is missing, broken or too short, or the model has no tokenizer.
        MachineError: The Hub cannot be reached, or there is too little memory.
    """
    from inheritune.model_files.directory import ModelDirectory
    from inheritune.recipe.sections import overrides
    from inheritune.run.first_recipe import first_recipe
    from inheritune.run.first_request import FirstRun, keep_recipe
    from inheritune.system.signals import catch_signals

    if isinstance(model, ModelDirectory):
        is_on_hub = model.revision is not None
        if is_on_hub:  # its files may be here in part
            sections["reference"] = {"revision": model.revision} | sections.get("reference", {})
        model = model.name if is_on_hub else model.path
    request = FirstRun(
        model=os.fspath(model),
        text=tuple(str(path) for path in paths_of(text)),
        layers=None if layers is None else str(layers),
        tokens=None if tokens is None else str(tokens),
        minutes=minutes,
        name=name,
        method=method,
        sets=(*texts_of(sets), *overrides(sections)),
        processes=processes,
    )
    with call(progress) as on_progress, catch_signals() as stop:
        if out is None:
            return first_recipe(request, stop, on_progress)
        return keep_recipe(
            request, Path(out), Path(runs), lambda: first_recipe(request, stop, on_progress)
        )


def real_demo_recipe(
    *,
    text: Sequence[PathLike] = (),
    minutes: float | None = None,
    sets: Sequence[str] = (),
    runs: PathLike = "runs",
    progress: ProgressOption = True,
) -> "RecipeFile":
    """Make ready what the demo on a real model takes, and fill in its recipe; `derive` runs it.

    It stays in the run's directory and is read again when the run is continued. The arguments are
    those of `recipe_for`, which raises the same errors.

    Raises:
        MissingExtraError: The package with the model is not installed; nothing is written.
    """
    from inheritune.run.real_demo import real_recipe
    from inheritune.system.signals import catch_signals

    texts = [str(path) for path in text]
    with call(progress) as on_progress, catch_signals() as stop:
        return real_recipe(Path(runs), stop, on_progress, text=texts, minutes=minutes, sets=sets)
