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

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

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
from inheritune.system.progress import Listener, Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from inheritune.analysis.analyze import Analysis
    from inheritune.conversion.convert import Converted
    from inheritune.data.tokens import TokenDirectory
    from inheritune.evaluation.evaluate import Evaluation
    from inheritune.evaluation.generation import Generation
    from inheritune.model_files.directory import ModelDirectory
    from inheritune.planning.candidates import Candidates, CutPlan
    from inheritune.planning.recipe_plan import RecipePlan
    from inheritune.recipe.load import RecipeFile
    from inheritune.recipe.schema import Recipe
    from inheritune.run.execute import RunResult
    from inheritune.run.pretraining import PretrainingResult
    from inheritune.verification.directory import Verification

__all__ = [
    "Analysis",
    "CheckpointError",
    "Converted",
    "DataError",
    "DivergedError",
    "Evaluation",
    "Generation",
    "InherituneError",
    "Interrupted",
    "MachineError",
    "MissingExtraError",
    "ModelDirectory",
    "PretrainingResult",
    "Progress",
    "Recipe",
    "RecipeError",
    "RunResult",
    "SourceError",
    "TokenDirectory",
    "UnsupportedModelError",
    "Verification",
    "analyze",
    "convert",
    "derive",
    "evaluate",
    "generate",
    "grow",
    "inherit",
    "plan",
    "prepare",
    "report",
    "train",
    "verify",
]

# Result types that are imported when they are first used.
_TYPES = {
    "Analysis": "analysis.analyze",
    "Converted": "conversion.convert",
    "Evaluation": "evaluation.evaluate",
    "Generation": "evaluation.generation",
    "ModelDirectory": "model_files.directory",
    "PretrainingResult": "run.pretraining",
    "Recipe": "recipe.schema",
    "RunResult": "run.execute",
    "TokenDirectory": "data.tokens",
    "Verification": "verification.directory",
}

PathLike: TypeAlias = str | os.PathLike[str]
StoredModel: TypeAlias = "PathLike | ModelDirectory"
Model: TypeAlias = "StoredModel | PreTrainedModel"
ProgressOption: TypeAlias = bool | Listener


def __getattr__(name: str) -> Any:
    if name in _TYPES:
        return getattr(import_module(f"inheritune.{_TYPES[name]}"), name)
    raise AttributeError(f"module 'inheritune' has no attribute {name!r}")


# --- surgery ----------------------------------------------------------------------------------


def inherit(
    reference: Model,
    layers: int | str | Sequence[int],
    out: PathLike,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    parts: str = "all",
    seed: int = 0,
    class_check: bool = True,
    sha256: bool = False,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    progress: ProgressOption = True,
) -> "ModelDirectory":
    """Cut a model to some of its layers and write it as a new model directory.

    Tensors are copied byte for byte, and the model's transformers class checks that every kept
    layer computes what it did. Of a Hub model, only the kept layers are downloaded. The target's
    ``inherit.json`` says where everything came from.

    Args:
        reference: The model to cut; never changed. A model in memory is saved to a temporary
            directory first, in the dtype it has.
        layers: How many first layers to keep; a list of layers, counted from 0; or a selection such
            as ``"last:12"``, ``"middle:12"``, ``"first+last:8+4"``, ``"every:2"``, ``"0-11,24"``.
        out: The directory to write; missing or empty.
        revision: Branch, tag or commit of a Hub id.
        dtype: Cast the weights to ``"fp32"``, ``"bf16"`` or ``"fp16"``; None: no cast.
        parts: What to inherit, for ablations: ``"all"``, ``"attention"``, ``"mlp"``,
            ``"attention+mlp"``, ``"first-half"``, ``"layers-only"``, ``"outer-only"``,
            ``"paper-code-gpt2"`` or ``"paper-code-llama"``; the rest is initialised afresh.
        seed: Seed of what is initialised afresh.
        class_check: Let the transformers class check the cut; without it, only first layers can be
            cut.
        sha256: Also record SHA-256 digests, which takes longer.
        tokenizer: Tokenizer of a model in memory; None: the one that it was loaded with.
        progress: True draws a bar, False is silent, a function is called with each event.

    Returns:
        The target; ``.load()`` gives the transformers model.

    Raises:
        RecipeError: The reference has no such layers, or ``out`` is in use.
        UnsupportedModelError: The layers would not compute what they do in the reference.
        SourceError: A file of the reference is broken or unsafe.
        MachineError: The disk is full, or the Hub cannot be reached.

    Source: Sanyal et al., Inheritune, arXiv 2404.08634, algorithm 1.
    """
    from inheritune.model_files.in_memory import opened_model
    from inheritune.surgery.cut import Options
    from inheritune.surgery.cut import inherit as inherit_layers

    with (
        _call(progress) as on_progress,
        opened_model(reference, revision, whole=False, tokenizer=tokenizer) as directory,
    ):
        options = Options(
            dtype=dtype, parts=parts, seed=seed, class_check=class_check, sha256=sha256
        )
        return inherit_layers(directory, layers, Path(out), options, on_progress)


