"""Find the descriptions of lm-eval tasks, groups and tags without indexing all 14,000 of them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inheritune.errors import RecipeError
from inheritune.evaluation.quiet import quiet
from inheritune.evaluation.suites import unknown_task
from inheritune.evaluation.task_files import (
    is_mentioned,
    local_data,
    names_in,
    own_task,
    stock_file,
    tasks_root,
    write_description,
)
from inheritune.system.files import make_directory, scratch_directory
from inheritune.system.refusals import missing_directories, removed_if_refused


@dataclass(frozen=True)
class TaskDescription:
    """A task to be asked; its questions are not read yet."""

    task: str  # name of the task
    shots: int | None  # examples before each question; None: as the description says
    version: str  # version of the description
    spec: str  # name or file to ask lm-eval for
    # Directories that lm-eval indexes to find it; None: all of lm-eval's own.
    folders: tuple[Path, ...] | None
    data: str | None  # SHA-256 of local questions; None: they come from the Hub
    dataset: str  # id of the Hub's data set, for messages
    allow_code: bool = False  # whether the task may run code that a model wrote


@contextmanager
def task_descriptions(
    tasks: Sequence[tuple[str, int | None]], folder: Path | None, allow_code: bool, out: Path
) -> Iterator[list[TaskDescription]]:
    """Describe tasks for as long as the block runs; no data is read but local files.

    Args:
        tasks: Names and shots. A name is one of lm-eval, or a path to a description or a directory
            of them; a tag or a directory stands for each task in it.
        folder: Directory of local questions; None: data sets come from the Hub.
        allow_code: Whether tasks may run code of their own.
        out: Directory of scores. Descriptions that name local questions are written to a temporary
            directory in it.

    Raises:
        MissingExtraError: lm-eval is not installed.
        RecipeError: A task is unknown, or runs code and ``allow_code`` is false.
    """
    tasks_root()
    new = missing_directories(out)
    make_directory(out)
    with removed_if_refused(new), scratch_directory(out / "tasks") as scratch:
        descriptions: dict[str, TaskDescription] = {}
        for number, (name, shots) in enumerate(tasks):
            task_scratch = scratch / str(number)
            task_scratch.mkdir()
            for description in _describe(name, shots, folder, allow_code, task_scratch):
                descriptions[description.task] = description
        yield list(descriptions.values())


def _describe(
    name: str, shots: int | None, folder: Path | None, allow_code: bool, scratch: Path
) -> list[TaskDescription]:
    if (path := own_task(name, allow_code)) is not None:
        return _own_tasks(name, path, shots, allow_code)
    file = stock_file(name)
    if file is None:
        if Path(name).is_dir() and names_in(Path(name)):
            return _describe(f"./{name}", shots, folder, allow_code, scratch)
        return _from_index(name, shots, allow_code)
    config = _index(file.parent)[name].cfg or {}
    if config.get("unsafe_code") and not allow_code:
        raise RecipeError(
            f"the task {name} runs code that the model writes.",
            "If you want that: --allow-task-code, or evaluate.allow_task_code: true.",
        )
    description = TaskDescription(
        task=name,
        shots=shots,
        version=str((config.get("metadata") or {}).get("version", "")),
        spec=name,
        folders=(file.parent,),
        data=None,
        dataset=str(config.get("dataset_path") or config.get("group") or config.get("task")),
        allow_code=allow_code,
    )
    if "group" in config:
        return [_group(description, file.parent, folder, scratch)]
    if (data := local_data(folder, name)) is None:
        return [replace(description, spec=str(file), folders=())]
    num_shots = shots if shots is not None else int(config.get("num_fewshot") or 0)
    written = write_description(name, file, config, data, num_shots, scratch)
    return [replace(description, spec=str(written), folders=(), data=data.digest)]


def _own_tasks(name: str, path: Path, shots: int | None, allow_code: bool) -> list[TaskDescription]:
    """Describe the tasks of a file or directory that the user wrote."""
    is_directory = path.is_dir()
    folders = (path if is_directory else path.parent,)
    tasks = names_in(path)
    if not tasks:
        raise RecipeError(f"{name} holds no description of a task.", "One .yaml with task: NAME.")
    if is_directory:  # a group of tasks that lie in it would have each asked twice
        index = _index(path)
        tasks = [task for task in tasks if not _is_group_of(index, task)]
    return [
        TaskDescription(
            task=task,
            shots=shots,
            version="",
            spec=task if is_directory else str(path),
            folders=folders,
            data=None,
            dataset=task,
            allow_code=allow_code,
        )
        for task in tasks
    ]


def _group(
    description: TaskDescription, stock: Path, folder: Path | None, scratch: Path
) -> TaskDescription:
    """Describe a group, with local questions of its tasks where there are any."""
    index = _index(stock)
    members = list(_members(index, description.task))
    if not members or any(name not in index for name in members):
        return replace(description, folders=None)  # its tasks are described elsewhere
    local = {name: data for name in members if (data := local_data(folder, name)) is not None}
    if not local:
        return description
    if missing := [name for name in members if name not in local]:
        raise RecipeError(
            f"{description.task} needs {missing[0]}.jsonl as well.", f"It is not in {folder}."
        )
    directory = scratch / description.task
    directory.mkdir(exist_ok=True)
    for name, data in local.items():
        entry = index[name]
        write_description(name, entry.yaml_path, entry.cfg, data, description.shots or 0, directory)
    digest = "+".join(sorted({data.digest[:16] for data in local.values()}))
    return replace(description, folders=(stock, directory), data=digest)


def _members(index: Mapping[str, Any], name: str) -> Iterator[str]:
    """Yield the names of the tasks of a group or tag, through nested ones."""
    entry = index.get(name)
    if entry is None or entry.kind.name not in ("GROUP", "TAG"):
        yield name
        return
    members = (entry.cfg or {}).get("task") if entry.kind.name == "GROUP" else sorted(entry.tags)
    for member in members if isinstance(members, list) else [members]:
        inner = member.get("task") or member.get("group") if isinstance(member, dict) else member
        yield from _members(index, str(inner))


def _is_group_of(index: Mapping[str, Any], name: str) -> bool:
    """Whether a name is a group whose tasks are all in an index."""
    members = list(_members(index, name))
    return members != [name] and all(member in index for member in members)


def _from_index(name: str, shots: int | None, allow_code: bool) -> list[TaskDescription]:
    """Describe a tag, or refuse the name: no file is named like it, so everything is indexed."""
    if not is_mentioned(name):
        raise unknown_task(name, names_in(tasks_root()))
    index = _index(None)
    if name not in index:
        raise unknown_task(name, list(index))
    names = sorted(index[name].tags) if index[name].kind.name == "TAG" else [name]
    return [TaskDescription(n, shots, "", n, None, None, n, allow_code) for n in names]


def _index(folder: Path | None) -> Mapping[str, Any]:
    """Index a directory of descriptions with lm-eval; None: all of lm-eval's own."""
    with quiet():
        from lm_eval.tasks import TaskManager

        if folder is None:
            return TaskManager().task_index  # type: ignore[no-any-return]
        manager = TaskManager(include_path=[str(folder)], include_defaults=False)
        return manager.task_index  # type: ignore[no-any-return]
