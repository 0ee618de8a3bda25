"""Some layers of a reference as a model directory of their own."""

import hashlib
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inheritune import __version__
from inheritune.errors import RecipeError, UnsupportedModelError
from inheritune.model_files.card import reference_fields
from inheritune.model_files.config import text_config
from inheritune.model_files.copy import copy_side_files, write_file
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.model_files.scan import zero_matrices
from inheritune.model_files.write import split_into_shards
from inheritune.surgery.class_check.ask_class import ask, check_cut
from inheritune.surgery.parts import fresh_names, make_fresh, standard_normal
from inheritune.surgery.plan import (
    DTYPES,
    InheritPlan,
    kept_layers,
    plan_inherit,
)
from inheritune.surgery.record import card
from inheritune.surgery.selection import describe_selection
from inheritune.surgery.write import Written, describe_tensor, to_json, write_weights
from inheritune.system.files import published, refuse_used_directory
from inheritune.system.progress import Listener, silent

__all__ = ["Options", "check_inherit", "inherit"]

_INDEX = "model.safetensors.index.json"
_FRESH = ".fresh"
_MEANWHILE_BYTES = 2**31  # copied while the class is asked, in about the time that takes
_WORKERS = 3  # one waits for the gate, two read back and sync what is written
_HEADS = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


@dataclass(frozen=True)
class Options:
    """How a target is written.

    Attributes:
        mode: ``"copy"``: its own bytes. ``"link"``: whole weight files of the reference, hard
            linked or sharing their blocks, under an index that names the kept tensors only: next
            to no bytes, but the files must never be changed, and are not for publishing.
        dtype: A name out of `plan.DTYPES` to cast the weights to; None: as they are.
        parts: Which parts are inherited, one of `parts.PARTS`; the rest is initialised by the
            model's class.
        seed: Of that initialisation.
        gate: Whether the model's class is asked; without it, only first layers are cut.
        sha256: Whether the record holds SHA-256 digests, too.
    """

    mode: str = "copy"
    dtype: str | None = None
    parts: str = "all"
    seed: int = 0
    gate: bool = True
    sha256: bool = False


def inherit(
    reference: ModelDirectory,
    layers: int | Sequence[int],
    out: Path,
    options: Options = Options(),
    on_progress: Listener = silent,
) -> ModelDirectory:
    """Write some layers of a reference, and everything around them, as a model directory.

    Tensors are copied as ranges of bytes, so each is bit-equal to the reference's or its declared
    cast; the config is the reference's with a listed set of edits. The directory appears by one
    rename, after its class was asked whether every weight is there and every layer is what it was.
    ``inherit.json`` in it says where all came from.

    Args:
        reference: Never changed; none of its code is run.
        layers: How many to keep, counted from the embedding, 1 to all of them; or which, ascending.
        out: Does not exist, or is empty.
        options: How it is written.
        on_progress: Told of the progress of a download.

    Returns:
        The target, opened.

    Raises:
        RecipeError: The layers are not there, or ``out`` is used already or in the reference.
        UnsupportedModelError: The layers would not compute what they do in the reference.
        SourceError: A file of the reference broke while it was read, or holds NaN.
        MachineError: The disk is full or read-only.

    Source: Sanyal et al., Inheritune, arXiv 2404.08634, algorithm 1.
    """
    _refuse_options(reference, out, options)
    plan = _plan(reference, kept_layers(layers, reference.layers), options)
    fresh = fresh_names([t.name for t in plan.tensors], reference.container.prefix, options.parts)
    with published(out) as staging, ThreadPoolExecutor(_WORKERS) as background:
        gate = background.submit(_check, reference, plan, options)
        # Nothing is downloaded, and nothing large copied, for a model that will be refused.
        if plan.size > _MEANWHILE_BYTES or reference.missing_bytes(t.source for t in plan.tensors):
            gate.result()
        reference.download((t.source for t in plan.tensors if t.name not in fresh), on_progress)
        normal = standard_normal(fresh, options.parts)
        made = make_fresh(plan, fresh, options.seed, staging / _FRESH, normal)
        files = write_weights(
            reference,
            split_into_shards(plan.tensors),
            staging,
            background,
            made=made,
            link=options.mode == "link",
            sha256=options.sha256,
        )
        write_file(staging / "config.json", to_json(plan.config))
        copy_side_files(reference.path, staging)
        shutil.rmtree(staging / _FRESH, ignore_errors=True)
        answer = gate.result()
        _warn(answer, files, reference)
        record = _record(reference, plan, files, set(made), options, answer)
        write_file(staging / "inherit.json", to_json(record))
        is_hub_model = reference.revision is not None
        text = card(record, is_hub_model, reference_fields(reference))
        write_file(staging / "README.md", text.encode())
    return open_model(str(out))


