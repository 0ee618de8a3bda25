"""The Python API: the functions that scripts and notebooks call, and that the commands call, too.

    import inheritune as it

    target = it.inherit("Qwen/Qwen3-0.6B", layers=12, out="small")
    model = target.load()

A model is given as a Hub id, a directory, ``"embedded:demo"``, a `ModelDirectory`, or, where the
signature says so, as a transformers model in memory. Results are frozen dataclasses; those that are
tables show themselves in a notebook and have ``to_frame()``. Errors are those of
`inheritune.errors`: what happened, and the way out.

``progress=True`` draws a bar on a terminal or in a notebook and writes lines elsewhere; False is
silent; a function is called with each `Progress`. Ctrl-C raises `Interrupted`, after what was done
is saved; the same call continues. Signal handlers are put back when a call returns.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from inheritune.api.analysis import analyze, select
from inheritune.api.measurements import evaluate, fetch_tasks, generate
from inheritune.api.models import convert, grow, inherit, verify
from inheritune.api.patching import family, patch
from inheritune.api.planning import plan
from inheritune.api.pretraining import import_tokens, inspect, plan_training, prepare, train
from inheritune.api.recipes import load_recipe, recipe_for
from inheritune.api.runs import (
    clean,
    compare,
    derive,
    list_runs,
    prepare_parts,
    prepare_recipe,
    push,
    report,
    train_variant,
)
from inheritune.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    InherituneError,
    Interrupted,
    MachineError,
    MissingExtraError,
    RecipeError,
    SourceError,
    UnsupportedModelError,
)
from inheritune.system.progress import Progress

if TYPE_CHECKING:
    from inheritune.analysis.analyze import Analysis
    from inheritune.analysis.select import LayerSelection
    from inheritune.conversion.converted import Converted
    from inheritune.data.import_tokens import FlatFiles
    from inheritune.data.inspect import Inspection
    from inheritune.data.tokens import TokenDirectory
    from inheritune.evaluation.evaluate import Evaluation
    from inheritune.evaluation.family import Family
    from inheritune.evaluation.generation import Generation
    from inheritune.model_files.directory import ModelDirectory
    from inheritune.planning.candidates import Candidates, CutPlan
    from inheritune.planning.recipe_plan import RecipePlan
    from inheritune.recipe.load import RecipeFile
    from inheritune.recipe.schema import Recipe
    from inheritune.reporting.comparison import Comparison
    from inheritune.run.execute import RunResult
    from inheritune.run.listing import RunList
    from inheritune.run.pretraining import Pretraining, PretrainingResult
    from inheritune.steps.result import TrainedVariant
    from inheritune.verification.directory import Verification
    from inheritune.verification.run_model import Finding

# The modules of result types, which are imported when they are first used.
_MODULES = {
    "Analysis": "analysis.analyze",
    "Candidates": "planning.candidates",
    "Comparison": "reporting.comparison",
    "Converted": "conversion.converted",
    "CutPlan": "planning.candidates",
    "Evaluation": "evaluation.evaluate",
    "Family": "evaluation.family",
    "Finding": "verification.run_model",
    "Generation": "evaluation.generation",
    "FlatFiles": "data.import_tokens",
    "Inspection": "data.inspect",
    "LayerSelection": "analysis.select",
    "ModelDirectory": "model_files.directory",
    "Pretraining": "run.pretraining",
    "PretrainingResult": "run.pretraining",
    "Recipe": "recipe.schema",
    "RecipeFile": "recipe.load",
    "RecipePlan": "planning.recipe_plan",
    "RunList": "run.listing",
    "RunResult": "run.execute",
    "TokenDirectory": "data.tokens",
    "TokenParts": "data.token_parts",
    "TrainedVariant": "steps.result",
    "Verification": "verification.directory",
}

__all__ = [
    "Analysis",
    "Candidates",
    "CheckpointError",
    "Comparison",
    "Converted",
    "CutPlan",
    "DataError",
    "DivergedError",
    "Evaluation",
    "Family",
    "Finding",
    "FlatFiles",
    "Generation",
    "InherituneError",
    "Inspection",
    "Interrupted",
    "LayerSelection",
    "MachineError",
    "MissingExtraError",
    "ModelDirectory",
    "Pretraining",
    "PretrainingResult",
    "Progress",
    "Recipe",
    "RecipeError",
    "RecipeFile",
    "RecipePlan",
    "RunList",
    "RunResult",
    "SourceError",
    "TokenDirectory",
    "TokenParts",
    "TrainedVariant",
    "UnsupportedModelError",
    "Verification",
    "analyze",
    "clean",
    "compare",
    "convert",
    "derive",
    "evaluate",
    "family",
    "fetch_tasks",
    "generate",
    "grow",
    "import_tokens",
    "inherit",
    "inspect",
    "list_runs",
    "load_recipe",
    "patch",
    "plan",
    "plan_training",
    "prepare",
    "prepare_parts",
    "prepare_recipe",
    "push",
    "recipe_for",
    "report",
    "select",
    "train",
    "train_variant",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"inheritune.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'inheritune' has no attribute {name!r}")