def grow(
    target: StoredModel,
    reference: StoredModel,
    layers: int,
    out: PathLike,
    *,
    revision: str | None = None,
    progress: ProgressOption = True,
) -> "ModelDirectory":
    """Write a trained target with the next layers of its reference on top of its own.

    Every tensor of the target is kept bit for bit; the new layers take its dtype.

    Args:
        target: First layers of the reference, trained.
        reference: The model that the target was cut from.
        layers: Number of layers of the grown model.
        out: The directory to write; missing or empty.
        revision: Branch, tag or commit of a Hub id.
        progress: True draws a bar, False is silent, a function is called with each event.

    Raises:
        RecipeError: ``layers`` is not between the target's and the reference's.
        UnsupportedModelError: The reference has weights outside its layers with a part for each.
        SourceError: The two belong to different models.
    """
    from inheritune.model_files.in_memory import opened_model
    from inheritune.surgery.grow import grow as grow_layers

    with (
        _call(progress),
        opened_model(target) as target_directory,
        opened_model(reference, revision, whole=False) as reference_directory,
    ):
        return grow_layers(target_directory, reference_directory, layers, Path(out))


def convert(source: PathLike, out: PathLike, *, progress: ProgressOption = True) -> "Converted":
    """Turn a local PyTorch-format checkpoint into a safetensors model directory.

    The one function that reads a pickle: weights only, in a process without network that can write
    nowhere but to ``out``. Convert only what you trust.

    Args:
        source: Model directory with ``pytorch_model*.bin``.
        out: The directory to write; missing or empty.
        progress: True draws a bar, False is silent, a function is called with each event.

    Raises:
        SourceError: The files are broken or unsafe, or hold more than plain tensors.
        RecipeError: ``out`` is in use.
    """
    from inheritune.conversion.convert import convert as convert_directory

    with _call(progress):
        return convert_directory(Path(source), Path(out))


def verify(
    path: StoredModel,
    reference: "Model | None" = None,
    *,
    revision: str | None = None,
    progress: ProgressOption = True,
) -> "Verification":
    """Verify a model, token directory, checkpoint or run against its record; change nothing.

    Args:
        path: The directory; its files tell which kind it is.
        reference: The model that a model, or a run's target, was cut from; its bytes and what its
            layers compute are then compared, too.
        revision: Branch, tag or commit of a Hub id.
        progress: True draws a bar, False is silent, a function is called with each event.

    Returns:
        A row for each part that was checked, or could not be.

    Raises:
        SourceError: The model differs from its record or its reference.
        DataError: Tokens differ from those that were prepared.
        CheckpointError: A checkpoint differs from what was written.
    """
    from inheritune.model_files.in_memory import opened_model
    from inheritune.verification.directory import verify as verify_directory

    with _call(progress) as on_progress, ExitStack() as stack:
        directory = None
        if reference is not None:
            directory = stack.enter_context(opened_model(reference, revision, whole=False))
        return verify_directory(
            _path(path),
            directory,
            lambda finding: on_progress(Progress("verify", message=finding.text)),
        )


