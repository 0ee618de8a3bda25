"""Cut, grow, convert and verify models."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING

from inheritune.api.call import (
    Model,
    PathLike,
    ProgressOption,
    StoredModel,
    Text,
    call,
    optional_text,
    path_of,
)
from inheritune.errors import RecipeError
from inheritune.system.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from inheritune.conversion.converted import Converted
    from inheritune.model_files.directory import ModelDirectory
    from inheritune.verification.directory import Verification
    from inheritune.verification.run_model import Finding


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
    repair: str = "none",
    text: Text | None = None,
    repair_tokens: int | str = 32_768,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    text_only: bool = False,
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
            as ``"last:12"``, ``"middle:12"``, ``"first+last:8+4"``, ``"every:2"``, ``"0-11,24"``;
            with ``text`` also ``"block:12"`` or ``"auto:12"``, as for `select`.
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
        repair: Fit layers at the cut to the reference by least squares, before any training:
            ``"sequential"``, ``"linear"``, ``"scale"`` or ``"none"``.
        text: Training text for a repair, and for ways that choose by scores, as `data.source` of a
            recipe.
        repair_tokens: Tokens of it to fit on, such as ``"32K"``.
        tokenizer: Tokenizer of a model in memory; None: the one that it was loaded with.
        text_only: Take only the language model out of one that also reads images.
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
    from inheritune.recipe.values import amount_of_tokens
    from inheritune.surgery.class_check.ask_class import text_only as language_model_of
    from inheritune.surgery.cut import Options, refuse_options
    from inheritune.surgery.cut import inherit as inherit_layers
    from inheritune.surgery.selection import needed_measurement
    from inheritune.training.tokenization import compare_tokenization

    if not isinstance(layers, str | Sequence):
        layers = index(layers)  # of numpy, too
    by_scores = isinstance(layers, str) and needed_measurement(layers) == "scores"
    if repair != "none" and text is None:
        raise RecipeError("a repair needs text to fit on.", "Give both --repair and --text.")
    if text is not None and repair == "none" and not by_scores:
        raise RecipeError(
            "text is for a repair, or for a way that chooses layers by scores.",
            "Give both --repair and --text, or neither.",
        )
    if text_only and text is not None:
        raise RecipeError(
            "text_only cuts as it is; a repair, and a choice by scores, need a model to run.",
            "Take all layers out with --text-only first; then choose or repair in what it wrote.",
        )
    data = optional_text(text)
    is_whole = by_scores and data is not None
    with (
        call(progress) as on_progress,
        opened_model(reference, revision, whole=is_whole, tokenizer=tokenizer) as directory,
    ):
        if text_only:
            directory = language_model_of(directory)
        options = Options(
            dtype=dtype, parts=parts, seed=seed, class_check=class_check, sha256=sha256
        )
        if by_scores and data is not None:
            from inheritune.analysis.select import calibration_text, select_layers

            refuse_options(directory, Path(out), options)  # scores take minutes
            drawn = calibration_text(directory, data)
            layers = select_layers(directory, str(layers), None, drawn, None, on_progress).layers
        found = compare_tokenization(directory.path)
        for difference in found.differences if found else ():
            warnings.warn(difference, stacklevel=2)
        if repair == "none" or data is None:
            return inherit_layers(directory, layers, Path(out), options, on_progress)
        from inheritune.repair.inherit import calibration_of_text, inherit_repaired

        tokens = amount_of_tokens(repair_tokens)
        calibration = calibration_of_text(directory, repair, data, tokens)
        repaired = inherit_repaired(
            directory, layers, Path(out), calibration, options, on_progress=on_progress
        )
        return repaired.target


def grow(
    target: StoredModel,
    reference: StoredModel,
    layers: int | Sequence[int],
    out: PathLike,
    *,
    target_layers: int | str | Sequence[int] | None = None,
    revision: str | None = None,
    progress: ProgressOption = True,
) -> "ModelDirectory":
    """Write a trained target with more layers of its reference, each at its place.

    Every tensor of the target is kept bit for bit; the new layers take its dtype.

    Args:
        target: Layers of the reference, trained.
        reference: The model that the target was cut from.
        layers: Layers of the reference that the grown model has, from 0; or, for a target of first
            layers, their number.
        out: The directory to write; missing or empty.
        target_layers: Layers of the reference that the target has, as for `inherit`; None: as its
            inherit.json says.
        revision: Branch, tag or commit of a Hub id.
        progress: True draws a bar, False is silent, a function is called with each event.

    Raises:
        RecipeError: ``layers`` does not hold all that the target has, and more.
        UnsupportedModelError: The reference has weights outside its layers with a part for each, or
            the target was repaired.
        SourceError: The two belong to different models, or nothing says which layers it has.
    """
    from inheritune.model_files.in_memory import opened_model
    from inheritune.surgery.grow import grow as grow_layers

    with (
        call(progress),
        opened_model(target) as target_directory,
        opened_model(reference, revision, whole=False) as reference_directory,
    ):
        chosen = layers if isinstance(layers, Sequence) else index(layers)
        return grow_layers(
            target_directory, reference_directory, chosen, Path(out), target_layers=target_layers
        )


def convert(
    source: PathLike,
    out: PathLike,
    *,
    dtype: str | None = None,
    config_from: str | None = None,
    layers: str | None = None,
    base: str | None = None,
    progress: ProgressOption = True,
) -> "Converted":
    """Turn a local model in another format into a model directory with plain safetensors.

    That is a GGUF file (weights dequantised, config and tokenizer rebuilt); safetensors in fp8,
    MXFP4 or bitsandbytes' formats (dequantised), under other names, or with the names of a wrapper;
    a LoRA adapter (merged into its base model); or a checkpoint in PyTorch's format. Only this
    function reads a pickle: weights only, in a process without network that can write nowhere but
    to ``out``. Convert only what you trust.

    Args:
        source: A GGUF file, or a model directory.
        out: The directory to write; missing or empty.
        dtype: Of dequantised weights: fp32, bf16 or fp16. None: for a GGUF file the narrowest that
            loses nothing, which is fp32 for quantised ones; else the config's, or bf16.
        config_from: Model directory or Hub id that a GGUF file was made from; its config and
            tokenizer are taken, after a comparison with the file.
        layers: Layers to keep, as for `inherit`; of safetensors only.
        base: Hub id or directory of the model that a LoRA adapter is merged into; None: the one
            on the Hub that the adapter names.
        progress: True draws a bar, False is silent, a function is called with each event.

    Raises:
        SourceError: The files are broken or unsafe, or hold more than plain tensors.
        RecipeError: ``out`` is in use.
        UnsupportedModelError: The weights are quantised in a way that is not read.
        MissingExtraError: The weights are quantised, and the package gguf is not installed.
    """
    from inheritune.conversion.adapter import is_adapter, merge_adapter
    from inheritune.conversion.collect import convert_safetensors, takes
    from inheritune.conversion.convert import convert as convert_directory
    from inheritune.conversion.gguf.container import is_gguf
    from inheritune.conversion.gguf.convert import convert_gguf

    path = path_of(source)
    with call(progress) as on_progress:
        if base is not None and not is_adapter(path):
            raise RecipeError(f"--base goes with a LoRA adapter, not with {path}.", "Leave it out.")
        if base is not None or (is_adapter(path) and not takes(path)):
            if dtype is not None or config_from is not None or layers is not None:
                raise RecipeError(
                    f"{path} is merged as an adapter, without --dtype, --config-from and --layers.",
                    "Leave them out; `inheritune inherit` cuts and casts.",
                )
            return merge_adapter(path, Path(out), base=base, on_progress=on_progress)
        if takes(path) and config_from is None:
            return convert_safetensors(
                path, Path(out), dtype=dtype, layers=layers, on_progress=on_progress
            )
        if layers is not None:
            raise RecipeError(
                f"--layers goes with safetensors, not with {path}.",
                "Leave it out, and cut what is converted with `inheritune inherit`.",
            )
        if is_gguf(path):
            return convert_gguf(
                path, Path(out), dtype=dtype, config_from=config_from, on_progress=on_progress
            )
        if dtype is not None or config_from is not None:
            option = "--config-from" if config_from is not None else "--dtype"
            raise RecipeError(f"{option} goes with a GGUF file, not with {path}.", "Leave it out.")
        return convert_directory(path, Path(out))


def verify(
    path: StoredModel,
    reference: "Model | None" = None,
    *,
    revision: str | None = None,
    on_finding: "Callable[[Finding], None] | None" = None,
    progress: ProgressOption = True,
) -> "Verification":
    """Verify a model, token directory, checkpoint or run against its record; change nothing.

    Args:
        path: The directory; its files tell which kind it is.
        reference: The model that a model, or a run's target, was cut from; its bytes and what its
            layers compute are then compared, too.
        revision: Branch, tag or commit of a Hub id.
        on_finding: Called with each `Finding` as soon as it is made; None: findings are shown as
            progress.
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

    with call(progress) as on_progress, ExitStack() as stack:
        directory = None
        if reference is not None:
            directory = stack.enter_context(opened_model(reference, revision, whole=False))

        def show(finding: "Finding") -> None:
            on_progress(Progress("verify", message=f"{finding.part}: {finding.text}"))

        return verify_directory(path_of(path), directory, on_finding or show)