def check_inherit(
    reference: ModelDirectory, layers: int | Sequence[int], options: Options = Options()
) -> None:
    """Refuse what `inherit` would refuse, as far as config and headers tell; nothing is written.

    Args:
        reference: Need not be on this machine, or on any yet: no weight is read.
        layers: See `inherit`.
        options: See `inherit`.

    Raises:
        RecipeError: The layers are not there, or have no such parts.
        UnsupportedModelError: The layers would not compute what they do in the reference.
        SourceError: The model's class refuses the cut.
    """
    plan = _plan(reference, kept_layers(layers, reference.layers), options)
    fresh_names([t.name for t in plan.tensors], reference.container.prefix, options.parts)
    _check(reference, plan, options)


def _refuse_options(reference: ModelDirectory, out: Path, options: Options) -> None:
    if Path(os.path.realpath(out)).is_relative_to(reference.path.resolve()):
        raise RecipeError(f"{out} lies in the reference's directory.", "Name another directory.")
    refuse_used_directory(out)
    if options.mode not in ("copy", "link"):
        raise RecipeError(f"there is no mode {options.mode!r}.", "Choose copy or link.")
    if options.dtype is not None and options.dtype not in DTYPES:
        raise RecipeError(
            f"there is no dtype {options.dtype!r}.", f"Choose among {', '.join(DTYPES)}."
        )
    if options.mode == "link" and (options.dtype or options.parts != "all"):
        raise RecipeError("linked files cannot be cast or partly fresh.", "Use --mode copy.")
    cached = reference.path.resolve().parent.name == "snapshots" or reference.revision is not None
    if options.mode == "link" and (cached or reference.name.startswith("embedded:")):
        raise RecipeError(
            f"{reference.name} cannot be linked: its files belong to the cache or the package.",
            "Use --mode copy, or name a directory of your own.",
        )
    if not 0 <= options.seed < 2**63:
        raise RecipeError(f"the seed {options.seed} is out of range.", "Choose 0 to 2^63 - 1.")


def _plan(reference: ModelDirectory, kept: tuple[int, ...], options: Options) -> InheritPlan:
    dtype = DTYPES[options.dtype] if options.dtype else None
    plan = plan_inherit(reference, kept, dtype=dtype)
    whole = all(t.shape == reference.tensors[t.source.name].shape for t in plan.tensors)
    if options.mode == "link" and not whole:
        raise UnsupportedModelError(
            f"{reference.name} has weights that are cut themselves; files are linked whole.",
            "Use --mode copy.",
        )
    if plan.is_prefix:
        return plan
    if options.mode == "link":
        raise RecipeError("linked layers cannot move.", "Use --mode copy, or the first layers.")
    if not options.gate:
        raise RecipeError(
            f"{describe_selection(kept)} cannot be cut without the gate: layers would move.",
            "Leave --no-gate out.",
        )
    section = dict(text_config(reference.config))
    explicit = ask("explicit_lists", config=section, layers=reference.layers)
    return plan_inherit(reference, kept, dtype=dtype, explicit=explicit)


