"""The variants of a run: started, trained, and what is left of them for people."""

import filecmp
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from inheritune.data.tokens import TokenDirectory
from inheritune.errors import DataError
from inheritune.model_files.directory import open_model
from inheritune.model_files.flops import EVALUATION_SHARE
from inheritune.model_files.scan import scan
from inheritune.steps.benchmark import Benchmark
from inheritune.steps.growth import grown_sizes, grown_specs
from inheritune.steps.initial_weights import write_start
from inheritune.steps.job import Job, finish, finished
from inheritune.steps.reference import Reference, flops_per_token
from inheritune.steps.result import TrainingResult
from inheritune.steps.training import run_training, training_inputs
from inheritune.steps.training_spec import TrainingSpec, depth_of, specs_for
from inheritune.system.files import new_directory, sync_file, write_json
from inheritune.system.progress import Progress
from inheritune.system.strict_json import read_json

__all__ = ["continue_texts", "control_specs", "publish_target", "train_variant"]

_TRAINING = "training.json"


def train_variant(
    job: Job, arm: TrainingSpec, reference: Reference, tokens: TokenDirectory, benchmark: Benchmark
) -> TrainingResult:
    """Start a model as an arm says, train it, publish it, measure it."""
    if arm.distill is not None:
        arm = replace(arm, reference=str(reference.model.path.resolve()))
    folder = arm.folder_in(job.run)
    inputs = training_inputs(job, tokens, arm) | {
        "reference": reference.model.digest,
        "start": arm.start,
        "layers": arm.layers,
        "variant_tokens": arm.tokens,
    }
    if arm.grown_from is not None:
        inputs |= {"grown_from": arm.grown_from, "first_sample": arm.first_sample}
    # Named where they are not what they always were: the inputs of older runs stay as they are.
    inputs |= {} if arm.kept is None else {"kept": list(arm.kept)}
    inputs |= {} if arm.parts == "all" else {"parts": arm.parts}
    inputs |= {} if arm.distill is None else {"distill": arm.distill}
    if finished(job, folder / "result.json", inputs) is None:
        write_start(job, arm, reference.model, folder)
    trial = run_training(job, arm, folder, tokens, inputs, benchmark.windows)
    shutil.rmtree(folder / "start", ignore_errors=True)
    return trial


def control_specs(
    job: Job, reference: Reference, rounds: Sequence[TrainingResult], target: TrainingResult
) -> list[TrainingSpec]:
    """The trainings of all controls with their first seed, in the order of the recipe.

    Args:
        job: Has the recipe.
        reference: What the target was inherited from.
        rounds: All of the target's.
        target: Of them, the one whose size controls take over.
    """
    recipe = job.recipe
    arms: list[TrainingSpec] = []
    for name, variant in recipe.variants.items():
        if name == recipe.target:
            continue
        if variant.start == "grown":
            sizes = grown_sizes([trial.layers for trial in rounds], target.layers)
            arms += grown_specs(recipe, name, reference.layers, sizes, rounds[0].tokens)
            continue
        layers = depth_of(variant, reference.layers, target.layers)
        tokens = recipe.tokens_of(name)
        if tokens is None:
            # Of training alone; the reference's cost was sunk where it was not trained here.
            spent = sum(trial.training_flops for trial in rounds)
            if reference.trained_here:
                spent += reference.flops_per_token * int(reference.training["tokens"])
            each = flops_per_token(job, reference, layers)
            if variant.distill is not None and variant.distill.top_k is None:
                each += reference.flops_per_token * EVALUATION_SHARE
            tokens = round(spent / each)
        arms += specs_for(recipe, name, reference.layers, layers, tokens, reference.layers_by_rank)
    return arms


def publish_target(job: Job, trial: TrainingResult) -> Path:
    """Put the final model directory where `push` and people look for it: a copy, by one rename."""
    folder, target = job.run.root / trial.path, job.run.target
    files = {p.relative_to(folder / "model"): p for p in (folder / "model").rglob("*")}
    files = {name: path for name, path in files.items() if path.is_file()}
    files[Path("inherit.json")] = folder / "inherit.json"
    kept = ("tokens", "flops", "seconds", "val_loss", "val_loss_se")
    cost = {key: value for key, value in asdict(trial).items() if key in kept}
    same = all((target / n).is_file() and filecmp.cmp(p, target / n) for n, p in files.items())
    if same and _training(target).items() >= cost.items():
        return target
    with new_directory(target, replace=True) as staging:
        for name, path in files.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, staging / name)  # with its time, by which the next start knows it
            sync_file(staging / name)
        # By it, `verify` knows that these are not the reference's weights any more, but which.
        write_json(staging / _TRAINING, cost | {"curve": [], "tensors": _digests(staging)})
    return target


def _training(target: Path) -> dict[str, Any]:
    try:
        found = read_json(target / _TRAINING)
    except DataError:
        return {}
    return found if isinstance(found, dict) else {}


def _digests(model: Path) -> dict[str, str]:
    tensors = open_model(str(model)).tensors.values()
    by_file = {file: [t for t in tensors if t.file == file] for file in {t.file for t in tensors}}
    scans = [scan(file, inside) for file, inside in sorted(by_file.items())]
    return {name: found.xxh3 for part in scans for name, found in part.items()}


def continue_texts(job: Job, models: Mapping[str, Path]) -> list[dict[str, str]]:
    """What every model writes after the recipe's prompts; what it wrote before is read."""
    from inheritune.evaluation.samples import continue_prompts

    wanted = job.recipe.report
    if not wanted.prompts:
        return []
    digests = {name: open_model(str(directory)).digest for name, directory in models.items()}
    asked = {"prompts": wanted.prompts, "tokens": wanted.sample_tokens, "models": digests}
    with suppress(DataError, KeyError, TypeError):  # none, or broken: written again
        stored = read_json(job.run.samples)
        if isinstance(stored, dict) and stored.get("inputs") == asked:
            return list(stored["result"]["samples"])
    samples = []
    for name, directory in models.items():
        job.stop.check("the run is complete but for its samples")
        job.on_progress(Progress("samples", message=f"{name} writes"))
        texts = continue_prompts(directory, wanted.prompts, wanted.sample_tokens)
        samples += [
            {"model": name, "prompt": prompt, "text": text}
            for prompt, text in zip(wanted.prompts, texts, strict=True)
        ]
    finish(job.run.samples, asked, {"samples": samples})
    return samples
