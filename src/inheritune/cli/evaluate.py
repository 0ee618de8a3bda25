"""Define the command evaluate: val_loss, and tasks of lm-eval."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from inheritune import api
from inheritune.cli.completion import models as known_models
from inheritune.cli.console import (
    Debug,
    Json,
    TextKeys,
    print_json,
    reported,
    say,
    text_with,
)
from inheritune.errors import MachineError

_task = partial(typer.Option, rich_help_panel="Tasks")
_val_loss = partial(typer.Option, rich_help_panel="Validation loss")


def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL...",
            help="Hub ids, model directories or embedded:demo.",
            autocompletion=known_models,
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        _task(
            help="lm-eval tasks, separated by commas: names, or the suites low-data, full-data, "
            "later."
        ),
    ] = None,
    tokens: Annotated[
        Path | None,
        _val_loss(
            metavar="DIR", help="Measure val_loss on the held-out tokens of this token directory."
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        _val_loss(metavar="FILE", help="Measure val_loss on this text; repeatable."),
    ] = None,
    text_keys: TextKeys = None,
    seq_len: Annotated[
        int | None,
        _val_loss(
            min=2, help="Tokens per window of val_loss; default: 1024, or what the models allow."
        ),
    ] = None,
    shots: Annotated[
        int | None,
        _task(min=0, help="Examples before each question; default: the task's own number."),
    ] = None,
    limit: Annotated[
        int | None, _task(min=1, help="Questions to ask per task; default: all.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Batch size; fixed, because scores change slightly with it.")
    ] = 16,
    dtype: Annotated[
        str,
        _task(help="Precision of the tasks: auto, fp32, bf16 or fp16; val_loss is always fp32."),
    ] = "auto",
    add_bos: Annotated[
        str, _task(help="Begin every text with BOS: auto (as in training), yes or no.")
    ] = "auto",
    task_data: Annotated[
        Path | None,
        _task(
            metavar="DIR",
            help="Directory of TASK.jsonl files to read instead of the Hub's datasets.",
        ),
    ] = None,
    allow_task_code: Annotated[
        bool, _task("--allow-task-code", help="Let tasks run their own code.")
    ] = False,
    speed: Annotated[
        bool,
        typer.Option(
            "--speed",
            help="Measure size, memory and speed of the models in turn; with --tokens or --text, "
            "also how close their predictions are to those of the first. Always measured again.",
        ),
    ] = False,
    fetch_only: Annotated[
        bool,
        _task("--fetch-only", help="Only download the tasks' data, for a machine without network."),
    ] = False,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Directory of results; finished measurements are not repeated."
        ),
    ] = Path("evaluation"),
    figure: Annotated[
        Path | None,
        _val_loss(
            metavar="FILE",
            help="Draw val_loss against size of the models, .png or .svg: a line for those that "
            "are cut, repaired or trained.",
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure val_loss, lm-eval tasks and speed of models, all with the same settings."""
    with reported(as_json, debug):
        names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
        if fetch_only:
            fetched = api.fetch_tasks(
                names, out, shots=shots, task_data=task_data, allow_task_code=allow_task_code
            )
            if as_json:
                print_json(fetched)
            else:
                say(f"{len(fetched)} tasks can run without a network: HF_HUB_OFFLINE=1")
            return
        evaluation = api.evaluate(
            models or [],
            tasks=names,
            tokens=tokens,
            text=text_with([str(path) for path in text or []], text_keys),
            out=out,
            seq_len=seq_len,
            shots=shots,
            limit=limit,
            batch_size=batch_size,
            dtype=dtype,
            add_bos=add_bos,
            task_data=task_data,
            allow_task_code=allow_task_code,
            speed=speed,
            figure=figure,
        )
        if as_json and not evaluation.failures:
            print_json(evaluation.as_json())
        elif not as_json:
            _show(evaluation)
        _refuse_failures(evaluation, out)
        if names or tokens or text:
            again = "only speed" if speed else "nothing"
            say(f"next: the results are in {out}; running the command again repeats {again}")
        else:
            say("figures of speed are not kept: --json prints them for a file")


def _show(evaluation: "api.Evaluation") -> None:
    from inheritune.cli.terminal import show_table
    from inheritune.reporting.gains_table import gains_table
    from inheritune.reporting.task_tables import scores_table
    from inheritune.run_record.measurements import EvaluatedModelRecord, GainsRecord
    from inheritune.system.terminal import Terminal

    # On a terminal there is more room for models beside each other than for tasks.
    models = [EvaluatedModelRecord.model_validate(model.as_json()) for model in evaluation.models]
    if any(model.scores for model in models):
        show_table(Terminal(), scores_table(models).transposed())
    if evaluation.gains is not None:
        gains = GainsRecord.model_validate(evaluation.gains.as_json())
        show_table(Terminal(), gains_table(gains).transposed())


def _refuse_failures(evaluation: "api.Evaluation", out: Path) -> None:
    failures = evaluation.failures
    if not failures:
        return
    names = ", ".join(dict.fromkeys(failure.task for failure in failures))
    raise MachineError(
        f"{len(failures)} of the tasks failed ({names}): {failures[0].message.rstrip('.')}.",
        f"The other results are kept in {out}: fix the cause and run the same command again.",
    )
