"""List the models of a finished run: its reference, its target and the control from scratch."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.errors import DataError, RecipeError, escape
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.in_memory import opened_model
from inheritune.run_directory import Run
from inheritune.run_record.record import TRAIN, RunRecord

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class NamedModel:
    """A model of a run."""

    name: str  # its role and size, such as ``"target, 6 layers"``
    model: str  # model directory, Hub id or ``embedded:demo``
    revision: str | None = None  # commit of a Hub id


@contextmanager
def opened_models(
    models: Any, tokenizer: "PreTrainedTokenizerBase | None" = None
) -> Iterator[list[tuple[str, ModelDirectory]]]:
    """Open one model or several for as long as the block runs; a run stands for its models.

    Args:
        models: Each a directory, Hub id, ``embedded:demo``, model in memory, or a run's directory.
        tokenizer: Tokenizer of models in memory; None: the one that each was loaded with.

    Yields:
        Name and directory of each model.

    Raises:
        RecipeError: There is none.
        InherituneError: One cannot be opened.
    """
    several = models if isinstance(models, Sequence) and not isinstance(models, str) else [models]
    if not several:
        raise RecipeError("no model is given.", "Give a run, a model directory or a Hub id.")
    opened: list[tuple[str, ModelDirectory]] = []
    with ExitStack() as stack:
        for model in several:
            if not isinstance(model, str | os.PathLike):
                directory = stack.enter_context(opened_model(model, tokenizer=tokenizer))
                opened.append((directory.name, directory))
            elif _is_run(Path(model)):
                prefix = f"{Path(model).name}: " if len(several) > 1 else ""
                for part in models_of_run(Path(model)):
                    directory = stack.enter_context(opened_model(part.model, part.revision))
                    opened.append((prefix + part.name, directory))
            else:
                opened.append((os.fspath(model), stack.enter_context(opened_model(model))))
        yield opened


def _is_run(path: Path) -> bool:
    try:
        return (path / "run.json").is_file()
    except OSError:  # too long for a path
        return False


def models_of_run(root: Path) -> list[NamedModel]:
    """List reference, target and scratch control of a run; of a training alone, its model.

    Raises:
        DataError: The run has no target yet, or something in it leads out of it.
    """
    run = Run.open(root)
    record = run.record()
    is_training = record.command == TRAIN
    target = root / "model" if is_training else run.target
    if not (target / "config.json").is_file():
        raise DataError(
            f"{escape(root, 200)} has no target yet.",
            "Give the command that started the run again, or name a model directory in it.",
        )
    if is_training:
        return [NamedModel("model", str(target))]
    models = [
        _reference(run, record),
        NamedModel(f"target, {record.target_layers} layers", str(target)),
    ]
    scratch = record.fresh_control
    if scratch.path and (directory := run.inside(scratch.path) / "model").is_dir():
        models.append(NamedModel(f"{scratch.name}, {scratch.layers} layers", str(directory)))
    return models


def _reference(run: Run, record: RunRecord) -> NamedModel:
    reference = record.reference
    name = f"reference, {reference.layers} layers"
    if reference.trained_here:
        return NamedModel(name, str(run.reference / "model"))
    if run.text_reference.is_dir():
        return NamedModel(name, str(run.text_reference))
    return NamedModel(name, reference.taken_from or reference.model or "", reference.revision)