# --- the method -------------------------------------------------------------------------------


def derive(
    recipe: "PathLike | Recipe | RecipeFile | None" = None,
    *,
    runs: PathLike = "runs",
    allow_change: Sequence[str] = (),
    checkpoint: PathLike | None = None,
    progress: ProgressOption = True,
    **sections: Any,
) -> "RunResult":
    """Run a recipe from start to finish, or resume it: inherit, train, grow until matched.

    Args:
        recipe: Path of a recipe, name of a preset such as ``"demo"``, or a `Recipe`; None: the
            sections alone are the recipe.
        runs: Directory of runs; this one gets a subdirectory with the recipe's name.
        allow_change: Recipe keys that may differ from those that the run was started with.
        checkpoint: Continue the unfinished training from this checkpoint; None: from the newest.
        progress: True draws a bar, False is silent, a function is called with each event.
        **sections: Keys of the recipe that replace the file's, such as ``train={"tokens": "1M"}``
            or ``name="mine"``.

    Returns:
        The result, complete whether or not the reference was matched. Under torchrun, None in every
        process but the first.

    Raises:
        RecipeError: The recipe is wrong, or differs from the one that the run was started with.
        Interrupted: Stopped by Ctrl-C or SIGTERM; the same call continues.
        InherituneError: A step failed; what was done stays, and the same call continues.

    Source: Sanyal et al., Inheritune, arXiv 2404.08634, algorithm 1.
    """
    from inheritune.recipe.sections import recipe_with
    from inheritune.run.execute import execute

    with _call(progress) as on_progress:
        recipe_file = recipe_with(recipe, sections)
        result = execute(
            recipe_file,
            Path(runs) / recipe_file.recipe.name,
            on_progress,
            allowed=allow_change,
            checkpoint=None if checkpoint is None else Path(checkpoint),
        )
        return cast("RunResult", result)


def prepare(
    source: "str | Sequence[str]",
    tokenizer: StoredModel,
    out: PathLike,
    *,
    seq_len: int = 1024,
    progress: ProgressOption = True,
    **data: Any,
) -> "TokenDirectory":
    """Turn text into token shards for `train` and `evaluate`.

    The same input gives the same bytes. An interrupted call continues after the last whole shard.

    Args:
        source: As `data.source` of a recipe: ``"stdlib"``, files, folders, globs, or a Hub dataset.
        tokenizer: The model, or the directory, whose tokenizer is used.
        out: The token directory; opened as it is if it was prepared from the same.
        seq_len: Tokens per sequence; both splits must hold at least one.
        progress: True draws a bar, False is silent, a function is called with each event.
        **data: Other keys of a recipe's `data` section, such as ``val_fraction=0.01``.

    Raises:
        DataError: The text is missing, broken or too short.
        RecipeError: A key is wrong, or ``out`` was prepared with other values.
    """
    from pydantic import ValidationError

    from inheritune.data.prepare_text import prepare_text
    from inheritune.data.tokenizer import embedding_rows, open_tokenizer
    from inheritune.model_files.in_memory import opened_model
    from inheritune.recipe.messages import explain
    from inheritune.recipe.schema import Data
    from inheritune.recipe.yaml_tree import Tree
    from inheritune.system.signals import catch_signals

    fields = {"source": source if isinstance(source, str) else list(source), **data}
    try:
        section = Data.model_validate(fields)
    except ValidationError as error:
        raise explain(error, Tree("data", fields)) from None
    with (
        _call(progress) as on_progress,
        catch_signals() as stop,
        opened_model(tokenizer, whole=False) as directory,
    ):
        opened = open_tokenizer(directory.path)
        rows = embedding_rows(directory.path, opened)
        return prepare_text(section, opened, rows, seq_len, Path(out), on_progress, stop)


