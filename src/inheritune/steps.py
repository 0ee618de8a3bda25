"""Each step of a run: skipped when its result is there and fits, else done and written as one file.

So continuing a run is running it again.
"""

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.checkpoints.config import cut_config, layer_count, text_config
from inheritune.checkpoints.copy import copy_side_files
from inheritune.checkpoints.source import ModelDirectory, open_model
from inheritune.data.prepare import prepare, training_texts
from inheritune.data.tokenizer import open_tokenizer, train_tokenizer
from inheritune.data.tokens import TokenDirectory, check_budget
from inheritune.errors import RecipeError
from inheritune.inherit.inherit import inherit
from inheritune.progress import Listener, Progress
from inheritune.recipe import Recipe, ReferenceTraining
from inheritune.run import Run, read_json_file, write_json
from inheritune.signals import StopFlag

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from inheritune.evaluate.val_loss import ValLoss

__all__ = [
    "Arm",
    "Benchmark",
    "Job",
    "Reference",
    "Trial",
    "continue_texts",
    "finished",
    "measure_benchmark",
    "open_reference",
    "prepare_tokens",
    "publish_target",
    "tokenizer_home",
    "train_arm",
]

# Keys of `train` that move nothing but files and screens: they may change between two starts.
_FREE_KEYS = {"save_minutes", "keep", "eval_every"}


@dataclass(frozen=True)
class Job:
    """What every step is given.

    Attributes:
        recipe: What to do.
        run: Where it is written.
        stop: Asked between pieces of work.
        on_progress: Told what goes on.
    """

    recipe: Recipe
    run: Run
    stop: StopFlag
    on_progress: Listener


@dataclass(frozen=True)
class Reference:
    """The large model, opened, with what is known of its training.

    Attributes:
        model: Its directory.
        name: As the recipe calls it.
        params: Weights, tied ones once.
        flops_per_token: Of a training token, at the recipe's sequence length.
        training: ``tokens``, ``flops``, ``seconds``, ``curve`` of its training; empty if unknown.
        trained_here: Whether this run trained it.
    """

    model: ModelDirectory
    name: str
    params: int
    flops_per_token: float
    training: Mapping[str, Any]
    trained_here: bool

    @property
    def layers(self) -> int:
        """Transformer layers."""
        return self.model.layers


@dataclass(frozen=True)
class Benchmark:
    """The reference's val_loss, per window.

    Attributes:
        val_loss: Nats per token.
        val_loss_se: Standard error over windows.
        bits_per_byte: The same loss, free of the tokenizer.
        windows: Loss of every window, nats per token.
        tokens: Predicted tokens.
        flops: Cost of measuring.
        seconds: Cost of measuring.
    """

    val_loss: float
    val_loss_se: float | None
    bits_per_byte: float
    windows: list[float]
    tokens: int
    flops: float
    seconds: float


@dataclass(frozen=True)
class Arm:
    """One training to be done.

    Attributes:
        variant: Name in the recipe.
        start: ``"inherit"`` or ``"fresh"``.
        layers: Of the model trained.
        tokens: Training tokens, repeats counted.
    """

    variant: str
    start: str
    layers: int
    tokens: int

    @property
    def task(self) -> str:
        """Name shown with the progress and in the ledger."""
        return f"{self.variant}, {self.layers} layers"


@dataclass(frozen=True)
class Trial:
    """One training done and measured. `difference` is val_loss - benchmark, window by window."""

    name: str
    start: str
    layers: int
    params: int
    tokens: int
    epochs: float
    start_val_loss: float | None
    val_loss: float
    val_loss_se: float | None
    difference: float
    difference_se: float | None
    seconds: float
    flops: float
    restarts: int
    skipped: int
    path: str
    settings: dict[str, Any]
    notes: list[str]
    windows: list[float]

    def summary(self) -> dict[str, Any]:
        """For run.json: everything but the windows."""
        fields = asdict(self)
        del fields["windows"]
        return fields


