"""Proof of a directory that was written here: a model, tokens, a checkpoint or a whole run."""

import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from inheritune.data.tokens import verify_tokens
from inheritune.errors import CheckpointError, DataError, SourceError, escape, first_line
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.run_directory import TRAIN, Run
from inheritune.verification.model import verify, verify_unrecorded
from inheritune.verification.run_model import Finding

__all__ = ["kind_of", "prove"]

_SHOWN = 240  # of a path: its end says what it is
_STEP = re.compile(r"step-[0-9]{8,}")


def kind_of(path: Path) -> str:
    """What a directory is, by the files that only such a one has.

    Args:
        path: The directory; one that is damaged is still what it was.

    Returns:
        ``"run"``, ``"checkpoint"``, ``"tokens"`` or ``"model"``.

    Raises:
        SourceError: There is no such directory, or it is none of these.
    """
    if not path.is_dir():  # not taken for a Hub id: what was written here is here
        raise SourceError(f"there is no directory {escape(path, _SHOWN)}.", "Check the path.")
    if (path / "run.json").is_file():
        return "run"
    if (path / "trainer.json").is_file():
        return "checkpoint"
    if any((path / name).is_file() for name in ("config.json", "inherit.json")):
        return "model"
    has_manifest, has_weights = (path / "manifest.json").is_file(), any(path.glob("*.safetensors"))
    if _STEP.fullmatch(path.resolve().name) or (has_manifest and has_weights):
        return "checkpoint"
    if has_manifest or has_weights:
        return "tokens" if has_manifest else "model"
    raise SourceError(
        f"{escape(path, _SHOWN)} has no run.json, manifest.json, trainer.json or config.json.",
        "Name a run, a token directory, a checkpoint or a model directory.",
    )


def prove(path: Path, reference: ModelDirectory | None = None) -> Iterator[Finding]:
    """Prove what is in a directory, part by part; nothing in it is changed.

    A model directory is proven as `inherit.verify.verify` does, tokens and a checkpoint by the
    hashes of all their files, a run by its tokens, its checkpoints and its target. What a run lacks
    is a finding that is not proven, since another process may still be writing it.

    Args:
        path: The directory. What it holds tells which of these it is.
        reference: What a model, or a run's target, was cut from.

    Yields:
        What was found, as it is found.

    Raises:
        SourceError: There is no such directory, or a model is not what its record says.
        DataError: Tokens are not, byte for byte, those that were prepared.
        CheckpointError: A checkpoint is not what was written.
    """
    kind = kind_of(path)
    if reference is not None and kind in ("checkpoint", "tokens"):
        warnings.warn(f"{path} is no model: the reference is ignored", stacklevel=2)
    if kind == "run":
        yield from _run(Run(path), reference)
    elif kind == "checkpoint":
        yield _checkpoint(path)
    elif kind == "tokens":
        yield _tokens(path)
    else:
        yield from verify(open_model(str(path)), reference)


def _run(run: Run, reference: ModelDirectory | None) -> Iterator[Finding]:
    record = run.read()
    with_recipe = record.get("command") != TRAIN
    if (run.tokens / "manifest.json").is_file():
        known = record.get("tokens")
        yield _tokens(run.tokens, known.get("fingerprint") if isinstance(known, dict) else None)
    else:
        where = "not there" if with_recipe else "elsewhere: verify them there"
        yield Finding("tokens", where, proven=False)
    for path in _checkpoints(run.root):
        try:
            yield _checkpoint(path)
        except CheckpointError:
            if path.is_dir():  # else a training that goes on has dropped it meanwhile
                raise
    target = run.target if with_recipe else run.root / "model"
    if not target.is_dir():
        yield Finding(target.name, "not there: the run is not finished", proven=False)
    elif with_recipe:
        yield from verify(open_model(str(target)), reference)
    else:
        yield from verify_unrecorded(open_model(str(target)))


def _checkpoints(root: Path) -> list[Path]:
    found: list[Path] = []
    for place, names, _ in os.walk(root):  # unlike a glob, it passes over what goes away meanwhile
        folder = Path(place)
        names[:] = [name for name in names if not name.startswith(".")]  # being written
        if folder.name == "checkpoints" or folder.parent.name == "moments":
            found += [folder / name for name in names if _STEP.fullmatch(name)]
    return sorted(found)


def _tokens(path: Path, recorded: object = None) -> Finding:
    tokens = verify_tokens(path)
    if recorded is not None and tokens.fingerprint != recorded:
        raise DataError(
            f"{escape(path, _SHOWN)} has the fingerprint {tokens.fingerprint}; the run was trained "
            f"on {escape(recorded)}.",
            "They are other tokens: put back those of the run.",
        )
    size = f"{tokens.train.num_ids:,} training and {tokens.val.num_ids:,} validation ids"
    return Finding("tokens", f"{size}, every file as prepared")


def _checkpoint(path: Path) -> Finding:
    from inheritune.training.checkpoint_files import BROKEN
    from inheritune.training.checkpoint_files import verify as verify_checkpoint

    try:
        step = verify_checkpoint(path)["position"]["step"]
    except BROKEN as error:
        raise CheckpointError(
            f"{escape(path, _SHOWN)} is damaged: {first_line(error)}",
            "A training that goes on takes the one before by itself.",
        ) from error
    return Finding("checkpoint", f"step {step}, every file as written")
