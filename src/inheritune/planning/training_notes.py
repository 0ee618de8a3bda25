"""Note what may surprise about the trainings of a run."""

from collections.abc import Callable, Sequence

from inheritune.model_files.flops import EVALUATION_SHARE
from inheritune.planning.trainings import PlannedTraining
from inheritune.recipe.schema import Recipe
from inheritune.recipe.variants import Match
from inheritune.reporting.criteria import limits
from inheritune.steps.fidelity import needs_fidelity
from inheritune.steps.growth import Growth


def growth_notes(
    recipe: Recipe, growth: Growth, flops_per_token: Callable[[int], float]
) -> list[str]:
    """List remarks on the rounds.

    Args:
        flops_per_token: Called with a size of the target, or the reference's.
    """
    notes = list(growth.notes)
    if recipe.grow.patch and (sizes := growth.above(growth.sizes[0])):
        times = len(growth.longest()) if recipe.grow.add else 1
        # val_loss takes a forward pass of a size, its fidelity one more, and the reference's.
        compares = recipe.evaluate.gains or needs_fidelity(recipe)
        flops = sum(
            flops_per_token(size) * (1 + compares) + flops_per_token(growth.total) * compares
            for trained in (growth.longest() if recipe.grow.add else growth.sizes[:1])
            for size in growth.above(trained)
        )
        notes.append(
            f"grow.patch: up to {len(sizes)} larger sizes, of {sizes[0]} to {sizes[-1]} layers, "
            f"are validated after each of {times} rounds; nothing of them is trained. That takes "
            f"{EVALUATION_SHARE * flops:.1e} FLOPs for each token of the validation text, beside "
            "those of the table."
        )
    if recipe.grow.match != Match():
        notes.append(f"Matched means: {'; '.join(limits(recipe.grow.match.model_dump()))}.")
    if len(growth.longest()) == 1:
        grown = [name for name, variant in recipe.variants.items() if variant.start == "grown"]
        notes += [f"{name} is not trained: there is one round only." for name in grown]
    return notes


def training_notes(
    recipe: Recipe,
    trainings: Sequence[PlannedTraining],
    unique: int | None,
    exact: bool,
) -> list[str]:
    """List remarks on the trainings: repeats, forward passes of the reference.

    Args:
        unique: Tokens of an epoch; None: not known yet.
        exact: True if `unique` was counted, false if it is the recipe's limit.
    """
    notes = []

    # --- what may stop the run: too little text ---
    longest = max(training.tokens // (training.candidates or 1) for training in trainings)
    if unique is None:
        notes.append("Epochs are known once the text is prepared: inheritune prepare.")
    elif longest > unique and not recipe.data.allow_repeat:
        notes.append(
            f"The text has {'' if exact else 'at most '}{unique:,} tokens, and the longest "
            f"training needs {longest:,}: it will be refused unless data.allow_repeat is true."
        )

    # --- how the estimates were made ---
    distilled = dict.fromkeys(t.name for t in trainings if t.reference_flops)
    if distilled:
        notes.append(
            f"FLOPs include the reference's forward passes for {', '.join(distilled)}: "
            f"{sum(t.reference_flops or 0.0 for t in trainings):.2e} together."
        )
    if repaired := [t for t in trainings if t.repair_flops]:
        names = ", ".join(dict.fromkeys(t.name for t in repaired))
        total = sum(t.repair_flops or 0.0 for t in repaired)
        notes.append(f"FLOPs include the repairs of {names}: {total:.2e} together.")
    if shared := dict.fromkeys(t.name for t in trainings if t.shared_repair_flops):
        notes.append(
            f"Repairs of {', '.join(shared)} are made once, with an earlier training of the same "
            "cut and seed."
        )
    trained = recipe.reference.train
    if trained is not None and trained.keep_in is not None:
        notes.append(
            f"The reference costs nothing if another run has left the same one in "
            f"{trained.keep_in}."
        )
    if any(v.tokens == "equal_compute" for v in recipe.variants.values()):
        notes.append("Equal-compute controls are estimated for all rounds.")
    if recipe.inherit.layers == "advice":
        notes.append(
            "Estimated with half of the layers in the first round; a run starts with the number "
            "that the analysis of the reference's attention suggests."
        )
    return notes
