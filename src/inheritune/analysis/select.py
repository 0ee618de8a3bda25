"""Choose layers of a reference by scores on calibration text, and say what each choice costs."""

from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from inheritune.analysis.layer_scores import (
    MeasuredScores,
    ScoreTable,
    holds_scores,
    keep_table,
    stored_table,
)
from inheritune.analysis.sequences import Sequences, refuse_long_sequences, sequences_for
from inheritune.data.calibration import WINDOWS, window_tokens
from inheritune.errors import RecipeError
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.layers import ranges
from inheritune.recipe.data import Data
from inheritune.run_record.fields import finite_number
from inheritune.surgery.cut import check_inherit
from inheritune.surgery.removal import Cut
from inheritune.surgery.selection import choose_layers, needed_measurement, way_of
from inheritune.surgery.ways import WAYS, LayerFacts, candidates
from inheritune.system.progress import Listener, silent
from inheritune.system.rows import Rows
from inheritune.system.signals import catch_signals


@dataclass(frozen=True)
class Choice:
    """One choice of layers, and its cost on the calibration text.

    Attributes:
        select: The way, or the list of layers.
        layers: The layers that are kept, from 0.
        kl: KL(reference || cut), nats per token; None where it is not finite.
        loss: Rise of the loss, nats per token.
    """

    select: str
    layers: Cut
    kl: float | None
    loss: float | None

    @property
    def listed(self) -> str:
        """The layers as `inherit` takes them; a single one as a range, since 5 is a number."""
        first = self.layers[0]
        return f"{first}-{first}" if len(self.layers) == 1 else ",".join(ranges(self.layers))


@dataclass(frozen=True)
class LayerSelection(Rows):
    """The layers that were chosen, and the scores that they were chosen by.

    Attributes:
        reference: Its name.
        layers: The layers to keep, from 0.
        choices: The choice, after those that it was compared with.
        sequences: The calibration text.
        table: Every score that was measured.
    """

    reference: str
    layers: Cut
    choices: tuple[Choice, ...]
    sequences: Sequences
    table: ScoreTable

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each layer of the reference: what its removal costs, what it does."""
        return [row | {"kept": row["layer"] in self.layers} for row in self.table.rows()]

    def as_json(self) -> dict[str, Any]:
        """Return the choice and all scores as JSON values."""
        return {
            "reference": self.reference,
            "layers": list(self.layers),
            "choices": [asdict(choice) | {"layers": [*choice.layers]} for choice in self.choices],
            "text": self.sequences.as_json(),
            "scores": self.rows(),
        }


def select_layers(
    reference: ModelDirectory,
    select: str,
    count: int | None,
    sequences: Sequences,
    out: Path | None = None,
    on_progress: Listener = silent,
) -> LayerSelection:
    """Choose layers by scores on calibration text.

    Args:
        reference: Loaded in fp32; none of its own code is run.
        select: A selection in the grammar of `surgery.selection`.
        count: Number of layers to keep; None: ``select`` says it.
        sequences: Calibration text.
        out: File that keeps every score, and from which a stopped call goes on; None: none.

    Raises:
        RecipeError: The reference has no such layers, or all of them would stay.
        UnsupportedModelError: Its layers cannot be run one by one, or such a target cannot be.
        Interrupted: A signal asked to stop; ``out`` has what was measured.
    """
    refuse_selection(reference, select, count)
    _refuse_other_file(out)
    refuse_long_sequences(reference, sequences)
    ids = sequences.ids
    inputs = {
        "reference": reference.digest,
        "text": sequences.as_json() | {"ids_sha256": sha256(ids.tobytes()).hexdigest()},
    }
    with catch_signals() as stop:
        scores = MeasuredScores(
            reference,
            lambda: sequences,
            None if out is None else stored_table(out, inputs),
            lambda table: None if out is None else keep_table(out, inputs, table),
            stop,
            on_progress,
        )
        with scores.in_memory():
            facts = LayerFacts(reference.layers, scores=scores)
            layers = choose_layers(select, facts, count)
            cuts = {"first": tuple(range(len(layers)))}
            if way_of(select) == "auto":
                cuts = candidates(facts, len(layers))
            cuts |= {select: layers}
            cut_scores = scores.scores([*cuts.values()])
    choices = tuple(
        Choice(name, cut, finite_number(s.kl), finite_number(s.loss - scores.table.loss))
        for (name, cut), s in zip(cuts.items(), cut_scores, strict=True)
    )
    selection = LayerSelection(reference.name, layers, choices, sequences, scores.table)
    if out is not None:
        keep_table(out, inputs, scores.table, selection.as_json())
    check_inherit(reference, layers)
    return selection


def _refuse_other_file(out: Path | None) -> None:
    """Refuse to write over a file that holds no scores, and where no file can be written."""
    if out is None:
        return
    if out.is_dir() or not out.absolute().parent.is_dir():
        reason = "is a directory" if out.is_dir() else "lies in a directory that does not exist"
        raise RecipeError(f"--out {out} {reason}.", "Name a file.")
    if out.exists() and not holds_scores(out):
        raise RecipeError(
            f"--out {out} exists, and is no file of scores.", "Name another file, or remove it."
        )


def calibration_text(model: ModelDirectory, text: Data) -> Sequences:
    """Draw as much of a text as `select` does by default; shorter windows where positions end."""
    return sequences_for([model], WINDOWS, window_tokens(model.config), text=text)


def refuse_selection(reference: ModelDirectory, select: str, count: int | None) -> None:
    """Refuse a selection that cannot be, or that leaves nothing out, before anything is read."""
    way = way_of(select)
    if count is None and way is not None and not any(letter.isdigit() for letter in select):
        half = max(WAYS[way].least, reference.layers // 2)
        raise RecipeError(
            f"{select} does not say how many layers of {reference.name} to keep.",
            f"Give their number: --layers {half}",
        )
    by_scores = needed_measurement(select) == "scores"
    layers = choose_layers(select, LayerFacts(reference.layers), count, estimate=by_scores)
    if len(layers) == reference.layers:
        raise RecipeError(
            f"all {reference.layers} layers of {reference.name} would stay.",
            f"Choose between 1 and {reference.layers - 1}.",
        )