def finished(path: Path, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result a step left, if it did.

    Args:
        path: The file a step ends with.
        inputs: What the step would be done with now.

    Raises:
        RecipeError: The result was made from other inputs; it is never overwritten.
    """
    if not path.exists():
        return None
    stored = read_json_file(path)
    now = json.loads(json.dumps(dict(inputs)))
    if stored["inputs"] != now:
        key, before, after = _first_difference(stored["inputs"], now)
        raise RecipeError(
            f"{path} was made with {key} = {before!r}; now it is {after!r}.",
            "Put it back, or give the run another name: --set name=...",
        )
    result: dict[str, Any] = stored["result"]
    return result


def _first_difference(before: Any, after: Any, key: str = "") -> tuple[str, Any, Any]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in {**before, **after}:
            if before.get(name) != after.get(name):
                dotted = f"{key}.{name}" if key else name
                return _first_difference(before.get(name), after.get(name), dotted)
    return key, before, after


def _finish(path: Path, inputs: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    write_json(path, {"inputs": dict(inputs), "result": dict(result)})


# -- reference and tokens


def open_reference(job: Job) -> Reference:
    """The reference: opened, or trained here first when the recipe says so."""
    wanted = job.recipe.reference
    if wanted.train is not None:
        _train_reference(job, wanted.train)
        folder, name = job.run.reference / "model", "trained here"
        model = open_model(str(folder), None)
    else:
        assert wanted.model is not None  # the recipe has one or the other
        model, name = open_model(wanted.model, wanted.revision), wanted.model
    from inheritune.train.weights import describe

    ledger = model.path / "training.json"
    shape = describe(model.path, job.recipe.train.seq_len)
    return Reference(
        model=model,
        name=name,
        params=shape.params,
        flops_per_token=shape.flops_per_token,
        training=read_json_file(ledger) if ledger.exists() else {},
        trained_here=wanted.train is not None,
    )


def prepare_tokens(job: Job, model: Path) -> TokenDirectory:
    """Training and validation tokens, by the tokenizer of a model directory."""
    recipe = job.recipe
    tokenizer = open_tokenizer(model)
    rows = text_config(read_json_file(model / "config.json")).get("vocab_size", tokenizer.rows)
    tokens = prepare(
        recipe.data,
        tokenizer,
        rows,
        recipe.train.seq_len,
        job.run.tokens,
        job.on_progress,
        job.stop,
    )
    check_budget(tokens, _longest_training(recipe), recipe.train.seq_len, recipe.data.allow_repeat)
    return tokens


def _longest_training(recipe: Recipe) -> int:
    planned = [recipe.train.tokens]
    planned += [v.tokens for v in recipe.variants.values() if isinstance(v.tokens, int)]
    if recipe.reference.train is not None:
        planned.append(recipe.reference.train.tokens)
    return max(planned)


def tokenizer_home(job: Job) -> Path:
    """The directory whose tokenizer and config the tokens are prepared for."""
    wanted = job.recipe.reference
    if wanted.train is not None:
        return _reference_start(job, wanted.train)
    assert wanted.model is not None  # the recipe has one or the other
    return open_model(wanted.model, wanted.revision).path


def _reference_start(job: Job, wanted: ReferenceTraining) -> Path:
    start = job.run.reference / "start"
    if (start / "config.json").exists():
        return start
    tokenizer = job.run.reference / "tokenizer"
    if wanted.tokenizer is not None:
        tokenizer = open_model(wanted.tokenizer, None).path
    elif not (tokenizer / "tokenizer.json").exists():
        job.on_progress(Progress("tokenizer", message="training one on the text"))
        train_tokenizer(training_texts(job.recipe.data), wanted.vocab_size, tokenizer)
    start.mkdir(parents=True, exist_ok=True)
    copy_side_files(tokenizer, start)
    opened = open_tokenizer(start)
    ids = {"vocab_size": opened.rows, "bos_token_id": opened.bos, "eos_token_id": opened.eos}
    write_json(start / "config.json", ids | wanted.config)
    return start


def _train_reference(job: Job, wanted: ReferenceTraining) -> None:
    folder = job.run.reference
    tokens = prepare_tokens(job, _reference_start(job, wanted))
    inputs = _training_inputs(job, tokens) | {"reference": wanted.model_dump(mode="json")}
    if finished(folder / "result.json", inputs) is None:
        arm = Arm("reference", "fresh", layer_count(wanted.config), wanted.tokens)
        _finish(folder / "result.json", inputs, _train(job, arm, folder, tokens, inputs, None))


# -- training


def measure_benchmark(job: Job, reference: Reference, tokens: TokenDirectory) -> Benchmark:
    """The reference's val_loss on every validation window."""
    recipe, path = job.recipe, job.run.benchmark
    inputs = {
        "reference": reference.model.digest,
        "tokens": tokens.fingerprint,
        "seq_len": recipe.train.seq_len,
        "batch_size": recipe.evaluate.batch_size,
    }
    if (done := finished(path, inputs)) is not None:
        return Benchmark(**done)
    loss, seconds = _val_loss_of(job, reference.model.path, tokens, "benchmark")
    val_tokens = tokens.val.num_samples(recipe.train.seq_len) * recipe.train.seq_len
    bytes_per_token = tokens.val_bytes / max(tokens.val.num_ids, 1)
    benchmark = Benchmark(
        val_loss=loss.mean,
        val_loss_se=_finite(loss.se),
        bits_per_byte=loss.mean / math.log(2) / bytes_per_token,
        windows=loss.per_window.tolist(),
        tokens=val_tokens,
        flops=val_tokens * reference.flops_per_token / 3,
        seconds=seconds,
    )
    _finish(path, inputs, asdict(benchmark))
    return benchmark


def train_arm(
    job: Job, arm: Arm, reference: Reference, tokens: TokenDirectory, benchmark: Benchmark
) -> Trial:
    """Start a model as an arm says, train it, publish it, measure it."""
    folder = job.run.variant(arm.variant, arm.layers)
    inputs = _training_inputs(job, tokens) | {
        "reference": reference.model.digest,
        "start": arm.start,
        "layers": arm.layers,
        "variant_tokens": arm.tokens,
    }
    done = finished(folder / "result.json", inputs)
    if done is None:
        _write_start(arm, reference, folder / "start")
        done = _train(job, arm, folder, tokens, inputs, benchmark)
        _finish(folder / "result.json", inputs, done)
    return Trial(**done)


def _write_start(arm: Arm, reference: Reference, start: Path) -> None:
    if (start / "config.json").exists():
        return
    if arm.start == "inherit":
        inherit(reference.model, arm.layers, start)
        return
    start.mkdir(parents=True, exist_ok=True)
    copy_side_files(reference.model.path, start)
    config, _ = cut_config(reference.model.config, arm.layers)
    write_json(start / "config.json", config)


def _training_inputs(job: Job, tokens: TokenDirectory) -> dict[str, Any]:
    return {
        "train": job.recipe.train.model_dump(mode="json", exclude=_FREE_KEYS | {"tokens"}),
        "tokens": tokens.fingerprint,
        "evaluate": job.recipe.evaluate.model_dump(mode="json"),
    }


def _train(
    job: Job,
    arm: Arm,
    folder: Path,
    tokens: TokenDirectory,
    inputs: Mapping[str, Any],
    benchmark: Benchmark | None,
) -> dict[str, Any]:
    from inheritune.evaluate.val_loss import measure_val_loss, paired_difference
    from inheritune.train.loop import Plan, train
    from inheritune.train.settings import choose_settings
    from inheritune.train.weights import describe, fresh_model, load_model, save_model

    recipe, start, out = job.recipe, folder / "start", folder / "model"
    shape = describe(start, recipe.train.seq_len)
    settings = choose_settings(recipe.train, shape.flops_per_token * arm.tokens)
    if arm.start == "inherit":
        model = load_model(start, recipe.train.dropout)
    else:
        model = fresh_model(start, recipe.train.seed, recipe.train.dropout)

    def measure(model: "PreTrainedModel") -> float:
        return measure_val_loss(
            model, tokens.val, recipe.train.seq_len, recipe.evaluate.batch_size, job.stop
        ).mean

    trained = train(
        model,
        recipe.train,
        Plan(arm.task, tokens.train, arm.tokens, inputs),
        settings,
        folder,
        measure,
        job.stop,
        job.on_progress,
    )
    for note in trained.notes:
        job.on_progress(Progress(arm.task, message=note))
    if not out.exists():
        save_model(model, out, start)
    del model
    # What is published is what is measured.
    loss, eval_s = _val_loss_of(job, out, tokens, f"{arm.task}, val_loss")
    difference, difference_se = math.nan, math.nan
    if benchmark is not None:
        import numpy as np

        difference, difference_se = paired_difference(loss.per_window, np.array(benchmark.windows))
    position = trained.position
    unique = tokens.train.num_samples(recipe.train.seq_len) * recipe.train.seq_len
    curve = _curve(folder / "metrics.jsonl")
    val_tokens = loss.tokens * (len(curve) + 1)
    settings = replace(settings, attention=trained.attention, compile=trained.compiled)
    trial = Trial(
        name=arm.variant,
        start=arm.start,
        layers=arm.layers,
        params=shape.params,
        tokens=position.tokens,
        epochs=position.tokens / unique,
        start_val_loss=trained.start_val_loss,
        val_loss=loss.mean,
        val_loss_se=_finite(loss.se),
        difference=difference if benchmark else 0.0,
        difference_se=_finite(difference_se),
        seconds=position.elapsed_s + eval_s,
        flops=shape.flops_per_token * (position.tokens + val_tokens / 3),
        restarts=position.restarts,
        skipped=position.skipped,
        path=folder.relative_to(job.run.root).as_posix(),
        settings=settings.record(),
        notes=list(trained.notes),
        windows=loss.per_window.tolist(),
    )
    write_json(out / "training.json", _training_ledger(trial, curve))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return asdict(trial)


def _training_ledger(trial: Trial, curve: list[dict[str, Any]]) -> dict[str, Any]:
    # Travels with the model, so that whoever inherits from it knows what its training cost.
    return {
        "tokens": trial.tokens,
        "flops": trial.flops,
        "seconds": round(trial.seconds, 1),
        "val_loss": trial.val_loss,
        "val_loss_se": trial.val_loss_se,
        "curve": curve,
    }


def _curve(metrics: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [
        {"tokens": row["tokens"], "val_loss": row["val_loss"]} for row in rows if "val_loss" in row
    ]


def _val_loss_of(
    job: Job, directory: Path, tokens: TokenDirectory, task: str
) -> "tuple[ValLoss, float]":
    from inheritune.evaluate.val_loss import measure_val_loss
    from inheritune.train.weights import load_model

    began = time.monotonic()
    measure = partial(measure_val_loss, stop=job.stop, on_progress=job.on_progress, task=task)
    loss = measure(
        load_model(directory),
        tokens.val,
        job.recipe.train.seq_len,
        job.recipe.evaluate.batch_size,
    )
    return loss, time.monotonic() - began


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# -- what is left behind


def publish_target(job: Job, trial: Trial) -> Path:
    """Put the final model directory where `push` and people look for it: a copy, by one rename."""
    source, target = job.run.root / trial.path / "model", job.run.target
    staging = target.with_name("target.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(source, staging)
    shutil.copyfile(source.parent / "start" / "inherit.json", staging / "inherit.json")
    shutil.rmtree(target, ignore_errors=True)
    staging.rename(target)
    return target


def continue_texts(job: Job, models: Mapping[str, Path]) -> list[dict[str, str]]:
    """What every model writes after the recipe's prompts."""
    from inheritune.evaluate.generate import continue_prompts

    wanted = job.recipe.report
    samples = []
    for name, directory in models.items() if wanted.prompts else []:
        job.on_progress(Progress("samples", message=f"{name} writes"))
        texts = continue_prompts(directory, wanted.prompts, wanted.sample_tokens)
        samples += [
            {"model": name, "prompt": prompt, "text": text}
            for prompt, text in zip(wanted.prompts, texts, strict=True)
        ]
    return samples
