"""Which file of a model directory a name may mean."""

from pathlib import Path, PurePosixPath, PureWindowsPath

from inheritune.errors import SourceError, escape

__all__ = ["safe_file", "safe_shard_name"]


def safe_shard_name(
    value: object, index: Path, endings: tuple[str, ...] = (".safetensors",)
) -> str:
    """A file name out of a weight index, if it is one and nothing more.

    Args:
        value: What the index holds.
        index: The index file, for messages.
        endings: What the name may end in.

    Raises:
        SourceError: It is not a plain name of such a file beside the index.
    """
    plain = (
        isinstance(value, str)
        and value.endswith(endings)
        and value.isprintable()
        and not any(character in value for character in '/\\:"')
        and PurePosixPath(value).name == PureWindowsPath(value).name == value
    )
    if not plain:
        raise SourceError(
            f"{index} names {escape(repr(value))} as a weight file; only plain names that end in "
            f"{', '.join(endings)} are opened.",
            "Do not use this copy of the model.",
        )
    return str(value)


def safe_file(directory: Path, name: str) -> Path:
    """The path of a file in a model directory, once its links are known to stay there.

    A snapshot in the Hugging Face cache may link into that cache's ``blobs/``.

    Args:
        directory: Model directory.
        name: Relative path without ``..``.

    Raises:
        SourceError: It does not exist, is not a regular file, or is a link that leads elsewhere.
    """
    path = directory / name
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise SourceError(
            f"{path} is missing, or a link to nothing.", "Download the model again."
        ) from error
    if not any(real.is_relative_to(root) for root in _roots(directory.resolve())):
        raise SourceError(
            f"{path} is a link that leads out of its directory.",
            "Replace it by the file itself, if you trust it.",
        )
    if not real.is_file():
        raise SourceError(f"{path} is not a regular file.", "Download the model again.")
    return path


def _roots(directory: Path) -> list[Path]:
    if directory.parent.name != "snapshots":
        return [directory]
    repository = directory.parents[1]
    # The second one holds what several repositories share (huggingface_hub >= 2).
    return [directory, repository / "blobs", repository.parent / "blobs"]
