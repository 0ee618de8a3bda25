"""Define the command patch: put layers of the reference back into a trained target."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inheritune import api
from inheritune.cli.completion import models
from inheritune.cli.console import (
    Debug,
    Json,
    TextKeys,
    print_json,
    reported,
    say,
    text_with,
    window_option,
)
from inheritune.cli.model import ReferenceId, Revision
from inheritune.cli.next_step import command
from inheritune.errors import RecipeError

if TYPE_CHECKING:
    from inheritune.evaluation.family import Family
    from inheritune.model_files.directory import ModelDirectory

_PANEL = "Text to choose layers by and to measure on"
_text = partial(typer.Option, rich_help_panel=_PANEL)


def patch(
    target: Annotated[
        str, typer.Argument(help="Trained target: a model directory.", autocompletion=models)
    ],
    reference: ReferenceId,
    layers: Annotated[
        str | None,
        typer.Argument(
            help="Number of layers of the new model (the dearest come back first), or the layers "
            "to put back, such as 3,5-7. Left out: every size is measured, and none written."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Argument(help="Model directory to write.")] = None,
    family: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="family.json: with no LAYERS it is written, and the same command goes on from it; "
            "with LAYERS it says which layers come back.",
        ),
    ] = None,
    target_layers: Annotated[
        str | None,
        typer.Option(
            help="Layers of the reference that TARGET has, as for inherit; default: as its "
            "inherit.json says."
        ),
    ] = None,
    text: Annotated[
        str | None, _text(metavar="PATH", help="Text; default: Python's standard library.")
    ] = None,
    text_keys: TextKeys = None,
    windows: Annotated[int, _text(min=1, help="Number of windows for each of the two.")] = 32,
    tokens_per_window: Annotated[int | None, window_option(rich_help_panel=_PANEL)] = None,
    seed: Annotated[int, _text(min=0, help="Seed of the choice of windows.")] = 0,
    revision: Revision = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Put layers of the reference back into a trained target: sizes that need no training."""
    with reported(as_json, debug):
        drawn: dict[str, Any] = {
            "text": text_with(text, text_keys),
            "windows": windows,
            "tokens_per_window": tokens_per_window,
            "seed": seed,
        }
        more: dict[str, Any] = {"target_layers": target_layers, "revision": revision}
        if layers is None:
            found = api.family(target, reference, out=family, **more, **drawn)
            if as_json:
                print_json(found.as_json())
                return
            _show(found)
            size = found.members[min(1, len(found.members) - 1)].layers
            again = {} if family else drawn | {"text": text, "set": text_keys}
            words = ("patch", target, reference, size, "OUT")
            say(f"next: {command(*words, family=family, **more, **again)}")
            return
        if out is None:
            raise RecipeError(
                "patch was given LAYERS, but not where to write the model.",
                f"Write: {command('patch', target, reference, layers, 'OUT')}",
            )
        model = api.patch(target, reference, layers, out, family=family, **more, **drawn)
        _report(model, out, reference, revision, as_json)


def _report(
    model: "ModelDirectory", out: Path, reference: str, revision: str | None, as_json: bool
) -> None:
    from inheritune.system.strict_json import MODEL_FILE, read_json_object

    record = read_json_object(model.path / "inherit.json", MODEL_FILE.times(20), "the record")
    before, after = record["grown_from"]["layer_map"], record["layer_map"]
    back = [layer for layer in after if layer not in before]
    if as_json:
        print_json(
            {"target": str(out), "layers": len(after), "layer_map": after, "returned": back}
            | {"reference_layers": record["reference"]["layers"], "params": model.params}
        )
        return
    say(
        f"{out}: {len(after)} layers, {model.params:,} parameters; of the reference came back, "
        f"untrained: {', '.join(map(str, back))}; {record['check']}."
    )
    say(f"next: {command('verify', out, reference=reference, revision=revision)}")


def _show(family: "Family") -> None:
    from inheritune.reporting.quantities import formatted
    from inheritune.reporting.table import Column, Table
    from inheritune.system.terminal import Terminal

    table = Table.of(
        "sizes with no training",
        family.members,
        [
            (Column("layers", show=str), "layers"),
            (Column("came back"), "listed"),
            (Column("parameters", show=formatted(",")), "params"),
            (Column("loss", "nats", formatted(".4f")), "val_loss"),
            (Column("KL", "nats", formatted(".4f")), "kl"),
            (Column("same likeliest token", show=formatted(".3f")), "top1"),
        ],
        [f"Loss of the reference, {family.reference_layers} layers: {family.reference_loss:.4f}."],
    )
    Terminal().print(table.rich())
