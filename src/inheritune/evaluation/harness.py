"""lm-eval as a library: the only module that calls it. Its prompts and metrics are its own."""

import contextlib
import io
import json
import logging
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inheritune.errors import (
    InherituneError,
    MachineError,
    RecipeError,
    UnsupportedModelError,
    first_line,
)
from inheritune.evaluation.suites import unknown_task
from inheritune.evaluation.task_files import (
    LocalData,
    is_mentioned,
    local_data,
    names_in,
    own_task,
    stock_file,
    tasks_root,
    write_description,
)

__all__ = [
    "BOOTSTRAPS",
    "Description",
    "answer",
    "as_text",
    "describe",
    "fetch",
    "lm_eval_version",
    "load",
    "open_model",
]

# Draws behind the standard error of a perplexity. The harness takes 100,000, which for LAMBADA
# takes longer than the questions do; a thousand tell the error to 2 %. Scores do not depend on it.
BOOTSTRAPS = 1000
# As lm-eval's own command line sets them.
_SEED, _OTHER_SEED = 0, 1234
_NO_POOL = "DISABLE_MULTIPROC"
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Description:
    """A task that is going to be asked; its questions are not read yet.

    Attributes:
        task: Its name.
        shots: Examples before each question; None: as its description says.
        version: Of the description.
        spec: What lm-eval is asked for: a name, or a file.
        folders: That are indexed to find it; none: all that lm-eval has.
        data: SHA-256 of local questions; None: they come from the Hub.
        dataset: Id of the Hub's data set, for messages.
        allow_code: Whether it may run code that a model wrote.
    """

    task: str
    shots: int | None
    version: str
    spec: str
    folders: tuple[Path, ...] | None
    data: str | None
    dataset: str
    allow_code: bool = False


def lm_eval_version() -> str:
    """Of the package that asks.

    Raises:
        MissingExtraError: It is not installed.
    """
    from importlib.metadata import version

    tasks_root()
    return version("lm_eval")


def describe(
    name: str,
    shots: int | None,
    folder: Path | None,
    allow_code: bool,
    scratch: Path,
) -> list[Description]:
    """Find a task, group or tag; nothing of it is run, and no data is read but local files.

    Args:
        name: Of lm-eval's, or a directory or file of the user's own.
        shots: Examples before each question; None: as the description says.
        folder: Of local questions.
        allow_code: Whether tasks may run code of their own.
        scratch: Directory for descriptions that name local questions.

    Returns:
        One; of a tag or a directory, one for each task.

    Raises:
        MissingExtraError: lm-eval is not installed.
        RecipeError: There is no such task, or it wants to run code and may not.
    """
    tasks_root()
    if (own := own_task(name, allow_code)) is not None:
        folders = (own if own.is_dir() else own.parent,)
        found = [
            Description(n, shots, "", n if own.is_dir() else str(own), folders, None, n, allow_code)
            for n in names_in(own)
        ]
        if not found:
            raise RecipeError(
                f"{name} holds no description of a task.", "One .yaml with task: NAME."
            )
        return found
    file = stock_file(name)
    if file is None:
        return _from_index(name, shots, allow_code)
    config = _config(file)
    if config.get("unsafe_code") and not allow_code:
        raise RecipeError(
            f"the task {name} runs code that the model writes.",
            "If you want that: --allow-task-code, or evaluate.allow_task_code: true.",
        )
    version = str((config.get("metadata") or {}).get("version", ""))
    plain = Description(
        name, shots, version, name, (file.parent,), None, _dataset(config), allow_code
    )
    if "group" in config:
        return [_group(plain, file, folder, scratch)]
    if (data := local_data(folder, name)) is None:
        return [replace(plain, spec=str(file), folders=())]
    wanted = shots if shots is not None else int(config.get("num_fewshot") or 0)
    path = write_description(name, file, config, data, wanted, scratch)
    return [replace(plain, spec=str(path), folders=(), data=data.digest)]


