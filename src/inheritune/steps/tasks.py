"""Tasks asked of a run's models, after everything is trained: what fails here costs nothing."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inheritune.errors import DataError, InherituneError, Interrupted, first_line
from inheritune.evaluation.suites import VAL_LOSS, tasks_with_shots
from inheritune.model_files.directory import open_model
from inheritune.recipe.schema import Recipe
from inheritune.steps.job import Job
from inheritune.system.progress import Progress

__all__ = ["Examined", "ask_tasks", "asked_at", "check_tasks", "moments_in"]


@dataclass(frozen=True)
class Examined:
    """A model of the run that tasks are asked of.

    Attributes:
        name: Of the variant, or ``reference``.
        role: ``reference``, ``target`` or ``control``.
        layers: How many it has.
        tokens: It was trained on; None: not known.
        path: Its directory.
    """

    name: str
    role: str
    layers: int
    tokens: int | None
    path: Path


def check_tasks(job: Job) -> None:
    """Refuse a list of tasks that cannot be asked, before hours are spent on training.

    Raises:
        RecipeError: There is no such task, or it may run code and that is not allowed.
        MissingExtraError: lm-eval is not installed.
        DataError: Local questions are not there, or broken.
    """
    tasks = _tasks(job.recipe)
    if tasks:
        from inheritune.evaluation.task_descriptions import task_descriptions

        wanted = job.recipe.evaluate
        with task_descriptions(
            tasks, _local(job), wanted.allow_task_code, job.run.root / "evaluation"
        ):
            pass


def _tasks(recipe: Recipe) -> list[tuple[str, int | None]]:
    wanted = tasks_with_shots(recipe.evaluate.tasks, recipe.evaluate.num_fewshot)
    return [pair for pair in wanted if pair[0] != VAL_LOSS]


def _local(job: Job) -> Path | None:
    folder = job.recipe.evaluate.task_data
    return None if folder is None else Path(folder)


def asked_at(recipe: Recipe, tokens: int) -> list[int]:
    """Tokens of a training, in whole steps, after which the recipe asks tasks, its end apart.

    Args:
        recipe: Has ``evaluate.at``.
        tokens: Of the training.
    """
    train = recipe.train
    ends = {train.num_steps(wanted) * train.batch_tokens for wanted in recipe.evaluate.at}
    return sorted(end for end in ends if end < tokens) if recipe.evaluate.tasks else []


def moments_in(folder: Path, model: Examined, wanted: Collection[int]) -> list[Examined]:
    """The models that a training left at some of its tokens, in their order."""
    found = []
    for path in sorted((folder / "at").glob("*-tokens")):
        if (path / "config.json").is_file():
            tokens = int(path.name.removesuffix("-tokens"))
            found.append(Examined(model.name, model.role, model.layers, tokens, path))
    return [moment for moment in found if moment.tokens in wanted]


def ask_tasks(
    job: Job, models: Sequence[Examined], moments: Sequence[Examined] = ()
) -> tuple[dict[str, Any] | None, list[str]]:
    """Ask the recipe's tasks of all models under the same settings.

    Args:
        job: Has the recipe; scores are kept in ``evaluation/`` of the run.
        models: Ends of trainings, and the reference.
        moments: Of trainings, before their end.

    Returns:
        For run.json, None where no task is asked; and a note for everything that failed.

    Raises:
        Interrupted: Asked to stop; what was answered is kept.
    """
    wanted, tasks = job.recipe.evaluate, _tasks(job.recipe)
    if not tasks:
        return None, []
    record: dict[str, Any] = {"tasks": list(wanted.tasks), "models": [], "at": [], "failures": []}
    try:
        record |= _asked(job, tasks, models, moments)
    except (Interrupted, DataError):
        raise
    except InherituneError as error:
        return record, [f"No task was asked: {error.message} {error.hint}".strip()]
    except Exception as error:
        return record, [f"No task was asked: {type(error).__name__}: {first_line(error)}."]
    failed = record["failures"]
    return record, [f"{f['model']} was not asked {f['task']}: {f['message']}" for f in failed]


def _asked(
    job: Job,
    tasks: list[tuple[str, int | None]],
    models: Sequence[Examined],
    moments: Sequence[Examined],
) -> dict[str, Any]:
    from inheritune.evaluation.task_descriptions import task_descriptions
    from inheritune.evaluation.task_scores import EvaluationSettings, ModelToScore, score_tasks
    from inheritune.training.hardware import choose_device

    wanted, out = job.recipe.evaluate, job.run.root / "evaluation"
    device = choose_device()
    bf16 = device == "cuda" and job.recipe.train.precision != "fp32"  # as it was trained
    settings = EvaluationSettings(
        wanted.batch_size, "bf16" if bf16 else "fp32", wanted.add_bos, wanted.limit, device
    )
    everyone = {_label(model, model in moments): model for model in [*models, *moments]}
    asked = [
        ModelToScore(label, model.path, open_model(str(model.path)).digest)
        for label, model in everyone.items()
    ]
    with task_descriptions(tasks, _local(job), wanted.allow_task_code, out) as descriptions:
        job.on_progress(Progress("tasks", message=f"{len(descriptions)} for {len(asked)} models"))
        answers = score_tasks(asked, descriptions, settings, out, job.stop, job.on_progress)
    scores: dict[str, list[dict[str, Any]]] = {label: [] for label in everyone}
    for label, score in answers.scores:
        scores[label].append(score.as_json())
    rows = {label: _row(model) | {"scores": scores[label]} for label, model in everyone.items()}
    return {
        "settings": asdict(settings),
        "models": [rows[_label(model, False)] for model in models],
        "at": [rows[_label(model, True)] for model in moments],
        "failures": [asdict(failure) for failure in answers.failures],
    }


def _row(model: Examined) -> dict[str, Any]:
    fields = asdict(model)
    del fields["path"]
    return fields


def _label(model: Examined, moment: bool) -> str:
    return f"{model.name}, {model.layers} layers" + (f", {model.tokens} tokens" * moment)
