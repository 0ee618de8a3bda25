"""Cut some layers out of a reference and write them as a model directory of their own."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from inheritune import __version__
from inheritune.errors import RecipeError, UnsupportedModelError, escape
from inheritune.model_files.card import reference_fields
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.safetensors import DTYPES
from inheritune.model_files.scan import not_finite, zero_matrices
from inheritune.surgery.class_check.ask_class import ClassCheck, check_cut
from inheritune.surgery.parts import fresh_names, make_fresh
from inheritune.surgery.plan import InheritPlan, plan_inherit
from inheritune.surgery.record import conversion_facts, target_card
from inheritune.surgery.repaired import UNREPAIRED, RepairedTensors
from inheritune.surgery.selection import choose_layers, describe_selection
from inheritune.surgery.ways import LayerFacts
from inheritune.surgery.write import ModelPlan, Written, to_json, write_model
from inheritune.system.files import refuse_used_directory, sha256
from inheritune.system.progress import Listener, silent

_HEADS = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


@dataclass(frozen=True)
class Options:
    """Options of `inherit`."""

    dtype: str | None = None  # a key of `DTYPES` to cast the weights to; None: as they are
    parts: str = "all"  # one of `parts.PARTS`; the model's class initialises the rest
    seed: int = 0  # of that initialisation, 0 to 2^63 - 1
    class_check: bool = True  # False: skip the class check; only first layers can then be cut
    sha256: bool = False  # record SHA-256 digests beside XXH3; slower


def inherit(
    reference: ModelDirectory,
    layers: int | str | Sequence[int],
    out: Path,
    options: Options = Options(),
    on_progress: Listener = silent,
    repaired: RepairedTensors = UNREPAIRED,
) -> ModelDirectory:
    """Write some layers of a reference, and everything around them, as a model directory.

    Tensors are copied as ranges of bytes, so each is bit-equal to the reference's or to its
    declared cast; the config is the reference's with a listed set of edits. Before the directory
    appears, the model's class has checked that no weight is missing and that every layer is what
    it was. ``inherit.json`` records the source of each tensor.

    Args:
        reference: The model to cut. It is not changed, and none of its code is run.
        layers: A number of first layers, layer indices in ascending order, or a text in the
            grammar of `selection.choose_layers`.
        out: Must not exist, or be empty.
        repaired: Tensors that are written in place of the reference's; see `repair.inherit`.

    Raises:
        RecipeError: The reference has no such layers, or ``out`` is used already or lies in it.
        UnsupportedModelError: The layers would not compute what they do in the reference.
        SourceError: A file of the reference broke while it was read, or holds NaN.

    Source: Sanyal et al., Inheritune, arXiv 2404.08634, algorithm 1.
    """
    refuse_options(reference, out, options)
    return write_model(out, _plan(reference, layers, options, repaired), on_progress)


def check_inherit(
    reference: ModelDirectory, layers: int | str | Sequence[int], options: Options = Options()
) -> tuple[ClassCheck, InheritPlan]:
    """Raise what `inherit` would raise, judged by config, headers and class; no weight is read."""
    cut = _plan_cut(reference, layers, options)
    _fresh_names(reference, cut, options)
    return _check(reference, cut, options), cut


def refuse_options(reference: ModelDirectory, out: Path, options: Options) -> None:
    """Refuse options that contradict each other, and a directory that is in use."""
    if Path(os.path.realpath(out)).is_relative_to(reference.path.resolve()):
        raise RecipeError(f"{out} lies in the reference's directory.", "Name another directory.")
    refuse_used_directory(out)
    if options.dtype is not None and options.dtype not in DTYPES:
        raise RecipeError(f"unknown dtype {options.dtype!r}.", f"Choose among {', '.join(DTYPES)}.")
    if not 0 <= options.seed < 2**63:
        raise RecipeError(f"the seed {options.seed} is out of range.", "Choose 0 to 2^63 - 1.")


def _plan(
    reference: ModelDirectory,
    layers: int | str | Sequence[int],
    options: Options,
    repaired: RepairedTensors = UNREPAIRED,
) -> ModelPlan:
    cut = _plan_cut(reference, layers, options)
    fresh = _fresh_names(reference, cut, options)
    return ModelPlan(
        source=reference,
        reference=reference,
        config=cut.config,
        tensors=cut.tensors,
        downloads=[tensor.source for tensor in cut.tensors if tensor.name not in fresh],
        check=partial(_check, reference, cut, options),
        records=partial(_records, reference, cut, options, repaired),
        make=lambda scratch: {
            **make_fresh(cut, fresh, options.parts, options.seed, scratch),
            **repaired.tensors,
        },
        sha256=options.sha256,
    )


def _fresh_names(reference: ModelDirectory, cut: InheritPlan, options: Options) -> set[str]:
    names = [tensor.name for tensor in cut.tensors]
    return fresh_names(names, reference.container.prefix, options.parts)


def _plan_cut(
    reference: ModelDirectory, layers: int | str | Sequence[int], options: Options
) -> InheritPlan:
    layer_map = choose_layers(layers, LayerFacts(reference.layers))
    if layer_map != tuple(range(len(layer_map))) and not options.class_check:
        raise RecipeError(
            f"{describe_selection(layer_map)} cannot be cut without the class check: layers would "
            "move.",
            "Leave --no-class-check out.",
        )
    dtype = DTYPES[options.dtype] if options.dtype else None
    return plan_inherit(reference, layer_map, dtype=dtype, by_class=True)


def _check(reference: ModelDirectory, cut: InheritPlan, options: Options) -> ClassCheck:
    check = ClassCheck("not checked: --no-class-check", tied=None, unused=[])
    if options.class_check:
        check = check_cut(reference, cut.layer_map, cut.config, cut.tensors)
    if options.parts.startswith("paper-code") and check.tied is not None:
        _refuse_other_tying(reference, options.parts, check.tied)
    if not check.skipped:
        return check
    # Without the class's word, only the first layers of a model with a single list are safe.
    parallel = reference.container.parallel
    if parallel and len(cut.layer_map) < reference.layers:
        raise UnsupportedModelError(
            f"{reference.name} has lists of tensors beside its layers: {', '.join(parallel)}.",
            "Only the model's own class knows what they are, and its check was skipped.",
        )
    if not cut.is_prefix:
        raise UnsupportedModelError(
            f"{describe_selection(cut.layer_map)} of {reference.name} cannot be cut: "
            f"{check.summary}.",
            "Without the check by the model's class, only first layers are cut.",
        )
    return check


def _refuse_other_tying(reference: ModelDirectory, parts: str, tied: bool) -> None:
    # The authors' GPT-2 code has one matrix for head and embedding; their LLaMA code has two, and
    # copies the head.
    if tied != (parts == "paper-code-gpt2"):
        ties = "ties" if tied else "does not tie"
        raise UnsupportedModelError(
            f"{parts} is not defined for {reference.name}: it {ties} head and embedding.",
            "Leave this control out.",
        )


# --- records of what was written ---


def _records(
    reference: ModelDirectory,
    cut: InheritPlan,
    options: Options,
    repaired: RepairedTensors,
    written: Written,
) -> Mapping[str, bytes]:
    _warn(written, reference)
    record = _inherit_json(reference, cut, options, repaired, written)
    card = target_card(record, reference.revision is not None, reference_fields(reference))
    return {"inherit.json": to_json(record), "README.md": card.encode()}


def _warn(written: Written, reference: ModelDirectory) -> None:
    for file in written.files:
        if zeros := zero_matrices(file.placed, dict(file.scans)):
            warnings.warn(
                f"{zeros[0]} and {len(zeros) - 1} other matrices of {reference.name} hold zeros "
                "only: is its download complete?",
                stacklevel=4,
            )
    if dead := [name for file in written.files for name in not_finite(file.scans)]:
        warnings.warn(
            f"{escape(dead[0])} of {reference.name} holds NaN or infinite values; it is copied as "
            "it is, since the class does not use it",
            stacklevel=4,
        )
    digests = {name: scan.xxh3 for file in written.files for name, scan in file.scans.items()}
    heads = [digest for name, digest in digests.items() if name.endswith(_HEADS)]
    embeddings = [digest for name, digest in digests.items() if name.endswith(_EMBEDDINGS)]
    if written.check.tied and heads and embeddings and heads[0] not in embeddings:
        warnings.warn(
            f"the class ties head and embedding of {reference.name}, but its files hold two "
            "different ones: is tie_word_embeddings in its config right?",
            stacklevel=4,
        )


def _hub_comparison(reference: ModelDirectory) -> str | None:
    """Describe how the weights were compared with the Hub's SHA-256; None for a local model."""
    if reference.revision is None:
        return None
    if reference.remote is None:
        return "compared"
    # The digest of a file says nothing about a part of it.
    in_parts = reference.remote.listing is not None
    return "cannot be compared: downloaded in parts" if in_parts else "not compared"


