"""The whole method, top to bottom, on one screen."""

from dataclasses import dataclass

from inheritune.data.tokens import TokenDirectory
from inheritune.recipe.schema import Recipe
from inheritune.steps.analysis import asks_for_ranks, ranked
from inheritune.steps.controls import control_specs, publish_target, train_variant
from inheritune.steps.growth import Growth, first_layers, round_spec
from inheritune.steps.initial_weights import check_starts
from inheritune.steps.job import Job
from inheritune.steps.reference import Benchmark, Reference, measure_benchmark, open_reference
from inheritune.steps.result import TrainingResult
from inheritune.steps.seeds import repeat_specs
from inheritune.steps.tokens import prepare_tokens
from inheritune.steps.trainings import TrainingSpec
from inheritune.system.progress import Progress

__all__ = ["Outcome", "derive", "judge"]

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
        rounds: The target at each size, in the order of training.
        chosen: Which of them is the result: the smallest that matched, or else the last one.
        growth: The sizes there might have been.
        controls: The other variants.
        repeats: The last round and the controls again, with further seeds.
    """

    verdicts: list[str]
    reference: Reference
    tokens: TokenDirectory
    benchmark: Benchmark
    rounds: list[TrainingResult]
    chosen: int
    growth: Growth
    controls: list[TrainingResult]
    repeats: list[TrainingResult]

    @property
    def target(self) -> TrainingResult:
        """The model that the run is for."""
        return self.rounds[self.chosen]

    @property
    def verdict(self) -> str:
        """Of the target."""
        return self.verdicts[self.chosen]


def derive(job: Job) -> Outcome:
    """Inherit, train, and grow until the target matches its reference; then train the controls.

    Raises:
        InherituneError: A step could not be done; what was done before stays and is not repeated.
    """
    recipe = job.recipe
    reference = open_reference(job)
    growth = _growth(recipe, reference)
    tokens = prepare_tokens(job, reference.model.path)
    if asks_for_ranks(recipe):
        reference = ranked(job, reference, tokens)
        growth = _growth(recipe, reference)
    for note in growth.notes:
        job.on_progress(Progress("growth", message=note))
    benchmark = measure_benchmark(job, reference, tokens)

    rounds: list[TrainingResult] = []
    verdicts: list[str] = []
    done: list[TrainingSpec] = []
    tried: dict[int, bool] = {}  # layers, and whether they matched
    while (layers := growth.next_size(tried)) is not None:
        arm = round_spec(recipe, reference.layers, rounds, layers)
        done.append(arm)
        rounds.append(train_variant(job, arm, reference, tokens, benchmark))
        verdicts.append(judge(rounds[-1], recipe.grow.tolerance))
        tried[layers] = verdicts[-1] == "matched"
    target = min((trial for trial in rounds if tried[trial.layers]), key=_size, default=rounds[-1])
    publish_target(job, target)

    chosen = rounds.index(target)
    arms = control_specs(job, reference, rounds, target)
    controls = [train_variant(job, arm, reference, tokens, benchmark) for arm in arms]
    again = repeat_specs(recipe, done[: chosen + 1], arms)
    repeats = [train_variant(job, arm, reference, tokens, benchmark) for arm in again]
    found = (rounds, chosen, growth, controls, repeats)
    return Outcome(verdicts, reference, tokens, benchmark, *found)


def _growth(recipe: Recipe, reference: Reference) -> Growth:
    """The sizes that the target may have; no control may be impossible at any of them."""
    growth = Growth.of(recipe, reference.model, *first_layers(recipe, reference))
    check_starts(recipe, reference.model, growth.ends(), layers_by_rank=reference.layers_by_rank)
    return growth


def _size(trial: TrainingResult) -> int:
    return trial.layers


def judge(trial: TrainingResult, tolerance: float) -> str:
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
