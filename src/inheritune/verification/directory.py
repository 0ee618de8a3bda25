"""Verify a directory that inheritune wrote: a model, tokens, a checkpoint or a whole run."""

import os
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inheritune.data.tokens import verify_tokens
from inheritune.errors import CheckpointError, DataError, SourceError, escape, first_line
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.run_directory import Run
from inheritune.run_record.record import TRAIN
from inheritune.system.rows import Rows
from inheritune.verification.model import verify_model, verify_unrecorded_model
from inheritune.verification.run_model import Finding

_SHOWN = 240  # characters of a path in a message: its end says which directory it is
_STEP = re.compile(r"step-[0-9]{8,}")


@dataclass(frozen=True)
class Verification(Rows):
    """The result of `verify`.

    Attributes:
        kind: ``"model"``, ``"tokens"``, ``"checkpoint"`` or ``"run"``.
        findings: One per part, in the order of the checks.
    """

    path: Path
    kind: str
    findings: tuple[Finding, ...]

    @property
    def complete(self) -> bool:
        """Whether every part was proven; an unproven part was not checked."""
        return all(finding.proven for finding in self.findings)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each finding."""
        return [asdict(finding) for finding in self.findings]


def verify(
    path: Path,
    reference: ModelDirectory | None = None,
    on_finding: Callable[[Finding], None] = lambda finding: None,
) -> Verification:
    """Verify a directory; nothing in it is changed.

    A model is checked against its record, and against its reference if one is given; tokens and
    checkpoints against the hashes of all their files; a run by its tokens, checkpoints and target.
    A missing part of a run is reported as not proven, since another process may be writing it.

    Args:
        reference: The model that the model, or the run's target, was cut from.
        on_finding: Called with each finding as it is made; a large model takes minutes.

    Raises:
        SourceError: There is no such directory, or a model differs from its record or reference.
        DataError: Tokens differ from those that were prepared, or a run leads out of its directory.
        CheckpointError: A checkpoint differs from what was written.
    """
    kind = directory_kind(path)
    if reference is not None and kind in ("checkpoint", "tokens"):
        warnings.warn(f"{path} is no model: the reference is ignored", stacklevel=2)
    findings = []
    for finding in _check(path, kind, reference):
        findings.append(finding)
        on_finding(finding)
    return Verification(path, kind, tuple(findings))


def directory_kind(path: Path) -> str:
    """Return ``"run"``, ``"checkpoint"``, ``"model"`` or ``"tokens"``, judged by marker files.

    A damaged directory still has a kind.

    Raises:
        SourceError: There is no such directory, or it holds none of these files.
    """
    if not path.is_dir():  # not tried as a Hub id: `verify` is about directories on this machine
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


def _check(path: Path, kind: str, reference: ModelDirectory | None) -> Iterator[Finding]:
    if kind == "run":
        yield from _check_run(Run.open(path), reference)
    elif kind == "checkpoint":
        yield _check_checkpoint(path)
    elif kind == "tokens":
        yield _check_tokens(path)
    else:
        yield from verify_model(open_model(str(path)), reference)


def _check_run(run: Run, reference: ModelDirectory | None) -> Iterator[Finding]:
    record = run.record()
    with_recipe = record.command != TRAIN
    if (run.tokens / "manifest.json").is_file():
        yield _check_tokens(run.tokens, record.tokens.fingerprint)
    else:
        where = "not there" if with_recipe else "elsewhere: verify them there"
        yield Finding("tokens", where, proven=False)
    for path in _checkpoints(run.root):
        try:
            yield _check_checkpoint(path, in_run=True)
        except CheckpointError:
            if path.is_dir():  # else a running training has deleted it meanwhile
                raise
    target = run.target if with_recipe else run.root / "model"
    if not target.is_dir():
        yield Finding(target.name, "not there: the run is not finished", proven=False)
    elif with_recipe:
        yield from verify_model(open_model(str(target)), reference)
    else:
        yield from verify_unrecorded_model(open_model(str(target)))


def _checkpoints(root: Path) -> list[Path]:
    paths: list[Path] = []
    # os.walk, unlike glob, passes over directories that a running training deletes meanwhile.
    for parent, names, _ in os.walk(root):
        folder = Path(parent)
        names[:] = [name for name in names if not name.startswith(".")]  # still being written
        if folder.name == "checkpoints" or folder.parent.name == "moments":
            paths += [folder / name for name in names if _STEP.fullmatch(name)]
    return sorted(paths)


def _check_tokens(path: Path, recorded_fingerprint: str | None = None) -> Finding:
    tokens = verify_tokens(path)
    if recorded_fingerprint is not None and tokens.fingerprint != recorded_fingerprint:
        raise DataError(
            f"{escape(path, _SHOWN)} has the fingerprint {tokens.fingerprint}; the run was trained "
            f"on {escape(recorded_fingerprint)}.",
            "They are other tokens: put back those of the run.",
        )
    size = f"{tokens.train.num_ids:,} training and {tokens.val.num_ids:,} validation ids"
    return Finding("tokens", f"{size}, every file as prepared")


def _check_checkpoint(path: Path, in_run: bool = False) -> Finding:
    # Imported here: these modules need torch.
    from inheritune.training.checkpoint_files import BROKEN, lost_rows, verify_checkpoint

    is_snapshot = path.parent.parent.name == "moments"
    metrics = path.parents[2 if is_snapshot else 1] / "metrics.jsonl"
    try:
        trainer = verify_checkpoint(path)
        step = trainer["position"]["step"]
        # A checkpoint alone may lie anywhere, without its rows; in a run they belong to it.
        if (in_run or metrics.exists()) and (lost := lost_rows(metrics, trainer)):
            raise CheckpointError(f"{lost}.")
    except BROKEN as error:
        raise CheckpointError(
            f"{escape(path, _SHOWN)} is damaged: {first_line(error)}",
            "A resumed training falls back to the checkpoint before it by itself.",
        ) from error
    return Finding("checkpoint", f"step {step}, every file as written")
