"""The variants of a run: started, trained, and what is left of them for people."""

import filecmp
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from inheritune.checkpoints.config import cut_config
from inheritune.checkpoints.copy import copy_side_files
from inheritune.checkpoints.source import open_model
from inheritune.data.tokens import TokenDirectory
from inheritune.durable import write_json
from inheritune.inherit.grow import grow
from inheritune.inherit.inherit import inherit
from inheritune.progress import Progress
from inheritune.steps.job import Job, finished
from inheritune.steps.reference import Benchmark, Reference
from inheritune.steps.training import Arm, Trial, run_training, training_inputs

__all__ = ["continue_texts", "publish_target", "train_arm"]


def train_arm(
    job: Job, arm: Arm, reference: Reference, tokens: TokenDirectory, benchmark: Benchmark
) -> Trial:
    """Start a model as an arm says, train it, publish it, measure it."""
    distill = job.recipe.variants[arm.variant].distill
    if distill is not None:
        directory = str(reference.model.path.resolve())
        arm = replace(arm, distill=distill.model_dump(mode="json"), reference=directory)
    folder = job.run.variant(arm.variant, arm.layers)
    inputs = training_inputs(job, tokens) | {
        "reference": reference.model.digest,
        "start": arm.start,
        "layers": arm.layers,
        "variant_tokens": arm.tokens,
    }
    if arm.grown_from is not None:
        inputs |= {"grown_from": arm.grown_from, "first_sample": arm.first_sample}
    if arm.distill is not None:
        inputs |= {"distill": arm.distill}
    if finished(job, folder / "result.json", inputs) is None:
        _write_start(job, arm, reference, folder)
    trial = run_training(job, arm, folder, tokens, inputs, benchmark.windows)
    shutil.rmtree(folder / "start", ignore_errors=True)
    return trial


def _write_start(job: Job, arm: Arm, reference: Reference, folder: Path) -> None:
    start = folder / "start"
    if arm.start == "inherit":
        if not start.exists() and arm.grown_from is not None:
            trained = open_model(str(job.run.root / arm.grown_from / "model"))
            grow(trained, reference.model, arm.layers, start)
        elif not start.exists():
            inherit(reference.model, arm.layers, start)
        shutil.copyfile(start / "inherit.json", folder / "inherit.json")
        return
    if (start / "config.json").exists():
        return
    start.mkdir(parents=True, exist_ok=True)
    copy_side_files(reference.model.path, start)
    config, _ = cut_config(reference.model.config, arm.layers)
    write_json(start / "config.json", config)


def publish_target(job: Job, trial: Trial) -> Path:
    """Put the final model directory where `push` and people look for it: a copy, by one rename."""
    folder, target = job.run.root / trial.path, job.run.target
    files = {p.relative_to(folder / "model"): p for p in (folder / "model").rglob("*")}
    files = {name: path for name, path in files.items() if path.is_file()}
    files[Path("inherit.json")] = folder / "inherit.json"
    if all((target / n).is_file() and filecmp.cmp(p, target / n) for n, p in files.items()):
        return target
    staging, old = target.with_name(".target.tmp"), target.with_name(".target.old")
    for leftover in (staging, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for name, path in files.items():
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, staging / name)  # with its time, by which the next start knows it
    if target.exists():
        target.rename(old)
    staging.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return target


def continue_texts(job: Job, models: Mapping[str, Path]) -> list[dict[str, str]]:
    """What every model writes after the recipe's prompts."""
    from inheritune.evaluate.generate import continue_prompts

    wanted = job.recipe.report
    samples = []
    for name, directory in models.items() if wanted.prompts else []:
        job.stop.check("the run is complete but for its samples")
        job.on_progress(Progress("samples", message=f"{name} writes"))
        texts = continue_prompts(directory, wanted.prompts, wanted.sample_tokens)
        samples += [
            {"model": name, "prompt": prompt, "text": text}
            for prompt, text in zip(wanted.prompts, texts, strict=True)
        ]
    return samples
