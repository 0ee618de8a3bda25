"""What a plan tells in sentences: what may surprise, and what cannot be counted yet."""

from collections.abc import Sequence
from pathlib import Path

from inheritune.planning.memory import Memory
from inheritune.planning.trainings import PlannedTraining
from inheritune.recipe.schema import Recipe
from inheritune.steps.borrowed import read_benchmark
from inheritune.steps.growth import Growth
from inheritune.system.devices import Speed

__all__ = ["growth_notes", "training_notes"]


def growth_notes(recipe: Recipe, growth: Growth) -> list[str]:
    """Of the rounds there may be, and the benchmark that ends them."""
    said, rules = list(growth.notes), recipe.grow
    if rules.abandon == "auto" and len(growth.longest()) > 1:
        end = "and is trained to its end all the same" if rules.audit else "and ends there"
        said.append(
            f"A round that cannot reach the benchmark is known by its fitted curve, {end}; the "
            "last that there can be is never given up. Rounds are counted whole."
        )
    if rules.benchmark is not None:
        known = read_benchmark(Path(rules.benchmark).expanduser())
        said.append(
            f"The benchmark is borrowed: {known.val_loss:.4f} nats, from {rules.benchmark}. What "
            "it was measured on is compared when the text is prepared."
        )
    if len(growth.longest()) == 1:
        grown = [name for name, variant in recipe.variants.items() if variant.start == "grown"]
        said += [f"{name} is not trained: there is one round only." for name in grown]
    return said


def training_notes(
    recipe: Recipe,
    trainings: Sequence[PlannedTraining],
    unique: int | None,
    exact: bool,
    memory: Memory,
    speed: Speed | None,
) -> list[str]:
    """Of the trainings together.

    Args:
        recipe: What would be done.
        trainings: In the order of the run.
        unique: Tokens of an epoch; None: not known yet.
        exact: Whether that is counted, not asked for.
        memory: Of the training that needs the most.
        speed: What it would run on; None: no device was named.
    """
    said = []
    longest = max(training.tokens for training in trainings)
    if unique is None:
        said.append("Epochs are known when the text is: inheritune prepare.")
    elif longest > unique and not recipe.data.allow_repeat:
        said.append(
            f"The text has {'' if exact else 'at most '}{unique:,} tokens and the longest training "
            f"{longest:,}: it will be refused unless data.allow_repeat is true."
        )
    if speed is not None and memory.total > (speed.device.memory_bytes or memory.total):
        said.append(
            f"The estimated memory exceeds that of one {speed.device.title}: lower "
            "train.micro_batch, or choose another device."
        )
    distilled = dict.fromkeys(t.name for t in trainings if t.reference_flops)
    if distilled:
        said.append(
            f"FLOPs include the reference's forward passes for {', '.join(distilled)}: "
            f"{sum(t.reference_flops or 0.0 for t in trainings):.2e} together."
        )
    trained = recipe.reference.train
    if trained is not None and trained.keep_in is not None:
        said.append(
            f"The reference is taken from {trained.keep_in}, at no cost, where another run has "
            "left the same."
        )
    if any(v.tokens == "equal_compute" for v in recipe.variants.values()):
        said.append("A control with equal compute is counted for all rounds.")
    if recipe.inherit.layers == "advice":
        said.append(
            "Counted with half of the layers first; a run begins with as many as the analysis of "
            "the reference's attention advises."
        )
    return said