def train(
    model: StoredModel,
    tokens: "PathLike | TokenDirectory",
    out: PathLike,
    *,
    allow_change: Sequence[str] = (),
    checkpoint: PathLike | None = None,
    progress: ProgressOption = True,
    **sections: Any,
) -> "PretrainingResult":
    """Train any model further on prepared tokens, without a recipe, or resume that.

    By default one epoch; the length of sequences and steps is chosen by the model and the tokens.

    Args:
        model: The model to start from; never changed.
        tokens: From `prepare`, with the model's tokenizer.
        out: Directory of the training; the trained model is ``out/model``.
        allow_change: Keys that may differ from those that the training was started with.
        checkpoint: Continue from this checkpoint; None: from the newest.
        progress: True draws a bar, False is silent, a function is called with each event.
        **sections: Keys of a recipe's `train` and `evaluate`, such as ``train={"tokens": "10M"}``,
            ``data={"allow_repeat": True}`` and ``reference={"revision": ...}``.

    Raises:
        RecipeError: A key is wrong, or ``out`` holds something else.
        DataError: The tokens are too few, or of another tokenizer.
        DivergedError: The loss stopped being finite.
        Interrupted: Stopped by Ctrl-C or SIGTERM; the same call continues.
    """
    from inheritune.model_files.directory import ModelDirectory
    from inheritune.recipe.sections import overrides
    from inheritune.run.pretraining import plan_pretraining, pretrain

    if isinstance(model, ModelDirectory):
        if model.revision is not None:  # on the Hub; its files may be here in part
            sections["reference"] = {"revision": model.revision} | sections.get("reference", {})
        name = str(model.path) if model.revision is None else model.name
    else:
        name = os.fspath(model)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    with _call(progress) as on_progress:
        pretraining = plan_pretraining(
            name, _path(tokens), Path(out), overrides(sections), processes
        )
        result = pretrain(
            pretraining,
            Path(out),
            on_progress,
            allow_change,
            None if checkpoint is None else Path(checkpoint),
        )
        return cast("PretrainingResult", result)


# --- measurements -----------------------------------------------------------------------------


