"""State what is known of a run's reference, its loss, and the target's rounds, for run.json."""

from collections.abc import Sequence

from inheritune.model_files.card import reference_fields
from inheritune.recipe.variants import Match
from inheritune.run_record.trainings import CurvePoint, ReferenceFacts, ReferenceLoss, TrainedModel
from inheritune.steps.benchmark import Benchmark
from inheritune.steps.match import verdicts_of
from inheritune.steps.reference import Reference
from inheritune.steps.result import TrainingResult


def reference_facts(reference: Reference) -> ReferenceFacts:
    """State the name, the size and the own training of the reference."""
    training = reference.training
    return ReferenceFacts(
        model=reference.name,
        layers=reference.layers,
        params=reference.params,
        revision=reference.model.revision,
        digest=reference.model.digest,
        trained_tokens=training.get("tokens"),
        trained_here=reference.trained_here,
        taken_from=reference.taken_from,
        curve=[CurvePoint.model_validate(point) for point in training.get("curve", [])],
        card=reference_fields(reference.model),
    )


def reference_loss(benchmark: Benchmark) -> ReferenceLoss:
    """State the reference's loss on the held-out text."""
    return ReferenceLoss(
        val_loss=benchmark.val_loss,
        val_loss_se=benchmark.val_loss_se,
        windows=len(benchmark.windows),
        bits_per_byte=benchmark.bits_per_byte,
    )


def round_rows(
    rounds: Sequence[TrainingResult],
    verdicts: Sequence[str],
    match: Match,
    target: TrainingResult | None = None,
) -> list[TrainedModel]:
    """List the rounds of the target with their verdicts, in all and on each criterion."""
    return [
        TrainedModel.model_validate(
            training.summary()
            | {"round": number, "outcome": verdict, "is_target": training is target}
            | {"criteria": verdicts_of(training, match)}
        )
        for number, (training, verdict) in enumerate(zip(rounds, verdicts, strict=True), 1)
    ]
