"""Several models measured alike: val_loss on one set of tokens or text, and the same tasks."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inheritune.data.text_stream import TextStream
from inheritune.data.tokenizer import open_tokenizer
from inheritune.data.tokens import TokenStream, open_tokens
from inheritune.errors import DataError, RecipeError
from inheritune.evaluation.suites import VAL_LOSS, questions
from inheritune.model_files.config import text_config
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.system.progress import Listener, silent
from inheritune.system.signals import catch_signals

__all__ = ["Wanted", "evaluate", "fetch_only"]

_LONGEST = 1024


@dataclass(frozen=True)
class Wanted:
    """What the models are measured on, and how.

    Attributes:
        tasks: Of lm-eval, suites, or ``val_loss``.
        tokens: Token directory whose held-out tokens give val_loss.
        texts: Text files that give val_loss; each model reads them with its own tokenizer.
        seq_len: Tokens of a window of val_loss; None: 1024, or what the models have.
        shots: Examples before each question; None: as the suite or task says.
        limit: Questions of each task; None: all.
        batch_size: Windows or requests in a forward.
        dtype: ``auto``, ``fp32``, ``bf16`` or ``fp16``, for the tasks; val_loss is always fp32.
        add_bos: ``auto``, ``yes`` or ``no``.
        task_data: Directory of local questions.
        allow_code: Whether tasks may run code of their own.
    """

    tasks: Sequence[str] = ()
    tokens: Path | None = None
    texts: Sequence[Path] = ()
    seq_len: int | None = None
    shots: int | None = None
    limit: int | None = None
    batch_size: int = 16
    dtype: str = "auto"
    add_bos: str = "auto"
    task_data: Path | None = None
    allow_code: bool = False


def evaluate(
    models: Sequence[str], wanted: Wanted, out: Path, on_progress: Listener = silent
) -> dict[str, Any]:
    """Measure models under identical settings; what is in ``out`` already costs nothing.

    Args:
        models: Model directories, Hub ids or ``embedded:demo``.
        wanted: What on.
        out: Directory of results, a file for each model and task.
        on_progress: Told what goes on.

    Returns:
        ``settings``, ``models`` with their scores, ``failures``, as JSON values.

    Raises:
        InherituneError: It could not be done at all; single tasks that fail are in the result.
    """
    from inheritune.evaluation.ask import Asked, Settings, ask, described
    from inheritune.training.hardware import forward_device

    tasks = [pair for pair in questions(wanted.tasks, wanted.shots) if pair[0] != VAL_LOSS]
    _refuse_nothing(wanted, tasks)
    opened = {name: open_model(name) for name in dict.fromkeys(models)}
    device = str(forward_device())
    dtype = wanted.dtype if wanted.dtype != "auto" else "bf16" if "cuda" in device else "fp32"
    settings = Settings(wanted.batch_size, dtype, wanted.add_bos, wanted.limit, device)
    scores: dict[str, list[dict[str, Any]]] = {name: [] for name in opened}
    failures: list[dict[str, str]] = []
    with catch_signals() as stop:
        if wanted.tokens is not None or wanted.texts:
            for name, score in _losses(opened, wanted, out, on_progress, stop).items():
                scores[name].append(score)
        if tasks:
            asked = [Asked(name, model.path, model.digest) for name, model in opened.items()]
            with described(tasks, wanted.task_data, wanted.allow_code, out) as descriptions:
                answers = ask(asked, descriptions, settings, out, stop, on_progress)
            for name, answer in answers.scores:
                scores[name].append(answer.as_json())
            failures = [asdict(failure) for failure in answers.failures]
    return {
        "settings": asdict(settings),
        "models": [
            {"model": name, "layers": model.layers, "params": model.params, "digest": model.digest}
            | {"scores": scores[name]}
            for name, model in opened.items()
        ],
        "failures": failures,
    }


def fetch_only(wanted: Wanted, out: Path, on_progress: Listener = silent) -> list[dict[str, Any]]:
    """Bring the questions of tasks to this machine, for one without a network.

    Returns:
        The tasks, each with its data set.

    Raises:
        MachineError: Those of a task cannot be had.
    """
    from inheritune.evaluation.ask import described
    from inheritune.evaluation.harness import fetch
    from inheritune.system.progress import Progress

    tasks = [pair for pair in questions(wanted.tasks, wanted.shots) if pair[0] != VAL_LOSS]
    if not tasks:
        raise RecipeError("no task is named whose data could be fetched.", "Give --tasks.")
    with described(tasks, wanted.task_data, wanted.allow_code, out) as descriptions:
        for task in descriptions:
            on_progress(Progress(task.task, message=f"fetching {task.dataset}"))
            fetch(task)
        return [{"task": task.task, "dataset": task.dataset} for task in descriptions]


def _refuse_nothing(wanted: Wanted, tasks: Sequence[object]) -> None:
    measured = wanted.tokens is not None or bool(wanted.texts)
    if not tasks and not measured:
        raise RecipeError(
            "there is nothing to measure.", "Give --tasks, or --tokens DIR, or --text FILE."
        )
    if wanted.tokens is not None and wanted.texts:
        raise RecipeError("--tokens and --text are both given.", "Choose one.")
    if not measured and any(task == VAL_LOSS for task, _ in questions(wanted.tasks)):
        raise RecipeError(
            f"{', '.join(wanted.tasks)}: val_loss needs held-out tokens.",
            "Give --tokens DIR or --text FILE, or name the other tasks.",
        )


def _losses(
    models: dict[str, ModelDirectory], wanted: Wanted, out: Path, on_progress: Listener, stop: Any
) -> dict[str, dict[str, Any]]:
    """The val_loss of each model, as scores."""
    out.mkdir(parents=True, exist_ok=True)
    seq_len = wanted.seq_len or min([_LONGEST, *filter(None, map(_positions, models.values()))])
    return {
        name: _loss(name, model, wanted, seq_len, out, on_progress, stop)
        for name, model in models.items()
    }


def _loss(
    name: str,
    model: ModelDirectory,
    wanted: Wanted,
    seq_len: int,
    out: Path,
    on_progress: Listener,
    stop: Any,
) -> dict[str, Any]:
    from inheritune.evaluation.scores import Metric, Score, find_score, keep_score
    from inheritune.evaluation.val_loss import measure_val_loss
    from inheritune.training.hardware import forward_device
    from inheritune.training.models import load_model

    stream, num_bytes, fingerprint = _held_out(model, wanted)
    key = {
        "model": model.digest,
        "task": VAL_LOSS,
        "data": fingerprint,
        "seq_len": seq_len,
        "batch_size": wanted.batch_size,
    }
    if (known := find_score(out, key)) is not None:
        return known.as_json()
    began, device = time.monotonic(), forward_device()
    loaded: Any = load_model(model.path)
    batch, task = wanted.batch_size, f"{name}: val_loss"
    loss = measure_val_loss(loaded.to(device), stream, seq_len, batch, stop, on_progress, task)
    bits = stream.num_ids / max(num_bytes, 1) / math.log(2)  # per nat and token
    perplexity = math.exp(min(loss.mean, 700.0))
    metrics = {
        name: Metric(
            value if math.isfinite(value) else None, se if math.isfinite(se) else None, True
        )
        for name, value, se in (
            (VAL_LOSS, loss.mean, loss.se),
            ("perplexity", perplexity, perplexity * loss.se),
            ("bits_per_byte", loss.mean * bits, loss.se * bits),
        )
    }
    facts = {"device": str(device), "tokens": loss.tokens, "seq_len": seq_len}
    windows = len(loss.per_window)
    seconds = round(time.monotonic() - began, 2)
    score = Score(VAL_LOSS, None, windows, windows, metrics, key, seconds, facts)
    keep_score(out, score)
    return score.as_json()


def _held_out(model: ModelDirectory, wanted: Wanted) -> tuple[TokenStream, int, str]:
    """What is measured, its bytes and its fingerprint: held-out tokens, or a text, all of it."""
    tokenizer = open_tokenizer(model.path)
    if wanted.tokens is None:
        text = TextStream(wanted.texts, tokenizer)
        return text, text.num_bytes, text.fingerprint
    tokens = open_tokens(wanted.tokens)
    if tokens.manifest["tokenizer"]["sha256"] != tokenizer.sha256:
        raise DataError(
            f"{wanted.tokens} was prepared with another tokenizer than that of {model.name}.",
            "Prepare tokens for it, or give --text: bits per byte can then be compared.",
        )
    return tokens.val, tokens.val_bytes, tokens.val_fingerprint


def _positions(model: ModelDirectory) -> int | None:
    config = text_config(model.config)
    found = config.get("max_position_embeddings") or config.get("n_positions")
    return found if isinstance(found, int) else None
