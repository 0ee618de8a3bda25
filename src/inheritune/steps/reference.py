"""Open the reference of a run, or train it first where the recipe says so."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.errors import DataError, RecipeError
from inheritune.model_files.config import cut_config, has_rotary_positions, max_positions
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.model_files.scan import Scan, scan
from inheritune.run_record.fields import finite_number
from inheritune.steps.job import Job
from inheritune.steps.reference_store import open_pinned, text_reference
from inheritune.steps.reference_training import train_reference, write_reference_start
from inheritune.surgery.class_check.ask_class import refuse_broken_values
from inheritune.surgery.removal import Cut
from inheritune.surgery.ways import LayerFacts
from inheritune.system.progress import Progress
from inheritune.system.strict_json import read_json

if TYPE_CHECKING:
    from inheritune.analysis.layer_scores import MeasuredScores


@dataclass(frozen=True)
class Reference:
    """The large model that layers are inherited from, and what is known of its training."""

    model: ModelDirectory
    name: str  # its name in the recipe, or ``"trained here"``
    params: int  # parameters, tied ones once
    flops_per_token: float  # training FLOPs per token at the recipe's sequence length
    # ``tokens``, ``flops``, ``seconds``, ``curve`` of its training, and ``processes`` where the
    # file says so; empty if unknown
    training: Mapping[str, Any]
    trained_here: bool  # whether this run trained it
    # Directory in which another run stored it; None: it was not taken over
    taken_from: str | None = None
    # Number of first layers that its attention advises; None: not measured
    advised_layers: int | None = None
    # Its layers that have attention, that of lowest rank first; None: not measured
    layers_by_rank: tuple[int, ...] | None = None
    scores: "MeasuredScores | None" = None  # of its layers; None: nothing is chosen by them
    candidates: Mapping[str, Cut | None] | None = None  # what `auto` compares; None: its usual ways
    tournament: Mapping[str, Any] | None = None  # `tournament` of run.json; None: there was none

    @property
    def layers(self) -> int:
        """Transformer layers."""
        return self.model.layers

    @property
    def facts(self) -> LayerFacts:
        """What ways of choosing layers may use."""
        winner = None if self.tournament is None else tuple(self.tournament["kept"])
        return LayerFacts(self.layers, self.layers_by_rank, self.scores, self.candidates, winner)


def open_reference(job: Job) -> Reference:
    """Open the reference; where the recipe describes its training, train it first or take it over.

    Raises:
        RecipeError: ``train.seq_len`` exceeds the positions that the reference has.
    """
    from inheritune.surgery.class_check.language_model import refuse_no_language_model
    from inheritune.training.models import describe

    section, store_dir = job.recipe.reference, None
    if section.train is not None:
        store_dir = train_reference(job, section.train)
        name = "trained here" if store_dir is None else "trained by another run"
        model = open_model(str(store_dir or job.run.reference / "model"), None)
    else:
        model = _open(job)
        name = str(section.model)
    if section.train is None and not (job.run.tokens / "manifest.json").exists():
        _refuse_broken_values(job, model)
    _refuse_long_sequences(job, model)
    refuse_no_language_model(model)
    shape = describe(model.path, job.recipe.train.seq_len)
    return Reference(
        model=model,
        name=name,
        params=shape.params,
        flops_per_token=shape.flops_per_token,
        training=_training_of(model.path),
        trained_here=section.train is not None and store_dir is None,
        taken_from=None if store_dir is None else str(store_dir),
    )


def _open(job: Job) -> ModelDirectory:
    """Open the model that the recipe names."""
    section = job.recipe.reference
    assert section.model is not None  # the recipe has one or the other
    model = open_pinned(job.run, section.model, section.revision, stop=job.stop)
    return text_reference(job.run, model) if section.text_only else model


def _refuse_broken_values(job: Job, model: ModelDirectory) -> None:
    """Read all weights once, before the text is prepared: that may take hours."""
    scans: dict[str, Scan] = {}
    for tensor in model.tensors.values():
        job.stop.check("the run has only begun")
        scans |= scan([tensor])
    refuse_broken_values(model, scans)


def _refuse_long_sequences(job: Job, model: ModelDirectory) -> None:
    positions, seq_len = max_positions(model.config), job.recipe.train.seq_len
    if positions is None or seq_len <= positions:
        return
    if not has_rotary_positions(model.config):
        raise RecipeError(
            f"train.seq_len is {seq_len}, but {model.name} has {positions} positions.",
            f"Set train.seq_len to {positions} or less.",
        )
    # Rotary positions can be computed beyond the length that the model was trained with.
    message = f"train.seq_len {seq_len} is above the {positions} positions it was made for"
    job.on_progress(Progress("reference", message=message))


def _training_of(model: Path) -> dict[str, Any]:
    """Read training.json. Any model directory may hold such a file; only ours has these figures."""
    try:
        stored = read_json(model / "training.json")
        training = {key: stored[key] for key in ("tokens", "flops", "seconds", "curve")}
        processes = stored.get("processes")
    except (DataError, KeyError, TypeError):
        return {}
    numbers = (training[key] for key in ("tokens", "flops", "seconds"))
    if any(finite_number(number) is None for number in numbers):
        return {}
    if not isinstance(training["curve"], list):
        return {}
    return training | ({"processes": processes} if isinstance(processes, int) else {})


def tokenizer_home(job: Job) -> Path:
    """The directory whose tokenizer and config the tokens are prepared for."""
    section = job.recipe.reference
    if section.train is not None:
        return write_reference_start(job, section.train)
    return _open(job).path


def flops_per_token(job: Job, reference: Reference, layers: int) -> float:
    """Training FLOPs per token of a model with some of the reference's layers."""
    from inheritune.training.models import describe_config

    config, _ = cut_config(reference.model.config, layers)
    return describe_config(config, job.recipe.train.seq_len).flops_per_token
