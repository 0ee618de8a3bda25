"""Gather the facts of a first run, and fill in its recipe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from inheritune.data.text_sample import sample_text
from inheritune.data.text_stream import IdStream
from inheritune.data.tokenizer import open_tokenizer
from inheritune.errors import RecipeError, SourceError
from inheritune.model_files.config import cut_config, max_positions
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.model_files.flops import EVALUATION_SHARE
from inheritune.recipe.data import Data
from inheritune.recipe.filling import DEFAULT_METHOD, METHODS, Facts, Method, fill, method_note
from inheritune.recipe.load import (
    RecipeFile,
    made_recipe,
    override,
    parse_recipe,
    read_sets,
)
from inheritune.recipe.rules import (
    LONGEST_SEQUENCE,
    Split,
    TextFacts,
    choose_split,
    number,
    tokens_in,
    windows_in,
)
from inheritune.recipe.schema import Recipe
from inheritune.recipe.values import amount_of_tokens
from inheritune.recipe.written import written_recipe
from inheritune.recipe.yaml_tree import Tree, dotted
from inheritune.reporting.quantities import amount, counted, percent
from inheritune.run.first_request import FirstRun
from inheritune.steps.growth import Growth
from inheritune.steps.initial_weights import check_starts
from inheritune.steps.speed_probe import seconds_per_token, speedup
from inheritune.steps.training_spec import first_count, inherited_layers
from inheritune.surgery.selection import choose_layers, way_of
from inheritune.surgery.sizes import Sizes
from inheritune.surgery.ways import LayerFacts
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.signals import StopFlag

DEFAULT_MINUTES = 15.0
_GUESSED_STEPS = 20  # of one sequence, to check a recipe before its tokens are known


def first_recipe(request: FirstRun, stop: StopFlag, on_progress: Listener = silent) -> RecipeFile:
    """Fill in a recipe by the rules of `recipe.rules`, and measure the speed where it takes that.

    Args:
        stop: Stop flag, read while the text is read and between the measured steps.
        on_progress: Receives a message for each fact.

    Returns:
        The recipe with its text. Nothing is written.

    Raises:
        RecipeError: A value is wrong, or the reference has no such layers.
        SourceError: The model is missing, broken or not supported.
        DataError: The text is missing, broken or too short; or the model has no tokenizer.
        MachineError: The Hub cannot be reached, or the memory is too small.
        Interrupted: ``stop`` was set.
    """

    def say(message: str) -> None:
        on_progress(Progress("recipe", message=message))

    # --- the model, and every value that is given: checked before anything takes time ---
    given = read_sets(request.sets).value
    revision = _section(given, "reference").get("revision")
    model = open_model(request.model, revision if type(revision) is str else None, whole=False)
    facts = _facts_of_model(request, model, given)
    facts = replace(facts, method=_possible_method(request, model, facts, given, say))
    draft = _recipe_of(request, facts, given).recipe
    tokenizer = open_tokenizer(model.path)

    # --- the text ---
    text, ids = sample_text(draft.data, tokenizer, stop)
    split = _split_of(text, facts.split.seq_len, given)
    facts = replace(facts, split=split)

    # --- the tokens: given, or what the time is enough for ---
    tokens = number(_section(given, "train"), "tokens")
    if tokens is None and request.tokens is not None:
        tokens = amount_of_tokens(request.tokens)
    if tokens is None:
        seconds = 60 * (request.minutes or DEFAULT_MINUTES)
        draft = _recipe_of(request, facts, given).recipe
        say("measuring the speed of this machine by some steps, which are thrown away")
        shared, assumed = speedup(request.processes)
        rounds, reference = _round_speeds(model, draft, IdStream(ids), stop)
        rounds, reference = [each / shared for each in rounds], reference / shared
        windows = windows_in(seconds, rounds, reference, split.seq_len)
        facts = replace(facts, split=_split_of(text, split.seq_len, given, windows))
        tokens = tokens_in(seconds, rounds, reference, facts.split)
        minutes = seconds / 60
        time = f"{minutes:,g} minute{'' if minutes == 1 else 's'}"
        speed = f"{time} at {1 / rounds[0]:,.0f} tokens/s"
        measured = "measured" + " in one process" * bool(assumed)
        facts = replace(facts, tokens_reason=f"per round: {speed}, {measured}")
        say(
            f"{speed}: {amount(tokens)} tokens per round, {counted(len(rounds), 'round')} at most. "
            f"Repair of the cut, analysis and report come on top{assumed}"
        )
    say(_about_text(text, facts.split))
    return _recipe_of(request, replace(facts, tokens=tokens), given)


def _section(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = given.get(name)
    return section if isinstance(section, dict) else {}


def _facts_of_model(request: FirstRun, model: ModelDirectory, given: Mapping[str, Any]) -> Facts:
    """Take all facts from the model and the request, with a guess of those about the text."""
    longest = min(max_positions(model.config) or LONGEST_SEQUENCE, LONGEST_SEQUENCE)
    seq_len = number(_section(given, "train"), "seq_len") or longest
    return Facts(
        name=request.run_name,
        model=request.model,
        reference_layers=model.layers,
        params=Sizes(model).counts(range(model.layers), seq_len).params,
        source=request.text,
        layers=_layers_of(request.layers, model.layers),
        split=Split(seq_len, Data.model_fields["val_fraction"].default, None, None),
        tokens=_GUESSED_STEPS * seq_len,
        processes=request.processes,
    )


def _layers_of(layers: str | None, total: int) -> int | str | None:
    """Check a selection; return its number of first layers, or the text if it chooses others."""
    if layers is None:
        return None
    chosen = choose_layers(layers, LayerFacts(total), estimate=True)
    return len(chosen) if way_of(layers) == "first" else layers


def _possible_method(
    request: FirstRun,
    model: ModelDirectory,
    facts: Facts,
    given: Mapping[str, Any],
    say: Callable[[str], None],
) -> Method:
    """Return the first form of a method that class and overrides take; the last, if they take none.

    The run says itself, with the reason, why the last one is impossible.
    """
    *better, last = METHODS[request.method or DEFAULT_METHOD]
    refused: list[str] = []
    for method in better:
        try:
            draft = _recipe_of(request, replace(facts, method=method), given).recipe
            first = first_count(draft, model.layers)
            growth = Growth.of(draft, model, first, draft.grow.max_layers or model.layers)
            check_starts(draft, model, growth.ends())
        except (RecipeError, SourceError) as error:
            refused.append(f"{_form(method)}: not here. {error.message}")
        else:
            break
    else:
        method = last
        _recipe_of(request, replace(facts, method=method), given)  # a wrong value is refused now
    for message in refused:
        say(message)
    if refused:
        say(f"taken: {_form(method)}. For the paper's own method: --method paper")
    return method


def _form(method: Method) -> str:
    return f"{method.select} layers, repair {method.repair}"


def _split_of(
    text: TextFacts, longest: int, given: Mapping[str, Any], windows: int | None = None
) -> Split:
    """Choose sequences and validation; what is given stays."""
    share = _section(given, "data").get("val_fraction")
    return choose_split(
        text,
        longest,
        *(() if windows is None else (windows,)),
        seq_len=number(_section(given, "train"), "seq_len"),
        val_fraction=share if isinstance(share, float) else None,
    )


def _about_text(text: TextFacts, split: Split) -> str:
    tokens = "a Hub dataset" if text.tokens is None else f"about {amount(text.tokens)} tokens"
    windows = "" if split.windows is None else f": about {counted(split.windows, 'window')}"
    return (
        f"{tokens} of text, in sequences of {split.seq_len:,}; {percent(split.val_fraction)} of "
        f"the documents are held out{windows}"
    )


def _round_speeds(
    model: ModelDirectory, draft: Recipe, stream: IdStream, stop: StopFlag
) -> tuple[list[float], float]:
    """Measure the target of the first round; all others are slower by their FLOPs per token.

    Returns:
        Seconds per training token of each round, if none of them matches, and of the reference.
    """
    first = first_count(draft, model.layers)
    sizes = Growth.of(draft, model, first, draft.grow.max_layers or model.layers).longest()
    counts = Sizes(model)

    def layers_of(size: int) -> tuple[int, ...]:
        return inherited_layers(draft, draft.target_name, LayerFacts(model.layers), size)

    def flops(layers: Sequence[int]) -> float:
        return counts.counts(layers, draft.train.seq_len).flops_per_token

    rounds = [layers_of(size) for size in sizes]
    # The reference runs beside a distillation, forward only.
    distill = draft.variants[draft.target_name].distill
    beside = 0.0 if distill is None else flops(range(model.layers)) * EVALUATION_SHARE
    config, _ = cut_config(model.config, rounds[0])
    seconds = seconds_per_token(config, draft.train, stream, flops(rounds[0]), stop)
    per_flop = seconds / flops(rounds[0])
    seconds_of_rounds = [per_flop * (flops(layers) + beside) for layers in rounds]
    return seconds_of_rounds, per_flop * flops(range(model.layers))


def _recipe_of(request: FirstRun, facts: Facts, given: Mapping[str, Any]) -> RecipeFile:
    """Fill in the recipe, put the overrides of the request into it, and write it as text."""
    values, comments = fill(facts, _section(given, "train"))
    tree = Tree("the recipe", values)
    for text in request.sets:
        override(tree, text)
    made_recipe(tree)  # a wrong value is named as it was given
    for path in tree.places:
        comments.pop(dotted(path), None)
    method = method_note(request.method or DEFAULT_METHOD, facts.method)
    heading = [
        request.command,
        method,
        "The same command continues the run, as does: inheritune run FILE",
    ]
    return parse_recipe(
        written_recipe(tree.value, comments, heading), Path(f"{request.run_name}.yaml")
    )