def _group(plain: Description, file: Path, folder: Path | None, scratch: Path) -> Description:
    """A group; where there are local questions for its tasks, these are put in place."""
    with _quiet():
        from lm_eval.tasks import TaskManager

        index = TaskManager(include_path=[str(file.parent)], include_defaults=False).task_index
    members = list(_members(index, plain.task))
    if not members or any(name not in index for name in members):
        return replace(plain, folders=None)  # it is made of tasks from elsewhere
    local: dict[str, LocalData] = {}
    for name in members:
        if (data := local_data(folder, name)) is not None:
            local[name] = data
    if not local:
        return plain
    if missing := [name for name in members if name not in local]:
        raise RecipeError(
            f"{plain.task} needs {missing[0]}.jsonl as well.", f"It is not in {folder}."
        )
    place = scratch / plain.task
    place.mkdir(exist_ok=True)
    for name, data in local.items():
        entry = index[name].yaml_path
        write_description(name, entry, _config(entry), data, plain.shots or 0, place)
    digest = "+".join(sorted({data.digest[:16] for data in local.values()}))
    return replace(plain, folders=(file.parent, place), data=digest)


def _members(index: Mapping[str, Any], name: str) -> Iterator[str]:
    entry = index.get(name)
    if entry is None or entry.kind.name not in ("GROUP", "TAG"):
        yield name
        return
    listed = (entry.cfg or {}).get("task") if entry.kind.name == "GROUP" else sorted(entry.tags)
    for member in listed if isinstance(listed, list) else [listed]:
        inner = member.get("task") or member.get("group") if isinstance(member, dict) else member
        yield from _members(index, str(inner))


def _from_index(name: str, shots: int | None, allow_code: bool) -> list[Description]:
    """What no file begins with its name: a tag, or nothing. Everything is indexed to be sure."""
    if not is_mentioned(name):
        raise unknown_task(name, names_in(tasks_root()))
    with _quiet():
        from lm_eval.tasks import TaskManager

        index = TaskManager().task_index
    if name not in index:
        raise unknown_task(name, list(index))
    names = sorted(index[name].tags) if index[name].kind.name == "TAG" else [name]
    return [Description(n, shots, "", n, None, None, n, allow_code) for n in names]


def _config(file: Path) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    return dict(load_yaml(file, resolve_func=False))


def _dataset(config: Mapping[str, Any]) -> str:
    return str(config.get("dataset_path") or config.get("group") or config.get("task"))


def load(task: Description) -> Any:
    """Read a task's questions, from the Hub or the machine's cache of it where they are not local.

    Returns:
        What `answer` asks.

    Raises:
        MachineError: They cannot be had.
    """
    with _quiet():
        from lm_eval.tasks import TaskManager

        try:
            folders = [str(folder) for folder in task.folders or ()]
            manager = TaskManager(
                include_path=folders or None, include_defaults=task.folders is None
            )
            return manager.load([task.spec])
        except InherituneError:
            raise
        except Exception as error:
            raise MachineError(
                f"the questions of {task.task} ({task.dataset}) cannot be read: "
                f"{first_line(error)}.",
                f"With a network: inheritune evaluate --tasks {task.task} --fetch-only; "
                "or --task-data.",
            ) from error


def fetch(task: Description) -> None:
    """Bring a task's questions to this machine."""
    load(task)


