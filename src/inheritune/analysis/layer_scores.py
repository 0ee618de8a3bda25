"""Measure scores of a reference's layers as ways of choosing ask for them, and keep them in a file.

N layers. selection.json holds every score that was measured, so that none is measured twice.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.analysis.cut_scores import CutScore, score_cuts
from inheritune.analysis.distances import measure_distances
from inheritune.analysis.sequences import Sequences
from inheritune.errors import DataError
from inheritune.model_files.directory import ModelDirectory
from inheritune.run_record.fields import finite_number
from inheritune.surgery.removal import Block, Cut, without
from inheritune.system.files import write_json
from inheritune.system.progress import Listener, silent
from inheritune.system.signals import StopFlag
from inheritune.system.strict_json import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_FORMAT = 1  # of selection.json


@dataclass
class ScoreTable:
    """Everything that was measured of a reference's layers; grows as more is asked for."""

    total: int  # N
    loss: float = math.nan  # of the whole reference on the calibration text, nats per token
    influence: list[float] = field(default_factory=list)  # of each layer, in [0, 2]
    norm_ratio: list[float] = field(default_factory=list)  # of each layer
    angles: dict[Block, float] = field(default_factory=dict)  # of each block, in [0, 1]
    cuts: dict[Cut, CutScore] = field(default_factory=dict)
    seconds: float = 0.0  # wall-clock time, loading included
    layer_tokens: int = 0  # tokens that were run through a layer
    head_tokens: int = 0  # tokens whose next one was predicted

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each layer: what it does to its input, and what its removal costs.

        The latter is None unless a way of choosing has asked for it.
        """
        unknown = CutScore(math.nan, math.nan)
        scores = [
            self.cuts.get(without(self.total, [layer]), unknown) for layer in range(self.total)
        ]
        return [
            {
                "layer": layer,
                "kl": finite_number(score.kl),
                "loss": finite_number(score.loss - self.loss),
                "influence": finite_number(self.influence[layer]),
                "angle": finite_number(self.angles[layer, 1]),
                "norm_ratio": finite_number(self.norm_ratio[layer]),
            }
            for layer, score in enumerate(scores)
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the table as JSON values; a score that is not finite is null."""
        return {
            "layers": self.total,
            "loss": finite_number(self.loss),
            "influence": [finite_number(value) for value in self.influence],
            "norm_ratio": [finite_number(value) for value in self.norm_ratio],
            "angles": [[*block, finite_number(angle)] for block, angle in self.angles.items()],
            "cuts": [
                {
                    "removed": list(without(self.total, cut)),
                    "kl": finite_number(score.kl),
                    "loss": finite_number(score.loss),
                }
                for cut, score in self.cuts.items()
            ],
            "seconds": self.seconds,
            "layer_tokens": self.layer_tokens,
            "head_tokens": self.head_tokens,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ScoreTable":
        """Read what `as_json` has written.

        Raises:
            KeyError, TypeError, ValueError: It is something else.
        """
        total = int(values["layers"])
        return cls(
            total=total,
            loss=_number(values["loss"]),
            influence=[_number(value) for value in values["influence"]],
            norm_ratio=[_number(value) for value in values["norm_ratio"]],
            angles={(int(s), int(k)): _number(angle) for s, k, angle in values["angles"]},
            cuts={
                without(total, row["removed"]): CutScore(_number(row["kl"]), _number(row["loss"]))
                for row in values["cuts"]
            },
            seconds=float(values["seconds"]),
            layer_tokens=int(values["layer_tokens"]),
            head_tokens=int(values["head_tokens"]),
        )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


class MeasuredScores:
    """The scores of a reference on calibration text; see `surgery.removal.LayerScores`.

    Args:
        model: The reference; loaded in fp32 when something is to be measured.
        draw: Returns the calibration sequences, when something is to be measured.
        table: What was measured before.
        keep: Called with the table after each measurement.
        stop: Asked between two forwards; a measurement that was not finished is made again.
    """

    def __init__(
        self,
        model: ModelDirectory,
        draw: Callable[[], Sequences],
        table: ScoreTable | None = None,
        keep: Callable[[ScoreTable], None] = lambda table: None,
        stop: StopFlag | None = None,
        on_progress: Listener = silent,
    ) -> None:
        self.table = table or ScoreTable(model.layers)
        self._model, self._draw, self._keep = model, draw, keep
        self._stop, self._on_progress = stop, on_progress
        self._live: PreTrainedModel | None = None
        self._holders = 0

    @cached_property
    def sequences(self) -> Sequences:
        """The calibration sequences."""
        return self._draw()

    @property
    def influence(self) -> Sequence[float]:
        """1 - cosine of each layer's input and output, mean over tokens."""
        return self._distances().influence

    @property
    def norm_ratio(self) -> Sequence[float]:
        """Norm of each layer's output over that of its input, mean over tokens."""
        return self._distances().norm_ratio

    @property
    def angles(self) -> Mapping[Block, float]:
        """Angle between input and output of each block, over pi, mean over tokens."""
        return self._distances().angles

    def divergences(self, cuts: Sequence[Cut]) -> list[float]:
        """KL(reference || cut) of each cut, nats per token; infinite where it is not finite."""
        values = [score.kl for score in self.scores(cuts)]
        return [value if math.isfinite(value) else math.inf for value in values]

    def scores(self, cuts: Sequence[Cut]) -> list[CutScore]:
        """Score cuts; those that were not scored before are measured, all in one go."""
        table = self._distances()
        if missing := [cut for cut in dict.fromkeys(cuts) if cut not in table.cuts]:
            with self.in_memory():
                self._measure_cuts(missing)
        return [table.cuts[cut] for cut in cuts]

    @contextmanager
    def in_memory(self) -> Iterator[None]:
        """Keep the model in memory, once it is loaded, while the block runs."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders:
                self._live = None

    def _distances(self) -> ScoreTable:
        """Measure the distances of all layers, once: a single forward of the reference."""
        if not self.table.influence:
            self._measure_distances()
        return self.table

    def _measure_distances(self) -> None:
        begin, table, ids = time.monotonic(), self.table, self.sequences.ids
        task = "distances of layers"
        with self._loaded() as live:
            distances = measure_distances(
                live, table.total, ids, self._stop, self._on_progress, task
            )
        table.influence = distances.influence.tolist()
        table.norm_ratio = distances.norm_ratios.tolist()
        table.angles = {
            (start, length): float(distances.angles[start, start + length])
            for length in range(1, table.total + 1)
            for start in range(table.total - length + 1)
        }
        self._count(begin, table.total, 1)

    def _measure_cuts(self, cuts: Sequence[Cut]) -> None:
        begin, table, ids = time.monotonic(), self.table, self.sequences.ids
        task = "scores of cuts"
        with self._loaded() as live:
            result = score_cuts(live, table.total, ids, cuts, self._stop, self._on_progress, task)
        table.loss = result.whole.loss
        table.cuts |= zip(cuts, result.cuts, strict=True)
        self._count(begin, result.layers_run, result.heads_run)

    def _count(self, begin: float, layers: int, heads: int) -> None:
        self.table.seconds += time.monotonic() - begin
        self.table.layer_tokens += layers * self.sequences.ids.size
        self.table.head_tokens += heads * self.sequences.ids.size
        self._keep(self.table)

    @contextmanager
    def _loaded(self) -> "Iterator[PreTrainedModel]":
        from inheritune.training.hardware import choose_device, keep_freed_memory
        from inheritune.training.models import load_model

        if self._live is None:
            device = choose_device()
            if device == "cpu":
                keep_freed_memory()
            live: Any = load_model(self._model.path)
            self._live = live.to(device)
        yield self._live


def stored_table(path: Path, inputs: Mapping[str, Any]) -> ScoreTable | None:
    """Read the table of a file; None where it is missing, broken, or made from other inputs."""
    with suppress(DataError, KeyError, TypeError, ValueError):
        stored = read_json(path)
        if stored["format"] == _FORMAT and stored["inputs"] == inputs:
            return ScoreTable.from_json(stored["result"])
    return None


def holds_scores(path: Path) -> bool:
    """Whether a file was written by `keep_table`, from whatever inputs."""
    try:
        stored = read_json(path)
    except DataError:
        return False
    return isinstance(stored, dict) and {"format", "inputs", "result"} <= stored.keys()


def keep_table(
    path: Path,
    inputs: Mapping[str, Any],
    table: ScoreTable,
    chosen: Mapping[str, Any] | None = None,
) -> None:
    """Write selection.json: every score, what decided it and, where it is known, the choice."""
    record = {"format": _FORMAT, "inputs": dict(inputs), "result": table.as_json()}
    write_json(path, record | ({} if chosen is None else {"chosen": dict(chosen)}))
