"""The reference of a plan: its headers, or its shape where nobody has to load it for that."""

from dataclasses import replace
from pathlib import Path

from inheritune.data.tokenizer import open_tokenizer
from inheritune.errors import InherituneError, MachineError, SourceError, UnsupportedModelError
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.model_files.download.hub import is_hub_id
from inheritune.model_files.shapes import synthetic_headers
from inheritune.recipe.known_configs import known_config
from inheritune.recipe.schema import Recipe, ReferenceTraining
from inheritune.run_directory import Run
from inheritune.steps.reference_store import open_pinned, pinned_commit
from inheritune.system.strict_json import read_json

__all__ = ["planned_reference", "shape_notes", "with_taken_reference"]

_BY_SHAPE = " (its published shape)"


def planned_reference(recipe: Recipe, run: Run) -> ModelDirectory:
    """The model that a run would inherit from; a Hub model is pinned for the run.

    Args:
        recipe: Names it, or says how it is trained.
        run: Holds it, where it was trained or pinned already.

    Raises:
        SourceError: It cannot be used, or its pinned commit is gone.
        MachineError: The Hub cannot be reached, and its shape is not known either.
        UnsupportedModelError: It is still to be trained, and its size is known to its class only.
    """
    wanted = recipe.reference
    if wanted.train is not None:
        if (run.reference / "model").is_dir():  # already trained
            return open_model(str(run.reference / "model"))
        return _imagined(wanted.train)
    assert wanted.model is not None  # the recipe has one or the other
    if pinned_commit(run, wanted.model, wanted.revision) is not None:
        return open_pinned(run, wanted.model, wanted.revision, whole=False)
    try:
        found = open_model(wanted.model, wanted.revision, whole=False)
    except (MachineError, SourceError) as error:
        known = _published_shape(wanted.model, error)
        if known is None:
            raise
        return known
    if found.revision is None:
        return found
    run = Run.create(run.root)
    with run.lock():  # of `plan` and `run`, one decides
        return open_pinned(run, wanted.model, wanted.revision, whole=False)


def with_taken_reference(recipe: Recipe, run: Run) -> Recipe:
    """The recipe, naming the reference that the run has taken from another one, if it has."""
    path = run.reference / "taken.json"
    if recipe.reference.train is None or recipe.reference.train.keep_in is None:
        return recipe
    if not path.exists():
        return recipe
    place = read_json(path)["result"]["taken_from"]
    return recipe.model_copy(
        update={"reference": recipe.reference.model_copy(update={"model": place, "train": None})}
    )


def _published_shape(model: str, error: InherituneError) -> ModelDirectory | None:
    """A published model that is not at hand, as headers of its known shape, else None.

    What the Hub does have and what is broken on this machine is for people to hear of.
    """
    absent = isinstance(error, MachineError) or not is_hub_id(model)
    config = known_config(model)
    if config is None or not absent or Path(model).expanduser().exists():
        return None
    shape = synthetic_headers(config)
    return None if shape is None else replace(shape, name=f"{model}{_BY_SHAPE}")


def _imagined(wanted: ReferenceTraining) -> ModelDirectory:
    rows = wanted.vocab_size
    if "vocab_size" in wanted.config:
        rows = 0  # the config says it
    elif wanted.tokenizer is not None:
        rows = open_tokenizer(open_model(wanted.tokenizer, whole=False).path).rows
    model = synthetic_headers({"vocab_size": rows} | wanted.config)
    if model is None:
        raise UnsupportedModelError(
            f"the size of a {wanted.config['model_type']} that is still to be trained is known to "
            "its class only, which plan does not load.",
            "Plan with a llama, mistral, qwen2, qwen3 or gpt2 whose config names all widths, or "
            "after the reference is trained.",
        )
    return model


def shape_notes(model: ModelDirectory) -> list[str]:
    """What to know of a reference that `planned_reference` knows by its shape only."""
    if not model.name.endswith(_BY_SHAPE):
        return []
    name = model.name.removesuffix(_BY_SHAPE)
    return [
        f"{name} is not on this machine: sizes are those of its published shape, its weights "
        "were not looked at, and `run` needs it."
    ]