def open_model(
    path: Path,
    batch_size: int,
    dtype: str,
    add_bos: str,
    device: str,
    before_forward: Callable[[int], None],
) -> Any:
    """A model directory as lm-eval asks it; its weights are read as everywhere here.

    Args:
        path: The directory.
        batch_size: Requests in a forward; fixed, scores move with it.
        dtype: ``fp32``, ``bf16`` or ``fp16``: of the weights and the computation.
        add_bos: ``auto``, ``yes`` or ``no``.
        device: Such as ``cpu`` or ``cuda``.
        before_forward: Called with the rows of each forward; what it raises ends the task.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet():
        from lm_eval.models.huggingface import HFLM

        begin = {"auto": None, "yes": True, "no": False}[add_bos]
        safe = {"local_files_only": True, "trust_remote_code": False}
        own: dict[str, Any] = {} if begin is None else {"add_bos_token": begin}
        tokenizer = AutoTokenizer.from_pretrained(path, **safe, **own)
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, _DTYPES[dtype]), use_safetensors=True, **safe
        )
        model.to(device).eval().register_forward_pre_hook(
            lambda _, args, kwargs: before_forward(_rows(args, kwargs)), with_kwargs=True
        )
        asked: Any = HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=batch_size, add_bos_token=begin
        )
        score = asked._loglikelihood_tokens

        def checked(requests: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            _refuse_long(requests, asked.max_length)
            return score(requests, *args, **kwargs)

        asked._loglikelihood_tokens = checked
        return asked


def _refuse_long(requests: Sequence[Any], max_length: int) -> None:
    """lm-eval scores an answer in one window, and ends with a bare AssertionError otherwise."""
    lengths = [len(answer) for _, _, answer in requests]
    if too_long := [length for length in lengths if length > max_length]:
        raise UnsupportedModelError(
            f"{len(too_long)} of {len(lengths)} answers are longer than the {max_length} tokens "
            f"that the model takes (the longest: {max(too_long)}), so lm-eval cannot score them.",
            "Leave the task out for this model, or ask fewer questions: --limit.",
        )


def _rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    ids = args[0] if args else kwargs.get("input_ids")
    return 0 if ids is None else int(ids.shape[0])


def answer(model: Any, questions: Any, task: Description, limit: int | None) -> dict[str, Any]:
    """Ask a model one task, as `lm_eval.simple_evaluate` does, without its look at the machine.

    Args:
        model: Of `open_model`.
        questions: Of `load`; used once.
        task: Its description.
        limit: Questions of each task; None: all.

    Returns:
        lm-eval's result, untouched.
    """
    import numpy as np
    import torch
    from lm_eval.evaluator import evaluate

    random.seed(_SEED)
    np.random.seed(_OTHER_SEED)
    torch.manual_seed(_OTHER_SEED)
    for single in questions["tasks"].values():
        fixed = single.get_config("num_fewshot")
        if task.shots is not None and fixed != 0:  # 0 in a description means that it must be 0
            single.set_config(key="num_fewshot", value=task.shots)
        elif fixed is None:
            single.set_config(key="num_fewshot", value=0)
        single.set_fewshot_seed(seed=_OTHER_SEED)
    with _quiet():
        result = evaluate(
            lm=model,
            task_dict=questions,
            limit=limit,
            bootstrap_iters=BOOTSTRAPS,
            log_samples=False,
            confirm_run_unsafe_code=task.allow_code,
        )
    assert result is not None  # only other processes get nothing
    return dict(result)


def as_text(raw: Mapping[str, Any]) -> str:
    """lm-eval's result as its own command writes it."""
    from lm_eval.utils import handle_non_serializable

    return json.dumps(dict(raw), indent=2, default=handle_non_serializable, ensure_ascii=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's bars, notes and prints off a terminal whose progress we show ourselves."""
    import tqdm
    from datasets.utils.logging import disable_progress_bar
    from transformers.utils import logging as of_transformers

    disable_progress_bar()
    of_transformers.disable_progress_bar()
    loud = of_transformers.get_verbosity()
    of_transformers.set_verbosity_error()  # of texts that are longer than a window
    logger = logging.getLogger("lm_eval")
    level, began = logger.level, tqdm.tqdm.__init__

    def hidden(bar: Any, *args: Any, **kwargs: Any) -> None:
        began(bar, *args, **(kwargs | {"disable": True}))

    # Its bars have no switch that turns off all of them.
    tqdm.tqdm.__init__ = hidden
    logger.setLevel(logging.CRITICAL)
    # Its pool of processes for bootstraps is ended by SIGTERM, which ours only take note of: a
    # forked worker inherits that, and the pool waits for it for ever.
    alone = os.environ.get(_NO_POOL)
    os.environ[_NO_POOL] = "1"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tqdm.tqdm.__init__ = began
        logger.setLevel(level)
        if alone is None:
            del os.environ[_NO_POOL]
        of_transformers.set_verbosity(loud)
