"""Prepare tokens, look at them, and train models on them without a recipe."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from inheritune.api.call import (
    PathLike,
    ProgressOption,
    StoredModel,
    Tokens,
    call,
    data_section,
    optional_path,
    path_of,
    paths_of,
    refuse_below,
    texts_of,
    tokenizer_directory,
)

if TYPE_CHECKING:
    from inheritune.data.import_tokens import FlatFiles
    from inheritune.data.inspect import Inspection
    from inheritune.data.tokens import TokenDirectory
    from inheritune.run.pretraining import Pretraining, PretrainingResult


def prepare(
    source: PathLike | Sequence[PathLike],
    tokenizer: StoredModel,
    out: PathLike,
    *,
    seq_len: int = 1024,
    progress: ProgressOption = True,
    **data: Any,
) -> "TokenDirectory":
    """Turn text into token shards for `train` and `evaluate`.

    The same input gives the same bytes. An interrupted call continues after the last whole shard.

    Args:
        source: As `data.source` of a recipe: ``"stdlib"``, files, folders, globs, or a Hub dataset.
        tokenizer: The model, or the directory, whose tokenizer is used.
        out: The token directory; opened as it is if it was prepared from the same.
        seq_len: Tokens per sequence; both splits must hold at least one.
        progress: True draws a bar, False is silent, a function is called with each event.
        **data: Other keys of a recipe's `data` section, such as ``val_fraction=0.01``.

    Raises:
        DataError: The text is missing, broken or too short.
        RecipeError: A key is wrong, or ``out`` was prepared with other values.
    """
    from inheritune.data.prepare_text import prepare_text
    from inheritune.data.tokenizer import embedding_rows, open_tokenizer
    from inheritune.steps.tokens import say_differences
    from inheritune.system.signals import catch_signals

    refuse_below(1, seq_len=seq_len)
    section = data_section({"source": source, **data})
    with call(progress) as on_progress, catch_signals() as stop:
        directory = tokenizer_directory(tokenizer)
        opened = open_tokenizer(directory)
        rows = embedding_rows(directory, opened)
        say_differences(directory, on_progress)
        return prepare_text(section, opened, rows, seq_len, Path(out), on_progress, stop)


def import_tokens(
    files: "PathLike | Sequence[PathLike] | FlatFiles",
    tokenizer: StoredModel,
    out: PathLike,
    *,
    progress: ProgressOption = True,
) -> "TokenDirectory":
    """Copy token ids that another program wrote into a token directory.

    Args:
        files: The files: .ds of datatrove, .bin of nanoGPT, litgpt, litdata, llm.c or
            Megatron. `FlatFiles` also names validation files and the width of an id.
        tokenizer: The model, or the directory, whose tokenizer made the ids.
        out: The token directory; opened as it is if it was made from the same files.
        progress: True draws a bar, False is silent, a function is called with each event.

    Raises:
        DataError: A file is broken, or holds too little, or ``out`` holds something else.
    """
    from inheritune.data.import_tokens import FlatFiles
    from inheritune.data.import_tokens import import_tokens as import_files
    from inheritune.data.tokenizer import embedding_rows, open_tokenizer
    from inheritune.steps.tokens import say_differences
    from inheritune.system.signals import catch_signals

    with call(progress) as on_progress, catch_signals() as stop:
        directory = tokenizer_directory(tokenizer)
        opened = open_tokenizer(directory)
        rows = embedding_rows(directory, opened)
        say_differences(directory, on_progress)
        if not isinstance(files, FlatFiles):
            files = FlatFiles(paths_of(files), [])
        return import_files(files, opened, rows, Path(out), on_progress, stop)


def inspect(
    tokens: Tokens,
    *,
    tokenizer: "StoredModel | None" = None,
    windows: int = 2,
    length: int = 64,
) -> "Inspection":
    """Summarise a token directory and show some of it as text.

    Args:
        tokens: The token directory.
        tokenizer: The model, or the directory, whose tokenizer made the tokens; None: the one of
            their run, if it is on this machine.
        windows: Number of windows to show of each split.
        length: Tokens of a window.

    Returns:
        A row for each window.

    Raises:
        DataError: The directory is broken, or ``tokenizer`` is another one.
    """
    from inheritune.data.inspect import inspect_tokens

    refuse_below(0, windows=windows)
    refuse_below(1, length=length)
    home = None if tokenizer is None else tokenizer_directory(tokenizer)
    return inspect_tokens(path_of(tokens), home, windows, length)


def train(
    model: StoredModel,
    tokens: Tokens,
    out: PathLike,
    *,
    sets: str | Sequence[str] = (),
    allow_change: str | Sequence[str] = (),
    checkpoint: PathLike | None = None,
    progress: ProgressOption = True,
    **sections: Any,
) -> "PretrainingResult":
    """Train any model further on prepared tokens, without a recipe, or resume that.

    By default one epoch; the length of sequences and steps is chosen by the model and the tokens.

    Args:
        model: The model to start from; never changed.
        tokens: From `prepare`, with the model's tokenizer.
        out: Directory of the training; the trained model is ``out/model``.
        sets: Keys in the form of ``--set``, such as ``"train.tokens=10M"``.
        allow_change: Keys that may differ from those that the training was started with.
        checkpoint: Continue from this checkpoint; None: from the newest.
        progress: True draws a bar, False is silent, a function is called with each event.
        **sections: Keys of a recipe's `train` and `evaluate`, such as ``train={"tokens": "10M"}``,
            ``data={"allow_repeat": True}`` and ``reference={"revision": ...}``.

    Raises:
        RecipeError: A key is wrong, or ``out`` holds something else.
        DataError: The tokens are too few, or of another tokenizer.
        DivergedError: The loss stopped being finite.
        Interrupted: Stopped by Ctrl-C or SIGTERM; the same call continues.
    """
    from inheritune.run.pretraining import pretrain

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    with call(progress) as on_progress:
        settings = plan_training(model, tokens, out, processes=processes, sets=sets, **sections)
        result = pretrain(
            settings, Path(out), on_progress, texts_of(allow_change), optional_path(checkpoint)
        )
        return cast("PretrainingResult", result)


def plan_training(
    model: StoredModel,
    tokens: Tokens,
    out: PathLike,
    *,
    processes: int = 1,
    sets: str | Sequence[str] = (),
    **sections: Any,
) -> "Pretraining":
    """Choose the settings that `train` would use, and write nothing.

    Args:
        model: As for `train`.
        tokens: As for `train`.
        out: As for `train`; a Hub model is opened at the commit that an earlier start used.
        processes: Number of processes, which decides the default of ``train.micro_batch``.
        sets: As for `train`.
        **sections: As for `train`.

    Returns:
        All settings in the form of a recipe, and the opened tokens.

    Raises:
        RecipeError: A key is wrong.
        DataError: The tokens are too few, or of another tokenizer.
    """
    from inheritune.model_files.directory import ModelDirectory
    from inheritune.recipe.sections import overrides
    from inheritune.run.pretraining import plan_pretraining

    if isinstance(model, ModelDirectory):
        if model.revision is not None:  # on the Hub; its files may be here in part
            sections["reference"] = {"revision": model.revision} | sections.get("reference", {})
        name = str(model.path) if model.revision is None else model.name
    else:
        name = os.fspath(model)
    keys = [*texts_of(sets), *overrides(sections)]
    return plan_pretraining(name, path_of(tokens), Path(out), keys, processes)
