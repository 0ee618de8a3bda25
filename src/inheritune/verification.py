"""Proof of a directory that was written here: a model, tokens, a checkpoint or a whole run."""

from collections.abc import Iterator
from pathlib import Path

from inheritune.checkpoints.source import ModelDirectory, open_model
from inheritune.data.tokens import verify_tokens
from inheritune.errors import CheckpointError, DataError, SourceError
from inheritune.inherit.running import Finding
from inheritune.inherit.verify import verify
from inheritune.regular_file import escape
from inheritune.run import Run

__all__ = ["prove"]


def prove(path: Path, reference: ModelDirectory | None = None) -> Iterator[Finding]:
    """Prove what is in a directory, part by part; nothing in it is changed.

    A model directory is proven as `inherit.verify.verify` does, tokens and a checkpoint by the
    hashes of all their files, a run by its tokens, its checkpoints and its target.

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
    if not path.is_dir():  # not taken for a Hub id: what was written here is here
        raise SourceError(f"there is no directory {escape(path)}.", "Check the path.")
    if (path / "run.json").is_file():
        yield from _run(Run(path), reference)
    elif (path / "trainer.json").is_file():
        yield _checkpoint(path)
    elif (path / "manifest.json").is_file():
        yield _tokens(path)
    else:
        yield from verify(open_model(str(path)), reference)


def _run(run: Run, reference: ModelDirectory | None) -> Iterator[Finding]:
    record = run.read()
    if run.tokens.is_dir():
        yield _tokens(run.tokens, (record.get("tokens") or {}).get("fingerprint"))
    else:
        yield Finding("tokens", "not there", proven=False)
    for path in sorted(run.root.glob("**/checkpoints/step-*")):
        yield _checkpoint(path)
    if run.target.is_dir():
        yield from verify(open_model(str(run.target)), reference)
    else:
        yield Finding("target", "not there: the run is not finished", proven=False)


def _tokens(path: Path, recorded: str | None = None) -> Finding:
    tokens = verify_tokens(path)
    if recorded is not None and tokens.fingerprint != recorded:
        raise DataError(
            f"{escape(path)} has the fingerprint {tokens.fingerprint}; the run was trained on "
            f"{escape(recorded)}.",
            "They are other tokens: put back those of the run.",
        )
    size = f"{tokens.train.num_ids:,} training and {tokens.val.num_ids:,} validation ids"
    return Finding("tokens", f"{size}, every file as prepared")


def _checkpoint(path: Path) -> Finding:
    from inheritune.train.checkpoint_files import BROKEN
    from inheritune.train.checkpoint_files import verify as verify_checkpoint

    try:
        trainer = verify_checkpoint(path)
    except BROKEN as error:
        raise CheckpointError(
            f"{escape(path)} is damaged: {str(error).splitlines()[0]}",
            "A run that goes on falls back to the one before by itself.",
        ) from error
    step = trainer["position"]["step"] if "position" in trainer else path.name
    return Finding("checkpoint", f"step {step}, every file as written")
