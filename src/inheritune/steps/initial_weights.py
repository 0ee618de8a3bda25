"""Write the model that a training starts from, and check beforehand that it can be made."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.errors import CheckpointError, DataError, RecipeError, SourceError
from inheritune.model_files.config import cut_config, text_config
from inheritune.model_files.copy import copy_side_files
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.recipe.schema import Recipe
from inheritune.repair.refusals import refuse_class, refuse_repair
from inheritune.steps.repaired_start import RECORD, write_repaired
from inheritune.steps.training_spec import TrainingSpec, layers_of, specs_for
from inheritune.steps.training_task import TrainingTask
from inheritune.surgery.cut import Options, check_inherit, inherit
from inheritune.surgery.grow import check_grow, grow
from inheritune.surgery.half_width import half_width, half_width_headers
from inheritune.surgery.plan import stored_dtype
from inheritune.surgery.selection import way_of
from inheritune.surgery.stack import check_stack, stack
from inheritune.surgery.ways import LayerFacts
from inheritune.system.files import write_bytes, write_json
from inheritune.system.strict_json import read_json

if TYPE_CHECKING:
    from inheritune.training.models import Shape

# Records of how a start was made; they stay beside the trained model.
_RECORDS = ("inherit.json", "start.json", RECORD)
_MADE_FROM = "made_from.json"  # in the start: everything that decided it


def check_starts(
    recipe: Recipe,
    reference: ModelDirectory,
    sizes: Sequence[int],
    only: str | None = None,
    facts: LayerFacts | None = None,
) -> None:
    """Refuse models that cannot be built from a reference, before anything is trained.

    The model's class is asked about each at its smallest and its largest size.

    Args:
        reference: Only its config and headers are read.
        sizes: Numbers of layers that the target may end with.
        only: Check this variant alone; None: all.
        facts: About the reference; None: nothing is measured yet.

    Raises:
        RecipeError: A control asks for layers that the reference does not have, for half of an odd
            number, or a distillation for more ids than the vocabulary has.
        UnsupportedModelError: The surgery does not support the reference.
        SourceError: The model's class refuses the start.
    """
    _refuse_more_ids(recipe, reference)
    if recipe.grow.weights == "keep" and recipe.grow.add and sizes[-1] > sizes[0]:
        check_grow(reference, sizes[-1])
    total, tokens = reference.layers, recipe.train.tokens
    for name, variant in recipe.variants.items():
        is_prefix = variant.is_target and way_of(recipe.inherit.select) == "first"
        is_whole = variant.only is None and recipe.train.only is None
        is_plain = is_prefix and is_whole and recipe.inherit.repair == "none"
        if is_plain or only not in (None, name):
            continue
        key = f"variants.{name}"
        try:
            counts = sorted({layers_of(variant, total, size) for size in sizes})
            for layers in counts:
                key = f"variants.{name}" + (f", with {layers} layers" if len(counts) > 1 else "")
                is_end = layers in (counts[0], counts[-1])
                # Scores are measured for what is checked only: between the ends, numbers suffice.
                known = facts if facts is not None and is_end else LayerFacts(total)
                for spec in specs_for(recipe, name, known, layers, tokens):
                    if is_end:
                        _check(reference, spec)
                        frozen_shape(reference, spec, recipe.train.seq_len)
        except (RecipeError, SourceError) as error:
            raise type(error)(f"{key}: {error.message}", error.hint) from error


def _refuse_more_ids(recipe: Recipe, reference: ModelDirectory) -> None:
    rows = text_config(reference.config).get("vocab_size")
    for name, variant in recipe.variants.items():
        top_k = None if variant.distill is None else variant.distill.top_k
        if top_k is not None and isinstance(rows, int) and top_k >= rows:
            raise RecipeError(
                f"variants.{name}.distill.top_k is {top_k}, but {reference.name} has {rows} ids.",
                "Lower it, or leave it out: all of them are then compared.",
            )


def frozen_shape(reference: ModelDirectory, spec: TrainingSpec, seq_len: int) -> "Shape | None":
    """Compute size and cost of a training that freezes weights; None if it trains all.

    Raises:
        RecipeError: It would train something that the model does not have.
    """
    if spec.only is None:
        return None
    from inheritune.training.models import describe_config

    if spec.start == "half-width":
        config = half_width_headers(reference).config
    else:
        config, _ = cut_config(reference.config, spec.inherited_layers or spec.layers)
    return describe_config(config, seq_len, spec.only)


def _check(reference: ModelDirectory, spec: TrainingSpec) -> None:
    if spec.repair != "none":
        _check_repair(reference, spec)
    if spec.start == "inherit" and (spec.inherited_layers is not None or spec.parts != "all"):
        options = Options(parts=spec.parts)
        check_inherit(reference, spec.inherited_layers or spec.layers, options)
    elif spec.start in ("stacking", "hybrid-stacking"):
        check_stack(reference, spec.layers)
    elif spec.start == "half-width":
        half_width_headers(reference)
    elif spec.start == "grown":
        check_grow(reference, spec.layer_map)


def _check_repair(reference: ModelDirectory, spec: TrainingSpec) -> None:
    refuse_repair(reference, spec.layer_map, spec.repair)
    refuse_class(reference, spec.layer_map, spec.repair)


def write_start(task: TrainingTask, reference: ModelDirectory) -> None:
    """Write ``start/`` of a training, unless the one that is there was made from the same.

    A run may have been killed before its first checkpoint, and its recipe changed since.
    """
    start = task.directory / "start"
    smaller = None  # the trained model that this one is made from, beside the reference
    if task.spec.grown_from is not None:
        smaller = trained_weights(task.job.run.root / task.spec.grown_from)
    made_from = _made_from(task, reference, smaller)
    if not _is_made_from(start, made_from):
        # The record goes first and comes last: with it, the start is whole.
        (start / _MADE_FROM).unlink(missing_ok=True)
        shutil.rmtree(start, ignore_errors=True)
        if task.spec.start == "fresh":
            _write_config(task.spec, reference, start)
        else:
            _write_weights(task, reference, smaller)
        write_json(start / _MADE_FROM, made_from)
    for record in _RECORDS:
        if (start / record).exists():
            write_bytes(task.directory / record, (start / record).read_bytes())
        else:
            (task.directory / record).unlink(missing_ok=True)


def trained_weights(training: Path) -> ModelDirectory:
    """Open the fp32 weights that a training ended with.

    Raises:
        CheckpointError: They were deleted.
    """
    if (training / "master").is_dir():
        return open_model(str(training / "master"))
    model = open_model(str(training / "model"))
    if stored_dtype([*model.tensors.values()]) != "F32":
        raise CheckpointError(
            f"the fp32 weights of {training} are gone, which a later training starts from.",
            "They are deleted by `inheritune clean`: give the run another name.",
        )
    return model


def _made_from(
    task: TrainingTask, reference: ModelDirectory, smaller: ModelDirectory | None
) -> dict[str, Any]:
    """Everything that decides the start, as JSON values."""
    spec = task.spec
    return {
        "reference": reference.digest,
        "smaller": None if smaller is None else smaller.digest,
        "start": spec.start,
        "layers": spec.layers,
        "kept": None if spec.inherited_layers is None else list(spec.inherited_layers),
        "parts": spec.parts,
        "seed": None if spec.parts == "all" else task.train.seed,  # of the parts left out
    } | _repair_from(task)


def _repair_from(task: TrainingTask) -> dict[str, Any]:
    if task.spec.repair == "none":
        return {}
    calibration = [task.tokens.fingerprint, task.train.seq_len, task.train.seed, "last"]
    return {
        "repair": task.spec.repair,
        "repair_tokens": task.spec.repair_tokens,
        "calibration": calibration,
    }


def _is_made_from(start: Path, made_from: Mapping[str, Any]) -> bool:
    try:
        return bool(read_json(start / _MADE_FROM) == made_from)
    except DataError:  # missing, as in runs of version 0.1.0, or broken
        return False


def _write_config(spec: TrainingSpec, reference: ModelDirectory, start: Path) -> None:
    """Write a fresh start: the training initialises its weights, by the training's seed."""
    start.mkdir(parents=True)
    copy_side_files(reference.path, start)
    config, _ = cut_config(reference.config, spec.layers)
    write_json(start / "config.json", config)


def _write_weights(
    task: TrainingTask, reference: ModelDirectory, smaller: ModelDirectory | None
) -> None:
    spec, start = task.spec, task.directory / "start"
    if spec.start == "stacking":
        assert smaller is not None  # its first training has half of the layers
        stack(smaller, reference, spec.layers, start)
    elif spec.start == "hybrid-stacking":
        stack(reference, reference, spec.layers, start)
    elif spec.start == "half-width":
        half_width(reference, start)
    elif smaller is not None:
        places = spec.grown_places or range(smaller.layers)
        grow(smaller, reference, spec.layer_map, start, [spec.layer_map[p] for p in places])
    elif spec.repair != "none":
        write_repaired(task, reference)
    else:
        options = Options(parts=spec.parts, seed=task.train.seed)
        inherit(reference, spec.inherited_layers or spec.layers, start, options)
