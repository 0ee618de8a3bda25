"""Stream the rows of a dataset on the Hub, pinned to a commit and never stored."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inheritune.data.bad_rows import BadRows
from inheritune.data.document import Document
from inheritune.data.text_column import TextColumn, render_hint
from inheritune.errors import DataError, MissingExtraError, escape
from inheritune.model_files.download.hub import ask_again
from inheritune.recipe.data import TextSource

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE = re.compile(r"\.(txt|md|jsonl?|csv|parquet|arrow|gz|zst|bz2|xz|zip|tar|py)$")
_CHATS = {"messages", "conversations", "conversation"}  # usual names of columns of messages
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ROWS_BETWEEN_STATES = 1000
_ROWS_ARE_LOST = (
    "The library ends there: fetch the files (hf download {} --repo-type dataset --local-dir DIR), "
    "set data.source to DIR, and data.max_bad_rows passes over single rows."
)


def is_hub_dataset(part: TextSource) -> bool:
    """Return whether a source is ``owner/name`` on the Hub, rather than a path on this machine."""
    name = part.source
    if not isinstance(name, str) or not _NAME.fullmatch(name) or _FILE.search(name):
        return False
    return not Path(name).exists()


def dataset_commit(part: TextSource) -> str:
    """Resolve a dataset's revision to a commit.

    Raises:
        DataError: There is no such dataset or revision, or the Hub cannot be reached.
    """
    if part.revision is not None and _COMMIT.fullmatch(part.revision):
        return part.revision
    from huggingface_hub import HfApi

    try:
        name, revision = str(part.source), part.revision
        info = ask_again(lambda: HfApi().dataset_info(name, revision=revision, timeout=15))
    except Exception as error:  # the library's errors have no common class
        raise _refused(part, error) from error
    if not info.sha:
        raise DataError(f"the Hub names no commit of {part.source}.", "Set data.revision to one.")
    return info.sha


def hub_documents(
    part: TextSource,
    commit: str | None,
    column: TextColumn,
    bad: BadRows,
    start: dict[str, Any] | None = None,
) -> Iterator[tuple[dict[str, Any], Document]]:
    """Read the documents of a dataset in its order, each with the place after it.

    Args:
        part: The recipe's entry: a dataset or a directory with one, config and split.
        commit: Commit of the dataset; None for a directory.
        bad: Counts the rows whose text is missing or broken.
        start: A place that was yielded before; rows before it are not read again.

    Yields:
        The place, in JSON values, and the document.

    Raises:
        DataError: The dataset cannot be read; the message has the library's own words.
        MissingExtraError: datasets is not installed.
    """
    stream = _open(part, commit)
    columns = stream.column_names
    if columns is not None and not {column.name, column.root} & set(columns):
        raise DataError(
            f"the dataset {part.source} has no column {column.name!r}; its columns are "
            f"{', '.join(escape(name, 40) for name in columns)}.",
            next(
                map(render_hint, _CHATS & {*columns}), "Name the text column in data.text_column."
            ),
        )
    row = skip = 0
    state = None
    if start is not None:
        state, skip, row = start["state"], start["rows"], start["row"] - start["rows"]
        if state is not None:
            stream.load_state_dict(state)
    rows = iter(stream)
    since = 0
    while True:
        try:
            values = next(rows)
        except StopIteration:
            return
        except Exception as error:  # of the network, of a file, of a conversion
            refused = _refused(part, error)
            if isinstance(error, ValueError):  # of rows: they are converted many at a time
                refused.hint = _ROWS_ARE_LOST.format(part.source)
            raise refused from error
        row += 1
        since += 1
        if since > skip:
            text = column.text_of(values, f"{part.source}, row {row}", bad)
            if text and text.strip():
                place = {"state": state, "rows": since, "row": row, "bad": bad.seen}
                rendered = column.render is not None
                yield place, Document(f"{part.source}:{row}", text, is_rendered=rendered)
        if since >= _ROWS_BETWEEN_STATES:
            state, since, skip = stream.state_dict(), 0, 0


def _open(part: TextSource, commit: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"the dataset {part.source} needs the package datasets.",
            'Install it: pip install "inheritune[data]"',
        ) from error
    try:
        return datasets.load_dataset(
            str(part.source),
            part.config,
            split=part.split or "train",
            revision=commit,
            streaming=True,
        )
    except Exception as error:  # the library's errors have no common class
        raise _refused(part, error) from error


def _refused(part: TextSource, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
    hint = "Check data.source, config, split and revision; gated datasets need `hf auth login`."
    if "script" in reason.lower():
        hint = "Choose one in parquet or JSONL; many have a copy at revision refs/convert/parquet."
    elif not part.config and not part.split and not part.revision:
        hint = "Check the name; if you meant files, there are none at this path."
    return DataError(f"cannot read the dataset {part.source}: {reason}.", hint)
