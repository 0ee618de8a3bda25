"""Rounds that were given up early: what the record keeps of the decision."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from inheritune.steps.trainings import TrainingSpec

if TYPE_CHECKING:
    from inheritune.training.loop import LoopResult

__all__ = ["abandoned_record", "tell_abandoned"]


def abandoned_record(
    arm: TrainingSpec, trained: "LoopResult", planned: int, val_loss: float
) -> dict[str, Any] | None:
    """The decision to give a training up, as JSON values; None where there was none.

    Args:
        arm: Of the training.
        trained: What it came to.
        planned: Tokens of the whole training.
        val_loss: Of the model at its end.

    Returns:
        The fields of `forecast.Decision`, with its confidence; ``saved_tokens``; whether the
        training was ``audited``, that is, went on to its end all the same; and then whether the
        decision was ``right``.
    """
    from inheritune.training.early_stop import CONFIDENCE

    if trained.decision is None:
        return None
    audited = trained.position.tokens > trained.decision.tokens
    return asdict(trained.decision) | {
        "confidence": CONFIDENCE,
        "planned_tokens": planned,
        "saved_tokens": planned - trained.decision.tokens,
        "audited": audited,
        "right": val_loss > trained.decision.goal if audited else None,
    }


def tell_abandoned(record: dict[str, Any]) -> str:
    """A decision as a sentence."""
    tokens, planned = record["tokens"], record["planned_tokens"]
    forecast = (
        f"it would end at {record['expected']:.4f}, above {record['lowest']:.4f} with "
        f"{record['confidence']:.0%} confidence, and was to reach {record['goal']:.4f}"
    )
    if not record["audited"]:
        return (
            f"abandoned after {tokens:,} of {planned:,} tokens, {record['saved_tokens']:,} saved: "
            f"{forecast}"
        )
    was = "right" if record["right"] else "wrong"
    return (
        f"trained to its end; abandoning it after {tokens:,} of {planned:,} tokens would have "
        f"saved {record['saved_tokens']:,} and would have been {was}: {forecast}"
    )
