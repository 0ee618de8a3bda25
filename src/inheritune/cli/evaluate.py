"""The command that measures models: val_loss, and tasks of lm-eval."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inheritune.cli.console import Debug, Json, print_json, progress, reported, say
from inheritune.errors import MachineError, RecipeError

if TYPE_CHECKING:
    from inheritune.evaluation.evaluate import Evaluation

__all__ = ["evaluate"]


def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL...", help="Hub ids, model directories, or embedded:demo."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Of lm-eval, joined by commas: names, or the suites low-data, full-data, later."
        ),
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(help="val_loss on the held-out tokens of this directory.")
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="val_loss on this text; may be repeated."),
    ] = None,
    seq_len: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a window of val_loss.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="Examples before each question; else as usual.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Fixed: scores move with it.")] = 16,
    dtype: Annotated[
        str, typer.Option(help="auto, fp32, bf16 or fp16, of the tasks; val_loss is fp32.")
    ] = "auto",
    add_bos: Annotated[
        str, typer.Option(help="Begin every text with BOS: auto (as the tokenizer does), yes, no.")
    ] = "auto",
    task_data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Directory of TASK.jsonl, read instead of the Hub's."),
    ] = None,
    allow_task_code: Annotated[
        bool, typer.Option("--allow-task-code", help="Tasks may run code of their own.")
    ] = False,
    fetch_only: Annotated[
        bool, typer.Option("--fetch-only", help="Only download the tasks' data.")
    ] = False,
    out: Annotated[
        Path, typer.Option(help="Where results are kept; what is there is not measured again.")
    ] = Path("evaluation"),
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure models alike: val_loss on tokens or text, and tasks of lm-eval."""
    with reported(as_json, debug):
        from inheritune.evaluation.evaluate import EvaluationRequest, fetch_tasks
        from inheritune.evaluation.evaluate import evaluate as evaluate_models

        request = EvaluationRequest(
            tasks=[name.strip() for name in (tasks or "").split(",") if name.strip()],
            tokens=tokens,
            texts=text or [],
            seq_len=seq_len,
            shots=shots,
            limit=limit,
            batch_size=batch_size,
            dtype=dtype,
            add_bos=add_bos,
            task_data=task_data,
            allow_code=allow_task_code,
        )
        if fetch_only:
            with progress() as on_progress:
                fetched = fetch_tasks(request, out, on_progress)
            if as_json:
                print_json(fetched)
            else:
                say(f"{len(fetched)} tasks can be asked without a network: HF_HUB_OFFLINE=1")
            return
        request.check()
        if not models:
            raise RecipeError("no model is named.", "Give a model directory or a Hub id.")
        with progress() as on_progress:
            evaluation = evaluate_models(models, request, out, on_progress)
        if as_json and not evaluation.failures:
            print_json(evaluation.as_json())
        elif not as_json:
            _show(evaluation)
        _refuse_failures(evaluation, out)
        say(f"next: the results are in {out}; the same command measures nothing again")


def _show(evaluation: "Evaluation") -> None:
    from rich.console import Console

    from inheritune.cli.plan_text import Page
    from inheritune.cli.terminal import show_page
    from inheritune.reporting.task_table import scores_table

    table = scores_table([model.as_json() for model in evaluation.models])
    rows = tuple(zip(table.headers[1:], *(row[1:] for row in table.rows), strict=True))
    names = tuple(row[0] for row in table.rows)
    page = Page("", ("", *names), rows, tuple(table.notes), last_is_text=False)
    show_page(Console(highlight=False, markup=False), page)


def _refuse_failures(evaluation: "Evaluation", out: Path) -> None:
    failures = evaluation.failures
    if not failures:
        return
    names = ", ".join(dict.fromkeys(failure.task for failure in failures))
    raise MachineError(
        f"{len(failures)} of the tasks failed ({names}): {failures[0].message.rstrip('.')}.",
        f"The others are kept in {out}: mend it, and run the same command again.",
    )
