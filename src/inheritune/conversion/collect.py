"""Convert safetensors that are not a model directory as they are: quantised, wrapped, misnamed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inheritune import __version__
from inheritune.conversion.converted import (
    RECORD_FORMAT,
    Converted,
    Quantisation,
    check_converted,
    describe_file,
    refuse_place,
    write_index,
)
from inheritune.conversion.dequantise import dequantised, left_out
from inheritune.conversion.stored_values import Weight
from inheritune.conversion.write_tensors import write_tensors
from inheritune.errors import RecipeError, SourceError, UnsupportedModelError, escape
from inheritune.model_files.cast import cast
from inheritune.model_files.copy import copy_side_files
from inheritune.model_files.depth import with_stated_depth
from inheritune.model_files.directory import ModelDirectory, open_model, open_weights
from inheritune.model_files.foreign_layouts import (
    find_layout,
    names_in,
    plain_weights,
    refuse_incomplete,
)
from inheritune.model_files.quantisation import (
    find_scheme,
    refuse_quantised,
    sign_of_quantisation,
    without_leftover,
)
from inheritune.model_files.refusals import refuse_unsafe_config, refuse_unsupported_type
from inheritune.model_files.safe_path import INDEX, SINGLE_FILE, safe_file
from inheritune.model_files.safetensors import DTYPES, Tensor, item_bits, read_header, torch_name
from inheritune.model_files.wrappers import refuse_two_names, unwrapped
from inheritune.model_files.write import TargetTensor, read_chunks
from inheritune.surgery.class_check.ask_class import check_cut, check_whole
from inheritune.surgery.origin import cut_facts
from inheritune.surgery.plan import InheritPlan, plan_inherit
from inheritune.surgery.selection import choose_layers
from inheritune.surgery.ways import LayerFacts
from inheritune.surgery.write import to_json
from inheritune.system.disk_space import refuse_full_disk
from inheritune.system.files import new_directory, write_bytes
from inheritune.system.progress import Listener, silent
from inheritune.system.strict_json import MODEL_FILE, read_json_object


@dataclass(frozen=True)
class _Source:
    """What is to be written, before any layer is left out."""

    model: ModelDirectory  # as it will be: names, shapes and dtypes; no bytes on any disk
    stored: Mapping[str, Tensor]  # the tensors that are copied, by their new names
    weights: Mapping[str, Weight]  # those that are computed, by name
    files: list[Path]
    dropped: Mapping[str, str]
    warnings: list[str]
    quantisation: Quantisation | None


def takes(source: Path) -> bool:
    """Tell whether a directory holds weights in safetensors, to be converted from."""
    names = names_in(source) if source.is_dir() else set()
    if {SINGLE_FILE, INDEX} & names:
        return True
    found = find_layout(names)
    return found is not None and found[0].converts and found[1].endswith(".safetensors")


def convert_safetensors(
    source: Path,
    out: Path,
    *,
    dtype: str | None = None,
    layers: str | None = None,
    on_progress: Listener = silent,
) -> Converted:
    """Write safetensors of any origin as a model directory with plain weights.

    Quantised weights are computed by the formulas of `dequantise`, a part of a tensor at a time;
    what wrappers added to names is taken off; files under other names, or without an index, are
    collected. All other tensors are copied bit for bit. The model's class has confirmed that every
    weight is there before any is read.

    Args:
        source: Local directory with ``*.safetensors`` and config.json.
        out: Must not exist, or be empty.
        dtype: Of dequantised weights: fp32, bf16 or fp16; None: the config's, or bf16.
        layers: Layers to keep, in the grammar of `selection.choose_layers`; None: all.
        on_progress: Called with the bytes written.

    Raises:
        SourceError: The files are broken or unsafe, quantised in another way, or lack a weight.
        RecipeError: ``out`` is in use, or there are no such layers, or no such dtype.
        MachineError: The disk is full or read-only.
    """
    # --- refuse what can be refused before a weight is read ---
    if dtype is not None and dtype not in DTYPES:
        raise RecipeError(f"there is no dtype {escape(dtype)}.", "Choose fp32, bf16 or fp16.")
    refuse_place(out, source)
    found = _source(source, dtype)
    layer_map: Sequence[int] | None = None
    if layers is None:
        config, names = found.model.config, {name: name for name in found.model.tensors}
        check_whole(found.model)
    else:
        plan = _cut(found.model, layers)
        layer_map = plan.layer_map
        config, names = plan.config, {t.source.name: t.name for t in plan.tensors}
    targets = [
        TargetTensor(names[name], tensor, tensor.dtype)
        for name, tensor in found.model.tensors.items()
        if name in names
    ]
    size = sum(target.size for target in targets)
    refuse_full_disk(out, size, f"the weights of {escape(out)}", "Free some space.")

    # --- convert, check, record ---
    with new_directory(out) as staging:

        def data_of(target: TargetTensor) -> Iterator[bytes]:
            if (weight := found.weights.get(target.source.name)) is None:
                yield from read_chunks(found.stored[target.source.name])
                return
            for values in weight.values():
                plain = values.astype("<f4", copy=False).tobytes()
                yield cast(plain, "F32", target.dtype, target.name)

        files, not_finite = write_tensors(targets, data_of, staging, on_progress)
        write_index({name: read_header(staging / name)[0] for name in files}, staging)
        write_bytes(staging / "config.json", to_json(config))
        copy_side_files(source, staging)
        check = check_converted(open_model(str(staging)))
        warnings = list(found.warnings)
        if not_finite:
            warnings.append(
                f"NaN or infinity in {len(not_finite)} tensors, such as {not_finite[0]}: kept."
            )
        record = {
            "format": RECORD_FORMAT,
            "inheritune": __version__,
            "source": {
                "name": source.resolve().name,
                "files": [describe_file(file) for file in found.files],
            },
            "layers": layers,
            "cut": _cut_facts(found.model, layer_map),
            "quantisation": found.quantisation.as_json() if found.quantisation else None,
            "dropped": found.dropped,
            "warnings": warnings,
            "check": check,
        }
        write_bytes(staging / "convert.json", to_json(record))
    model = open_model(str(out))
    return Converted(model, check, "", found.dropped, warnings, {}, found.quantisation)


def _source(source: Path, dtype: str | None) -> _Source:
    stored, is_usual = _stored(source)
    path = safe_file(source, "config.json")
    config = read_json_object(path, MODEL_FILE, "the config")
    new_names, wrappers = unwrapped(stored, lightning=True)
    refuse_two_names(new_names, wrappers, source)
    stored = {new_names[name]: replace(t, name=new_names[name]) for name, t in stored.items()}
    scheme = find_scheme(stored.values())
    if scheme is not None and not scheme.converts:
        refuse_quantised(config, stored.values(), source)
    weights = {weight.name: weight for weight in dequantised(stored, config)}
    plain, entries = without_leftover(config)
    if dtype is not None and not weights:
        raise RecipeError(
            f"--dtype is of dequantised weights, and those of {source} are not quantised.",
            "Leave it out: `inheritune inherit --dtype` casts what it cuts.",
        )
    if is_usual and not (weights or wrappers or entries):
        raise SourceError(f"{source} has its weights in safetensors already.", "Use it as it is.")
    refuse_unsafe_config(plain, path)
    refuse_unsupported_type(plain, source)
    plain = with_stated_depth(plain)
    dropped = left_out(stored) if weights else {}
    main = _main_dtype(plain, dtype)
    if weights:
        plain["dtype"] = torch_name(main)
        plain.pop("torch_dtype", None)
    used = {name for weight in weights.values() for name in weight.used} | dropped.keys()
    by_stored = {weight.stored.name: weight for weight in weights.values()}
    tensors = {}
    for name, tensor in stored.items():
        if (weight := by_stored.get(name)) is not None:
            size = _size(weight.shape, main)
            tensors[weight.name] = Tensor(weight.name, main, weight.shape, tensor.file, 0, size)
        elif name not in used:
            tensors[name] = tensor
    if sign := sign_of_quantisation(plain, tensors.values(), source):
        raise UnsupportedModelError(
            f"{source} is quantised ({sign}), in a way that is not read.",
            "Use the bf16, fp16 or fp32 weights it was made from.",
        )
    quantisation = _quantisation(stored, weights, scheme.name if scheme else "")
    warnings = [f"names held {wrapper}: taken off." for wrapper in wrappers]
    if quantisation:
        warnings.append(
            f"the weights were quantised ({quantisation}): the quantised model is the reference "
            "now, not the model that it was made from."
        )
    elif entries:
        warnings.append(f"the weights are not quantised: {', '.join(entries)} is left out.")
    files = sorted({tensor.file for tensor in stored.values()})
    model = ModelDirectory(source, plain, tensors, [], source.resolve().name)
    return _Source(model, stored, weights, files, dropped, warnings, quantisation)


def _stored(source: Path) -> tuple[dict[str, Tensor], bool]:
    """Read the headers of all weight files; tell whether their names are the usual ones."""
    names = names_in(source)
    if {SINGLE_FILE, INDEX} & names:
        return open_weights(source)[0], True
    tensors: dict[str, Tensor] = {}
    files = plain_weights(names)
    refuse_incomplete(files, source)
    for name in files:
        for tensor in read_header(safe_file(source, name))[0]:
            if other := tensors.get(tensor.name):
                raise SourceError(
                    f"{escape(tensor.name)} is in two files, {other.file.name} and {name}.",
                    f"Put the right one alone into a directory, or call it {SINGLE_FILE}.",
                )
            tensors[tensor.name] = tensor
    return tensors, False


def _cut(model: ModelDirectory, layers: str) -> InheritPlan:
    kept = choose_layers(layers, LayerFacts(model.layers))
    plan = plan_inherit(model, kept, by_class=True)
    if any(tensor.source.pitch for tensor in plan.tensors):
        raise UnsupportedModelError(
            f"{model.name} has weights outside its layers with a part for each of them.",
            "Leave --layers out, and cut what is converted.",
        )
    check_cut(model, plan.layer_map, plan.config, plan.tensors)
    return plan


def _cut_facts(model: ModelDirectory, layer_map: Sequence[int] | None) -> dict[str, Any]:
    """Say which layers of which model are kept, of the source's own reference if it has one."""
    facts = cut_facts(model.path)
    if layer_map is None:
        return facts
    if own := facts.get("layer_map"):
        return facts | {"layer_map": [own[layer] for layer in layer_map]}
    return {
        "reference": {"name": model.name, "layers": model.layers},
        "layer_map": list(layer_map),
    }


def _main_dtype(config: Mapping[str, Any], dtype: str | None) -> str:
    stated = str(config.get("dtype") or config.get("torch_dtype"))
    return DTYPES[dtype] if dtype else DTYPES.get(stated, "BF16")


def _size(shape: tuple[int, ...], dtype: str) -> int:
    return Tensor("", dtype, shape, Path(), 0, 0).items * item_bits(dtype) // 8


def _quantisation(
    stored: Mapping[str, Tensor], weights: Mapping[str, Weight], scheme: str
) -> Quantisation | None:
    if not weights:
        return None
    used = {name for weight in weights.values() for name in weight.used}
    rest = [tensor for name, tensor in stored.items() if name not in used]
    kinds = {scheme: len(weights)}
    for tensor in rest:
        kinds[tensor.dtype] = kinds.get(tensor.dtype, 0) + 1
    items = sum(tensor.items for tensor in rest)
    items += sum(_size(weight.shape, "U8") for weight in weights.values())
    bits = 8 * sum(tensor.size for tensor in stored.values()) / items
    return Quantisation(kinds, bits, is_coarse=True)
