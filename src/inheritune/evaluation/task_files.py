"""Find the file that describes a task, in lm-eval or in a directory of the user's own.

Nothing here runs code of a task, and lm-eval's 14,000 descriptions are not indexed.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from inheritune.errors import DataError, MachineError, MissingExtraError, RecipeError, escape
from inheritune.system.files import sha256
from inheritune.system.reading import read_regular_file

_MOST_BYTES = 1_000_000  # of a description file
_NAME = re.compile(rb"""^(?:task|group):[ \t]*["']?([\w.\-]+)["']?[ \t]*\r?$""", re.MULTILINE)
_CODE = {
    "!function": re.compile(rb"!\s*function|!<[^>]*function|tag:yaml"),
    "unsafe_code": re.compile(rb"unsafe_code"),
    "class": re.compile(rb"^\s*[\"']?class[\"']?\s*:", re.MULTILINE),
    "a template": re.compile(rb"\{[{%]"),
}
# The tasks of the suites are found without a search.
_USUAL = {
    "arc_easy": "arc/arc_easy.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
    "logiqa": "logiqa/logiqa.yaml",
    "mmlu": "mmlu/default/_mmlu.yaml",
    "mnli": "glue/mnli/default.yaml",
    "piqa": "piqa/piqa.yaml",
    "qnli": "glue/qnli/default.yaml",
    "sciq": "sciq/sciq.yaml",
    "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml",
    "wikitext": "wikitext/wikitext.yaml",
    "winogrande": "winogrande/default.yaml",
    "wnli": "glue/wnli/default.yaml",
    "wsc": "super_glue/wsc/default.yaml",
}
# By the name under which the pages are also passed on.
_ALSO_NAMED = {"wikitext": "wikitext2_test_pages"}


@dataclass(frozen=True)
class LocalData:
    """Local JSONL files with the questions of one task, in the fields that the task reads."""

    questions: Path
    examples: Path | None  # examples for few-shot questions; None: there are none
    digest: str  # SHA-256 of both


def tasks_root() -> Path:
    """Return the directory of lm-eval's own descriptions.

    Raises:
        MissingExtraError: lm-eval is not installed.
    """
    package = find_spec("lm_eval")
    if package is None or not package.submodule_search_locations:
        raise MissingExtraError(
            "tasks need lm-eval, which is not installed.",
            'Install the extra: pip install "inheritune[eval]"',
        )
    return Path(next(iter(package.submodule_search_locations))) / "tasks"


def stock_file(name: str) -> Path | None:
    """Find lm-eval's own description of a task or group; None if there is none."""
    root = tasks_root()
    if name in _USUAL and (root / _USUAL[name]).is_file():
        return root / _USUAL[name]
    encoded = name.encode()
    for path in sorted(root.rglob("*.yaml")):
        if encoded in _NAME.findall(path.read_bytes()):
            return path
    return None


def is_mentioned(name: str) -> bool:
    """Tell whether any installed description contains the name, which may then be a tag."""
    encoded = name.encode()
    return any(encoded in path.read_bytes() for path in tasks_root().rglob("*.yaml"))


def names_in(path: Path) -> list[str]:
    """List the tasks and groups of a description, or of all below a directory."""
    files = sorted(path.rglob("*.yaml")) if path.is_dir() else [path]
    return [name.decode() for file in files for name in _NAME.findall(file.read_bytes())]


def own_task(entry: str, allow_code: bool) -> Path | None:
    """Return the path of a description written by the user; None for the name of a task.

    A description can run code: ``!function`` imports Python from beside it, and its templates are
    rendered without a sandbox. So none is read unless code is allowed.

    Raises:
        RecipeError: The path does not exist, or code is not allowed.
    """
    if not ("/" in entry or "\\" in entry or entry.endswith((".yaml", ".yml"))):
        return None
    path = Path(entry)
    try:
        exists = path.exists()
    except (OSError, ValueError):
        exists = False
    if not exists:
        raise RecipeError(f"there is no task directory {escape(entry)}.", "Check the path.")
    if not allow_code:
        raise RecipeError(
            f"{escape(entry)} is a task of your own, which may run code{_code_in(path)}.",
            "If you trust it: --allow-task-code, or evaluate.allow_task_code: true.",
        )
    return path.resolve()


def _code_in(path: Path) -> str:
    """Say for the error message where a description asks for code, if one does."""
    files = sorted([*path.rglob("*.yaml"), *path.rglob("*.yml")]) if path.is_dir() else [path]
    for file in files[:1000]:
        try:
            text = read_regular_file(file, _MOST_BYTES)
        except OSError:
            continue
        for what, pattern in _CODE.items():
            if pattern.search(text):
                return f": {escape(file.name, 60)} has {what}"
    return ""


def local_data(folder: Path | None, task: str) -> LocalData | None:
    """Find the local questions of a task.

    Args:
        folder: Directory of ``TASK.jsonl`` files, and of ``TASK.examples.jsonl`` for few-shot
            examples; None: data sets come from the Hub.

    Returns:
        None without a directory, or if it has no file of this task.
    """
    if folder is None:
        return None
    if not folder.is_dir():
        raise RecipeError(f"there is no directory {folder} of task data.", "Check the path.")
    names = [task, _ALSO_NAMED[task]] if task in _ALSO_NAMED else [task]
    questions = next((p for n in names if (p := folder / f"{n}.jsonl").is_file()), None)
    if questions is None:
        return None
    examples = folder / f"{task}.examples.jsonl"
    files = [questions, *([examples] if examples.is_file() else [])]
    total = hashlib.sha256()
    for file in files:
        _refuse_no_rows(file)
        total.update(bytes.fromhex(sha256(file)))
    return LocalData(
        questions.resolve(), examples.resolve() if len(files) > 1 else None, total.hexdigest()
    )


def _refuse_no_rows(file: Path) -> None:
    with file.open("rb") as stream:
        first = stream.readline(16 << 20)
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise DataError(f"{file} does not begin with a JSON object.", "One question in each line.")


def write_description(
    task: str, stock: Path, config: Mapping[str, object], data: LocalData, shots: int, out: Path
) -> Path:
    """Write lm-eval's description of a task with local files in place of its data set.

    Args:
        stock: File of lm-eval's own description.
        config: Contents of that file, with those of the files that it includes.
        shots: Examples before each question; above 0, they need a file of examples.
        out: Directory to write to.

    Raises:
        RecipeError: There are no examples for few-shot questions.
    """
    split = config.get("test_split") or config.get("validation_split")
    if not isinstance(split, str):
        raise MachineError(f"the task {task} has no questions to put in place.", "Leave it out.")
    if shots and data.examples is None:
        raise RecipeError(
            f"{task} is asked with {shots} examples, but there is no {task}.examples.jsonl beside "
            f"{data.questions.name}.",
            "Add it, or ask with none: --shots 0.",
        )
    files = {split: str(data.questions)}
    if data.examples is not None:
        files["examples"] = str(data.examples)
    splits: dict[str, object] = dict.fromkeys(("training_split", "validation_split", "test_split"))
    kind = "test_split" if config.get("test_split") else "validation_split"
    splits |= {kind: split, "fewshot_split": "examples" if "examples" in files else None}
    written = {
        "include": str(stock),
        "task": task,
        "dataset_path": "json",
        "dataset_name": None,
        # Else datasets would leave a copy of the questions in the user's cache.
        "dataset_kwargs": {"data_files": files, "cache_dir": str(out / "datasets")},
    }
    path = out / f"{task}.yaml"
    path.write_text(json.dumps(written | splits, indent=1), encoding="utf-8")  # JSON is YAML
    return path
