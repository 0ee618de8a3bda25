"""Define the commands prepare and inspect, on text and tokens."""

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inheritune.cli.console import (
    DEFAULT_RUNS,
    Debug,
    Json,
    Runs,
    Sets,
    load_recipe,
    print_json,
    progress,
    reported,
    say,
)
from inheritune.errors import DataError, InherituneError, RecipeError

if TYPE_CHECKING:
    from inheritune.data.import_tokens import FlatFiles


_import_option = partial(typer.Option, rich_help_panel="Import token ids")
_WIDTHS = {"auto": None, "uint16": 2, "uint32": 4}


def prepare(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="YAML file of the recipe.")
    ] = None,
    from_bin: Annotated[
        list[Path] | None,
        _import_option(
            metavar="FILE",
            help="Import ids instead of text, from a .ds file of datatrove or a .bin file of "
            "nanoGPT, litgpt or llm.c; repeatable.",
        ),
    ] = None,
    val_from_bin: Annotated[
        list[Path] | None,
        _import_option(
            metavar="FILE",
            help="The same for validation; default: hold out documents of --from-bin.",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        _import_option(
            metavar="DIR", help="Directory or Hub id of the tokenizer that made --from-bin."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        _import_option(metavar="DIR", help="Token directory to write, if there is no recipe."),
    ] = None,
    dtype: Annotated[
        str, _import_option(help="Type of the ids of --from-bin: auto, uint16 or uint32.")
    ] = "auto",
    val_fraction: Annotated[
        float,
        _import_option(min=0, max=1, help="Share of the documents of --from-bin to hold out."),
    ] = 0.002,
    sets: Sets = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Turn a recipe's text, or token ids of another program, into token shards."""
    with reported(as_json, debug):
        if dtype not in _WIDTHS:
            raise RecipeError(f"--dtype is {dtype!r}.", f"Choose {', '.join(_WIDTHS)}.")
        files = _flat_files(from_bin, val_from_bin, val_fraction, _WIDTHS[dtype])
        home = None if tokenizer is None else _tokenizer_directory(tokenizer)
        with progress() as on_progress:
            if recipe is not None:
                if out is not None:
                    raise RecipeError(
                        "--out cannot be combined with a recipe.",
                        "Leave it out: the tokens go into the run's directory.",
                    )
                from inheritune.run.execute import prepare_only

                file = load_recipe(recipe, sets)
                root = runs / file.recipe.name
                summary = prepare_only(file, root, on_progress, files, home)
            elif files is None or home is None or out is None:
                raise RecipeError(
                    "give a recipe, or --from-bin FILE with --tokenizer DIR and --out DIR.",
                    "Write a recipe: inheritune init > recipe.yaml",
                )
            else:
                summary = _import(files, home, out, on_progress)
        if as_json:
            print_json(summary)
        else:
            say(
                f"{summary['path']}: {summary['train_tokens']:,} tokens to train on, "
                f"{summary['val_tokens']:,} held out."
            )
            command = f"inspect {summary['path']}" if recipe is None else f"run {recipe}"
            say(f"next: inheritune {command}")


def inspect(
    path: Annotated[Path, typer.Argument(metavar="TOKENS", help="Token directory.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Tokenizer of the tokens; default: the one of their run."),
    ] = None,
    windows: Annotated[
        int, typer.Option(min=0, help="Number of windows to show of each split.")
    ] = 2,
    length: Annotated[int, typer.Option(min=1, help="Tokens per window.")] = 64,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Summarise a token directory and show some of it as text."""
    with reported(as_json, debug):
        from inheritune.data import inspect as inspection
        from inheritune.data.tokens import open_tokens

        tokens = open_tokens(path)
        home = None if tokenizer is None else _tokenizer_directory(tokenizer)
        opened = inspection.find_tokenizer(tokens, home)
        if opened is None and (of_run := _reference_of_run(path)) is not None:
            with suppress(DataError):  # the run has changed its reference since
                opened = inspection.find_tokenizer(tokens, of_run)
        facts = inspection.describe_tokens(tokens)
        shown = inspection.windows(tokens, opened, windows, length)
        if as_json:
            print_json(facts | {"windows": shown})
            return
        for line in _lines(facts):
            say(line)
        for window in shown:
            text = " ".join(map(str, window["ids"])) if opened is None else repr(window["text"])
            say(f"{window['split']} {window['start']:,}: {text}")
        if opened is None:
            say(f"next: inheritune inspect {path} --tokenizer DIR   # to show text")


def _flat_files(
    train: list[Path] | None, val: list[Path] | None, fraction: float, width: int | None
) -> "FlatFiles | None":
    if not train:
        if val:
            raise RecipeError("--val-from-bin needs --from-bin.", "Give --from-bin FILE, too.")
        return None
    from inheritune.data.import_tokens import FlatFiles

    return FlatFiles(train, val or [], fraction, width)


def _tokenizer_directory(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    from inheritune.model_files.directory import open_model

    return open_model(name, None, whole=False).path


def _reference_of_run(tokens: Path) -> Path | None:
    """Find the reference of the run that these tokens belong to, if it is on this machine."""
    from inheritune.model_files.directory import open_model
    from inheritune.system.strict_json import read_json

    with suppress(InherituneError, KeyError, TypeError, AttributeError):
        name = read_json(tokens.resolve().parent / "run.json")["recipe"]["reference"]["model"]
        if name.startswith("embedded:") or Path(name).is_dir():
            return open_model(name, None, whole=False).path
    return None


def _import(files: "FlatFiles", home: Path, out: Path, on_progress: Any) -> dict[str, Any]:
    from inheritune.data.import_tokens import import_tokens
    from inheritune.data.tokenizer import embedding_rows, open_tokenizer
    from inheritune.system.signals import catch_signals

    opened = open_tokenizer(home)
    with catch_signals() as stop:
        rows = embedding_rows(home, opened)
        tokens = import_tokens(files, opened, rows, out, on_progress, stop)
    return tokens.summary() | {"path": str(tokens.path)}


def _lines(facts: dict[str, Any]) -> list[str]:
    policy, split, overlap = facts["policy"], facts["split"], facts["overlap"]
    held_out = f"{split.get('val_fraction', 0):.2%} by {split.get('by')}"
    epochs = ", ".join(f"{name} tokens: {count:g}" for name, count in facts["epochs_of"].items())
    share = "none" if overlap["share"] is None else f"{overlap['share']:.2%}"
    sizes = sum(shard["bytes"] for shard in facts["shards"])
    return [
        f"source      {facts['source']}",
        f"train       {facts['train_tokens']:,} tokens in {facts['documents']:,} documents, "
        f"{facts['tokens_per_document']:,} each",
        f"val         {facts['val_tokens']:,} tokens in {facts['val_documents']:,} documents, "
        f"{'from val_source' if split['rule'] == 'val_source' else held_out}",
        f"overlap     {overlap['duplicate_documents']:.2%} of the held-out documents are also in "
        f"train; of their {overlap['ngram']}-grams, {share}",
        f"tokenizer   {facts['tokenizer']['sha256'][:12]}, {facts['tokenizer']['rows']:,} ids for "
        f"{facts['embedding_rows']:,} rows; BOS {policy['bos']}, EOS {policy['eos']}",
        f"files       {len(facts['shards'])} shards, {sizes:,} bytes, "
        f"{facts['bytes_per_id']} per id",
        f"epochs      {epochs}",
        f"fingerprint {facts['fingerprint'][:12]}, of the validation set "
        f"{facts['val_fingerprint'][:12]}",
    ]