def evaluate(
    models: "Model | Sequence[Model]",
    *,
    tasks: str | Sequence[str] = (),
    tokens: "PathLike | TokenDirectory | None" = None,
    text: PathLike | Sequence[PathLike] = (),
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
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    progress: ProgressOption = True,
) -> "Evaluation":
    """Measure models under the same settings: val_loss on text, tasks of lm-eval, and speed.

    Args:
        models: One model or several; models in memory, too.
        tasks: Tasks of lm-eval, or the suites ``low-data``, ``full-data`` and ``later``.
        tokens: Token directory; val_loss is measured on its held-out tokens.
        text: Text files to measure val_loss on instead.
        out: Directory that keeps every score, so that nothing is measured twice; None: a temporary
            one.
        seq_len: Tokens of a val_loss window; None: 1024, or the fewest positions of any model.
        shots: Examples before each question; None: as the suite or task says.
        limit: Questions of each task; None: all.
        batch_size: Windows or questions in a forward. Scores move with it a little.
        dtype: ``auto``, ``fp32``, ``bf16`` or ``fp16``, for the tasks; val_loss is always fp32.
        add_bos: Begin every text with BOS: ``yes``, ``no``, or ``auto``, as the tokenizer does.
        task_data: Directory of ``TASK.jsonl`` files, read instead of the Hub's data sets.
        allow_task_code: Let tasks run code of their own.
        speed: Measure size, memory and speed of the models in turn and, where there are tokens or
            text, how close the predictions of each are to those of the first: ``gains``.
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

    from inheritune.evaluation.evaluate import EvaluationRequest
    from inheritune.evaluation.evaluate import evaluate as evaluate_models
    from inheritune.model_files.in_memory import opened_model

    request = EvaluationRequest(
        tasks=[tasks] if isinstance(tasks, str) else list(tasks),
        tokens=_tokens_path(tokens),
        texts=[Path(file) for file in ([text] if isinstance(text, str | os.PathLike) else text)],
        seq_len=seq_len,
        shots=shots,
        limit=limit,
        batch_size=batch_size,
        dtype=dtype,
        add_bos=add_bos,
        task_data=None if task_data is None else Path(task_data),
        allow_code=allow_task_code,
        speed=speed,
    )
    request.check()  # before a model is downloaded
    with _call(progress) as on_progress, ExitStack() as stack:
        folder = out or stack.enter_context(TemporaryDirectory(prefix="inheritune-"))
        several = (
            models if isinstance(models, Sequence) and not isinstance(models, str) else [models]
        )
        opened: list[str | ModelDirectory] = [
            os.fspath(model)
            if isinstance(model, str | os.PathLike)
            else stack.enter_context(opened_model(model, tokenizer=tokenizer))
            for model in several
        ]
        return evaluate_models(opened, request, Path(folder), on_progress)


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
    with _call(progress) as on_progress, opened_models(models, tokenizer) as opened:
        return generate_texts(opened, prompt, settings, on_progress, on_text)


def analyze(
    model: Model,
    *,
    against: "Model | None" = None,
    tokens: "PathLike | TokenDirectory | None" = None,
    text: str | None = None,
    sequences: int = 100,
    tokens_per_sequence: int = 100,
    threshold: float = 0.9,
    bos: str = "auto",
    spectrum: bool = False,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    progress: ProgressOption = True,
) -> "Analysis":
    """Measure attention rank and mass of every layer, what each layer does, and advise on a size.

    Args:
        model: The model; in memory, too.
        against: A target that was made from it, measured on the same sequences.
        tokens: Token directory; sequences are drawn from its held-out tokens.
        text: Text to draw them from instead, as `data.source` of a recipe; None: Python's library.
        sequences: N, number of sequences.
        tokens_per_sequence: T, tokens of each.
        threshold: Share of the squared singular values that a rank holds, in (0, 1).
        bos: Begin each sequence with BOS: ``yes``, ``no``, or ``auto``, as the tokenizer does.
        spectrum: Also compute singular values of the weights; large matrices take long.
        tokenizer: Tokenizer of a model in memory; None: the one that it was loaded with.
        progress: True draws a bar, False is silent, a function is called with each event.

    Returns:
        A row for each layer; ``advice`` says how many first layers to inherit.

    Raises:
        UnsupportedModelError: The attention cannot be observed.
        DataError: The text is too short, or of another tokenizer.

    Source: Sanyal et al., Inheritune, arXiv 2404.08634, section 2.
    """
    from inheritune.analysis.analyze import analyze as analyze_models
    from inheritune.analysis.sequences import sequences_for
    from inheritune.model_files.in_memory import opened_model

    with _call(progress) as on_progress, ExitStack() as stack:
        first = stack.enter_context(opened_model(model, tokenizer=tokenizer))
        models = [("model", first)]
        if against is not None:
            target = stack.enter_context(opened_model(against, tokenizer=tokenizer))
            models = [("reference", first), ("target", target)]
        drawn = sequences_for(
            [directory for _, directory in models],
            sequences,
            tokens_per_sequence,
            tokens=_tokens_path(tokens),
            text=text,
            bos=bos,
        )
        return analyze_models(
            models, drawn, threshold=threshold, spectrum=spectrum, on_progress=on_progress
        )


def plan(
    what: "StoredModel | Recipe | RecipeFile",
    layers: int | str | None = None,
    *,
    revision: str | None = None,
    tokens: int | str | None = None,
    seq_len: int | None = None,
    device: str | None = None,
    devices: int = 1,
    mfu: float = 0.4,
    rate: float | None = None,
    runs: PathLike = "runs",
    progress: ProgressOption = True,
    **sections: Any,
) -> "Candidates | CutPlan | RecipePlan":
    """Estimate size, time and cost of a cut or of a recipe, without running it.

    Args:
        what: A model, of which only headers are read, or a config.json where there are no weights;
            or a recipe: a path that ends in ``.yaml``, or a `Recipe`.
        layers: Look at this cut in detail, as for `inherit`; None: a table of cuts.
        revision: Branch, tag or commit of a Hub id.
        tokens: Training tokens to estimate the time for, such as ``"1B"``.
        seq_len: Tokens per sequence; None: the model's positions, 2048 at most.
        device: Device to estimate for, such as ``"h100"``, ``"a100"``, ``"rtx4090"`` or ``"cpu"``.
        devices: Number of devices.
        mfu: Share of the device's peak that training reaches, in (0, 1].
        rate: Dollars per hour of one device.
        runs: Directory of runs, for a recipe.
        progress: True draws a bar, False is silent, a function is called with each event.
        **sections: Keys of the recipe that replace the file's, as for `derive`.

    Returns:
        A table with a row for each cut (``candidates``), a cut in detail, or a recipe's plan.

    Raises:
        RecipeError: There are no such layers, or the recipe is wrong.
    """
    from inheritune.model_files.in_memory import opened_model
    from inheritune.planning.candidates import Budget, list_candidates, plan_cut
    from inheritune.planning.planned_reference import open_to_plan
    from inheritune.planning.recipe_plan import plan_recipe
    from inheritune.recipe.sections import is_recipe, recipe_with
    from inheritune.recipe.values import amount_of_tokens
    from inheritune.system.devices import Speed, choose_device

    speed = Speed(choose_device(device), devices, mfu, rate) if device else None
    with _call(progress), ExitStack() as stack:
        if is_recipe(what):
            recipe = recipe_with(what, sections).recipe  # type: ignore[arg-type]
            return plan_recipe(recipe, Path(runs) / recipe.name, speed)
        if isinstance(what, str | os.PathLike):
            model = open_to_plan(os.fspath(what), revision)
        else:
            model = stack.enter_context(opened_model(what))  # type: ignore[arg-type]
        budget = Budget(seq_len, None if tokens is None else amount_of_tokens(tokens), speed)
        if layers is None:
            return list_candidates(model, budget)
        return plan_cut(model, str(layers), budget)


def report(
    runs: PathLike | Sequence[PathLike],
    out: PathLike = "report-comparison/index.html",
    *,
    progress: ProgressOption = True,
) -> Path:
    """Write the page, tables, figures and card of a run again, or a page that compares several.

    Args:
        runs: A run's directory, or several.
        out: The page that compares several; that of one run is in the run.
        progress: True draws a bar, False is silent, a function is called with each event.

    Returns:
        The page.

    Raises:
        DataError: A directory is no run.
    """
    from inheritune.publishing.card import write_card
    from inheritune.reporting.comparison import write_comparison
    from inheritune.reporting.page import read_report, write_report

    with _call(progress) as on_progress:
        if not isinstance(runs, str | os.PathLike):
            write_comparison([Path(run) for run in runs], Path(out))
            return Path(out)
        report = read_report(Path(runs))
        page = write_report(Path(runs), report)
        try:
            write_card(Path(runs), report.figures)
        except DataError as error:
            message = f"the target's card is left unchanged: {error.message}"
            on_progress(Progress("report", message=message))
        return page


# --- arguments --------------------------------------------------------------------------------


@contextmanager
def _call(progress: ProgressOption) -> Iterator[Listener]:
    """Yield the listener of a call, and turn Ctrl-C into our own error."""
    try:
        if callable(progress):
            yield progress
        elif progress and os.environ.get("RANK", "0") == "0":  # torchrun's first process
            from inheritune.system.progress_bar import progress_bar

            with progress_bar() as on_progress:
                yield on_progress
        else:
            yield silent
    except KeyboardInterrupt:
        raise Interrupted(
            "stopped by SIGINT; what was complete is kept.", "Run the same command to continue."
        ) from None


def _path(value: "StoredModel | TokenDirectory") -> Path:
    return Path(value) if isinstance(value, str | os.PathLike) else value.path


def _tokens_path(tokens: "PathLike | TokenDirectory | None") -> Path | None:
    return None if tokens is None else _path(tokens)
