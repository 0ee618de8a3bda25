"""Find the reference to plan with: its headers, or its shape if it is not on this machine."""

from pathlib import Path

from inheritune.data.tokenizer import open_tokenizer
from inheritune.errors import MachineError, NoWeightsError, SourceError
from inheritune.model_files.depth import with_stated_depth
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.model_files.download.hub import is_hub_id
from inheritune.model_files.refusals import refuse_config
from inheritune.model_files.shapes import class_headers, stated_dtype
from inheritune.recipe.known_configs import known_config
from inheritune.recipe.schema import Recipe, ReferenceSection, ReferenceTraining
from inheritune.run_directory import Run
from inheritune.steps.reference_store import open_pinned, pinned_commit
from inheritune.surgery.class_check.ask_class import text_only
from inheritune.system.strict_json import (
    MODEL_FILE,
    read_json,
    read_json_object,
    refuse_wrong_types,
)

_BY_CONFIG = " (by its config.json)"
_BY_SHAPE = " (its published shape)"


def open_to_plan(model: str, revision: str | None = None) -> ModelDirectory:
    """Open a model's headers; without weights on this machine, build them from its config.

    Args:
        model: Hub id, ``embedded:demo``, a model directory, or a directory or file that holds only
            a config.json.

    Raises:
        SourceError: The model cannot be used.
        MachineError: The Hub cannot be reached, and the shape of the model is not known either.
        UnsupportedModelError: transformers cannot build the class of the config.
    """
    path = Path(model).expanduser()
    if path.suffix == ".json" and path.is_file():
        return _headers_of(path, path.resolve().parent.name)
    try:
        return open_model(model, revision, whole=False)
    except NoWeightsError:
        if not (path / "config.json").is_file():
            raise SourceError(
                f"{model} holds neither weights nor a config.json.",
                "Name a model directory; its config.json alone is enough for a plan.",
            ) from None
        return _headers_of(path / "config.json", path.resolve().name)
    except (MachineError, SourceError) as error:
        # A model that the Hub refuses to give, or one that is broken here, must be reported.
        absent = isinstance(error, MachineError) or not is_hub_id(model)
        config = None if _is_path(model) else known_config(model)
        if config is None or not absent or path.exists():
            raise
        return class_headers(config, f"{model}{_BY_SHAPE}", stated_dtype(config))


def _is_path(model: str) -> bool:
    """Tell whether a text can only be a path; a mistyped one is no published model.

    ``./NAME`` may be one: recipes name so what is still to be converted.
    """
    name = model.removeprefix("./")
    return name.startswith((".", "~", "/")) or "\\" in name or name.count("/") > 1


def _headers_of(path: Path, name: str) -> ModelDirectory:
    config = read_json_object(path, MODEL_FILE, "the config")
    refuse_config(config, path)
    config = with_stated_depth(config)
    return class_headers(config, f"{name}{_BY_CONFIG}", stated_dtype(config))


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
    model = _named(section, run)
    return text_only(model) if section.text_only else model


def _named(section: ReferenceSection, run: Run) -> ModelDirectory:
    assert section.model is not None  # the recipe has one or the other
    if pinned_commit(run, section.model, section.revision) is not None:
        return open_pinned(run, section.model, section.revision, whole=False)
    model = open_to_plan(section.model, section.revision)
    if model.revision is None:
        return model
    with Run.hold(run.root):  # `plan` and `run` may start at the same time; one of them pins
        return open_pinned(run, section.model, section.revision, whole=False)


def with_taken_reference(recipe: Recipe, run: Run) -> Recipe:
    """Replace a reference to be trained by the shared one that the run uses instead, if it does."""
    path = run.reference / "taken.json"
    train = recipe.reference.train
    if train is None or train.keep_in is None or not path.exists():
        return recipe
    with refuse_wrong_types(path):
        update = {"model": str(read_json(path)["result"]["taken_from"]), "train": None}
    return recipe.model_copy(update={"reference": recipe.reference.model_copy(update=update)})


def _untrained(section: ReferenceTraining) -> ModelDirectory:
    rows = section.vocab_size
    if "vocab_size" in section.config:
        rows = 0  # replaced by the config's below
    elif section.tokenizer is not None:
        rows = open_tokenizer(open_model(section.tokenizer, whole=False).path).rows
    return class_headers({"vocab_size": rows} | section.config, "trained here")


def shape_notes(model: ModelDirectory) -> list[str]:
    """List remarks on a model that is planned by its config alone."""
    for end, source in ((_BY_CONFIG, "its config.json"), (_BY_SHAPE, "the published shape of {}")):
        if model.name.endswith(end):
            name = model.name.removesuffix(end)
            return [
                f"The weights of {name} are not on this machine: sizes are those that its class in "
                f"transformers gives for {source.format(name)}. `inherit` and `run` need them."
            ]
    return []
