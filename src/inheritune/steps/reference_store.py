"""Keep a run's reference the same: pin a Hub model to a commit, share a trained one among runs."""

import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from inheritune.data.tokens import canonical_digest
from inheritune.errors import DataError, SourceError, escape
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.run_directory import Run
from inheritune.surgery.class_check.ask_class import text_only
from inheritune.surgery.cut import inherit
from inheritune.system.files import new_directory, sync_file, write_json
from inheritune.system.locks import locked
from inheritune.system.strict_json import read_json

_FORMAT = 1  # of both files below
_RECORD = "made_from.json"  # beside the model's files


# -- a trained reference, shared among runs


def store_path(store_dir: Path, name: str, made_from: Mapping[str, Any]) -> Path:
    """The directory of a trained reference in a store.

    Args:
        store_dir: Parent directory of all stored references.
        name: Beginning of the directory's name.
        made_from: Everything that decides the weights, as JSON values; the name ends with 8 digits
            of its digest.
    """
    return store_dir / f"{name}-{canonical_digest(made_from)[:8]}"


def is_stored(path: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether a store holds a reference at the path that `store_path` gives for it.

    Raises:
        DataError: The path holds something else.
    """
    if not path.exists():
        return False
    record = read_json(path / _RECORD)
    if not isinstance(record, dict) or record.get("made_from") != made_from:
        raise DataError(
            f"{escape(path)} does not hold the reference that this recipe asks for.",
            "Name another directory in reference.train.keep_in.",
        )
    return True


def store(model: Path, path: Path, made_from: Mapping[str, Any], run: str) -> None:
    """Copy the model directory of a trained reference into a store, completely or not at all.

    Args:
        path: From `store_path`; it does not exist.
        run: Name of the run that trained it.

    Raises:
        MachineError: The disk is full, read-only or broken.
    """
    with new_directory(path) as staging:
        for source in sorted(model.rglob("*")):
            copy = staging / source.relative_to(model)
            if source.is_dir():
                copy.mkdir()
            else:
                shutil.copyfile(source, copy)
                sync_file(copy)
        record = {"format": _FORMAT, "run": run, "made_from": dict(made_from)}
        write_json(staging / _RECORD, record)


def training_lock(path: Path) -> AbstractContextManager[None]:
    """Lock a path of `store_path` while this run trains the reference that belongs there.

    Raises:
        MachineError: Another run is training it; its process and machine are named.
    """
    return locked(
        path.with_name(f".{path.name}.lock"),
        f"another run trains this reference for {escape(path)}",
        "Wait for it to end: it is then taken from there.",
    )


# -- the language model inside of one that also reads images


def text_reference(run: Run, model: ModelDirectory) -> ModelDirectory:
    """Return the language model inside of a run's reference, which is written at the first call.

    Raises:
        UnsupportedModelError: It has none that transformers has a class for.
        MachineError: The disk is full.
    """
    directory = run.text_reference
    if not directory.is_dir():
        inherit(text_only(model), model.layers, directory)
    opened = open_model(str(directory))
    return replace(opened, name=model.name, revision=model.revision, text_only=True)


# -- a Hub model, pinned to a commit

_COMMIT = re.compile(r"[0-9a-f]{40}")


def open_pinned(
    run: Run,
    model: str,
    revision: str | None,
    *,
    whole: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> ModelDirectory:
    """Open a run's reference; a Hub id is opened at the commit that the run is pinned to.

    The first of `plan` and `run` pins the commit that it opens.

    Args:
        run: Its directory exists.
        model: Hub id, model directory, or ``embedded:demo``.
        revision: Branch, tag or commit of a Hub id, as in the recipe.
        whole: See `open_model`.
        stop: See `open_model`.

    Raises:
        SourceError: The commit is no longer available, or the model directory is broken.
        MachineError: The Hub cannot be reached.
        DataError: The file with the commit is broken.
        Interrupted: ``stop`` was set.
    """
    commit = pinned_commit(run, model, revision)
    if commit is None:
        directory = open_model(model, revision, whole=whole, stop=stop)
        if directory.revision is not None:
            pin = {"format": _FORMAT, "model": model, "revision": revision}
            write_json(run.pin, pin | {"commit": directory.revision})
        return directory
    hint = f"To begin anew with what {revision or 'main'} means now, give the run another name."
    try:
        directory = open_model(model, commit, whole=whole, stop=stop)
    except SourceError as error:
        raise SourceError(
            f"this run began with commit {commit[:12]} of {model}, and: {error.message}", hint
        ) from error
    if directory.revision != commit:
        raise SourceError(
            f"this run began with commit {commit[:12]} of {model} on the Hub; now {directory.path} "
            "is in its place.",
            hint,
        )
    return directory


def pinned_commit(run: Run, model: str, revision: str | None) -> str | None:
    """Read the commit that a run is pinned to; None if it has none of this model and revision.

    Raises:
        DataError: The file with the commit is broken.
    """
    if not run.pin.exists():
        return None
    pin: Any = read_json(run.pin)
    is_pin = isinstance(pin, dict) and pin.get("format") == _FORMAT
    commit = pin.get("commit") if is_pin else None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise DataError(
            f"{run.pin} does not say which commit of {model} the run began with.",
            "Restore it from a copy, or give the run another name.",
        )
    return commit if (pin.get("model"), pin.get("revision")) == (model, revision) else None
