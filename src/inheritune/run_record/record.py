"""Define run.json: its sections, and the facts that follow from them.

Every field is optional, so that the record of an unfinished run, or of an older or newer version,
can be read. A value of the wrong kind counts as missing; unknown fields are kept.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from inheritune.errors import DataError, escape
from inheritune.run_record.fields import (
    Maybe,
    Number,
    Rows,
    Text,
    Texts,
    Values,
    finite_number,
    items,
    key,
    mapping,
    mapping_or_empty,
    part,
)
from inheritune.run_record.measurements import (
    AnalysisRecord,
    EvaluationRecord,
    GainsRecord,
    PatchedSizeRecord,
    Sample,
    SelectionRecord,
    TournamentRecord,
)
from inheritune.run_record.trainings import (
    LedgerEntry,
    ReferenceFacts,
    ReferenceLoss,
    Result,
    StageRecord,
    StartRecord,
    TokenFacts,
    TrainedModel,
)
from inheritune.system.reading import read_regular_file
from inheritune.system.strict_json import OWN_FILE

FORMAT = 1
# Value of `command`: the directory was made from a recipe, or by `train MODEL TOKENS OUT`.
RUN, TRAIN = "run", "train"


@dataclass(frozen=True)
class TrainingCost:
    """Cost of one or several trainings; None where the record does not have it."""

    tokens: float | None = None
    flops: float | None = None
    seconds: float | None = None


class RunRecord(StartRecord):
    """run.json: what a run was asked for, what happened, and what came of it."""

    format: Number = key("version of this format: 1")
    command: Text = key("`run`: made from a recipe; `train`: by `train MODEL TOKENS OUT`")
    name: Text = key("name of the recipe")
    status: Text = key(
        "`preparing` (by workers alone), `running`, `done`, `interrupted` or `failed`"
    )
    started_at: Text = key("time of the first start, UTC")
    finished_at: Text = key("time of the last end, UTC")
    seconds: Number = key("wall-clock seconds of all starts")
    exit_code: Number = key("exit code of the last start")
    error: Text = key("error that ended the last start")
    recipe: Values = mapping("the recipe with all defaults filled in")
    origins: Values = mapping("where each value comes from: file, preset, `--set`, default")
    scaled: Text = key("how `--scale` reduced the recipe, where it did")
    earlier: Rows[StartRecord] = items("versions and machines of earlier starts, where they differ")
    allowed_changes: Texts = items("recipe keys that a later start was allowed to change")
    settings: Values = mapping("device, precision and kernels of the target's training")
    reference: ReferenceFacts = part(ReferenceFacts, "the large model")
    tokens: TokenFacts = part(TokenFacts, "the text")
    benchmark: ReferenceLoss = part(ReferenceLoss, "the reference loss")
    rounds: Rows[TrainedModel] = items("the target, one row per size that was trained")
    variants: Rows[TrainedModel] = items("reference, target and controls, one row each")
    stages: Rows[StageRecord] = items("its stages: those that ended, that goes on, or are to come")
    ledger: Rows[LedgerEntry] = items("every cost")
    notes: Texts = items("sentences that qualify the result")
    result: Result = part(Result, "the result; missing while the run is not finished")
    family: Rows[PatchedSizeRecord] = items("sizes that need no training, with `grow.patch`")
    selection: Maybe[SelectionRecord] = key("scores by which layers were chosen, where they were")
    tournament: Maybe[TournamentRecord] = key("short trainings by which layers were chosen")
    analysis: Maybe[AnalysisRecord] = key("attention and importance of layers")
    evaluation: EvaluationRecord = part(EvaluationRecord, "task scores")
    gains: Maybe[GainsRecord] = key("size, speed and fidelity of reference and target")
    samples: Rows[Sample] = items("generated text")

    # --- the target and its controls ---

    @cached_property
    def target_name(self) -> str:
        """Name of the variant that inherits and grows."""
        for name, variant in self._planned_variants.items():
            plain = variant.get("select") is None and variant.get("parts") in (None, "all")
            if variant.get("start") == "inherit" and plain:
                return name
        return "inherit"

    @cached_property
    def target(self) -> TrainedModel:
        """The round whose model is the target, else the last one; empty before any has ended."""
        size = self.result.layers
        same_size = [row for row in self.rounds if size is None or row.layers == size]
        return (same_size or self.rounds or [TrainedModel()])[-1]

    @property
    def target_row(self) -> TrainedModel:
        """The target among the variants, over all of its seeds; empty before there is a result."""
        rows = (row for row in self.variants if row.name == self.target_name)
        return next(rows, TrainedModel())

    @property
    def target_layers(self) -> float | None:
        """Layers of the target, or of its last round so far."""
        return self.target.layers if self.result.layers is None else self.result.layers

    @property
    def target_loss(self) -> float | None:
        """val_loss of the target's first seed, nats per token."""
        return self.target.val_loss if self.result.val_loss is None else self.result.val_loss

    @property
    def reference_loss(self) -> float | None:
        """The reference's val_loss, nats per held-out token."""
        recorded = self.result.benchmark
        return self.benchmark.val_loss if recorded is None else recorded

    @property
    def reference_layers(self) -> float | None:
        """Layers of the reference."""
        return self.reference.layers or self.result.reference_layers

    @cached_property
    def scratch(self) -> TrainedModel:
        """The control with fresh weights, the target's size and one round's tokens; or empty."""
        candidates = [
            row
            for row in self.variants
            # `made_of`: with another learning rate, or a part of stacking.
            if row.is_scratch and not row.made_of and row.val_loss is not None
            if row is not self.equal_compute
        ]
        layers, tokens = self.result.layers or self.target.layers, self.target.tokens
        same_size = [row for row in candidates if layers is None or row.layers == layers]
        same_tokens = [row for row in same_size if tokens is None or row.tokens == tokens]
        named = [row for row in same_tokens or same_size if row.name == "scratch"]
        return (named or same_tokens or same_size or [TrainedModel()])[0]

    @cached_property
    def equal_compute(self) -> TrainedModel:
        """The control with fresh weights and the FLOPs of all rounds together; or empty."""
        for row in self.variants:
            name = row.name or ""
            planned = self._planned_variants.get(name, {}).get("tokens") == "equal_compute"
            usual = name.replace("-", "_") in {"equal_compute", "scratch_equal_compute"}
            if row.is_scratch and (planned or usual):
                return row
        return TrainedModel()

    @property
    def trained_reference(self) -> TrainedModel:
        """The control that is the reference, trained on the target's tokens; or empty."""
        known = self.result.trained_reference
        name = None if known is None else known.name
        rows = (row for row in self.variants if row.name == name and name)
        return next(rows, TrainedModel())

    @property
    def fresh_control(self) -> TrainedModel:
        """What the target is compared with first: `scratch`, else `equal_compute`; or empty."""
        return self.scratch or self.equal_compute

    # --- the plan ---

    def recipe_section(self, name: str) -> dict[str, Any]:
        """A section of the recipe; empty where it is missing."""
        section: dict[str, Any] = mapping_or_empty(self.recipe.get(name))
        return section

    @property
    def _planned_variants(self) -> dict[str, dict[str, Any]]:
        variants = self.recipe_section("variants")
        return {str(name): mapping_or_empty(variant) for name, variant in variants.items()}

    def planned_tokens(self, variant: str) -> float | None:
        """Tokens that the recipe or, for a word such as equal_compute, the run gives a training.

        None before the run has worked them out.
        """
        tokens = self._planned_variants.get(variant, {}).get("tokens")
        if tokens is None:
            tokens = self.recipe_section("train").get("tokens")
        worked_out = [stage.tokens for stage in self.stages if stage.variant == variant]
        return finite_number(tokens) or finite_number(next(filter(None, worked_out), None))

    @property
    def tolerance(self) -> float | None:
        """Nats above the reference loss that still count as matched."""
        return finite_number(self.criteria.get("val_loss"))

    @property
    def criteria(self) -> dict[str, Any]:
        """Limits that a target has to keep, as `grow.match`; earlier versions had one."""
        grow = self.recipe_section("grow")
        return mapping_or_empty(grow.get("match")) or {"val_loss": grow.get("tolerance")}

    @property
    def currency(self) -> str:
        """Currency of the prices."""
        return str(self.recipe_section("cost").get("currency") or "")[:10]

    # --- outcome and cost ---

    @property
    def outcome(self) -> str:
        """``matched``, ``matched_within_noise``, ``not_matched``, ``failed`` or ``unfinished``."""
        if self.result.outcome in ("matched", "matched_within_noise", "not_matched"):
            return self.result.outcome
        return "failed" if self.status == "failed" else "unfinished"

    @property
    def is_by_workers(self) -> bool:
        """Whether nothing but workers has worked on the run, and their parts are not yet joined."""
        return self.status == "preparing"

    @property
    def asks_for_match(self) -> bool:
        """Whether the target was to grow until it matched; a run of one size misses nothing."""
        return self.recipe_section("grow").get("add") != 0

    @property
    def cut_loss(self) -> float | None:
        """val_loss of the target's layers as they were cut: not repaired, not trained."""
        cut = self.target.cut_val_loss
        return self.target.start_val_loss if cut is None else cut

    @property
    def recovered(self) -> float | None:
        """(cut - target) / (cut - reference), in val_loss; None where the cut lost nothing."""
        cut, reached, level = self.cut_loss, self.target_loss, self.reference_loss
        if cut is None or reached is None or level is None or cut <= level:
            return None
        return (cut - reached) / (cut - level)

    @property
    def paid_entries(self) -> list[LedgerEntry]:
        """Entries of the ledger that are not borrowed."""
        return [entry for entry in self.ledger if not entry.borrowed]

    @property
    def target_cost(self) -> TrainingCost:
        """Cost of all rounds of the target, those that were thrown away included."""
        return TrainingCost(
            tokens=_sum([row.tokens for row in self.rounds]),
            flops=_sum([row.flops for row in self.rounds]),
            seconds=_sum([row.seconds for row in self.rounds]),
        )

    @property
    def reference_cost(self) -> TrainingCost:
        """Cost of the reference's own training, wherever that was."""
        trained_tokens = self.reference.trained_tokens
        for entry in self.ledger:
            if (entry.item or "").lower().startswith("reference training"):
                tokens = entry.tokens or trained_tokens or None
                return TrainingCost(tokens, entry.flops or None, entry.seconds)
        return TrainingCost(trained_tokens or None)


def read_run_json(run_root: Path) -> dict[str, Any]:
    """Read ``run.json`` of a run as it is, of whatever version.

    Raises:
        DataError: There is no ``run.json``, or it is not one JSON object.
    """
    path = run_root / "run.json"
    try:
        # Not the strict reader: NaN or half a surrogate pair must not hide the rest of a run.
        content = json.loads(read_regular_file(path, OWN_FILE.max_bytes))
    except OSError as error:
        raise DataError(
            f"cannot read {escape(path, 300)}: {error.strerror}.",
            "Give the directory of a run: the one that holds run.json.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{escape(path, 300)} is not JSON.", "Run the recipe again to write it anew."
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            f"{escape(path, 300)} holds no JSON object.", "Run the recipe again to write it anew."
        )
    return content


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None