def _check(reference: ModelDirectory, plan: InheritPlan, options: Options) -> dict[str, Any]:
    answer: dict[str, Any] = {"check": "not checked: --no-gate", "tied": None, "unused": []}
    if options.gate:
        answer = check_cut(reference, plan.kept, plan.config, plan.tensors)
    if options.parts.startswith("paper-code") and answer["tied"] is not None:
        _refuse_other_tying(reference, options.parts, bool(answer["tied"]))
    if not str(answer["check"]).startswith("not checked"):
        return answer
    parallel = reference.container.parallel
    if parallel and len(plan.kept) < reference.layers:
        raise UnsupportedModelError(
            f"{reference.name} has lists of tensors beside its layers: {', '.join(parallel)}.",
            "Only the model's own class knows what they are, and it was not asked.",
        )
    if not plan.is_prefix:
        raise UnsupportedModelError(
            f"{describe_selection(plan.kept)} of {reference.name} cannot be cut: "
            f"{answer['check']}.",
            "Only first layers are cut without asking the model's class.",
        )
    return answer


def _refuse_other_tying(reference: ModelDirectory, parts: str, tied: bool) -> None:
    # Their GPT-2 has one matrix for head and embedding; their LLaMA has two, and copies the head.
    if tied != (parts == "paper-code-gpt2"):
        ties = "ties" if tied else "does not tie"
        raise UnsupportedModelError(
            f"{parts} is not defined for {reference.name}: it {ties} head and embedding.",
            "Leave this control out.",
        )


# -- what is said about it


def _warn(answer: Mapping[str, Any], files: Sequence[Written], reference: ModelDirectory) -> None:
    for file in files:
        if zeros := zero_matrices(file.placed, dict(file.scans)):
            warnings.warn(
                f"{zeros[0]} and {len(zeros) - 1} other matrices of {reference.name} hold zeros "
                "only: is its download complete?",
                stacklevel=3,
            )
    digests = {name: found.xxh3 for file in files for name, found in file.scans.items()}
    heads = [d for name, d in digests.items() if name.endswith(_HEADS)]
    embeddings = [d for name, d in digests.items() if name.endswith(_EMBEDDINGS)]
    if answer["tied"] and heads and embeddings and heads[0] and heads[0] not in embeddings:
        warnings.warn(
            f"the class ties head and embedding of {reference.name}, but its files hold two "
            "different ones: is tie_word_embeddings in its config right?",
            stacklevel=3,
        )


def _hub_sha256(reference: ModelDirectory) -> str | None:
    """Whether the weights were compared with the digests of the Hub; None: not from there."""
    if reference.revision is None:
        return None
    if reference.remote is None:
        return "compared"
    # The digest of a file says nothing about a part of it.
    in_parts = reference.remote.listing is not None
    return "cannot be compared: downloaded in parts" if in_parts else "not compared"


def _record(
    reference: ModelDirectory,
    plan: InheritPlan,
    files: Sequence[Written],
    fresh: set[str],
    options: Options,
    answer: Mapping[str, Any],
) -> dict[str, Any]:
    config = (reference.path / "config.json").read_bytes()
    return {
        "format": 2,
        "inheritune": __version__,
        "reference": {
            "name": reference.name,
            "revision": reference.revision,
            "hub_sha256": _hub_sha256(reference),
            "config_sha256": hashlib.sha256(config).hexdigest(),
            "layers": reference.layers,
        },
        "layers": len(plan.kept),
        "layer_map": list(plan.kept),
        "container": reference.container.prefix,
        "mode": options.mode,
        "dtype": DTYPES[options.dtype] if options.dtype else None,
        "parts": options.parts,
        "seed": options.seed if fresh else None,
        "fresh_tensors": sorted(fresh),
        "dropped_prediction_tensors": plan.dropped_prediction,
        "config_edits": [asdict(edit) for edit in plan.edits],
        "unused_tensors": answer["unused"],
        "check": answer["check"],
        "tensors": {
            tensor.name: describe_tensor(tensor, file, tensor.name in fresh)
            for file in files
            for tensor in file.tensors
        },
    }
