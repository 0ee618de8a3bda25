"""Measure several models alike: val_loss on the same tokens or text, and the same lm-eval tasks."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.data.text_stream import TextStream
from inheritune.data.tokenizer import open_tokenizer
from inheritune.data.tokens import TokenStream, open_tokens
from inheritune.errors import DataError, RecipeError, escape
from inheritune.evaluation.request import EvaluationRequest
from inheritune.evaluation.scores import Metric, Score, beside, find_score, keep_score
from inheritune.evaluation.suites import VAL_LOSS
from inheritune.model_files.config import has_rotary_positions, max_positions
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.run_record.fields import finite_number
from inheritune.surgery.origin import made
from inheritune.system.files import make_directory
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.refusals import missing_directories, removed_if_refused
from inheritune.system.rows import Rows
from inheritune.system.signals import StopFlag, catch_signals

if TYPE_CHECKING:
    from inheritune.evaluation.gains import Gains
    from inheritune.evaluation.task_scores import EvaluationSettings, TaskFailure


_LONGEST_WINDOW = 1024


@dataclass(frozen=True)
class EvaluatedModel:
    """The scores of one model."""

    name: str  # the model, as it was named in the call
    layers: int
    params: int
    made: str  # ``whole``, ``cut``, ``repaired``, ``grown`` or ``trained``, as its records say
    digest: str  # XXH3 digest of config and weights
    scores: tuple[Score, ...]  # val_loss, then the tasks in the order they were asked

    def as_json(self) -> dict[str, Any]:
        """Return the scores as JSON values."""
        fields = asdict(self)
        scores = [{k: v for k, v in score.items() if k != "windows"} for score in fields["scores"]]
        return {"model": fields.pop("name")} | fields | {"scores": scores}


@dataclass(frozen=True)
class Evaluation(Rows):
    """The scores of all models that `evaluate` measured.

    Attributes:
        settings: The settings of all tasks.
        models: The models with their scores, in the order of the call.
        failures: Tasks that could not be asked of a model; the others are complete.
        gains: Size, speed and fidelity, where they were asked for.
    """

    settings: "EvaluationSettings"
    models: tuple[EvaluatedModel, ...]
    failures: "tuple[TaskFailure, ...]"
    gains: "Gains | None" = None

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each model, task and metric."""
        return [
            {
                "model": model.name,
                "layers": model.layers,
                "task": score.task,
                "metric": name,
                "value": metric.value,
                "se": metric.se,
                "shots": score.shots,
                "items": score.items,
            }
            for model in self.models
            for score in model.scores
            for name, metric in score.metrics.items()
        ]

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        gains = {} if self.gains is None else {"gains": self.gains.as_json()}
        return {
            "settings": asdict(self.settings),
            "models": [model.as_json() for model in self.models],
            "failures": [asdict(failure) for failure in self.failures],
        } | gains


