"""Name the architectures of llama.cpp that are read, and what each calls its tensors.

llama.cpp's own names and changes are those of its `convert_hf_to_gguf.py`; an architecture is in
the table if a model of it came back bit for bit from that converter (tests/conversion/gguf).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from inheritune.conversion.gguf.metadata import SAFETENSORS
from inheritune.errors import SourceError, UnsupportedModelError, escape

_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GATED = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_LLAMA = _ATTENTION | _GATED
# `{}` stands for the number of the expert.
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
_MIXTRAL = _ATTENTION | {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
}
_SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
# Metadata keys after the architecture's name, and the fields of config.json that they are.
_SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_RMS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_GROUPED = _SIZES | {"attention.head_count_kv": "num_key_value_heads"}
_COMMON = _GROUPED | _RMS
_MOE = _COMMON | {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
_GEMMA = _COMMON | {"attention.key_length": "head_dim"}
_TANH_GELU = "gelu_pytorch_tanh"


@dataclass(frozen=True)
class Architecture:
    """How a model of one architecture lies in a GGUF file."""

    model_type: str  # as in config.json
    class_name: str
    layer: Mapping[str, str] = field(default_factory=lambda: _LLAMA)  # parts of a layer
    outer: Mapping[str, str] = field(default_factory=lambda: _OUTER)  # parts outside the layers
    layers: str = "model.layers"
    fields: Mapping[str, str] = field(default_factory=lambda: _COMMON)
    # Fields that no key of the file holds: what llama.cpp computes with for this architecture.
    constants: Mapping[str, Any] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)  # as ``fields``, but may be missing
    biases: Mapping[str, str] = field(default_factory=dict)  # flag, by the bias that proves it
    is_permuted: bool = False  # rows of queries and keys, for another form of rotary positions
    norm_shift: float = 0.0  # what llama.cpp adds to the weights of norms
    fused: str = ""  # part that holds queries, keys and values; there for each head, here for all
    transposed: tuple[str, ...] = ()  # parts whose matrices are stored the other way round
    rotary: bool = True
    other_types: tuple[str, ...] = ()  # model types that the file fits as well


_LLAMA_BIASES = {"attn_q.bias": "attention_bias", "ffn_up.bias": "mlp_bias"}
_ATTENTION_BIAS = {"attn_q.bias": "attention_bias"}

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(
        "llama",
        "LlamaForCausalLM",
        is_permuted=True,
        biases=_LLAMA_BIASES,
        other_types=("mistral",),
    ),
    # llama.cpp calls it llama, too; it is told by its experts.
    "mixtral": Architecture(
        "mixtral",
        "MixtralForCausalLM",
        layer=_MIXTRAL,
        is_permuted=True,
        fields=_COMMON
        | {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
    ),
    "smollm3": Architecture(
        "smollm3", "SmolLM3ForCausalLM", is_permuted=True, biases=_LLAMA_BIASES
    ),
    "granite": Architecture(
        "granite",
        "GraniteForCausalLM",
        is_permuted=True,
        biases=_LLAMA_BIASES,
        fields=_COMMON
        | {
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
    ),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM"),
    "qwen3": Architecture(
        "qwen3", "Qwen3ForCausalLM", layer=_LLAMA | _QK_NORMS, biases=_ATTENTION_BIAS
    ),
    "qwen2moe": Architecture(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        layer=_ATTENTION | _EXPERTS | _SHARED_EXPERT,
        fields=_MOE | {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
        constants={"norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": []},
    ),
    "qwen3moe": Architecture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        layer=_ATTENTION | _QK_NORMS | _EXPERTS,
        fields=_MOE,
        constants={"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
        biases=_ATTENTION_BIAS,
    ),
    "gemma": Architecture(
        "gemma",
        "GemmaForCausalLM",
        norm_shift=1.0,
        fields=_GEMMA,
        constants={"hidden_activation": _TANH_GELU, "hidden_act": _TANH_GELU},
    ),
    "gemma2": Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        layer=_LLAMA | _FOUR_NORMS,
        norm_shift=1.0,
        fields=_GEMMA
        | {
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
            "attention.sliding_window": "sliding_window",
        },
        constants={"hidden_activation": _TANH_GELU},
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        layer=_LLAMA | _QK_NORMS | _FOUR_NORMS,
        norm_shift=1.0,
        fields=_GEMMA | {"attention.sliding_window": "sliding_window"},
        optional={"final_logit_softcapping": "final_logit_softcapping"},
        constants={"hidden_activation": _TANH_GELU},
    ),
    "phi3": Architecture(
        "phi3",
        "Phi3ForCausalLM",
        layer={
            "attn_norm": "input_layernorm",
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
    ),
    "olmo2": Architecture(
        "olmo2",
        "Olmo2ForCausalLM",
        layer={k: v for k, v in _LLAMA.items() if not k.endswith("_norm")}
        | _QK_NORMS
        | {
            "post_attention_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
    ),
    "starcoder2": Architecture(
        "starcoder2",
        "Starcoder2ForCausalLM",
        layer=_ATTENTION | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        fields=_GROUPED | {"attention.layer_norm_epsilon": "norm_epsilon"},
        constants={"hidden_act": _TANH_GELU, "sliding_window": None},
        biases={"attn_q.bias": "use_bias"},
    ),
    "nemotron": Architecture(
        "nemotron",
        "NemotronForCausalLM",
        layer=_ATTENTION | {"ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"},
        norm_shift=1.0,
        fields=_GROUPED | {"attention.layer_norm_epsilon": "norm_eps"},
        constants={"hidden_act": "relu2"},
        biases=_LLAMA_BIASES,
    ),
    "gptneox": Architecture(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        layers="gpt_neox.layers",
        outer={
            "token_embd": "gpt_neox.embed_in",
            "output_norm": "gpt_neox.final_layer_norm",
            "output": "embed_out",
        },
        layer={
            "attn_norm": "input_layernorm",
            "attn_qkv": "attention.query_key_value",
            "attn_output": "attention.dense",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        fields=_SIZES
        | {
            "attention.layer_norm_epsilon": "layer_norm_eps",
            "use_parallel_residual": "use_parallel_residual",
        },
        constants={"hidden_act": "gelu"},
        biases={"attn_qkv.bias": "attention_bias"},
        fused="attn_qkv",
    ),
    "gpt2": Architecture(
        "gpt2",
        "GPT2LMHeadModel",
        layers="transformer.h",
        outer={
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        layer={
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        fields={
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "block_count": "n_layer",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        constants={"activation_function": "gelu_new"},
        transposed=("attn_qkv", "attn_output", "ffn_up", "ffn_down"),
        rotary=False,
    ),
}


def find_architecture(name: str, has_experts: bool) -> Architecture:
    """Return the architecture of a file; refuse one that is not in the table.

    Args:
        name: llama.cpp's name.
        has_experts: Whether the file counts experts.
    """
    if not name:
        raise SourceError(
            "the GGUF file has no general.architecture.", "Make it again with a llama.cpp of today."
        )
    if name == "llama" and has_experts:
        name = "mixtral"
    elif name not in ARCHITECTURES or name == "mixtral":
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModelError(
            f"the architecture {escape(name)} is not read from GGUF; those that are: {known}.",
            SAFETENSORS,
        )
    return ARCHITECTURES[name]
