"""Inherit only parts of a model, for ablations; the model's class initialises the rest."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from inheritune.errors import RecipeError, UnsupportedModelError, escape
from inheritune.model_files.directory import open_model
from inheritune.model_files.layers import STRAY, numbered
from inheritune.model_files.write import TargetTensor
from inheritune.surgery.class_check.ask_class import ask_class
from inheritune.surgery.plan import InheritPlan

# What each choice of inherited parts leaves to the model's class, as the subject of a sentence.
PARTS = {
    "all": "",
    "attention": "the MLPs of its layers, with the norms around them,",
    "mlp": "the attention of its layers, with the norms around it,",
    "attention+mlp": "the norms of its layers",
    "first-half": "the second half of its layers",
    "layers-only": "everything outside its layers",
    "outer-only": "all of its layers",
    "paper-code-gpt2": "positions and final norm, as in the authors' GPT-2 code,",
    "paper-code-llama": "input embedding and final norm, as in the authors' LLaMA code,",
}

# Patterns of the name after the layer number. A norm belongs to the part whose input or output it
# normalises, so `post_attention_layernorm` is the MLP's in Llama, where it comes before the MLP,
# and the attention's in Gemma 2 and 3 and OLMo 2 and 3, which have norms after it as well.
_ATTENTION = re.compile(
    r"(self_attn|attn|attention|self_attention|linear_attn|input_layernorm|ln_1|ln1|ln_attn|"
    r"attention_norm|self_attn_layer_norm|pre_self_attn_layernorm|input_layer_norm|"
    r"self_attention_layernorm|attn_norm|pre_attention_layernorm|operator_norm|"
    r"attention_layernorm)(\.|$)"
)
_MLP = re.compile(
    r"(mlp|feed_forward|ffn|fc1|fc2|block_sparse_moe|moe|ln_2|ln2|ln_mlp|ffn_norm|"
    r"final_layer_norm|pre_feedforward_layernorm|post_feedforward_layernorm|pre_mlp_layernorm|"
    r"post_mlp_layernorm|pre_ff_layernorm|post_feed_forward_layernorm)\w*(\.|$)"
)
# Not the norms of queries and keys: those stay with their projections.
_NORM = re.compile(r"(ln_?\w*|\w*norm\w*|\w*layer_norm)(\.|$)", re.IGNORECASE)
# Patterns of the tensors outside the layers that the authors' code leaves out, and that it copies.
_PAPER_CODE = {
    "paper-code-gpt2": (r"(^|\.)(wpe\.weight|ln_f\.(weight|bias))$", r"(^|\.)wte\.weight$"),
    "paper-code-llama": (r"(^|\.)(embed_tokens|norm)\.weight$", r"(^|\.)lm_head\.weight$"),
}
_AFTER_ATTENTION = re.compile(r"(post_attention_layernorm|post_attention_layer_norm)(\.|$)")
_SIGNS_OF_NORMS_AFTER = ("pre_feedforward_layernorm", "post_feedforward_layernorm", "pre_mlp_")


def fresh_names(names: Iterable[str], prefix: str, parts: str) -> set[str]:
    """Select the tensors that are initialised instead of inherited.

    Args:
        prefix: Text before the layer number in the names.
        parts: A key of `PARTS`; the first half of an odd number of layers is rounded down.

    Raises:
        RecipeError: There is no such key, or a single layer has no first half.
        UnsupportedModelError: A tensor of a layer belongs to neither attention nor MLP by its name,
            no tensor belongs to the part, or the authors' code does not cover this model.
    """
    if parts not in PARTS:
        raise RecipeError(f"unknown parts {escape(parts)!r}.", f"Choose among {', '.join(PARTS)}.")
    names = sorted(names)
    inside = [n for n in names if (place := numbered(n)) and place[0] == prefix]
    if parts == "all":
        return set()
    if parts == "outer-only":
        return set(inside)
    outside = set(names) - set(inside)
    if parts == "layers-only":
        return outside
    if parts == "first-half":
        return _second_half(inside)
    if parts in _PAPER_CODE:
        return _left_out_by_the_authors(outside, parts)
    part_of = _sorter([_in_layer(name, prefix) for name in inside])
    by_part = {name: part_of(_in_layer(name, prefix)) for name in inside}
    norms = {name for name in inside if _NORM.match(_in_layer(name, prefix))}
    if parts == "attention+mlp" and norms:
        return norms
    if parts not in by_part.values():
        raise UnsupportedModelError(
            f"no tensor name under {prefix} tells that it belongs to the {parts} of a layer."
        )
    # A norm that both parts read stays in either case.
    return {name for name, part in by_part.items() if part not in (parts, "both")}


def _second_half(inside: Iterable[str]) -> set[str]:
    numbers = {name: place[1] for name in inside if (place := numbered(name))}
    half = (max(numbers.values()) + 1) // 2
    if not half:
        raise RecipeError("one layer has no first half.", "Keep two layers at least.")
    return {name for name, number in numbers.items() if number >= half}


def _left_out_by_the_authors(outside: Iterable[str], parts: str) -> set[str]:
    left_out, copied = (re.compile(pattern) for pattern in _PAPER_CODE[parts])
    fresh = {name for name in outside if left_out.search(name)}
    ends = {name.split(".")[-2] for name in fresh}
    if len(ends) != 2 or not any(copied.search(name) for name in outside):
        family = "GPT-2" if parts == "paper-code-gpt2" else "LLaMA with a head of its own"
        raise UnsupportedModelError(
            f"{parts} is what the authors' code does with a {family}, which this model is not.",
            "Leave this control out.",
        )
    return fresh


def _in_layer(name: str, prefix: str) -> str:
    return name[len(prefix) :].partition(".")[2]


def _sorter(names: list[str]) -> Callable[[str], str]:
    norms_after = any(name.startswith(_SIGNS_OF_NORMS_AFTER) for name in names)
    has_mlp_norm = norms_after or any(
        re.match(r"(ln_2|ln2|ln_mlp|ffn_norm|final_layer_norm|pre_ff|post_attention_)", name)
        for name in names
    )

    def part_of(name: str) -> str:
        if _AFTER_ATTENTION.match(name):
            return "attention" if norms_after else "mlp"
        if _ATTENTION.match(name):
            # GPT-J, Phi, Falcon: one norm for two branches side by side.
            is_norm = re.match(r"(input_layernorm|ln_1|input_layer_norm)(\.|$)", name)
            return "both" if is_norm and not has_mlp_norm else "attention"
        if _MLP.match(name):
            return "mlp"
        raise UnsupportedModelError(
            f"{escape(name)} in a layer belongs neither to the attention nor to the MLP.",
            "Parts are defined for layers with one attention and one MLP only.",
        )

    return part_of


def make_fresh(
    plan: InheritPlan, fresh: set[str], parts: str, seed: int, scratch: Path
) -> dict[str, TargetTensor]:
    """Let the model's class initialise the ``fresh`` tensors; it writes them to ``scratch``.

    Stray buffers of old files are left out.

    Raises:
        SourceError: The class is unknown or refuses the config.
        UnsupportedModelError: The class has no tensor of this name, or one of another shape.
    """
    if not fresh:
        return {}
    out = str(scratch.resolve())
    # The authors' LLaMA code leaves the embedding as torch initialises it: N(0, 1).
    is_llama = parts == "paper-code-llama"
    normal = [n for n in fresh if is_llama and n.endswith("embed_tokens.weight")]
    ask_class("initialise", config=plan.config, seed=seed, out=out, normal=normal)
    model = open_model(str(scratch))
    tensors: dict[str, TargetTensor] = {}
    inner = model.container.prefix.partition(".")[0]  # files of GPT-2 on the Hub leave it out
    for tensor in plan.tensors:
        fresh_tensor = model.tensors.get(tensor.name) or model.tensors.get(f"{inner}.{tensor.name}")
        if tensor.name not in fresh or (fresh_tensor is None and tensor.name.endswith(STRAY)):
            continue
        if fresh_tensor is None or fresh_tensor.shape != tensor.shape:
            raise UnsupportedModelError(
                f"the class of the model does not write {escape(tensor.name)} of the shape "
                f"{tensor.shape}, so it cannot be initialised.",
                "Inherit all parts of this model.",
            )
        tensors[tensor.name] = replace(tensor, source=fresh_tensor)
    return tensors