def evaluate(
    models: Sequence[str | ModelDirectory],
    request: EvaluationRequest,
    out: Path,
    on_progress: Listener = silent,
) -> Evaluation:
    """Measure models under identical settings; a score that is in ``out`` is not measured again.

    Args:
        models: Model directories, Hub ids or ``embedded:demo``.
        out: Directory of scores, a file for each model and task.

    Raises:
        InherituneError: Nothing could be measured; a single task that fails is in the result.
        Interrupted: A signal asked to stop; every score that was complete is kept.
    """
    from inheritune.evaluation.task_descriptions import task_descriptions
    from inheritune.evaluation.task_scores import EvaluationSettings, score_tasks
    from inheritune.surgery.class_check.language_model import refuse_no_language_model
    from inheritune.training.hardware import choose_device, keep_freed_memory

    # --- models and settings: the same device, dtype and batches for all ---
    request.check()
    if not models:
        raise RecipeError("no model is given.", "Give a model directory or a Hub id.")
    if out.exists() and not out.is_dir():
        raise RecipeError(f"--out {escape(out)} is a file.", "Name a directory.")
    opened = _open(models)
    for model in opened.values():
        refuse_no_language_model(model)
    if request.one_tokenizer:
        _refuse_other_tokenizers(opened)
    made_as = {name: made(model.path) for name, model in opened.items()}
    device = choose_device()
    if device == "cpu":
        keep_freed_memory()
    dtype = request.dtype if request.dtype != "auto" else "bf16" if "cuda" in device else "fp32"
    settings = EvaluationSettings(request.batch_size, dtype, request.add_bos, request.limit, device)

    # --- val_loss on windows that every model can take, then the tasks ---
    scores: dict[str, list[Score]] = {name: [] for name in opened}
    failures: list[TaskFailure] = []
    seq_len = _window_length(request, opened)
    gains = None
    with removed_if_refused(missing_directories(out)), catch_signals() as stop:
        if request.has_held_out_text:
            make_directory(out)
            for name, model in opened.items():
                score = _val_loss(name, model, request, seq_len, out, device, stop, on_progress)
                scores[name].append(beside(score, next(iter(scores.values()))))
        if tasks := request.lm_eval_tasks:
            allow_code, folder = request.allow_code, request.task_data
            with task_descriptions(tasks, folder, allow_code, out) as descriptions:
                result = score_tasks(opened, descriptions, settings, out, stop, on_progress)
            for name, score in result.scores:
                scores[name].append(score)
            failures = result.failures
        if request.speed:
            gains = _gains(opened, request, seq_len, stop, on_progress)
    evaluated = tuple(
        EvaluatedModel(
            name, model.layers, model.params, made_as[name], model.digest, tuple(scores[name])
        )
        for name, model in opened.items()
    )
    return Evaluation(settings, evaluated, tuple(failures), gains)


def _gains(
    opened: Mapping[str, ModelDirectory],
    request: EvaluationRequest,
    seq_len: int,
    stop: StopFlag,
    on_progress: Listener,
) -> "Gains":
    """Measure speed, and fidelity if held-out text is given and all tokenizers are equal."""
    from inheritune.evaluation.gains import measure_gains

    stream = None
    if request.has_held_out_text and not _of_other_tokenizers(opened):
        stream, *_ = _held_out(next(iter(opened.values())), request)
    return measure_gains(
        list(opened.items()),
        stream,
        seq_len,
        request.batch_size,
        request.dtype,
        stop,
        on_progress,
    )


def _open(models: Sequence[str | ModelDirectory]) -> dict[str, ModelDirectory]:
    """Open each model once, and name it; a number follows a name that is taken."""
    opened: dict[str, ModelDirectory] = {}
    for model in models:
        if isinstance(model, str):
            if model not in opened:
                opened[model] = open_model(model)
            continue
        name, number = model.name, 2
        while name in opened:
            name, number = f"{model.name} ({number})", number + 1
        opened[name] = model
    return opened


def _of_other_tokenizers(models: Mapping[str, ModelDirectory]) -> list[str]:
    """Name the models that have another tokenizer than the first."""
    digests = {name: open_tokenizer(model.path).sha256 for name, model in models.items()}
    return [name for name in digests if digests[name] != next(iter(digests.values()))]


def _refuse_other_tokenizers(models: Mapping[str, ModelDirectory]) -> None:
    if others := _of_other_tokenizers(models):
        raise RecipeError(
            "--figure compares losses per token, and the first model has another tokenizer than "
            f"{escape(', '.join(others))}.",
            "Name models of one tokenizer, or leave --figure out: bits per byte can be compared.",
        )


def _window_length(request: EvaluationRequest, models: Mapping[str, ModelDirectory]) -> int:
    """Return the tokens per window: those of the request, or as many as every model can take."""
    positions = {name: max_positions(model.config) for name, model in models.items()}
    for name, limit in positions.items():
        too_long = request.seq_len is not None and limit is not None and request.seq_len > limit
        if too_long and not has_rotary_positions(models[name].config):
            raise RecipeError(
                f"--seq-len is {request.seq_len}, but {name} has {limit} positions.",
                f"Choose {limit} or less.",
            )
    return request.seq_len or min([_LONGEST_WINDOW, *filter(None, positions.values())])


