"""The model card of a target that was only cut: what it is, and that it has to be trained."""

from collections.abc import Mapping
from typing import Any

from inheritune.model_files.card import join_front_matter
from inheritune.surgery.parts import describe_parts
from inheritune.surgery.selection import describe_selection
from inheritune.system.reading import escape

__all__ = ["card"]


def card(
    record: dict[str, Any], is_hub_model: bool, carried: Mapping[str, Any] | None = None
) -> str:
    """README.md of a target, as the Hugging Face Hub shows it.

    Args:
        record: inherit.json.
        is_hub_model: Whether the reference's name is an id on the Hub.
        carried: Fields of the reference's card that hold for this one, such as its licence.

    Returns:
        Markdown with YAML front matter. No text of the reference can end the front matter or
        become markup in the body: it is quoted there, and stands as code here.
    """
    reference = record["reference"]
    name = escape(reference["name"], 200).replace("`", "'")
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    front |= carried or {}
    if is_hub_model:
        front |= {"base_model": reference["name"], "base_model_relation": "finetune"}
    front["tags"] = ["inheritune"]
    kept = describe_selection(record["layer_map"])
    at = f" at commit `{escape(reference['revision'])}`" if reference["revision"] else ""
    lines = [
        f"# {record['layers']} of {reference['layers']} layers of `{name}`",
        "",
        f"This model has {kept} (counted from 0) of `{name}`{at}, with its embeddings, final norm "
        "and head, copied bit for bit. It was not trained since: it is a start for training.",
    ]
    if record["dtype"]:
        lines[-1] += f" Its weights were cast to {record['dtype']}."
    if record["fresh_tensors"]:
        fresh = describe_parts(record["parts"])
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
