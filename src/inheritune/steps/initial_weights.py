"""What an arm begins with, written as a model directory; and whether that can be made at all."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from inheritune.errors import RecipeError, SourceError
from inheritune.model_files.config import cut_config, text_config
from inheritune.model_files.copy import copy_side_files
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.recipe.schema import Recipe
from inheritune.steps.job import Job
from inheritune.steps.training_spec import TrainingSpec, depth_of, specs_for
from inheritune.surgery.cut import Options, check_inherit, inherit
from inheritune.surgery.grow import check_grow, grow
from inheritune.surgery.half_width import half_width, half_width_headers
from inheritune.surgery.stack import check_stack, stack
from inheritune.system.files import write_json

__all__ = ["check_starts", "write_start"]

# What says where a start came from; it stays beside the trained model.
_RECORDS = ("inherit.json", "start.json")


def check_starts(
    recipe: Recipe,
    reference: ModelDirectory,
    depths: Sequence[int],
    only: str | None = None,
    layers_by_rank: Sequence[int] | None = None,
) -> None:
    """Refuse controls that cannot be built from a reference, before anything is trained.

    The model's class is asked about each at its smallest and its largest size.

    Args:
        recipe: Has the variants.
        reference: Only its config and headers are looked at.
        depths: Layers that the target may end with.
        only: The one variant that is meant; None: all.
        layers_by_rank: Its layers, that of lowest attention rank first; None: not known yet.

    Raises:
        RecipeError: A control asks for layers that are not there, or for half of an odd number, or
            a distillation for more ids than there are.
        UnsupportedModelError: The reference is none that it can be built from.
        SourceError: The model's class refuses it.
    """
    _refuse_more_ids(recipe, reference)
    total = reference.layers
    for name, variant in recipe.variants.items():
        if variant.is_target or only not in (None, name):
            continue
        key = f"variants.{name}"
        try:
            own = {depth_of(variant, total, depth) for depth in depths}
            for layers in sorted(own):
                key = f"variants.{name}" + (f", with {layers} layers" if len(own) > 1 else "")
                for arm in specs_for(
                    recipe, name, total, layers, recipe.train.tokens, layers_by_rank
                ):
                    if layers in (min(own), max(own)):
                        _check(reference, arm)
        except (RecipeError, SourceError) as error:
            raise type(error)(f"{key}: {error.message}", error.hint) from error


def _refuse_more_ids(recipe: Recipe, reference: ModelDirectory) -> None:
    rows = text_config(reference.config).get("vocab_size")
    for name, variant in recipe.variants.items():
        asked = None if variant.distill is None else variant.distill.top_k
        if asked is not None and isinstance(rows, int) and asked >= rows:
            raise RecipeError(
                f"variants.{name}.distill.top_k is {asked}, but {reference.name} has {rows} ids.",
                "Lower it, or leave it out: all of them are then compared.",
            )


def _check(reference: ModelDirectory, arm: TrainingSpec) -> None:
    if arm.start == "inherit" and (arm.kept is not None or arm.parts != "all"):
        check_inherit(reference, arm.kept or arm.layers, Options(parts=arm.parts))
    elif arm.start in ("stacking", "hybrid-stacking"):
        check_stack(reference, arm.layers)
    elif arm.start == "half-width":
        half_width_headers(reference)
    elif arm.start == "grown":
        check_grow(reference, arm.layers)


def write_start(job: Job, arm: TrainingSpec, reference: ModelDirectory, folder: Path) -> None:
    """Write what an arm begins with to ``start/`` of its folder, unless it is there.

    Of ``"fresh"``, that is a config: the training initialises the weights, by the same seed.
    """
    start = folder / "start"
    if arm.start == "fresh":
        _write_config(arm, reference, start)
        return
    if not start.exists():
        before = None if arm.grown_from is None else job.run.root / arm.grown_from / "model"
        if arm.start == "stacking":
            stack(open_model(str(before)), reference, arm.layers, start)
        elif arm.start == "hybrid-stacking":
            stack(reference, reference, arm.layers, start)
        elif arm.start == "half-width":
            half_width(reference, start)
        elif before is not None:
            grow(open_model(str(before)), reference, arm.layers, start)
        else:
            options = Options(parts=arm.parts, seed=arm.settings(job.recipe.train).seed)
            inherit(reference, arm.kept or arm.layers, start, options)
    for record in _RECORDS:
        if (start / record).exists():
            shutil.copyfile(start / record, folder / record)


def _write_config(arm: TrainingSpec, reference: ModelDirectory, start: Path) -> None:
    if (start / "config.json").exists():
        return
    start.mkdir(parents=True, exist_ok=True)
    copy_side_files(reference.path, start)
    config, _ = cut_config(reference.config, arm.layers)
    write_json(start / "config.json", config)
