"""Tell which layers of which reference a target has: by its record, or as a user states them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from inheritune.errors import RecipeError, SourceError, escape
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.scan import scan
from inheritune.run_record.fields import mapping_or_empty
from inheritune.surgery.class_check.ask_class import text_only
from inheritune.surgery.repaired import repaired_names
from inheritune.surgery.selection import choose_layers, describe_selection
from inheritune.surgery.ways import LayerFacts
from inheritune.system.strict_json import MODEL_FILE, read_json_object

# A record may be this many times as long as a config: it holds seven values for each tensor.
RECORD_LENGTH = 20
_TRAINED = ("model", "master")  # in the directory of a training, which has the record


def layer_map_of(
    target: ModelDirectory,
    reference: ModelDirectory,
    stated: int | str | Sequence[int] | None = None,
) -> tuple[int, ...]:
    """Return the reference's index of each layer of a target.

    Args:
        stated: The layers in the grammar of `selection`, for a target that has no record.

    Raises:
        SourceError: The record does not fit the target; or there is none, nothing is stated, and
            the layers are not the reference's first ones as they were.
        RecipeError: ``stated`` contradicts the record or the number of layers.
    """
    recorded = _recorded_map(target)
    if stated is not None:
        facts = LayerFacts(reference.layers)
        chosen = choose_layers(stated, facts, None if recorded else target.layers)
        if recorded not in (None, chosen):
            raise RecipeError(
                f"the record of {target.path} says that it has {describe_selection(recorded)}, not "
                f"{describe_selection(chosen)}.",
                "Leave target_layers out.",
            )
        return chosen
    if recorded is None and not _has_first_layers(target, reference):
        raise SourceError(
            f"{target.path} has no inherit.json, so nothing says which layers of {reference.name} "
            "it has.",
            f"State them: --target-layers last:{target.layers}, or a list (in Python "
            "target_layers=); or copy inherit.json of the cut that was trained into it.",
        )
    return recorded or tuple(range(target.layers))


def _recorded_map(target: ModelDirectory) -> tuple[int, ...] | None:
    layer_map = _stored_record(target.path).get("layer_map")
    if layer_map is None:
        return None
    if not is_layer_map(layer_map) or len(layer_map) != target.layers:
        raise SourceError(
            f"the record of {target.path} has the layer_map {escape(repr(layer_map), 60)}, but the "
            f"model has {target.layers} layers.",
            "Write the target again.",
        )
    return tuple(layer_map)


def _has_first_layers(target: ModelDirectory, reference: ModelDirectory) -> bool:
    """Tell whether the layers of a target are certainly a reference's first ones.

    They are if it has as many, or if the largest weight of each is the same, bit for bit.
    """
    if target.layers >= reference.layers:
        return target.layers == reference.layers
    return all(
        _digest_of_largest(target, layer) == _digest_of_largest(reference, layer)
        for layer in range(target.layers)
    )


def _digest_of_largest(model: ModelDirectory, layer: int) -> str:
    tensors = [t for t in model.tensors.values() if model.container.layer_of(t.name) == layer]
    largest = max(tensors, key=lambda tensor: (tensor.size, tensor.name))
    model.download([largest])
    return scan([largest])[largest.name].xxh3


def cut_facts(directory: Path) -> dict[str, Any]:
    """Return what a model that is made of a target keeps of its record: where its layers are from.

    Empty where it is no target. A conversion enters it into convert.json, as ``"cut"``.
    """
    record = _stored_record(directory)
    kept = ("reference", "layer_map", "text_only", "repair")
    return {key: record[key] for key in kept if key in record}


def refuse_other_reference(target: ModelDirectory, reference: ModelDirectory) -> None:
    """Refuse a reference that a target was not cut from, as far as its record tells.

    The record has digests of the tensors that were copied; those of its first and last layer are
    compared.

    Raises:
        SourceError: The reference has another number of layers, or other weights.
    """
    record = _stored_record(target.path)
    way_out = "Name the model that it was cut from."
    named = mapping_or_empty(record.get("reference"))
    total = named.get("layers")
    if total is not None and total != reference.layers:
        raise SourceError(
            f"{target.name} was cut from {escape(named.get('name'))} of {escape(total)} layers; "
            f"{reference.name} has {reference.layers}.",
            way_out,
        )
    for name, digest in _copied(record, reference):
        source = reference.tensors.get(name)
        if source is not None:
            reference.download([source])
        if source is None or scan([source])[name].xxh3 != digest:
            raise SourceError(
                f"{target.name} was cut from another model: {escape(name)} of {reference.name} is "
                "not what was copied.",
                way_out,
            )


def _copied(record: Mapping[str, Any], reference: ModelDirectory) -> Iterator[tuple[str, str]]:
    """Yield name and digest of tensors of the reference that its first and last layer have."""
    layer_map = record.get("layer_map")
    ends = [layer_map[0], layer_map[-1]] if layer_map and is_layer_map(layer_map) else []
    for name, entry in mapping_or_empty(record.get("tensors")).items():
        source = entry.get("source") if isinstance(entry, dict) else None
        if not isinstance(source, dict) or entry.get("from", "reference") != "reference":
            continue
        own_name = source.get("name", name)
        is_as_it_was = not source.get("dtype") and not source.get("pitch")
        layer = reference.container.layer_of(own_name)
        if is_as_it_was and layer in ends:
            yield own_name, str(entry.get("xxh3"))


def as_cut_from(target: ModelDirectory, reference: ModelDirectory) -> ModelDirectory:
    """Return the reference as a target was cut from it: perhaps its language model alone."""
    is_text = _stored_record(target.path).get("text_only") is True
    return text_only(reference) if is_text else reference


def is_repaired(target: ModelDirectory) -> bool:
    """Whether a repair changed layers of a target before any training, as its record says."""
    return bool(repaired_names(_stored_record(target.path)))


def made(directory: Path) -> str:
    """Say how a model was made: ``cut``, ``repaired``, ``grown`` or ``trained``.

    Returns:
        ``whole`` for a model that has no record of layers.
    """
    record, is_training = _stored_record(directory), directory.name in _TRAINED
    if not record:
        return "whole"
    if (directory / "training.json").is_file():
        return "trained"
    if is_training and not (directory / "inherit.json").is_file():
        return "trained"
    if record.get("grown_from"):
        return "grown"
    return "repaired" if repaired_names(record) else "cut"


def _stored_record(directory: Path) -> dict[str, Any]:
    """Read the record of a target, of the training that it lies in, or of what it was made of."""
    path = directory / "inherit.json"
    if not path.is_file() and directory.name in _TRAINED:
        path = directory.parent / "inherit.json"
    if path.is_file():
        return read_json_object(path, MODEL_FILE.times(RECORD_LENGTH), "the record")
    path = directory / "convert.json"
    converted = read_json_object(path, MODEL_FILE, "the record") if path.is_file() else {}
    return dict(mapping_or_empty(converted.get("cut")))  # a trained target may have none


def is_layer_map(value: Any) -> bool:
    """Tell whether a value of a record lists layers, ascending from 0 or more."""
    is_list = isinstance(value, list) and bool(value) and all(type(i) is int for i in value)
    return is_list and value == sorted(set(value)) and value[0] >= 0
