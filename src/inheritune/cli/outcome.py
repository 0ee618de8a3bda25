"""Show what a run came to, and the commands that lead on."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune import api
from inheritune.cli import generate
from inheritune.cli.console import print_json, say
from inheritune.cli.next_step import command, with_sets

if TYPE_CHECKING:
    from inheritune.recipe.schema import Recipe


def introduction(recipe: "Recipe") -> str:
    """Say what a demo is about to do."""
    inherit, grow = recipe.inherit, recipe.grow
    layers = "half of the layers" if inherit.layers is None else f"{inherit.layers} layers"
    if any(letter.isdigit() for letter in inherit.select):  # block:26 states its number itself
        layers = "layers"
    source = recipe.reference.model or "a reference trained here"
    distill = recipe.variants[recipe.target_name].distill
    steps = [
        f"inheriting {layers} of {source} ({inherit.select})",
        *(["repairing the cut by least squares"] if inherit.repair != "none" else []),
        f"training on {recipe.data.source}" + (" and on its predictions" if distill else ""),
        *([f"growing by {grow.add} until val_loss matches"] if grow.add else []),
    ]
    text = f"{', '.join(steps)}. Ctrl-C saves and stops."
    text = text[0].upper() + text[1:]
    if recipe.reference.train is not None:
        text += (
            "\nA reference trained this briefly is hardly better than a shallow model: this shows "
            "what a warm start is worth and what it costs, not that layers can be saved."
        )
    return text


def after_run(
    result: "api.RunResult", again: Callable[..., str], sets: list[str], matched: str = ""
) -> str:
    """The command to give after a run.

    Where the target has not matched, the two cheapest ways on are shown first, with whole commands,
    and those whose worth nothing in the run tells.

    Args:
        again: Writes the run's command with other overrides.
        sets: Overrides that were given.
        matched: The command after a match; empty: the report's.
    """
    matched = matched or command("report", result.run)
    if result.verdict != "not_matched":
        return matched
    if result.record.scaled:  # which says nothing about the recipe itself
        return again(scale=None, set=sets)
    from inheritune.reporting.curves import read_curves
    from inheritune.reporting.ways_on import describe_way, gap_to_match, ways_on

    ways = ways_on(result.record, read_curves(result.run, result.record))
    gap = gap_to_match(result.record)
    if not result.is_missed:
        say(
            f"{result.layers} layers were asked for, whether they match or not: val_loss is "
            f"{result.difference:+.4f} from the reference loss."
        )
    for number, way in enumerate(ways):
        if number < 2 or way.gain is None:
            say(f"{describe_way(way, gap)}:\n  {again(set=with_sets(sets, way.sets))}")
    return again(set=with_sets(sets, ways[0].sets)) if ways else matched


def show_result(root: Path, final: dict[str, Any], as_json: bool, prompt: str = "") -> None:
    """Show a run's outcome as tables or JSON, and its models continuing a prompt, if any."""
    if as_json:
        print_json(final)
        return
    from inheritune.cli.terminal import show_record
    from inheritune.run_directory import Run
    from inheritune.system.terminal import Terminal

    show_record(Terminal(), Run(root).record())
    if prompt:
        say(command("generate", root, prompt))
        generate.write_texts([str(root)], prompt, max_tokens=48)
    say(f"target: {final['target']}   report: {final['report']}")
