"""The reference at the commit that a run began with, wherever its branch has moved meanwhile."""

import re
from collections.abc import Callable
from typing import Any

from inheritune.errors import DataError, SourceError
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.run_directory import Run
from inheritune.system.files import read_json_file, write_json

__all__ = ["open_pinned", "pinned_commit"]

_FORMAT = 1
_COMMIT = re.compile(r"[0-9a-f]{40}")


def open_pinned(
    run: Run,
    model: str,
    revision: str | None,
    *,
    whole: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
) -> ModelDirectory:
    """Open a run's reference: a Hub id at the commit that the run's directory says.

    Where it says none, the commit that is opened now is written there. Of `plan` and `run`, whoever
    is first decides.

    Args:
        run: Its directory exists.
        model: Hub id, model directory, or ``embedded:demo``.
        revision: Branch, tag or commit of a Hub id, as the recipe has it.
        whole: See `source.open_model`.
        should_stop: See `source.open_model`.

    Raises:
        SourceError: The commit is not to be had any more, or the directory is not sound.
        MachineError: The Hub cannot be reached.
        DataError: The file with the commit is broken.
        Interrupted: ``should_stop`` said so.
    """
    commit = pinned_commit(run, model, revision)
    if commit is None:
        opened = open_model(model, revision, whole=whole, should_stop=should_stop)
        if opened.revision is not None:
            asked = {"model": model, "revision": revision}
            write_json(run.pin, {"format": _FORMAT, **asked, "commit": opened.revision})
        return opened
    hint = f"To begin anew with what {revision or 'main'} means now, give the run another name."
    try:
        opened = open_model(model, commit, whole=whole, should_stop=should_stop)
    except SourceError as error:
        raise SourceError(
            f"this run began with commit {commit[:12]} of {model}, and: {error.message}", hint
        ) from error
    if opened.revision != commit:
        raise SourceError(
            f"this run began with commit {commit[:12]} of {model} on the Hub; now {opened.path} "
            "is in its place.",
            hint,
        )
    return opened


def pinned_commit(run: Run, model: str, revision: str | None) -> str | None:
    """The commit that a run's directory says for its reference.

    Args:
        run: Its directory need not exist.
        model: As the recipe has it.
        revision: As the recipe has it; for another one than before, nothing is pinned.

    Raises:
        DataError: The file is broken.
    """
    if not run.pin.exists():
        return None
    found: Any = read_json_file(run.pin)
    known = isinstance(found, dict) and found.get("format") == _FORMAT
    commit = found.get("commit") if known else None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise DataError(
            f"{run.pin} does not say which commit of {model} the run began with.",
            "Restore it from a copy, or give the run another name.",
        )
    return commit if (found.get("model"), found.get("revision")) == (model, revision) else None
