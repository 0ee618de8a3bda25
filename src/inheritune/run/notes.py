"""Write the notes of a run: sentences that a reader needs to weigh its figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inheritune.data.tokens import TokenDirectory
from inheritune.recipe.published import deviations
from inheritune.recipe.schema import Recipe
from inheritune.recipe.variants import Match
from inheritune.reporting.criteria import limits
from inheritune.run.derive import Outcome
from inheritune.run.ledger import count_matched
from inheritune.steps.seeds import together
from inheritune.training.tokenization import compare_tokenization


def run_notes(outcome: Outcome, recipe: Recipe) -> list[str]:
    """Sentences on seeds, reference, repeats of text, growth, distillation and deviations."""
    notes = [*_seed_notes(outcome, recipe), *_reference_notes(outcome)]
    trainings = [*outcome.rounds, *outcome.controls]
    epochs = max(training.epochs for training in trainings)
    if epochs > 1:
        notes.append(f"The longest training passed over its text {epochs:.1f} times.")
    for name, variant in recipe.variants.items():
        if variant.parts.startswith("paper-code"):
            notes.append(
                f"{name} is a control ({variant.parts}): it leaves out what the authors' code does "
                "not copy, and is no result of the method."
            )
    notes += _growth_notes(outcome, recipe)
    notes += _tokenization_notes(outcome.reference.model.path, outcome.tokens)
    notes += [note for note in outcome.target.notes if note.startswith("Published in")]
    for name, distill in {t.name: t.distill for t in trainings}.items():
        if distill is not None:
            notes.append(
                f"{name} also learnt from the reference's distributions: its training loss is "
                f"{_loss_formula(distill)}. val_loss, which is compared, is cross-entropy alone, "
                "as for all others."
            )
    for training in [*trainings, *outcome.repeats]:
        shared = (training.repair or {}).get("shared", {})
        if "repair" in shared:
            made_for = shared["repair"]["made_for"]
            notes.append(
                f"{training.path} starts from the repair that was made for {made_for}; it was "
                "not made again."
            )
    skipped = sum(training.skipped for training in trainings)
    if skipped:
        notes.append(f"{skipped} steps were skipped because a value was not finite.")
    return notes + deviations(recipe.resolved())


def _tokenization_notes(model: Path, tokens: TokenDirectory) -> list[str]:
    """Sentences where users, or tasks, get other ids than the run was trained on."""
    found = compare_tokenization(model)
    if found is None:
        return []
    notes = list(found.differences)
    if found.puts_bos and tokens.manifest["policy"]["bos"] is None:
        notes.append(
            "The imported tokens have no BOS before documents, and the tokenizer puts one before "
            "prompts and questions; `evaluate.add_bos: no` asks without it."
        )
    return notes


def _reference_notes(outcome: Outcome) -> list[str]:
    reference, notes = outcome.reference, []
    if reference.taken_from is not None:
        notes.append(
            f"The reference was trained by another run and taken from {reference.taken_from}; its "
            "cost is listed as borrowed and is not in the totals."
        )
    elif not reference.trained_here:
        notes.append(
            "The reference was trained before this run; its cost is listed as borrowed and is not "
            "in the totals."
        )
    reference_tokens = reference.training.get("tokens") or 0
    better = [
        control
        for control in outcome.controls
        if control.start == "fresh" and control.distill is None
        if control.layers < reference.layers and control.tokens <= reference_tokens
        if control.val_loss <= outcome.benchmark.val_loss
    ]
    if better:
        notes.append(
            f"The reference is undertrained: {better[0].name}, with fewer layers and no more "
            "tokens, is at least as good. Matching it shows a warm start, not the finding."
        )
    return notes


def _seed_notes(outcome: Outcome, recipe: Recipe) -> list[str]:
    if not outcome.repeats:
        return ["1 seed: each variant was trained once, and differences between seeds are unknown."]
    notes, target = [], together([outcome.target], outcome.repeats)[0]
    if len(target.results) > 1:
        notes.append(
            f"With {target.first.layers} layers the target matched in "
            f"{count_matched(target, recipe)} of {len(target.results)} seeds; growth was decided "
            f"by the first, {target.first.seed}, whose model is the result."
        )
    once = [name for name in recipe.variants if len(recipe.seeds_of(name)) == 1]
    if once:
        notes.append(f"1 seed: {', '.join(once)}. The spread over seeds is not known there.")
    return notes


def _growth_notes(outcome: Outcome, recipe: Recipe) -> list[str]:
    notes = []
    if outcome.target.first_sample:
        notes.append(
            "Each round continued from the trained layers of the one before: the target saw the "
            "tokens of all rounds."
        )
    if outcome.target.is_patched:
        notes.append(
            f"The target is {outcome.target.made_of}: it matches with no training of its own, and "
            "its tokens are those of the rounds before it."
        )
    notes += outcome.growth.notes
    if recipe.grow.search == "bisect" and len(outcome.rounds) > 1:
        notes.append(
            "Sizes were searched by bisection: the target is the smallest that matches only if "
            "more layers never do worse."
        )
    trained = {control.name for control in outcome.controls}
    for name, variant in recipe.variants.items():
        if variant.start == "grown" and name not in trained:
            notes.append(f"{name} was not trained: the target needed one size only.")
    if (tournament := outcome.reference.tournament) is not None:
        tokens = sum(row["tokens"] for s in tournament["stages"] for row in s["candidates"])
        notes.append(
            f"The layers were chosen by a tournament on training text: {tournament['winner']} won, "
            f"after {tokens:,} tokens of training in {len(tournament['stages'])} stages."
        )
    if recipe.grow.match != Match():
        notes.append(f"Matched means: {'; '.join(limits(recipe.grow.match.model_dump()))}.")
    return notes


def _loss_formula(distill: Mapping[str, Any]) -> str:
    alpha, temperature = distill["alpha"], distill["temperature"]
    scale = "" if temperature == 1 else f" x {temperature:g}^2"
    ids = f" over the {distill['top_k']} likeliest ids and the rest" if distill["top_k"] else ""
    if isinstance(alpha, Mapping):
        peak, end = alpha["peak"], alpha["end"]
        text = f"a x cross-entropy + (1 - a){scale} x KL divergence{ids}, where a goes from "
        text = f"{text}{peak:g} at the peak of the learning rate to {end:g} at its end"
    else:
        text = f"{alpha:g} x cross-entropy + {1 - alpha:g}{scale} x KL divergence{ids}"
    if (hidden := distill.get("hidden")) is None:
        return text
    return f"{hidden['weight']:g} x {hidden['loss']} distance of hidden states + {text}"
