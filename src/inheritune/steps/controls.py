"""Train the variants of a run, publish its target, and let its models continue prompts."""

import filecmp
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from inheritune.data.tokens import TokenDirectory
from inheritune.errors import DataError
from inheritune.model_files.directory import open_model
from inheritune.model_files.flops import EVALUATION_SHARE
from inheritune.model_files.scan import scan
from inheritune.steps.benchmark import Benchmark
from inheritune.steps.distillation import distill_inputs
from inheritune.steps.fidelity import with_fidelity
from inheritune.steps.growth import grown_sizes, grown_specs
from inheritune.steps.initial_weights import write_start
from inheritune.steps.job import Job
from inheritune.steps.reference import Reference, flops_per_token
from inheritune.steps.result import TrainingResult
from inheritune.steps.resume import save_result, saved_result
from inheritune.steps.training import run_training
from inheritune.steps.training_spec import TrainingSpec, layers_of, specs_for
from inheritune.steps.training_task import TrainingTask, published_dtype, training_inputs
from inheritune.system.files import new_directory, sync_file, write_json
from inheritune.system.progress import Progress
from inheritune.system.strict_json import read_json

_TRAINING = "training.json"


def train_variant(
    job: Job,
    spec: TrainingSpec,
    reference: Reference,
    tokens: TokenDirectory,
    benchmark: Benchmark,
) -> TrainingResult:
    """Write a variant's start, train it, publish the model and measure it."""
    if spec.distill is not None:
        reference_dir, digest = str(reference.model.path.resolve()), reference.model.digest
        spec = replace(spec, reference_dir=reference_dir, reference_digest=digest)
    inputs = training_inputs(job, tokens, spec) | {
        "reference": reference.model.digest,
        "start": spec.start,
        "layers": spec.layers,
        "variant_tokens": spec.tokens,
    }
    if spec.grown_from is not None:
        inputs |= {"grown_from": spec.grown_from, "first_sample": spec.first_sample}
    # Defaults are left out, so that the inputs of runs of older versions compare equal.
    inputs |= {} if spec.inherited_layers is None else {"kept": list(spec.inherited_layers)}
    inputs |= {} if spec.parts == "all" else {"parts": spec.parts}
    inputs |= {} if spec.distill is None else {"distill": distill_inputs(spec.distill)}
    if spec.repair != "none":
        inputs |= {"repair": spec.repair, "repair_tokens": spec.repair_tokens}
    dtype = published_dtype(job.recipe, reference.model)
    task = TrainingTask(job, spec, spec.directory_in(job.run), tokens, inputs, dtype)
    if saved_result(job, task.result_file, task.result_inputs) is None:
        write_start(task, reference.model)
    result = run_training(task, benchmark.windows)
    shutil.rmtree(task.directory / "start", ignore_errors=True)
    return with_fidelity(job, result, reference, tokens)


def control_specs(
    job: Job, reference: Reference, rounds: Sequence[TrainingResult], target: TrainingResult
) -> list[TrainingSpec]:
    """List the trainings of all controls with their first seed, in the order of the recipe.

    Args:
        target: The round whose size the controls take over.
    """
    recipe = job.recipe
    specs: list[TrainingSpec] = []
    for name, variant in recipe.variants.items():
        if name == recipe.target_name:
            continue
        if variant.start == "grown":
            sizes = grown_sizes([result.layers for result in rounds], target.layers)
            specs += grown_specs(recipe, name, reference.facts, sizes, rounds[0].tokens)
            continue
        layers = layers_of(variant, reference.layers, target.layers)
        tokens = recipe.tokens_of(name)
        if tokens is None:  # equal compute: FLOPs of training alone, validations apart
            flops = sum(result.training_flops for result in rounds)
            if reference.trained_here:
                flops += reference.flops_per_token * int(reference.training["tokens"])
            flops_each = flops_per_token(job, reference, layers)
            if variant.distill is not None and variant.distill.top_k is None:
                flops_each += reference.flops_per_token * EVALUATION_SHARE
            tokens = round(flops / flops_each)
        specs += specs_for(recipe, name, reference.facts, layers, tokens)
    return specs


def publish_target(job: Job, result: TrainingResult) -> Path:
    """Copy the final model to ``target/``, replacing an earlier one by a rename.

    Does nothing where the same files and figures are there.
    """
    training_dir, target = job.run.root / result.path, job.run.target
    model = training_dir / "model"
    files = {path.relative_to(model): path for path in model.rglob("*") if path.is_file()}
    files[Path("inherit.json")] = training_dir / "inherit.json"
    is_copied = all(
        (target / name).is_file() and filecmp.cmp(path, target / name, shallow=False)
        for name, path in files.items()
    )
    cost = result.cost()
    if is_copied and _stored_training(target).items() >= cost.items():
        return target
    with new_directory(target, replace=True) as staging:
        for name, path in files.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, staging / name)  # with its time: the next start need not hash it
            sync_file(staging / name)
        # `verify` sees by the digests that these are trained weights, and that they are these.
        write_json(staging / _TRAINING, cost | {"curve": [], "tensors": _digests(staging)})
    return target


def _stored_training(target: Path) -> dict[str, Any]:
    try:
        stored = read_json(target / _TRAINING)
    except DataError:
        return {}
    return stored if isinstance(stored, dict) else {}


def _digests(model: Path) -> dict[str, str]:
    """Return the XXH3 digest of every tensor, by its name."""
    scans = scan(open_model(str(model)).tensors.values())
    return {name: result.xxh3 for name, result in scans.items()}


def continue_texts(job: Job, models: Mapping[str, Path]) -> list[dict[str, str]]:
    """Let every model, by its name, continue the recipe's prompts, unless it has done so before."""
    from inheritune.evaluation.samples import continue_prompts

    section = job.recipe.report
    if not section.prompts:
        return []
    digests = {name: open_model(str(directory)).digest for name, directory in models.items()}
    inputs = {"prompts": section.prompts, "tokens": section.sample_tokens, "models": digests}
    with suppress(DataError, KeyError, TypeError):  # missing or broken: written again
        stored = read_json(job.run.samples)
        if isinstance(stored, dict) and stored.get("inputs") == inputs:
            return list(stored["result"]["samples"])
    samples = []
    for name, directory in models.items():
        job.stop.check("the run is complete but for its samples")
        job.on_progress(Progress("samples", message=f"{name} writes"))
        texts = continue_prompts(directory, section.prompts, section.sample_tokens)
        samples += [
            {"model": name, "prompt": prompt, "text": text}
            for prompt, text in zip(section.prompts, texts, strict=True)
        ]
    save_result(job.run.samples, inputs, {"samples": samples})
    return samples
