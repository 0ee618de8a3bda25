"""Define the commands prepare and inspect, on text and tokens."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from inheritune import api
from inheritune.cli.completion import recipes
from inheritune.cli.console import (
    DEFAULT_RUNS,
    Debug,
    Json,
    Runs,
    Sets,
    load_recipe,
    print_json,
    reported,
    say,
)
from inheritune.cli.next_step import command
from inheritune.errors import RecipeError, escape

_import_option = partial(typer.Option, rich_help_panel="Import token ids")
_WIDTHS = {"auto": None, "uint16": 2, "uint32": 4}


def prepare(
    recipe: Annotated[
        Path | None,
        typer.Argument(
            metavar="RECIPE", help="Recipe: a YAML file or a preset.", autocompletion=recipes
        ),
    ] = None,
    worker: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Prepare the share of worker I of N, such as 2/8: each on a machine of its own, "
            "all in one directory of runs. The bytes do not depend on N.",
        ),
    ] = None,
    from_bin: Annotated[
        list[Path] | None,
        _import_option(
            metavar="FILE",
            help="Import ids instead of text, from a .ds file of datatrove or a .bin file of "
            "nanoGPT, litgpt, litdata, llm.c or Megatron; repeatable.",
        ),
    ] = None,
    val_from_bin: Annotated[
        list[Path] | None,
        _import_option(
            metavar="FILE",
            help="Import validation ids from this file; default: hold out documents of --from-bin; "
            "repeatable.",
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
        if val_from_bin and not from_bin:
            raise RecipeError("--val-from-bin needs --from-bin.", "Give --from-bin FILE, too.")
        files = None
        if from_bin:
            files = api.FlatFiles(from_bin, val_from_bin or [], val_fraction, _WIDTHS[dtype])
        if worker is not None and (recipe is None or from_bin):
            raise RecipeError(
                "--worker goes with the text of a recipe.",
                "Write inheritune prepare RECIPE --worker 2/8.",
            )
        if recipe is not None:
            if out is not None:
                raise RecipeError(
                    "--out cannot be combined with a recipe.",
                    "Leave it out: the tokens go into the run's directory.",
                )
            file = load_recipe(recipe, sets)
            if worker is not None:
                parts = api.prepare_parts(file, worker, runs=runs)
                if parts.tokens is None:
                    _tell_missing(parts, as_json)
                    return
                tokens = parts.tokens
            else:
                tokens = api.prepare_recipe(file, runs=runs, files=files, tokenizer=tokenizer)
        elif files is None or tokenizer is None or out is None:
            raise RecipeError(
                "give a recipe, or --from-bin FILE with --tokenizer DIR and --out DIR.",
                "Write a recipe: inheritune init > recipe.yaml",
            )
        else:
            tokens = api.import_tokens(files, tokenizer, out)
        summary = tokens.summary() | tokens.taken() | {"path": str(tokens.path)}
        if as_json:
            print_json(summary)
            return
        say(
            f"{tokens.path}: {summary['train_tokens']:,} tokens to train on, "
            f"{summary['val_tokens']:,} held out."
        )
        for line in _taken(summary.get("taken")):
            say(line)
        if recipe is None:
            next_step = command("inspect", tokens.path)
        else:
            next_step = command("run", recipe, set=sets, runs=runs)
        say(f"next: {next_step}")


def _tell_missing(parts: "api.TokenParts", as_json: bool) -> None:
    if as_json:
        print_json({"path": str(parts.path), "missing_parts": parts.missing})
        return
    say(f"{parts.path}: {len(parts.missing)} parts of other workers are missing.")
    say("next: wait for them; the last one joins all parts and says so")
    say("if none says so, run the same command again")


def _taken(taken: dict[str, Any] | None) -> Iterator[str]:
    """Say what was taken and left out, so that a wrong guess is seen before a training."""
    for row in taken["sources"] if taken else ():
        names = ", ".join(f"{count:,} {name}" for name, count in row["files"].items())
        source = row["source"] if isinstance(row["source"], str) else ", ".join(row["source"][:5])
        size = row["bytes"] and f" of {row['bytes'] / max(1, row['documents']):,.0f} bytes each"
        files = f" in files: {names}" if names else ""
        yield f"  {escape(source, 100)}: {row['documents']:,} documents{size or ''}{files}"
        if row.get("left_out"):
            shown = ", ".join(escape(name, 60) for name in row["left_out"][:5])
            yield f"    left out: {row['left_out_files']:,} files: {shown}"
    if taken:
        yield f"  one EOS in {taken['tokens_per_eos']:,} tokens; documents begin:"
        for words in taken["first_words"]:
            yield f"    {escape(repr(words), 90)}"


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
        inspection = api.inspect(path, tokenizer=tokenizer, windows=windows, length=length)
        if as_json:
            print_json(inspection.as_json())
            return
        for line in _lines(inspection.facts):
            say(line)
        for window in inspection.windows:
            text = window["text"]
            shown = " ".join(map(str, window["ids"])) if text is None else repr(text)
            say(f"{window['split']} {window['start']:,}: {shown}")
        if inspection.tokenizer is None:
            say(f"next: {command('inspect', path, tokenizer='DIR')}   # to show text")


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
