"""Read the record of a target (inherit.json), and write the card of a target that was only cut."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from inheritune.errors import SourceError, escape
from inheritune.model_files.card import join_front_matter
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.layers import STRAY
from inheritune.model_files.safetensors import DTYPES
from inheritune.model_files.scan import scan
from inheritune.run_record.fields import mapping_or_empty
from inheritune.surgery.class_check.ask_class import text_only
from inheritune.surgery.parts import PARTS, fresh_names
from inheritune.surgery.repaired import repaired_names
from inheritune.surgery.selection import describe_selection, other_engines
from inheritune.system.strict_json import MODEL_FILE, read_json_object

# A record may be this many times as long as a config: it holds seven values for each tensor.
_LENGTH = 20
_TRAINED = ("model", "master")  # in the directory of a training, which has the record


def read_inherit_record(target: ModelDirectory) -> dict[str, Any]:
    """Read the record of a target that `inherit` or `grow` has written.

    Raises:
        SourceError: The record is missing, of another format, or contradicts itself or the target.
    """
    path = target.path / "inherit.json"
    if not path.is_file():
        converted = (target.path / "convert.json").is_file()
        raise SourceError(
            f"{target.path} has no inherit.json, so nothing says where it came from.",
            "It was converted, not cut: there is nothing to compare it with."
            if converted
            else "Name a directory that `inheritune inherit` has written.",
        )
    record = read_json_object(path, MODEL_FILE.times(_LENGTH), "the record")
    if record.get("format") != 2:
        raise SourceError(
            f"{path} is no record of format 2.", "Write the target again with this version."
        )
    if key := _broken_key(record):
        raise SourceError(
            f"{path} holds {escape(key)} = {escape(repr(record.get(key)), 60)}, which `inheritune "
            "inherit` does not write.",
            "Write the target again.",
        )
    if "grown_from" not in record:
        _refuse_other_parts(target, record)
    return record


def layer_map_of(target: ModelDirectory) -> tuple[int, ...]:
    """Return the reference's index of each layer of a target; without a record, of the first ones.

    Raises:
        SourceError: The record does not fit the target.
    """
    layer_map = _stored_record(target).get("layer_map", list(range(target.layers)))
    if not _is_layer_map(layer_map) or len(layer_map) != target.layers:
        raise SourceError(
            f"the record of {target.path} has the layer_map {escape(repr(layer_map), 60)}, but the "
            f"model has {target.layers} layers.",
            "Write the target again.",
        )
    return tuple(layer_map)


def refuse_other_reference(target: ModelDirectory, reference: ModelDirectory) -> None:
    """Refuse a reference that a target was not cut from, as far as its record tells.

    The record has digests of the tensors that were copied; those of its first and last layer are
    compared.

    Raises:
        SourceError: The reference has another number of layers, or other weights.
    """
    record = _stored_record(target)
    way_out = "Name the model that it was cut from."
    named = mapping_or_empty(record.get("reference"))
    total = named.get("layers")
    if total is not None and total != reference.layers:
        raise SourceError(
            f"{target.name} was cut from {escape(named.get('name'))} of {escape(total)} layers; "
            f"{reference.name} has {reference.layers}.",
            way_out,
        )
    for name, digest in _copied(record, reference, layer_map_of(target)):
        source = reference.tensors.get(name)
        if source is not None:
            reference.download([source])
        if source is None or scan([source])[name].xxh3 != digest:
            raise SourceError(
                f"{target.name} was cut from another model: {escape(name)} of {reference.name} is "
                "not what was copied.",
                way_out,
            )


def _copied(
    record: Mapping[str, Any], reference: ModelDirectory, layer_map: Sequence[int]
) -> Iterator[tuple[str, str]]:
    """Yield name and digest of tensors of the reference that its first and last layer have."""
    for name, entry in mapping_or_empty(record.get("tensors")).items():
        source = entry.get("source") if isinstance(entry, dict) else None
        if not isinstance(source, dict) or entry.get("from", "reference") != "reference":
            continue
        own_name = source.get("name", name)
        is_as_it_was = not source.get("dtype") and not source.get("pitch")
        layer = reference.container.layer_of(own_name)
        if is_as_it_was and layer in (layer_map[0], layer_map[-1]):
            yield own_name, str(entry.get("xxh3"))


def as_cut_from(target: ModelDirectory, reference: ModelDirectory) -> ModelDirectory:
    """Return the reference as a target was cut from it: perhaps its language model alone."""
    is_text = _stored_record(target).get("text_only") is True
    return text_only(reference) if is_text else reference


def is_repaired(target: ModelDirectory) -> bool:
    """Whether layers of a target were repaired before any training, as its record says."""
    return "repair" in _stored_record(target)


def _stored_record(target: ModelDirectory) -> dict[str, Any]:
    path = target.path / "inherit.json"
    if not path.is_file() and target.path.name in _TRAINED:
        path = target.path.parent / "inherit.json"
    if not path.is_file():  # a trained target may have none
        return {}
    return read_json_object(path, MODEL_FILE.times(_LENGTH), "the record")


def _is_layer_map(value: Any) -> bool:
    is_list = isinstance(value, list) and bool(value) and all(type(i) is int for i in value)
    return is_list and value == sorted(set(value)) and value[0] >= 0


def _broken_key(record: dict[str, Any]) -> str:
    tensors, dtype = record.get("tensors"), record.get("dtype")
    if not isinstance(tensors, dict) or not all(isinstance(e, dict) for e in tensors.values()):
        return "tensors"
    if not all(isinstance(e.get("source"), dict | None) for e in tensors.values()):
        return "tensors"
    if not _is_layer_map(record.get("layer_map")):
        return "layer_map"
    if dtype is not None and dtype not in list(DTYPES.values()):
        return "dtype"
    try:
        repaired_names(record)
    except ValueError:
        return "repair"
    return "" if record.get("parts") in PARTS else "parts"


def _refuse_other_parts(target: ModelDirectory, record: dict[str, Any]) -> None:
    """Refuse a record whose fresh tensors are not those that its parts leave out."""
    recorded = {name for name, entry in record["tensors"].items() if entry.get("source") is None}
    repaired = repaired_names(record)
    if other := min(repaired - recorded, default=""):
        raise SourceError(
            f"the record of {target.path} calls {escape(other)} repaired, and names its source.",
            "Write the target again.",
        )
    recorded -= repaired
    by_parts = fresh_names(target.tensors, target.container.prefix, record["parts"])
    inherited_too = {name for name in by_parts - recorded if not name.endswith(STRAY)}
    if other := min([*(recorded - by_parts), *inherited_too], default=""):
        raise SourceError(
            f"the record of {target.path} says that {escape(other)} is "
            f"{'fresh' if other in recorded else 'inherited'}, which its parts, {record['parts']}, "
            "contradict.",
            "Write the target again.",
        )


def conversion_facts(reference: ModelDirectory) -> dict[str, Any]:
    """Return how a reference that was converted had been quantised; nothing if it was not."""
    path = reference.path / "convert.json"
    if not path.is_file():
        return {}
    quantisation = read_json_object(path, MODEL_FILE, "the record").get("quantisation")
    return {"quantisation": quantisation} if isinstance(quantisation, dict) else {}


def quantisation_sentence(reference: Mapping[str, Any]) -> str:
    """Say on a card that the reference of a record was quantised; empty where it was not."""
    quantisation = reference.get("quantisation")
    summary = quantisation.get("summary") if isinstance(quantisation, dict) else None
    if not isinstance(summary, str):
        return ""
    shown = escape(summary, 120).replace("`", "'")
    return f" That model was dequantised: `{shown}`."


def target_card(
    record: dict[str, Any], is_hub_model: bool, carried: Mapping[str, Any] | None = None
) -> str:
    """Write the model card (README.md) of a target that was only cut.

    Args:
        is_hub_model: Whether the reference's name is an id on the Hub.
        carried: Fields of the reference's card that hold for the target, such as its licence.

    Returns:
        Markdown with YAML front matter. Text of the reference is quoted there, and shown as code in
        the body, so that it can neither end the front matter nor become markup.
    """
    # --- front matter: what the Hub shows and searches ---
    reference = record["reference"]
    name = escape(reference["name"], 200).replace("`", "'")
    front: dict[str, Any] = {"library_name": "transformers"}
    class_name = str(record.get("check", "")).partition("complete: ")[2].partition(",")[0]
    if not class_name or class_name.endswith(("ForCausalLM", "LMHeadModel")):
        front["pipeline_tag"] = "text-generation"
    front |= carried or {}
    if is_hub_model:
        front |= {"base_model": reference["name"], "base_model_relation": "finetune"}
    front["tags"] = ["inheritune"]
    # --- body: what the model is, and what it is not ---
    chosen_layers = describe_selection(record["layer_map"])
    at = f" at commit `{escape(reference['revision'])}`" if reference["revision"] else ""
    lines = [
        f"# {record['layers']} of {reference['layers']} layers of `{name}`",
        "",
        f"This model has {chosen_layers} (counted from 0) of `{name}`{at}, with its embeddings, "
        "final norm and head, copied bit for bit. It was not trained since: it is a start for "
        "training.",
    ]
    lines[-1] += quantisation_sentence(reference)
    if record["dtype"]:
        lines[-1] += f" Its weights were cast to {record['dtype']}."
    if repaired := repaired_names(record):
        lines[-1] = lines[-1].replace("copied bit for bit", "copied bit for bit but for a repair")
        lines += [
            "",
            f"**It was repaired**: {len(repaired)} tensors at the cut were fitted to the layers "
            f"that are left out (`{record['repair']['method']}`, by least squares on "
            f"{record['repair']['tokens']:,} tokens of text).",
        ]
    if by_number := other_engines(record.get("by_number", ())):
        lines += ["", f"**In other engines**: {by_number}."]
    if record["fresh_tensors"]:
        fresh = PARTS[record["parts"]]
        lines += [
            "",
            f"**Not everything is inherited**: {fresh} were initialised by the "
            f"model's class (seed {record['seed']}, {len(record['fresh_tensors'])} tensors).",
        ]
    lines += [
        "",
        "Made with inheritune, which implements "
        "[Inheritune](https://arxiv.org/abs/2404.08634). `inherit.json` names the source of every "
        "tensor and every change of the config.",
    ]
    return join_front_matter(front, "\n".join(["", *lines, ""]))
