"""Find the reference to plan with: its headers, or its shape if it is not on this machine."""

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

_SHAPE_ONLY = " (its published shape)"


def planned_reference(recipe: Recipe, run: Run) -> ModelDirectory:
    """Return the model that a run would inherit from; a Hub model is pinned for the run.

    Raises:
        SourceError: The reference cannot be used, or its pinned commit is gone.
        MachineError: The Hub cannot be reached, and the shape of the model is not known either.
        UnsupportedModelError: It has yet to be trained, and only its class knows its size.
    """
    section = recipe.reference
    if section.train is not None:
        if (run.reference / "model").is_dir():  # already trained
            return open_model(str(run.reference / "model"))
        return _untrained(section.train)
    assert section.model is not None  # the recipe has one or the other
    if pinned_commit(run, section.model, section.revision) is not None:
        return open_pinned(run, section.model, section.revision, whole=False)
    try:
        model = open_model(section.model, section.revision, whole=False)
    except (MachineError, SourceError) as error:
        shape = _published_shape(section.model, error)
        if shape is None:
            raise
        return shape
    if model.revision is None:
        return model
    run = Run.create(run.root)
    with run.lock():  # `plan` and `run` may start at the same time; one of them pins
        return open_pinned(run, section.model, section.revision, whole=False)


def with_taken_reference(recipe: Recipe, run: Run) -> Recipe:
    """Replace a reference to be trained by the shared one that the run uses instead, if it does."""
    path = run.reference / "taken.json"
    train = recipe.reference.train
    if train is None or train.keep_in is None or not path.exists():
        return recipe
    update = {"model": read_json(path)["result"]["taken_from"], "train": None}
    return recipe.model_copy(update={"reference": recipe.reference.model_copy(update=update)})


def _published_shape(model: str, error: InherituneError) -> ModelDirectory | None:
    """Return headers of a published model that is not on this machine, or None.

    Only for models that are absent: a model that the Hub refuses to give, or one that is broken on
    this machine, must be reported.
    """
    absent = isinstance(error, MachineError) or not is_hub_id(model)
    config = known_config(model)
    if config is None or not absent or Path(model).expanduser().exists():
        return None
    shape = synthetic_headers(config)
    return None if shape is None else replace(shape, name=f"{model}{_SHAPE_ONLY}")


def _untrained(section: ReferenceTraining) -> ModelDirectory:
    rows = section.vocab_size
    if "vocab_size" in section.config:
        rows = 0  # replaced by the config's below
    elif section.tokenizer is not None:
        rows = open_tokenizer(open_model(section.tokenizer, whole=False).path).rows
    model = synthetic_headers({"vocab_size": rows} | section.config)
    if model is None:
        raise UnsupportedModelError(
            f"only its class knows the size of a {section.config['model_type']} that has yet to be "
            "trained, and plan does not load classes.",
            "Plan with a llama, mistral, qwen2, qwen3 or gpt2 whose config gives all widths, or "
            "after the reference is trained.",
        )
    return model


def shape_notes(model: ModelDirectory) -> list[str]:
    """List what to know about a reference that is planned with by its published shape only."""
    if not model.name.endswith(_SHAPE_ONLY):
        return []
    name = model.name.removesuffix(_SHAPE_ONLY)
    return [
        f"{name} is not on this machine: sizes are those of its published shape, its weights "
        "were not read, and `run` needs them."
    ]
