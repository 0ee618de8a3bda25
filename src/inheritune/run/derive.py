"""Derive a small target from a large reference: the whole method, top to bottom, on one screen."""

from dataclasses import dataclass, replace

from inheritune.data.tokens import TokenDirectory
from inheritune.recipe.schema import Recipe
from inheritune.recipe.variants import Match
from inheritune.run.facts import reference_facts, reference_loss, round_rows
from inheritune.run.stages import Stages
from inheritune.run_record.trainings import TokenFacts
from inheritune.steps.analysis import asks_for_measurements, with_measurements
from inheritune.steps.benchmark import Benchmark, measure_benchmark
from inheritune.steps.controls import control_specs, publish_target, train_variant
from inheritune.steps.family import check_patched, first_match, patched_sizes
from inheritune.steps.fidelity import refuse_unmeasurable
from inheritune.steps.growth import Growth, first_layers, round_spec
from inheritune.steps.initial_weights import check_starts
from inheritune.steps.job import Job
from inheritune.steps.match import verdicts_of, with_task_loss, worst
from inheritune.steps.reference import Reference, open_reference
from inheritune.steps.repaired_start import refuse_short_text
from inheritune.steps.result import TrainingResult
from inheritune.steps.seeds import repeat_specs
from inheritune.steps.tokens import prepare_tokens
from inheritune.steps.training_spec import TrainingSpec
from inheritune.system.progress import Progress


@dataclass(frozen=True)
class Outcome:
    """Everything that a run has trained and measured."""

    reference: Reference  # the model that layers were inherited from
    tokens: TokenDirectory  # training and validation tokens of all models
    benchmark: Benchmark  # the reference's val_loss
    growth: Growth  # the sizes that the target could have
    rounds: list[TrainingResult]  # the target at each size, in the order of training
    # ``"matched"``, ``"matched_within_noise"`` or ``"not_matched"`` for each round
    verdicts: list[str]
    # Index of the final model in ``rounds``: the smallest that matched, or the last one
    target_round: int
    controls: list[TrainingResult]  # the other variants
    repeats: list[TrainingResult]  # the last round and the controls again, with further seeds
    # By layers of a round, its larger sizes that need no training; one that matched is a round, too
    patched: dict[int, list[TrainingResult]]

    @property
    def target(self) -> TrainingResult:
        """The final model."""
        return self.rounds[self.target_round]

    @property
    def verdict(self) -> str:
        """The verdict on the final model."""
        return self.verdicts[self.target_round]


def derive(job: Job, stages: Stages) -> Outcome:
    """Inherit, train, and grow until the target matches its reference; then train the controls.

    Every step is skipped when its result is in the run's directory already.

    Args:
        stages: Records each stage in run.json when it begins, and its results when they are there.

    Raises:
        InherituneError: A step failed; the steps before it stay and are not repeated.
    """
    recipe, job = job.recipe, replace(job, on_progress=stages.on_progress)

    # --- the reference, the tokens, and the loss to reach ---
    stages.begin("reference")
    reference = open_reference(job)
    growth = _growth(recipe, reference)
    refuse_unmeasurable(recipe, reference)
    stages.plan(recipe, growth)
    stages.known(reference=reference_facts(reference))
    stages.begin("text")
    tokens = prepare_tokens(job, reference.model.path)
    refuse_short_text(recipe, tokens)
    if asks_for_measurements(recipe):  # that decide how many layers, or which
        reference = with_measurements(job, reference, tokens)
        growth = _growth(recipe, reference)
    for note in growth.notes:
        job.on_progress(Progress("growth", message=note))
    stages.begin("reference loss")
    stages.known(tokens=TokenFacts.model_validate(tokens.summary()))
    benchmark = measure_benchmark(job, reference, tokens)
    stages.known(benchmark=reference_loss(benchmark))

    def train(spec: TrainingSpec) -> TrainingResult:
        stages.begin(spec.title, spec)
        return train_variant(job, spec, reference, tokens, benchmark)

    # --- inherit and train; with more layers, until a round matches ---
    specs: list[TrainingSpec] = []
    rounds: list[TrainingResult] = []
    verdicts: list[str] = []
    patched: dict[int, list[TrainingResult]] = {}
    matched: dict[int, bool] = {}  # by number of layers, in the order of the rounds
    while (layers := growth.next_size(matched)) is not None:
        specs.append(round_spec(recipe, reference.facts, rounds, layers))
        rounds.append(with_task_loss(job, train(specs[-1]), reference))
        verdicts.append(judge(rounds[-1], recipe.grow.match))
        # More layers do not mend what rounding has cost a target that matches in fp32.
        is_rounded_away = rounds[-1].is_moved_by_rounding
        in_fp32 = worst(verdicts_of(rounds[-1].in_fp32, recipe.grow.match))
        matched[layers] = "matched" in (verdicts[-1], in_fp32 if is_rounded_away else "")
        if recipe.grow.patch:  # up to the next round's size, layers put back may match for no token
            sizes, enough = growth.above(layers), growth.before_next(matched)
            larger = patched_sizes(job, rounds[-1], sizes, reference, tokens, benchmark)
            found = first_match(job, rounds[-1], larger, enough, reference, tokens, judge)
            patched[layers] = [found if found and r.layers == found.layers else r for r in larger]
            if found is not None:
                rounds.append(found)
                verdicts.append("matched")
                matched[found.layers] = True
        stages.known(rounds=round_rows(rounds, verdicts, recipe.grow.match))

    # A bisection goes down again: the smallest round that matched need not be the last.
    matches = [result for result in rounds if matched[result.layers]]
    target = min(matches, key=lambda result: result.layers, default=rounds[-1])
    target_round = rounds.index(target)
    publish_target(job, target)

    # --- the controls, then target and controls with further seeds ---
    specs_of_controls = control_specs(job, reference, rounds, target)
    trained = [result for result in rounds[: target_round + 1] if not result.is_patched]
    again = repeat_specs(recipe, specs[: len(trained)], specs_of_controls)
    controls, repeats = ([train(spec) for spec in listed] for listed in (specs_of_controls, again))
    if target.is_patched:  # layers come back into the last round of each seed
        last = trained[-1].name, trained[-1].layers
        for result in [result for result in repeats if (result.name, result.layers) == last]:
            repeats += patched_sizes(job, result, [target.layers], reference, tokens, benchmark)
    return Outcome(
        reference=reference,
        tokens=tokens,
        benchmark=benchmark,
        growth=growth,
        rounds=rounds,
        verdicts=verdicts,
        target_round=target_round,
        controls=controls,
        repeats=repeats,
        patched=patched,
    )


def _growth(recipe: Recipe, reference: Reference) -> Growth:
    """The sizes that the target may have; refuses controls that are impossible at any of them."""
    growth = Growth.of(recipe, reference.model, *first_layers(recipe, reference))
    check_starts(recipe, reference.model, growth.ends(), facts=reference.facts)
    check_patched(recipe, reference.model, growth, reference.facts)
    return growth


def judge(result: TrainingResult, match: Match) -> str:
    """Compare a target with its reference on the same validation windows, and the same tasks.

    Returns:
        The worst of `verdicts_of`: ``"matched"``, ``"matched_within_noise"`` or ``"not_matched"``.
        Only ``"matched"`` ends growth: a small validation set must not make matching easier.
    """
    return worst(verdicts_of(result, match))
