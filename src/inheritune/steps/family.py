"""Try larger sizes of a trained target with no training: its reference's layers, put back."""

import shutil
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from inheritune.data.tokens import TokenDirectory
from inheritune.errors import DataError
from inheritune.evaluation.family import CLOSENESS, Member, keep_members
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.model_files.flops import EVALUATION_SHARE
from inheritune.recipe.schema import Recipe
from inheritune.recipe.variants import Match
from inheritune.steps.benchmark import Benchmark
from inheritune.steps.fidelity import with_fidelity
from inheritune.steps.growth import Growth
from inheritune.steps.job import Job
from inheritune.steps.match import with_task_loss
from inheritune.steps.reference import Reference
from inheritune.steps.result import PATCHED, TrainingResult
from inheritune.steps.resume import save_result
from inheritune.steps.training_spec import inherited_layers
from inheritune.steps.training_task import published_dtype
from inheritune.steps.validation import finite, val_loss_of
from inheritune.surgery.cut import check_inherit
from inheritune.surgery.grow import check_grow, patch
from inheritune.surgery.removal import Cut
from inheritune.surgery.selection import describe_selection
from inheritune.surgery.ways import LayerFacts
from inheritune.system.files import write_bytes
from inheritune.system.progress import Progress
from inheritune.system.strict_json import as_dataclass, read_json

_MODEL = "model"


def check_patched(
    recipe: Recipe, reference: ModelDirectory, growth: Growth, facts: LayerFacts | None = None
) -> None:
    """Refuse sizes that cannot be made by putting layers back, before anything is trained.

    The model's class is asked about the smallest and the largest.

    Raises:
        UnsupportedModelError: Weights have a part for each layer, or a layer would not compute
            what it does in the reference.
        SourceError: The model's class refuses a size.
    """
    sizes = growth.above(growth.sizes[0])
    if not recipe.grow.patch or not sizes:
        return
    known = facts or LayerFacts(reference.layers)
    for size in dict.fromkeys((sizes[0], sizes[-1])):
        layer_map = inherited_layers(recipe, recipe.target_name, known, size)
        check_grow(reference, layer_map)
        check_inherit(reference, layer_map)


def patched_sizes(
    job: Job,
    trained: TrainingResult,
    sizes: Sequence[int],
    reference: Reference,
    tokens: TokenDirectory,
    benchmark: Benchmark,
) -> list[TrainingResult]:
    """Measure sizes of a round's target that need no training, and keep them in family.json.

    Args:
        trained: The round.
        sizes: Numbers of layers, ascending, all above the round's.

    Returns:
        A result for each size, with no tokens. Their models are not kept, see `write_patched`.

    Raises:
        Interrupted: A signal asked to stop; sizes that were measured are kept.
    """
    results = [_measured(job, trained, size, reference, tokens, benchmark) for size in sizes]
    if results:
        _keep(job, trained, results, reference, tokens)
    return results


def first_match(
    job: Job,
    trained: TrainingResult,
    patched: Sequence[TrainingResult],
    enough: Container[int],
    reference: Reference,
    tokens: TokenDirectory,
    judge: Callable[[TrainingResult, Match], str],
) -> TrainingResult | None:
    """Return the first size that meets all criteria, with its model written; None: none does.

    Only where val_loss is low enough is the model made again, to measure what else counts.

    Args:
        patched: All sizes of the round.
        enough: Numbers of layers of those that may match.
    """
    match = job.recipe.grow.match
    for result in [result for result in patched if result.layers in enough]:
        by_loss = match.val_loss is None or judge(result, Match(val_loss=match.val_loss))
        if by_loss not in (True, "matched"):
            continue
        write_patched(job, trained, result, reference)
        close = with_fidelity(job, result, reference, tokens)
        measured = with_task_loss(job, close, reference)
        if judge(measured, match) == "matched":
            sizes = [measured if r.layers == measured.layers else r for r in patched]
            _keep(job, trained, sizes, reference, tokens)
            return measured
        shutil.rmtree(job.run.root / result.path / _MODEL)
    return None


def write_patched(
    job: Job, trained: TrainingResult, patched: TrainingResult, reference: Reference
) -> None:
    """Write the model of a patched size, unless it is there."""
    folder = job.run.root / patched.path
    if (folder / _MODEL / "config.json").is_file():
        return
    own, larger = (_layer_map(job, reference, r.layers) for r in (trained, patched))
    target = open_model(str(job.run.root / trained.path / "model"))
    patch(target, reference.model, larger, folder / _MODEL, own)
    write_bytes(folder / "inherit.json", (folder / _MODEL / "inherit.json").read_bytes())


def family_rows(
    recipe: Recipe,
    facts: LayerFacts,
    rounds: Sequence[TrainingResult],
    patched: Mapping[int, Sequence[TrainingResult]],
) -> list[dict[str, Any]]:
    """Describe each round and the sizes that layers put back give it, for run.json.

    Args:
        patched: From `patched_sizes`, by the number of layers of the round.
    """

    def row(trained: TrainingResult, result: TrainingResult) -> dict[str, Any]:
        own, larger = (
            inherited_layers(recipe, recipe.target_name, facts, r.layers) for r in (trained, result)
        )
        keys = ("layers", "params", "val_loss", "val_loss_se", "difference", "difference_se")
        return {
            "trained_layers": trained.layers,
            "returned": [layer for layer in larger if layer not in own],
            "kl": (result.fidelity or {}).get("kl"),
        } | {key: getattr(result, key) for key in keys}

    trained = {result.layers: result for result in rounds if not result.is_patched}
    return [
        row(trained[layers], result)
        for layers, sizes in patched.items()
        for result in (trained[layers], *sizes)
    ]


