"""Ask the recipe's tasks of a run's models after all trainings; a failure here is only a note."""

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


@dataclass(frozen=True)
class RunModel:
    """A model of the run that tasks are asked of."""

    name: str  # the variant's name, or ``reference``
    role: str  # ``reference``, ``target`` or ``control``
    layers: int  # transformer layers
    tokens: int | None  # training tokens; None: not known
    path: Path  # model directory


def check_tasks(job: Job) -> None:
    """Refuse tasks that cannot be asked, before hours are spent on training.

    Raises:
        RecipeError: There is no such task, or it may run code and that is not allowed.
        MissingExtraError: lm-eval is not installed.
        DataError: Local questions are missing or broken.
    """
    tasks = tasks_of(job.recipe)
    if tasks:
        from inheritune.evaluation.task_descriptions import task_descriptions

        allow_code, out = job.recipe.evaluate.allow_task_code, job.run.root / "evaluation"
        with task_descriptions(tasks, _local_data(job.recipe), allow_code, out):
            pass


def tasks_of(recipe: Recipe) -> list[tuple[str, int | None]]:
    """Tasks with their number of examples; val_loss, which is measured anyway, is left out."""
    tasks = tasks_with_shots(recipe.evaluate.tasks, recipe.evaluate.num_fewshot)
    return [(task, shots) for task, shots in tasks if task != VAL_LOSS]


def _local_data(recipe: Recipe) -> Path | None:
    return None if recipe.evaluate.task_data is None else Path(recipe.evaluate.task_data)


def asked_at(recipe: Recipe, tokens: int) -> list[int]:
    """Token counts within a training, in whole steps, after which the recipe asks tasks.

    Args:
        tokens: Training tokens. The end itself is asked anyway and not in the list.
    """
    train = recipe.train
    counts = {train.num_steps(count) * train.batch_tokens for count in recipe.evaluate.at}
    return sorted(count for count in counts if count < tokens) if recipe.evaluate.tasks else []


def snapshot_models(
    training_dir: Path, end: RunModel, token_counts: Collection[int]
) -> list[RunModel]:
    """List the models that a training left at some of its tokens, in order.

    Args:
        end: The model at the end of the training.
        token_counts: From `asked_at`.
    """
    models = []
    for path in sorted((training_dir / "at").glob("*-tokens")):
        tokens = int(path.name.removesuffix("-tokens"))
        if tokens in token_counts and (path / "config.json").is_file():
            models.append(RunModel(end.name, end.role, end.layers, tokens, path))
    return models


def ask_tasks(
    job: Job, models: Sequence[RunModel], snapshots: Sequence[RunModel] = ()
) -> tuple[dict[str, Any] | None, list[str]]:
    """Ask the recipe's tasks of all models under the same settings.

    Args:
        job: Scores are kept in ``evaluation/`` of the run.
        models: The reference, and the ends of trainings.
        snapshots: Models of trainings before their end.

    Returns:
        The section of run.json, None where no task is asked; and a note for every failure.

    Raises:
        Interrupted: A signal asked to stop; answers are kept.
    """
    tasks = tasks_of(job.recipe)
    if not tasks:
        return None, []
    names = list(job.recipe.evaluate.tasks)
    record: dict[str, Any] = {"tasks": names, "models": [], "at": [], "failures": []}
    try:
        record |= scores_of(job, tasks, models, snapshots)
    except (Interrupted, DataError):
        raise
    except InherituneError as error:
        return record, [f"No task was asked: {error.message} {error.hint}".strip()]
    except Exception as error:
        # Everything is trained: whatever lm-eval trips over, the result stands.
        return record, [f"No task was asked: {type(error).__name__}: {first_line(error)}."]
    failures = record["failures"]
    return record, [f"{f['model']} was not asked {f['task']}: {f['message']}" for f in failures]


def scores_of(
    job: Job,
    tasks: list[tuple[str, int | None]],
    models: Sequence[RunModel],
    snapshots: Sequence[RunModel] = (),
) -> dict[str, Any]:
    """Ask tasks of all models under the settings of their training; answers are kept.

    Returns:
        ``settings``, ``failures``, and a row with ``scores`` for each of ``models`` and, as ``at``,
        of the snapshots.
    """
    from inheritune.evaluation.task_descriptions import task_descriptions
    from inheritune.evaluation.task_scores import EvaluationSettings, score_tasks
    from inheritune.training.hardware import choose_device

    # --- the same settings for all models, those of their training ---
    section, out = job.recipe.evaluate, job.run.root / "evaluation"
    device = choose_device()
    is_bf16 = device == "cuda" and job.recipe.train.precision != "fp32"
    precision = "bf16" if is_bf16 else "fp32"
    settings = EvaluationSettings(
        section.batch_size, precision, section.add_bos, section.limit, device
    )

    # --- ask; scores come back under the label of their model ---
    by_label = {_label(model): model for model in models}
    by_label |= {_snapshot_label(model): model for model in snapshots}
    to_score = {label: open_model(str(model.path)) for label, model in by_label.items()}
    local_data = _local_data(job.recipe)
    with task_descriptions(tasks, local_data, section.allow_task_code, out) as descriptions:
        message = f"{len(descriptions)} for {len(to_score)} models"
        job.on_progress(Progress("tasks", message=message))
        answers = score_tasks(to_score, descriptions, settings, out, job.stop, job.on_progress)

    # --- a row for each model ---
    rows = {label: _row(model) | {"scores": []} for label, model in by_label.items()}
    for label, score in answers.scores:
        rows[label]["scores"].append(asdict(score))
    return {
        "settings": asdict(settings),
        "models": [rows[_label(model)] for model in models],
        "at": [rows[_snapshot_label(model)] for model in snapshots],
        "failures": [asdict(failure) for failure in answers.failures],
    }


def _row(model: RunModel) -> dict[str, Any]:
    fields = asdict(model)
    del fields["path"]
    return fields


def _label(model: RunModel) -> str:
    return f"{model.name}, {model.layers} layers"


def _snapshot_label(model: RunModel) -> str:
    return f"{_label(model)}, {model.tokens} tokens"