def fetch_tasks(
    request: EvaluationRequest, out: Path, on_progress: Listener = silent
) -> list[dict[str, Any]]:
    """Download the questions of tasks, to evaluate without a network later.

    Returns:
        A mapping with ``task`` and ``dataset`` for each task.

    Raises:
        MachineError: The questions of a task cannot be downloaded.
    """
    from inheritune.evaluation.harness import load_questions
    from inheritune.evaluation.task_descriptions import task_descriptions

    tasks = request.lm_eval_tasks
    if not tasks:
        raise RecipeError("no task is named whose data could be fetched.", "Give --tasks.")
    with task_descriptions(tasks, request.task_data, request.allow_code, out) as descriptions:
        for task in descriptions:
            on_progress(Progress(task.task, message=f"fetching {task.dataset}"))
            load_questions(task)
        return [{"task": task.task, "dataset": task.dataset} for task in descriptions]


def _val_loss(
    name: str,
    model: ModelDirectory,
    request: EvaluationRequest,
    seq_len: int,
    out: Path,
    device: str,
    stop: StopFlag,
    on_progress: Listener,
) -> Score:
    """Measure the val_loss of a model, or take the score that is in ``out``."""
    from inheritune.evaluation.val_loss import measure_val_loss
    from inheritune.training.models import load_model

    stream, num_bytes, fingerprint = _held_out(model, request)
    # The result depends on these alone: under the same key, a score is not measured again.
    key = {
        "model": model.digest,
        "task": VAL_LOSS,
        "data": fingerprint,
        "seq_len": seq_len,
        "batch_size": request.batch_size,
    }
    if (score := find_score(out, key)) is not None:
        return score
    began = time.monotonic()
    live: Any = load_model(model.path)
    live.to(device)
    task = f"{name}: val_loss"
    loss = measure_val_loss(live, stream, seq_len, request.batch_size, stop, on_progress, task)
    # bits per byte = (nats per token / ln 2) x tokens / bytes
    bits_per_nat = stream.num_ids / max(num_bytes, 1) / math.log(2)
    perplexity = math.exp(min(loss.mean, 700.0))  # exp(710) is no float any more
    values = {
        VAL_LOSS: (loss.mean, loss.se),
        "perplexity": (perplexity, perplexity * loss.se),
        "bits_per_byte": (loss.mean * bits_per_nat, loss.se * bits_per_nat),
    }
    score = Score(
        task=VAL_LOSS,
        shots=None,
        items=len(loss.per_window),
        items_in_all=len(loss.per_window),
        metrics={
            n: Metric(finite_number(v), finite_number(se), True) for n, (v, se) in values.items()
        },
        key=key,
        seconds=round(time.monotonic() - began, 2),
        facts={"device": device, "tokens": loss.tokens, "seq_len": seq_len},
        windows=loss.per_window.tolist(),
    )
    keep_score(out, score)
    return score


def _held_out(model: ModelDirectory, request: EvaluationRequest) -> tuple[TokenStream, int, str]:
    """Open the held-out tokens, or all of a text; return stream, number of bytes, fingerprint."""
    tokenizer = open_tokenizer(model.path)
    if request.text is not None:
        text = TextStream(request.text, tokenizer)
        return text, text.num_bytes, text.fingerprint
    assert request.tokens is not None  # the caller has seen that there is text
    tokens = open_tokens(request.tokens)
    if tokens.manifest["tokenizer"]["sha256"] != tokenizer.sha256:
        raise DataError(
            f"{request.tokens} was prepared with another tokenizer than that of {model.name}.",
            "Prepare tokens for it, or give --text: bits per byte can then be compared.",
        )
    return tokens.val, tokens.val_bytes, tokens.val_fingerprint