def _measured(
    job: Job,
    trained: TrainingResult,
    size: int,
    reference: Reference,
    tokens: TokenDirectory,
    benchmark: Benchmark,
) -> TrainingResult:
    """Measure one size, or read what was measured of it before."""
    own, larger = (_layer_map(job, reference, n) for n in (trained.layers, size))
    folder = job.run.patched(job.run.root / trained.path, size)
    target = open_model(str(job.run.root / trained.path / "model"))
    inputs = {
        "reference": reference.model.digest,
        "target": target.digest,
        "kept": list(larger),
        "tokens": tokens.fingerprint,
        "seq_len": job.recipe.train.seq_len,
        "evaluate": {"batch_size": job.recipe.evaluate.batch_size},
    }
    if (stored := _stored(folder / "result.json", inputs)) is not None:
        return stored
    began, title = time.monotonic(), f"{trained.name}, {size} layers, untrained"
    result = TrainingResult(
        name=trained.name,
        start=PATCHED,
        layers=size,
        params=0,
        tokens=0,
        epochs=0.0,
        start_val_loss=None,
        val_loss=0.0,
        val_loss_se=None,
        difference=0.0,
        difference_se=None,
        seconds=0.0,
        flops_per_token=0.0,
        flops=0.0,
        restarts=0,
        skipped=0,
        path=folder.relative_to(job.run.root).as_posix(),
        settings={"processes": job.processes.size},
        notes=[],
        windows=[],
        made_of=_made_of(trained, own, larger),
        dtype=published_dtype(job.recipe, reference.model),
        seed=trained.seed,
        kept=list(larger),
    )
    shutil.rmtree(folder, ignore_errors=True)
    write_patched(job, trained, result, reference)
    result = _with_loss(job, result, folder / _MODEL, tokens, benchmark, title)
    result = replace(result, seconds=time.monotonic() - began)
    result = with_fidelity(job, result, reference, tokens)
    message = f"val_loss {result.val_loss:.4f} for no token"
    job.on_progress(Progress(title, message=message))
    save_result(folder / "result.json", inputs, asdict(result))
    shutil.rmtree(folder / _MODEL)
    return result


def _stored(path: Path, inputs: Mapping[str, Any]) -> TrainingResult | None:
    """What was measured before from the same inputs; None: measure, it takes minutes at most."""
    try:
        stored = read_json(path)
        return (
            as_dataclass(TrainingResult, stored["result"], path)
            if (stored["inputs"] == inputs)
            else None
        )
    except (DataError, KeyError, TypeError):
        return None


def _with_loss(
    job: Job,
    result: TrainingResult,
    model: Path,
    tokens: TokenDirectory,
    benchmark: Benchmark,
    title: str,
) -> TrainingResult:
    import numpy as np

    from inheritune.evaluation.val_loss import paired_difference
    from inheritune.training.models import describe

    loss, _ = val_loss_of(job, model, tokens, title)
    shape = describe(model, job.recipe.train.seq_len)
    difference, error = paired_difference(loss.per_window, np.array(benchmark.windows))
    return replace(
        result,
        params=shape.params,
        bytes=sum(tensor.size for tensor in open_model(str(model)).tensors.values()),
        val_loss=loss.mean,
        val_loss_se=finite(loss.se),
        start_val_loss=loss.mean,
        difference=difference,
        difference_se=finite(error),
        flops_per_token=shape.flops_per_token,
        flops=loss.tokens * shape.flops_per_token * EVALUATION_SHARE,
        windows=loss.per_window.tolist(),
    )


def _layer_map(job: Job, reference: Reference, layers: int) -> Cut:
    return inherited_layers(job.recipe, job.recipe.target_name, reference.facts, layers)


def _made_of(trained: TrainingResult, own: Cut, larger: Cut) -> str:
    back = describe_selection([layer for layer in larger if layer not in own])
    return (
        f"{trained.layers} trained layers of {trained.name}, and {back} of the reference, untrained"
    )


def _keep(
    job: Job,
    trained: TrainingResult,
    patched: Sequence[TrainingResult],
    reference: Reference,
    tokens: TokenDirectory,
) -> None:
    """Write the sizes of a round to family.json, from which `inheritune patch` writes one."""
    own = _layer_map(job, reference, trained.layers)
    inputs: dict[str, Any] = {
        "target": open_model(str(job.run.root / trained.path / "model")).digest,
        "reference": reference.model.digest,
        "tokens": tokens.val_fingerprint,
    }
    members = []
    for result in (trained, *patched):
        layer_map = _layer_map(job, reference, result.layers)
        members.append(
            Member(
                layers=result.layers,
                layer_map=layer_map,
                returned=tuple(layer for layer in layer_map if layer not in own),
                params=result.params,
                val_loss=result.val_loss,
                val_loss_se=result.val_loss_se,
                windows=result.windows,
                task_loss=(result.task_loss or {}).get("mean"),
                seconds=round(result.seconds, 1),
                **{key: (result.fidelity or {}).get(key) for key in CLOSENESS},
            )
        )
    keep_members(job.run.family, inputs, members)
