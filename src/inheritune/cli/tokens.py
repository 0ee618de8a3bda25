"""The commands around text and tokens: prepare and inspect."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inheritune.cli.console import (
    DEFAULT_RUNS,
    Debug,
    Json,
    Runs,
    Sets,
    print_json,
    progress,
    reported,
    say,
)
from inheritune.errors import DataError, InherituneError, RecipeError

if TYPE_CHECKING:
    from inheritune.data.import_tokens import FlatFiles

__all__ = ["inspect", "prepare"]

_WIDTHS = {"auto": None, "uint16": 2, "uint32": 4}


def prepare(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="A recipe, in YAML.")
    ] = None,
    from_bin: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Take ids from a .ds file of datatrove, or a .bin file as nanoGPT, litgpt or "
            "llm.c write them, instead of text; may be repeated.",
        ),
    ] = None,
    val_from_bin: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="The same for validation; else documents are held out."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Directory or Hub id of the tokenizer of --from-bin."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Token directory to write, without a recipe.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the ids: auto, uint16 or uint32.")] = "auto",
    val_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the documents of --from-bin held out.")
    ] = 0.002,
    sets: Sets = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Turn a recipe's text, or the ids of another program, into token shards."""
    with reported(as_json, debug):
        if dtype not in _WIDTHS:
            raise RecipeError(f"--dtype is {dtype!r}.", f"Choose {', '.join(_WIDTHS)}.")
        files = _flat_files(from_bin, val_from_bin, val_fraction, _WIDTHS[dtype])
        home = None if tokenizer is None else _tokenizer_directory(tokenizer)
        with progress() as on_progress:
            if recipe is not None:
                if out is not None:
                    raise RecipeError("--out stands beside a recipe.", "The run has its place.")
                from inheritune.recipe.load import read_recipe
                from inheritune.run.execute import prepare_only

                wanted = read_recipe(recipe, sets or [])
                root = runs / wanted.recipe.name
                summary = prepare_only(wanted, root, on_progress, files, home)
            elif files is None or home is None or out is None:
                raise RecipeError(
                    "there is neither a recipe nor --from-bin FILE with --tokenizer DIR and --out.",
                    "Write a recipe: inheritune init > recipe.yaml",
                )
            else:
                summary = _imported(files, home, out, on_progress)
        if as_json:
            print_json(summary)
        else:
            say(
                f"{summary['path']}: {summary['train_tokens']:,} tokens to train on, "
                f"{summary['val_tokens']:,} held out."
            )
            alone = f"inheritune inspect {summary['path']}"
            say(f"next: {alone if recipe is None else f'inheritune run {recipe}'}")


def inspect(
    path: Annotated[Path, typer.Argument(metavar="TOKENS", help="A token directory.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Its tokenizer; else looked for where a run keeps it."),
    ] = None,
    windows: Annotated[int, typer.Option(min=0, help="Windows of each split to show.")] = 2,
    length: Annotated[int, typer.Option(min=1, help="Tokens in a window.")] = 64,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Tell what is in a token directory, and show some of it as text."""
    with reported(as_json, debug):
        from inheritune.data import inspect as inspection
        from inheritune.data.tokens import open_tokens

        tokens = open_tokens(path)
        home = None if tokenizer is None else _tokenizer_directory(tokenizer)
        opened = inspection.find_tokenizer(tokens, home)
        if opened is None and (of_run := _reference_of_run(path)) is not None:
            with suppress(DataError):  # the run's reference was another one then
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
            say(f"next: inheritune inspect {path} --tokenizer DIR   # to see them as text")


def _flat_files(
    train: list[Path] | None, val: list[Path] | None, fraction: float, width: int | None
) -> "FlatFiles | None":
    if not train:
        if val:
            raise RecipeError("--val-from-bin stands alone.", "Give --from-bin FILE with it.")
        return None
    from inheritune.data.import_tokens import FlatFiles

    return FlatFiles(train, val or [], fraction, width)


def _tokenizer_directory(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    from inheritune.model_files.directory import open_model

    return open_model(name, None, whole=False).path


def _reference_of_run(tokens: Path) -> Path | None:
    """The directory of the reference that the run of these tokens names, if it is here."""
    from inheritune.model_files.directory import open_model
    from inheritune.system.strict_json import read_json

    with suppress(InherituneError, KeyError, TypeError, AttributeError):
        name = read_json(tokens.resolve().parent / "run.json")["recipe"]["reference"]["model"]
        if name.startswith("embedded:") or Path(name).is_dir():
            return open_model(name, None, whole=False).path
    return None


def _imported(files: "FlatFiles", home: Path, out: Path, on_progress: Any) -> dict[str, Any]:
    from inheritune.data.import_tokens import import_tokens
    from inheritune.data.tokenizer import open_tokenizer
    from inheritune.steps.tokens import embedding_rows
    from inheritune.system.signals import catch_signals

    opened = open_tokenizer(home)
    with catch_signals() as stop:
        rows = embedding_rows(home, opened)
        tokens = import_tokens(files, opened, rows, out, on_progress, stop)
    return tokens.summary() | {"path": str(tokens.path)}


def _lines(facts: dict[str, Any]) -> list[str]:
    policy, split, overlap = facts["policy"], facts["split"], facts["overlap"]
    held = f"{split.get('val_fraction', 0):.2%} by {split.get('by')}"
    epochs = ", ".join(f"{name} tokens: {count:g}" for name, count in facts["epochs_of"].items())
    share = "none" if overlap["share"] is None else f"{overlap['share']:.2%}"
    sizes = sum(shard["bytes"] for shard in facts["shards"])
    return [
        f"source      {facts['source']}",
        f"train       {facts['train_tokens']:,} tokens in {facts['documents']:,} documents, "
        f"{facts['tokens_per_document']:,} each",
        f"val         {facts['val_tokens']:,} tokens in {facts['val_documents']:,} documents, "
        f"{'a set of its own' if split['rule'] == 'val_source' else held}",
        f"overlap     {overlap['duplicate_documents']:.2%} of the documents held out are also in "
        f"train; of their {overlap['ngram']}-grams {share}",
        f"tokenizer   {facts['tokenizer']['sha256'][:12]}, {facts['tokenizer']['rows']:,} ids for "
        f"{facts['embedding_rows']:,} rows; BOS {policy['bos']}, EOS {policy['eos']}",
        f"files       {len(facts['shards'])} shards, {sizes:,} bytes, "
        f"{facts['bytes_per_id']} an id",
        f"epochs      {epochs}",
        f"fingerprint {facts['fingerprint'][:12]}, of the validation set "
        f"{facts['val_fingerprint'][:12]}",
    ]
