"""Ten tiny models, and what became of their first layers.

    python families.py build DIRECTORY                 # one model directory for each family
    python families.py judge REFERENCE TARGET LAYERS   # prints "right", or what is wrong

A program of its own: the process that measures stays free of torch.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

_WIDTHS = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_GROUPED = _WIDTHS | {"num_key_value_heads": 2, "head_dim": 8}
_MOE = _GROUPED | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MIXED = _GROUPED | {"num_hidden_layers": 8, "sliding_window": 8}  # windows in some layers only

# Family: model class, config class, settings. Half of the layers has to be told from the whole:
# periods of four and six layers, a projection beside the layers in OPT.
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", "LlamaConfig", _GROUPED),
    "GPT-2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 320, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128}
        | {"bos_token_id": 0, "eos_token_id": 0},
    ),
    "Mixtral": ("MixtralForCausalLM", "MixtralConfig", _GROUPED | {"num_local_experts": 4}),
    "Qwen3-MoE": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", _MOE),
    "Qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _GROUPED),
    "Gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", _MIXED),
    "GPT-NeoX": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _WIDTHS),
    "SmolLM3": ("SmolLM3ForCausalLM", "SmolLM3Config", _GROUPED | {"num_hidden_layers": 8}),
    "OLMo3": ("Olmo3ForCausalLM", "Olmo3Config", _MIXED),
    "OPT": ("OPTForCausalLM", "OPTConfig", _WIDTHS | {"ffn_dim": 64, "word_embed_proj_dim": 16}),
}


def build(directory: Path) -> None:
    """Write each model in fp32, under its family's name."""
    for family, (model_class, config_class, settings) in FAMILIES.items():
        torch.manual_seed(0)
        model = getattr(transformers, model_class)(getattr(transformers, config_class)(**settings))
        with torch.no_grad():  # norms and biases as well: a fresh one would go unnoticed
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(directory / family)


def judge(reference: Path, target: Path, layers: int) -> str:
    """Load a target as its user would, and compare it with its reference.

    Right is: nothing filled in at random, every parameter as in the reference, and the output of
    the last kept layer equal to the reference's, bit for bit.
    """
    whole = AutoModelForCausalLM.from_pretrained(reference).eval()
    try:
        cut, info = AutoModelForCausalLM.from_pretrained(target, output_loading_info=True)
    except Exception as error:  # whatever a broken model raises is what its user gets
        return f"does not load: {type(error).__name__}: {_first_line(error)}"
    if missing := sorted(info["missing_keys"]):
        return f"{len(missing)} weights filled at random, such as {missing[0]}"
    there = len(_layers(cut))
    if there != layers:
        return f"{there} layers"
    of_whole = dict(whole.named_parameters())
    for name, parameter in cut.named_parameters():
        if name not in of_whole:
            return f"{name} is not in the reference"
        if parameter.dtype != of_whole[name].dtype or not torch.equal(parameter, of_whole[name]):
            return f"{name} differs"
    of_cut = dict(cut.named_parameters())
    outside = [name for name, p in of_whole.items() if not _is_layer(whole, p)]
    if lost := [name for name in outside if name not in of_cut]:
        return f"{lost[0]} is lost"
    expected, given = (_output_of(model, layers - 1) for model in (whole, cut.eval()))
    if not torch.equal(expected, given):
        return f"layer {layers - 1} computes something else than in the reference"
    return "right"


def _layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    found = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
    return found[0]  # the outermost comes first; experts lie inside it


def _is_layer(model: PreTrainedModel, parameter: torch.nn.Parameter) -> bool:
    return any(parameter is one for one in _layers(model).parameters())


def _output_of(model: PreTrainedModel, layer: int) -> torch.Tensor:
    seen: list[torch.Tensor] = []

    def keep(_module: object, _inputs: object, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    hook: Callable[..., None] = keep
    _layers(model)[layer].register_forward_hook(hook)
    ids = torch.randint(0, 320, (1, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    return seen[0]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:120] if lines else ""


if __name__ == "__main__":
    if sys.argv[1] == "build":
        build(Path(sys.argv[2]))
    else:
        print(judge(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
