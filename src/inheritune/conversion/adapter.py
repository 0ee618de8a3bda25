"""Merge a LoRA adapter of PEFT into its base model: W' = W + s B A."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from inheritune.conversion.rewrite import HEADS, is_tied
from inheritune.conversion.stored_values import as_float32
from inheritune.conversion.write_tensors import write_tensors
from inheritune.errors import (
    InherituneError,
    RecipeError,
    SourceError,
    UnsupportedModelError,
    escape,
)
from inheritune.model_files.cast import FLOATING, cast
from inheritune.model_files.copy import copy_side_files
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.model_files.download.hub import is_hub_id
from inheritune.model_files.safe_path import safe_file
from inheritune.model_files.safetensors import Tensor, read_header
from inheritune.model_files.write import TargetTensor, read_chunks
from inheritune.surgery.origin import cut_facts
from inheritune.surgery.write import to_json
from inheritune.system.disk_space import refuse_full_disk
from inheritune.system.files import new_directory, write_bytes
from inheritune.system.progress import Listener, silent
from inheritune.system.strict_json import MODEL_FILE, read_json_object

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIG = "adapter_config.json"
_WRAPPER = "base_model.model."
_FACTOR = re.compile(r"\.lora_(embedding_)?([AB])(\.default)?(\.weight)?$")
# Classes whose projections hold their weights transposed.
_TRANSPOSED = ("gpt2", "openai-gpt")


@dataclass(frozen=True)
class _Change:
    """What an adapter does to a tensor of the base model."""

    replaced_by: Tensor | None = None  # a whole tensor that was trained beside the adapter
    a: Tensor | None = None  # (r, in)
    b: Tensor | None = None  # (out, r)
    scale: float = 0.0
    is_transposed: bool = False  # whether the weight is (in, out)


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
    size = sum(tensor.size for tensor in model.tensors.values())
    refuse_full_disk(out, size, f"the weights of {escape(out)}", "Free some space.")
    model.download(model.tensors.values(), on_progress)
    changes = _with_tied(changes, model, source)

    def data_of(target: TargetTensor) -> Iterator[bytes]:
        if (change := changes.get(target.name)) is None:
            return read_chunks(target.source)
        if (whole := change.replaced_by) is not None:
            return (cast(d, whole.dtype, target.dtype, target.name) for d in read_chunks(whole))
        return _sums(target.source, change)

    targets = [TargetTensor(t.name, t, t.dtype) for t in model.tensors.values()]
    with new_directory(out) as staging:
        files, not_finite = write_tensors(targets, data_of, staging, on_progress)
        write_index({name: read_header(staging / name)[0] for name in files}, staging)
        write_bytes(staging / "config.json", to_json(model.config))
        copy_side_files(model.path, staging)
        copy_side_files(source, staging)
        check = check_converted(open_model(str(staging)))
        warnings = [f"NaN or infinity in {name}: kept." for name in not_finite[:1]]
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
) -> dict[str, _Change]:
    """Find the tensor of the base that each part of the adapter belongs to."""
    changes: dict[str, _Change] = {}
    factors: dict[str, dict[str, Tensor]] = {}
    embeddings, heads = set(), []
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
        own = _own_name(plain, model)
        if own is None and _is_tied_head(plain.removesuffix(".weight"), model):
            heads.append(plain)
            continue
        if own is None or model.tensors[own].shape != tensor.shape:
            raise _misfit(source, name, model)
        if own in changes:
            raise _twice(source, name)
        changes[own] = _Change(replaced_by=tensor)
    patterns = patterns_of(config, factors, source)
    for module, pair in factors.items():
        own = _own_name(f"{module}.weight", model)
        if own is None and _is_tied_head(module, model):
            heads.append(module)
            continue
        if own is None or pair.keys() != {"A", "B"} or own in changes:
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
        dtypes = {a.dtype, b.dtype, model.tensors[own].dtype}
        if model.tensors[own].shape != expected or not dtypes <= set(FLOATING):
            raise _misfit(source, module, model)
        scale = scale_of(config, patterns, module, a.shape[0], source)
        changes[own] = _Change(a=a, b=b, scale=scale, is_transposed=is_transposed)
    if heads:  # last: where more does not fit, it is another model's adapter
        why = f"it changes {escape(heads[0])}, which its base ties to the embedding"
        raise other_kind(source, why)
    return changes


def _is_tied_head(module: str, model: ModelDirectory) -> bool:
    return module.split(".")[-1] in HEADS and is_tied(model.config)


def _with_tied(
    changes: Mapping[str, _Change], model: ModelDirectory, source: Path
) -> dict[str, _Change]:
    """Change head and embedding alike where they are one tensor, of which the files hold two.

    Otherwise they would differ, and transformers would not tie them. A head that was trained as a
    whole stays one of its own.
    """
    both = dict(changes)
    if not is_tied(model.config):
        return both
    heads = [t for n, t in model.tensors.items() if f".{n}".split(".")[-2] in HEADS]
    for head in heads:
        for twin in model.tensors.values():
            if twin is head or (twin.shape, twin.dtype) != (head.shape, head.dtype):
                continue
            of_head, of_twin = changes.get(head.name), changes.get(twin.name)
            if (change := of_head or of_twin) is None or not _are_equal(head, twin):
                continue
            if of_head is not None and of_head.replaced_by is not None:
                continue
            if of_head is not None and of_twin is not None:
                raise other_kind(source, f"it changes {head.name} and {twin.name}, which are tied")
            both[head.name] = both[twin.name] = change
    return both


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return all(a == b for a, b in zip(read_chunks(one), read_chunks(other), strict=True))


def _misfit(source: Path, name: str, model: ModelDirectory) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{source} holds {escape(name)}, which fits no tensor of {model.name}.",
        "Name the base that it was trained on: --base MODEL; or merge it with peft's "
        "merge_and_unload().",
    )


def _own_name(name: str, model: ModelDirectory) -> str | None:
    """Return a weight's name on disk; files may leave the first part out, or have it."""
    first = model.container.prefix.partition(".")[0]
    candidates = (name, name.partition(".")[2], f"{first}.{name}")
    return next((candidate for candidate in candidates if candidate in model.tensors), None)


def _twice(source: Path, name: str) -> SourceError:
    return SourceError(
        f"{source} holds {escape(name)} twice, under two names.",
        "Save the adapter again with peft's save_pretrained.",
    )


def _sums(tensor: Tensor, change: _Change) -> Iterator[bytes]:
    """Yield W + s B A of some rows at a time, in the dtype of W."""
    import numpy as np

    assert change.a is not None and change.b is not None
    a, b = (_matrix(part) for part in (change.a, change.b))
    left, right = (a.T, b.T) if change.is_transposed else (b, a)
    width = tensor.shape[1]
    at, rest = 0, np.empty(0, "<f4")
    for data in read_chunks(tensor):
        # Chunks are whole values, not whole rows: what is left of a row waits for the next one.
        rest = np.concatenate([rest, as_float32(data, tensor.dtype)])
        rows = len(rest) // width
        weight, rest = rest[: rows * width].reshape(rows, width), rest[rows * width :]
        change_of_rows = (left[at : at + rows] @ right) * np.float32(change.scale)
        at += rows
        yield cast((weight + change_of_rows).astype("<f4").tobytes(), "F32", tensor.dtype)


def _matrix(tensor: Tensor) -> "NDArray[np.float32]":
    return as_float32(b"".join(read_chunks(tensor)), tensor.dtype).reshape(tensor.shape)
