"""Measure attention and layer importance of models on the same sequences, and advise on a size."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from inheritune.analysis.advice import Advice, advise
from inheritune.analysis.attention import AttentionStatistics, measure_attention
from inheritune.analysis.importance import Importance, measure_importance
from inheritune.analysis.rank import calibration
from inheritune.analysis.sequences import Sequences, refuse_long_sequences
from inheritune.analysis.spectrum import weight_spectrum
from inheritune.errors import RecipeError
from inheritune.model_files.directory import ModelDirectory
from inheritune.surgery.cut_points import cut_point, find_pattern
from inheritune.surgery.sizes import Sizes
from inheritune.system.progress import Listener, silent
from inheritune.system.rows import Rows
from inheritune.system.signals import StopFlag, catch_signals

FORMAT = 1  # of analysis.json
_REMOVAL_SEQUENCES = 20


@dataclass(frozen=True)
class LayerAnalysis:
    """The measurements of one layer.

    Attributes:
        role: ``"model"``, or ``"reference"`` and ``"target"`` where two models were analysed.
        layer: Position from the input, from 0.
        rank: MaxRank, from 1 to T; None for a layer without attention, as the next four.
        mass: Mean over heads of the columns that hold 90 % of the squared norm, from 1 to T.
        sink: Mean weight on the heaviest column, in (0, 1].
        heads_near_one: Share of heads whose rank is below 1.5.
        lazy: Whether every head has rank 1 on every sequence.
        influence: 1 - cosine of the layer's input and output, in [0, 2].
        angle: Angular distance of the same, in [0, 1].
        removal_loss: Nats per token that skipping the layer costs.
    """

    role: str
    layer: int
    rank: float | None
    mass: float | None
    sink: float | None
    heads_near_one: float | None
    lazy: bool | None
    influence: float | None
    angle: float | None
    removal_loss: float | None


@dataclass(frozen=True)
class ModelAnalysis:
    """The measurements of one model."""

    role: str  # ``"model"``, ``"reference"`` or ``"target"``
    name: str
    total: int  # L, layers of the model
    attention: AttentionStatistics
    importance: Importance
    spectrum: list[dict[str, Any]] | None = None  # from `weight_spectrum`; None: not computed

    @property
    def layers(self) -> list[LayerAnalysis]:
        """A row for each layer, from the input on."""
        by_layer = {layer.layer: layer for layer in self.attention.layers}
        rows = []
        for importance in self.importance.layers:
            attention = by_layer.get(importance.layer)
            rows.append(
                LayerAnalysis(
                    role=self.role,
                    rank=getattr(attention, "max_rank", None),
                    mass=getattr(attention, "mean_mass", None),
                    sink=getattr(attention, "mean_sink", None),
                    heads_near_one=getattr(attention, "heads_near_one", None),
                    lazy=getattr(attention, "is_lazy", None),
                    **vars(importance),
                )
            )
        return rows

    def as_json(self) -> dict[str, Any]:
        """Return the model's entry in analysis.json."""
        values = {
            "role": self.role,
            "name": self.name,
            "layers": self.total,
            "attention": self.attention.as_json(),
            "importance": asdict(self.importance),
        }
        return values | ({} if self.spectrum is None else {"spectrum": self.spectrum})


@dataclass(frozen=True)
class Analysis(Rows):
    """The measurements of `analyze`.

    Attributes:
        sequences: The sequences that every model was run on.
        threshold: Share of the squared singular values that a rank holds, in (0, 1).
        models: The model; or the reference and the target.
        advice: Number of the first model's layers to inherit.
    """

    sequences: Sequences
    threshold: float
    models: tuple[ModelAnalysis, ...]
    advice: Advice

    @property
    def layers(self) -> list[LayerAnalysis]:
        """A row for each layer of each model."""
        return [layer for model in self.models for layer in model.layers]

    @property
    def calibration(self) -> dict[str, dict[str, int]]:
        """Rank and mass of attention of known forms, to compare with."""
        return calibration(self.sequences.ids.shape[1], self.threshold)

    def rows(self) -> list[dict[str, Any]]:
        """Return `layers` as mappings."""
        return [asdict(layer) for layer in self.layers]

    def as_json(self) -> dict[str, Any]:
        """Return the contents of analysis.json."""
        models = [model.as_json() for model in self.models]
        record = analysis_record(self.sequences, self.threshold, models, asdict(self.advice))
        return record | {"notes": []}