def _inherit_json(
    reference: ModelDirectory,
    cut: InheritPlan,
    options: Options,
    repaired: RepairedTensors,
    written: Written,
) -> dict[str, Any]:
    fresh = written.made - repaired.tensors.keys()
    return {
        "format": 2,
        "inheritune": __version__,
        "reference": {
            "name": reference.name,
            "revision": reference.revision,
            "hub_sha256": _hub_comparison(reference),
            "config_sha256": sha256(reference.path / "config.json"),
            "layers": reference.layers,
        }
        | conversion_facts(reference),
        "layers": len(cut.layer_map),
        "layer_map": list(cut.layer_map),
        "container": reference.container.prefix,
        "mode": "copy",
        **({"text_only": True} if reference.text_only else {}),
        "dtype": DTYPES[options.dtype] if options.dtype else None,
        "parts": options.parts,
        "seed": options.seed if fresh else None,
        "fresh_tensors": sorted(fresh),
        **({"repair": dict(repaired.record)} if repaired.record else {}),
        "dropped_prediction_tensors": cut.dropped_prediction,
        "config_edits": [asdict(edit) for edit in cut.edits],
        "unused_tensors": written.check.unused,
        **({"left_behind": left} if (left := reference.left_behind) else {}),
        **({"by_number": list(cut.by_number)} if cut.by_number else {}),
        "check": written.check.summary,
        "tensors": written.tensor_entries(),
    }
