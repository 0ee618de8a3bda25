"""Read the record of a target (inherit.json), and write the card of a target that was only cut."""

from collections.abc import Mapping
from typing import Any

from inheritune.errors import SourceError, escape
from inheritune.model_files.card import join_front_matter
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.layers import STRAY
from inheritune.model_files.safetensors import DTYPES
from inheritune.surgery.origin import RECORD_LENGTH, is_layer_map
from inheritune.surgery.parts import PARTS, fresh_names
from inheritune.surgery.repaired import repaired_names
from inheritune.surgery.selection import describe_selection, other_engines
from inheritune.system.strict_json import MODEL_FILE, read_json_object


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
    record = read_json_object(path, MODEL_FILE.times(RECORD_LENGTH), "the record")
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


def _broken_key(record: dict[str, Any]) -> str:
    tensors, dtype = record.get("tensors"), record.get("dtype")
    if not isinstance(tensors, dict) or not all(isinstance(e, dict) for e in tensors.values()):
        return "tensors"
    if not all(isinstance(e.get("source"), dict | None) for e in tensors.values()):
        return "tensors"
    if not is_layer_map(record.get("layer_map")):
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
