"""The whole method, top to bottom, on one screen."""

from dataclasses import dataclass, replace
from itertools import count

from inheritune.checkpoints.config import text_config
from inheritune.data.tokens import TokenDirectory
from inheritune.errors import RecipeError
from inheritune.recipe import Recipe
from inheritune.steps.analysis import asks_for_ranks, ranked
from inheritune.steps.arms import Arm, arms_of, round_depths
from inheritune.steps.job import Job
from inheritune.steps.reference import Benchmark, Reference, measure_benchmark, open_reference
from inheritune.steps.seeds import repeat_arms
from inheritune.steps.starts import check_starts
from inheritune.steps.tokens import prepare_tokens
from inheritune.steps.training import Trial
from inheritune.steps.variants import control_arms, publish_target, train_arm

__all__ = ["Outcome", "derive", "first_layers", "judge"]

# A difference within this many standard errors of the tolerance is called noise.
_NOISE_SE = 2.0


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        verdicts: Of each round: ``"matched"``, ``"matched_within_noise"`` or ``"not_matched"``.
        reference: The model that was inherited from.
        tokens: What everything was trained and validated on.
        benchmark: The reference's val_loss.
        rounds: The target at each size; the last one is the result.
        controls: The other variants.
        repeats: The last round and the controls again, with further seeds.
    """

    verdicts: list[str]
    reference: Reference
    tokens: TokenDirectory
    benchmark: Benchmark
    rounds: list[Trial]
    controls: list[Trial]
    repeats: list[Trial]

    @property
    def target(self) -> Trial:
        """The model that the run is for."""
        return self.rounds[-1]

    @property
    def verdict(self) -> str:
        """Of the last round."""
        return self.verdicts[-1]


def derive(job: Job) -> Outcome:
    """Inherit, train, and grow until the target matches its reference; then train the controls.

    Raises:
        InherituneError: A step could not be done; what was done before stays and is not repeated.
    """
    recipe = job.recipe
    reference = open_reference(job)
    layers, max_layers = first_layers(recipe, reference)
    check_starts(recipe, reference.model, round_depths(recipe.grow, layers, max_layers))
    tokens = prepare_tokens(job, reference.model.path)
    if asks_for_ranks(recipe):
        reference = ranked(job, reference, tokens)
        layers, max_layers = first_layers(recipe, reference)
        depths = round_depths(recipe.grow, layers, max_layers)
        check_starts(recipe, reference.model, depths, laziest=reference.laziest)
    benchmark = measure_benchmark(job, reference, tokens)
    target_tokens = recipe.tokens_of(recipe.target)
    assert target_tokens is not None  # the recipe refuses equal_compute for the target

    rounds: list[Trial] = []
    verdicts: list[str] = []
    tried: list[Arm] = []
    for number in count(1):
        arm = arms_of(recipe, recipe.target, reference.layers, layers, target_tokens)[0]
        if rounds and recipe.grow.weights == "keep":
            seen = sum(trial.tokens for trial in rounds) // recipe.train.seq_len
            arm = replace(arm, grown_from=rounds[-1].path, first_sample=seen)
        tried.append(arm)
        rounds.append(train_arm(job, arm, reference, tokens, benchmark))
        verdicts.append(judge(rounds[-1], recipe.grow.tolerance))
        spent = number == recipe.grow.max_rounds or not recipe.grow.add or layers == max_layers
        if verdicts[-1] == "matched" or spent:
            break
        layers = min(layers + recipe.grow.add, max_layers)
    publish_target(job, rounds[-1])

    arms = control_arms(job, reference, rounds)
    controls = [train_arm(job, arm, reference, tokens, benchmark) for arm in arms]
    again = repeat_arms(recipe, tried, arms)
    repeats = [train_arm(job, arm, reference, tokens, benchmark) for arm in again]
    return Outcome(verdicts, reference, tokens, benchmark, rounds, controls, repeats)


def judge(trial: Trial, tolerance: float) -> str:
    """Compare a target with its reference on the same windows.

    Args:
        trial: Its `difference` is val_loss - benchmark, nats per token, with a standard error.
        tolerance: Nats above the benchmark that still count as matched.

    Returns:
        ``"matched"`` when the difference is at most the tolerance, ``"matched_within_noise"``
        when it is above it by at most two standard errors, else ``"not_matched"``. Growth goes
        on until a round is matched outright: a small validation set must not make it easier.
    """
    if trial.difference <= tolerance:
        return "matched"
    if trial.difference <= tolerance + _NOISE_SE * (trial.difference_se or 0.0):
        return "matched_within_noise"
    return "not_matched"


def first_layers(recipe: Recipe, reference: Reference) -> tuple[int, int]:
    """Layers of the first round, and the most there may be.

    Where the recipe takes the advice and the reference was not looked at yet: half of them.

    Raises:
        RecipeError: The recipe asks for more layers, or more ids, than the reference has.
    """
    most = recipe.grow.max_layers or reference.layers
    layers = recipe.inherit.layers
    if layers == "advice":
        layers = min(reference.advised_layers or max(1, reference.layers // 2), most)
    layers = layers or max(1, reference.layers // 2)
    asked = {"inherit.layers": layers, "grow.max_layers": most}
    own = {name: variant.layers for name, variant in recipe.variants.items()}
    asked |= {f"variants.{n}.layers": count for n, count in own.items() if isinstance(count, int)}
    for key, value in asked.items():
        if value > reference.layers:
            raise RecipeError(
                f"{key} is {value}, but {reference.name} has {reference.layers} layers.",
                f"Choose between 1 and {reference.layers}.",
            )
    _refuse_more_ids(recipe, reference)
    if layers > most:
        raise RecipeError(
            f"inherit.layers is {layers}, above grow.max_layers {most}.", "Raise the second."
        )
    return layers, most


def _refuse_more_ids(recipe: Recipe, reference: Reference) -> None:
    rows = text_config(reference.model.config).get("vocab_size")
    for name, variant in recipe.variants.items():
        asked = None if variant.distill is None else variant.distill.top_k
        if asked is not None and isinstance(rows, int) and asked >= rows:
            raise RecipeError(
                f"variants.{name}.distill.top_k is {asked}, but {reference.name} has {rows} ids.",
                "Lower it, or leave it out: all of them are then compared.",
            )
