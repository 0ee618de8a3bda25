"""Open a model given as a Hub id, a directory, or a model in memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeAlias

from inheritune.errors import InherituneError
from inheritune.model_files.copy import copy_side_files
from inheritune.model_files.directory import ModelDirectory, open_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_Model: TypeAlias = "str | os.PathLike[str] | ModelDirectory | PreTrainedModel"


@contextmanager
def opened_model(
    model: _Model,
    revision: str | None = None,
    *,
    whole: bool = True,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> Iterator[ModelDirectory]:
    """Open a model for the block; one in memory is saved to a temporary directory in its dtype.

    Args:
        model: Hub id, directory, ``embedded:demo``, or a model in memory.
        revision: Branch, tag or commit of a Hub id.
        whole: Download all weights of a Hub id now, see `open_model`.
        tokenizer: Tokenizer of a model in memory; None: copied from where the model was loaded.
    """
    if isinstance(model, ModelDirectory):
        yield model
    elif isinstance(model, str | os.PathLike):
        yield open_model(os.fspath(model), revision, whole=whole)
    elif not callable(getattr(model, "save_pretrained", None)):
        raise TypeError(f"expected a model, got {type(model).__name__}")
    else:
        with TemporaryDirectory(prefix="inheritune-") as scratch:
            name = Path(model.name_or_path or "").name or type(model).__name__
            directory = Path(scratch) / name
            _save(model, tokenizer, directory)
            yield open_model(str(directory))


def _save(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None", directory: Path
) -> None:
    """Save a model in memory with its tokenizer, if there is one."""
    from transformers.utils import logging

    directory.mkdir()
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    elif model.name_or_path:
        # Copied, not loaded and saved: prepared tokens are bound to the tokenizer's bytes.
        commit = getattr(model.config, "_commit_hash", None)
        with suppress(InherituneError):
            copy_side_files(open_model(model.name_or_path, commit, whole=False).path, directory)
    draws = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(directory)
    finally:
        if draws:
            logging.enable_progress_bar()