def analyze(
    models: Sequence[tuple[str, ModelDirectory]],
    sequences: Sequences,
    *,
    threshold: float = 0.9,
    spectrum: bool = False,
    on_progress: Listener = silent,
) -> Analysis:
    """Measure models on the same sequences.

    Args:
        models: Pairs of role and model; the advice is for the first.
        sequences: From `sequences_for`.
        threshold: Share of the squared singular values that a rank holds, in (0, 1).
        spectrum: Also compute the singular values of the weights; large matrices take long.

    Raises:
        RecipeError: ``threshold`` is out of range.
        UnsupportedModelError, DataError, Interrupted: See `analyze_model`.
    """
    if not 0 < threshold < 1:
        raise RecipeError(f"--threshold is {threshold:g}.", "Choose between 0 and 1, such as 0.9.")
    with catch_signals() as stop:
        results = tuple(
            analyze_model(
                model,
                role,
                sequences,
                threshold=threshold,
                spectrum=spectrum,
                stop=stop,
                on_progress=on_progress,
            )
            for role, model in models
        )
    advice = layer_advice(models[0][1], results[0].attention.max_ranks)
    return Analysis(sequences, threshold, results, advice)


def analyze_model(
    model: ModelDirectory,
    role: str,
    sequences: Sequences,
    *,
    threshold: float = 0.9,
    removal_sequences: int = _REMOVAL_SEQUENCES,
    spectrum: bool = False,
    stop: StopFlag | None = None,
    on_progress: Listener = silent,
) -> ModelAnalysis:
    """Measure rank, mass and importance of one model's layers.

    Args:
        model: Loaded in fp32; none of its own code is run.
        role: ``"reference"``, ``"target"`` or ``"model"``.
        removal_sequences: Sequences on which the loss without each layer is measured.

    Raises:
        UnsupportedModelError: The attention cannot be observed.
        DataError: The sequences are longer than the model takes.
        Interrupted: ``stop`` was set.
    """
    from inheritune.training.hardware import choose_device, keep_freed_memory
    from inheritune.training.models import load_model

    # --- the model, in fp32: rounding in bf16 would move small singular values ---
    refuse_long_sequences(model, sequences)
    device = choose_device()
    if device == "cpu":
        keep_freed_memory()
    live: Any = load_model(model.path).to(device)  # type: ignore[arg-type]

    # --- one pass for attention, then one pass for each layer that is left out ---
    attention = measure_attention(
        live,
        model.layers,
        sequences.ids,
        threshold,
        stop=stop,
        on_progress=on_progress,
        task=f"attention of the {role}",
    )
    importance = measure_importance(
        live,
        model.layers,
        sequences.ids,
        removal_sequences,
        stop=stop,
        on_progress=on_progress,
        task=f"layers of the {role}",
    )
    values = weight_spectrum(model) if spectrum else None
    return ModelAnalysis(role, model.name, model.layers, attention, importance, values)


def layer_advice(model: ModelDirectory, max_ranks: dict[int, float]) -> Advice:
    """Advise on the number of first layers to inherit, from MaxRank by layer."""
    total = model.layers
    pattern = find_pattern(model, Sizes(model).layers)
    points = (cut_point(model.config, total, count, pattern) for count in range(1, total))
    return advise(max_ranks, total, frozenset(point.layers for point in points if point.is_safe))


def analysis_record(
    sequences: Sequences,
    threshold: float,
    models: list[dict[str, Any]],
    advice: dict[str, Any] | None,
) -> dict[str, Any]:
    """Assemble the analysis for analysis.json and run.json, from each `ModelAnalysis.as_json`.

    ``advice`` is None where the reference's attention could not be measured.
    """
    return {
        "format": FORMAT,
        "sequences": sequences.as_json(),
        "threshold": threshold,
        "calibration": calibration(sequences.ids.shape[1], threshold),
        "models": models,
        "advice": advice,
    }
