"""Merge a LoRA adapter of PEFT into its base model: W' = W + s B A."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from inheritune import __version__
from inheritune.conversion.adapter_config import (
    WEIGHTS,
    other_kind,
    patterns_of,
    refuse_other_kinds,
    scale_of,
)
from inheritune.conversion.converted import (
    RECORD_FORMAT,
    Converted,
    check_converted,
    describe_file,
    refuse_place,
    write_index,
)
from inheritune.conversion.lora import Change, Factors, are_alike, are_equal, values_of
from inheritune.conversion.rewrite import is_head_weight, is_tied
from inheritune.conversion.write_tensors import write_tensors
from inheritune.errors import (
    InherituneError,
    RecipeError,
    SourceError,
    UnsupportedModelError,
    escape,
)
from inheritune.model_files.cast import FLOATING
from inheritune.model_files.config import untied
from inheritune.model_files.copy import copy_side_files
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.model_files.download.hub import is_hub_id
from inheritune.model_files.refusals import input_embedding
from inheritune.model_files.safe_path import safe_file
from inheritune.model_files.safetensors import Tensor, read_header
from inheritune.model_files.write import TargetTensor
from inheritune.surgery.class_check.ask_class import check_complete
from inheritune.surgery.origin import cut_facts
from inheritune.surgery.write import to_json
from inheritune.system.disk_space import refuse_full_disk
from inheritune.system.files import new_directory, write_bytes
from inheritune.system.progress import Listener, silent
from inheritune.system.strict_json import MODEL_FILE, read_json_object

CONFIG = "adapter_config.json"
_WRAPPER = "base_model.model."
_FACTOR = re.compile(r"\.lora_(embedding_)?([AB])(\.default)?(\.weight)?$")
# Classes whose projections hold their weights transposed.
_TRANSPOSED = ("gpt2", "openai-gpt")


def is_adapter(source: Path) -> bool:
    """Tell whether a directory holds an adapter."""
    return (source / CONFIG).is_file()


def merge_adapter(
    source: Path, out: Path, *, base: str | None = None, on_progress: Listener = silent
) -> Converted:
    """Write the model that a plain LoRA adapter and its base model are together.

    The sums are computed in fp32, as PEFT does, and rounded to the base's dtype; all other tensors
    are the base's, bit for bit. Tokenizer and templates of the adapter replace the base's.

    Args:
        source: Directory with adapter_config.json and adapter_model.safetensors.
        out: Must not exist, or be empty.
        base: Hub id or directory of the base model; None: the one on the Hub that the adapter
            names.
        on_progress: Called with the bytes written.

    Raises:
        UnsupportedModelError: It is not a plain LoRA, or fits another model.
        SourceError: A file is broken or unsafe, or there is no such base model.
        RecipeError: ``out`` is in use, or the adapter names no base, or a directory.
        MachineError: The disk is full or read-only, or the Hub cannot be reached.
    """
    refuse_place(out, source)
    path = safe_file(source, CONFIG)
    config = read_json_object(path, MODEL_FILE, "the adapter's config")
    refuse_other_kinds(config, source)
    stored = {tensor.name: tensor for tensor in read_header(safe_file(source, WEIGHTS))[0]}
    model = _open_base(config, base, source)
    changes = _changes(stored, config, model, source)
    _refuse_full_disk(out, model.tensors.values())
    model.download(model.tensors.values(), on_progress)
    targets, written_config, warnings = _targets(changes, model, source)
    _refuse_full_disk(out, targets)  # a head may be a tensor of its own now

    def data_of(target: TargetTensor) -> Iterator[bytes]:
        return values_of(changes.get(target.name) or Change(target.source), target.dtype)

    with new_directory(out) as staging:
        files, not_finite = write_tensors(targets, data_of, staging, on_progress)
        write_index({name: read_header(staging / name)[0] for name in files}, staging)
        write_bytes(staging / "config.json", to_json(written_config))
        copy_side_files(model.path, staging)
        copy_side_files(source, staging)
        check = check_converted(open_model(str(staging)))
        warnings += [f"NaN or infinity in {name}: kept." for name in not_finite[:1]]
        record = {
            "format": RECORD_FORMAT,
            "inheritune": __version__,
            "source": {
                "name": source.resolve().name,
                "files": [describe_file(source / name) for name in (CONFIG, WEIGHTS)],
            },
            "base": {"name": model.name, "revision": model.revision},
            "cut": cut_facts(model.path),
            "merged": sorted(changes),
            "warnings": warnings,
            "check": check,
        }
        write_bytes(staging / "convert.json", to_json(record))
    named = f"{model.name} at {model.revision}" if model.revision else model.name
    return Converted(open_model(str(out)), check, "", {}, warnings, {}, base=named)


def _refuse_full_disk(out: Path, tensors: Iterable[Tensor | TargetTensor]) -> None:
    size = sum(tensor.size for tensor in tensors)
    refuse_full_disk(out, size, f"the weights of {escape(out)}", "Free some space.")


def _open_base(config: Mapping[str, Any], base: str | None, source: Path) -> ModelDirectory:
    named = config.get("base_model_name_or_path")
    if base is None and not (isinstance(named, str) and named):
        raise RecipeError(f"{source} names no base model.", "Name it: --base MODEL.")
    # The adapter may be a stranger's: it is not to choose among the directories of this machine.
    if base is None and (not is_hub_id(str(named)) or Path(str(named)).exists()):
        raise RecipeError(
            f"{source} names a directory as its base, {escape(named)}.",
            "If that is the base you want, name it yourself: --base DIR.",
        )
    revision = config.get("revision") if base is None else None
    try:
        return open_model(base or str(named), revision, whole=False)
    except InherituneError as error:
        if base is not None:
            raise
        hint = f"It is the base of {source}; if you have it elsewhere: --base MODEL. {error.hint}"
        raise type(error)(error.message, hint.strip()) from error


def _changes(
    stored: Mapping[str, Tensor], config: Mapping[str, Any], model: ModelDirectory, source: Path
) -> dict[str, Change]:
    """Find the tensor of the base that each part of the adapter belongs to."""
    changes: dict[str, Change] = {}
    factors: dict[str, dict[str, Tensor]] = {}
    embeddings = set()
    for name, tensor in stored.items():
        plain = name.removeprefix(_WRAPPER)
        if found := _FACTOR.search(plain):
            module = plain[: found.start()]
            if found[2] in factors.get(module, {}):
                raise _twice(source, name)
            factors.setdefault(module, {})[found[2]] = tensor
            if found[1]:
                embeddings.add(module)
            continue
        plain = re.sub(r"\.(modules_to_save(\.default)?|base_layer)\.", ".", plain)
        own = _own_tensor(plain, model)
        if own is None or own.shape != tensor.shape:
            raise _misfit(source, name, model)
        if own.name in changes:
            raise _twice(source, name)
        changes[own.name] = Change(tensor)
    patterns = patterns_of(config, factors, source)
    for module, pair in factors.items():
        own = _own_tensor(f"{module}.weight", model)
        if own is None or pair.keys() != {"A", "B"}:
            raise _misfit(source, module, model)
        a, b = pair["A"], pair["B"]
        if len(a.shape) != 2 or len(b.shape) != 2 or not a.shape[0] == b.shape[1] > 0:
            raise SourceError(
                f"{source}: the factors of {escape(module)} have the shapes {a.shape} and "
                f"{b.shape}, which cannot be multiplied to a matrix.",
                "Download the adapter again, or merge it with peft's merge_and_unload().",
            )
        is_transposed = module in embeddings or model.config.get("model_type") in _TRANSPOSED
        shape = (b.shape[0], a.shape[-1])
        expected = shape[::-1] if is_transposed else shape
        if own.shape != expected or not {a.dtype, b.dtype, own.dtype} <= set(FLOATING):
            raise _misfit(source, module, model)
        scale = scale_of(config, patterns, module, a.shape[0], source)
        # PEFT saves an embedding beside the factors that it was trained with.
        known = changes.get(own.name)
        if known is not None and known.factors is not None:
            raise _twice(source, module)
        whole = own if known is None else known.whole
        if whole.dtype not in FLOATING:
            raise _misfit(source, module, model)
        changes[own.name] = Change(whole, Factors(a, b, scale, is_transposed))
    return changes


def _targets(
    changes: Mapping[str, Change], model: ModelDirectory, source: Path
) -> tuple[list[TargetTensor], dict[str, Any], list[str]]:
    """List the tensors to write, with the config that they need and what to say of it.

    Head and embedding of a tied base are one tensor only if the adapter makes the same of both. If
    not, PEFT trains two, and so they become two here.
    """
    targets = [TargetTensor(t.name, t, t.dtype) for t in model.tensors.values()]
    embedding = input_embedding(model.tensors.values()) if is_tied(model.config) else None
    if embedding is None:
        return targets, model.config, []
    stored = next((t for t in model.tensors.values() if is_head_weight(t.name)), None)
    name = next(filter(is_head_weight, changes), "lm_head.weight")
    head = stored or replace(embedding, name=name)
    made = [changes.get(tensor.name) or Change(tensor) for tensor in (head, embedding)]
    # Two different ones in the files are not tied by transformers either.
    if not are_equal(head, embedding) or are_alike(*made):
        return targets, model.config, []
    if not stored:
        place = next(i for i, target in enumerate(targets) if target.name == embedding.name)
        targets.insert(place + 1, TargetTensor(head.name, head, head.dtype))
    config = untied(model.config)
    both = f"{escape(head.name)} and {escape(embedding.name)}"
    try:
        check = check_complete(config, targets, model.container.prefix)
        fits = not check.skipped and head.name not in check.unused
    except SourceError:
        fits = False
    if not fits:
        raise other_kind(source, f"it makes two tensors of {both}, which its base ties")
    return targets, config, [f"{both} are two tensors now, as PEFT trained them."]


def _misfit(source: Path, name: str, model: ModelDirectory) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{source} holds {escape(name)}, which fits no tensor of {model.name}.",
        "Name the base that it was trained on: --base MODEL; or merge it with peft's "
        "merge_and_unload().",
    )


def _own_tensor(name: str, model: ModelDirectory) -> Tensor | None:
    """Return the base's weight of this name; a tied head is the embedding, under its own name.

    Files may leave the first part of a name out, or have it.
    """
    first = model.container.prefix.partition(".")[0]
    candidates = (name, name.partition(".")[2], f"{first}.{name}")
    if (own := next((n for n in candidates if n in model.tensors), None)) is not None:
        return model.tensors[own]
    embedding = input_embedding(model.tensors.values())
    if embedding is not None and is_head_weight(name) and is_tied(model.config):
        return replace(embedding, name=name)
    return None


def _twice(source: Path, name: str) -> SourceError:
    return SourceError(
        f"{source} holds {escape(name)} twice, under two names.",
        "Save the adapter again with peft's save_pretrained.",
    )
