"""Measure models: val_loss, tasks and speed, and the texts that they generate."""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.api.call import (
    Model,
    PathLike,
    ProgressOption,
    Text,
    Tokens,
    call,
    optional_path,
    optional_text,
    refuse_below,
    texts_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from inheritune.evaluation.evaluate import Evaluation
    from inheritune.evaluation.generation import Generation
    from inheritune.model_files.directory import ModelDirectory


def evaluate(
    models: "Model | Sequence[Model]",
    *,
    tasks: str | Sequence[str] = (),
    tokens: "Tokens | None" = None,
    text: "Text | Sequence[PathLike]" = (),
    out: PathLike | None = None,
    seq_len: int | None = None,
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    dtype: str = "auto",
    add_bos: str = "auto",
    task_data: PathLike | None = None,
    allow_task_code: bool = False,
    speed: bool = False,
    figure: PathLike | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    progress: ProgressOption = True,
) -> "Evaluation":
    """Measure models under the same settings: val_loss on text, tasks of lm-eval, and speed.

    Args:
        models: One model or several; models in memory, too.
        tasks: Tasks of lm-eval, or the suites ``low-data``, ``full-data`` and ``later``.
        tokens: Token directory; val_loss is measured on its held-out tokens.
        text: Text to measure val_loss on instead, as `data.source` of a recipe, or a mapping with
            keys of that section, such as ``{"source": "a.csv", "text_column": "story"}``.
        out: Directory that keeps every score, so that nothing is measured twice; None: a temporary
            one.
        seq_len: Tokens of a val_loss window; None: 1024, or the fewest positions of any model.
        shots: Examples before each question; None: as the suite or task says.
        limit: Questions of each task; None: all.
        batch_size: Windows or questions in a forward. Scores move with it a little.
        dtype: ``auto``, ``fp32``, ``bf16`` or ``fp16``, for the tasks; val_loss is always fp32.
        add_bos: Begin every text with BOS: ``yes``, ``no``, or ``auto``, as in training.
        task_data: Directory of ``TASK.jsonl`` files, read instead of the Hub's data sets.
        allow_task_code: Let tasks run code of their own.
        speed: Measure size, memory and speed of the models in turn and, where there are tokens or
            text, how close the predictions of each are to those of the first: ``gains``.
        figure: File to draw quality against size into, PNG or SVG: val_loss of each model over its
            parameters, with a line for those that are cut, repaired or trained. All must have the
            same tokenizer.
        tokenizer: Tokenizer of models in memory; None: the one that each was loaded with.
        progress: True draws a bar, False is silent, a function is called with each event.

    Returns:
        A row for each model, task and metric; tasks that could not be asked are in ``failures``.

    Raises:
        RecipeError: There is nothing to measure, or no such task.
        DataError: The tokens are of another tokenizer, or the text is too short.
        MissingExtraError: Tasks are asked for, and lm-eval is not installed.
    """
    from tempfile import TemporaryDirectory

    from inheritune.evaluation.evaluate import evaluate as evaluate_models
    from inheritune.evaluation.request import EvaluationRequest
    from inheritune.model_files.in_memory import opened_model
    from inheritune.reporting.size_chart import draw_evaluation, refuse_no_figure

    refuse_below(0, shots=shots)
    refuse_below(1, batch_size=batch_size, limit=limit)
    refuse_below(2, seq_len=seq_len)
    request = EvaluationRequest(
        tasks=texts_of(tasks),
        tokens=optional_path(tokens),
        text=optional_text(text or None),
        seq_len=seq_len,
        shots=shots,
        limit=limit,
        batch_size=batch_size,
        dtype=dtype,
        add_bos=add_bos,
        task_data=optional_path(task_data),
        allow_code=allow_task_code,
        speed=speed,
        one_tokenizer=figure is not None,
    )
    request.check()  # before a model is downloaded
    several = models if isinstance(models, Sequence) and not isinstance(models, str) else [models]
    if figure is not None:
        refuse_no_figure(Path(figure), len(several), request.has_held_out_text)
    with call(progress) as on_progress, ExitStack() as stack:
        folder = out or stack.enter_context(TemporaryDirectory(prefix="inheritune-"))
        opened: list[str | ModelDirectory] = [
            os.fspath(model)
            if isinstance(model, str | os.PathLike)
            else stack.enter_context(opened_model(model, tokenizer=tokenizer))
            for model in several
        ]
        evaluation = evaluate_models(opened, request, Path(folder), on_progress)
    if figure is not None:
        draw_evaluation(evaluation.as_json(), Path(figure))
    return evaluation


def fetch_tasks(
    tasks: str | Sequence[str],
    out: PathLike,
    *,
    shots: int | None = None,
    task_data: PathLike | None = None,
    allow_task_code: bool = False,
    progress: ProgressOption = True,
) -> list[dict[str, Any]]:
    """Download the questions of tasks, so that `evaluate` needs no network later.

    Args:
        tasks: As for `evaluate`.
        out: Directory of results, as for `evaluate`.
        shots: As for `evaluate`.
        task_data: Directory of ``TASK.jsonl`` files, read instead of the Hub's data sets.
        allow_task_code: Let tasks run code of their own.
        progress: True draws a bar, False is silent, a function is called with each event.

    Returns:
        ``task`` and ``dataset`` of each.

    Raises:
        RecipeError: There is no such task.
        MachineError: The questions of a task cannot be downloaded.
    """
    from inheritune.evaluation.evaluate import fetch_tasks as fetch
    from inheritune.evaluation.request import EvaluationRequest

    request = EvaluationRequest(
        tasks=texts_of(tasks),
        shots=shots,
        task_data=optional_path(task_data),
        allow_code=allow_task_code,
    )
    with call(progress) as on_progress:
        return fetch(request, Path(out), on_progress)


def generate(
    models: "Model | Sequence[Model]",
    prompt: str,
    *,
    max_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    chat: bool = False,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    on_text: Callable[[str, str], None] | None = None,
    progress: ProgressOption = True,
) -> "Generation":
    """Let models continue the same prompt, one after the other, as transformers' generate does.

    Args:
        models: One model or several; the directory of a run stands for its reference, its target
            and its control from scratch.
        prompt: The beginning of the text; with ``chat`` a question.
        max_tokens: Most tokens that each model adds; fewer where its positions end.
        temperature: 0: the likeliest token at each place; else tokens are drawn from the
            probabilities at this temperature, 0.01 to 100. top_p and the like are those of the
            model's generation_config.json.
        seed: Seed of what is drawn, the same for every model.
        chat: Put the prompt into each model's own chat template.
        tokenizer: Tokenizer of models in memory; None: the one that each was loaded with.
        on_text: Called with a model's name and the text that it has just added, empty at first.
        progress: True draws a bar, False is silent, a function is called with each event.

    Returns:
        What each model wrote; shows itself in a notebook.

    Raises:
        RecipeError: The prompt is empty or longer than the positions of a model, a setting is out
            of its range, or there is no chat template.
        UnsupportedModelError: A model is no causal language model.
        SourceError: A model lacks weights, such as those of its head.
        DataError: A tokenizer cannot be opened, or a run has no target yet.
    """
    from inheritune.evaluation.generation import check_prompt, generate_texts
    from inheritune.evaluation.samples import GenerationSettings
    from inheritune.run.models import opened_models

    settings = GenerationSettings(max_tokens, temperature, seed, chat)
    settings.check()
    check_prompt(prompt)  # before a model is downloaded
    with call(progress) as on_progress, opened_models(models, tokenizer) as opened:
        return generate_texts(opened, prompt, settings, on_progress, on_text)
