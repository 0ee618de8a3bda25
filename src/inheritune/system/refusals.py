"""Leave the file tree as it was where a command is refused."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from inheritune.errors import DataError, InherituneError, RecipeError

# Exit codes of wrong recipes, command lines, models and data.
_REFUSED = (RecipeError.exit_code, DataError.exit_code)


def missing_directories(path: Path) -> list[Path]:
    """List those of a directory and its parents that do not exist yet, innermost first."""
    return [place for place in (path, *path.parents) if not place.exists()]


@contextmanager
def removed_if_refused(new: Sequence[Path], own: Collection[str] = ()) -> Iterator[None]:
    """Remove new directories again where the block refuses its input and has made nothing else.

    Args:
        new: As `missing_directories` returned them before they were made.
        own: Names of files in the innermost one that say nothing without a result.
    """
    try:
        yield
    except InherituneError as error:
        if new and error.exit_code in _REFUSED:
            with suppress(OSError):
                _remove(new, own)
        raise


@contextmanager
def withdrawn_if_refused(files: Sequence[Path], unless: Path) -> Iterator[None]:
    """Remove new files again where the block refuses its input before it makes a directory."""
    try:
        yield
    except InherituneError as error:
        if error.exit_code in _REFUSED and not unless.exists():
            for file in files:
                file.unlink(missing_ok=True)
        raise


def _remove(new: Sequence[Path], own: Collection[str]) -> None:
    files = [*new[0].iterdir()] if new[0].is_dir() else []
    if all(file.name in own for file in files):
        for file in files:
            file.unlink()
        for directory in new:  # only while they are empty
            if directory.is_dir():
                directory.rmdir()
