"""Write GGUF files of tiny models as llama.cpp's converter does; tests compare it with that one.

Names of tensors are those of gguf's own map, and none of what `inheritune` reads them with.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

WIDTHS = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64}
LONG |= {"long_factor": [1.5, 2.0, 3.5, 4.0], "short_factor": [1.0, 1.0, 1.5, 2.0]}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
YARN |= {"original_max_position_embeddings": 32}
# llama.cpp's name, the class without "Config", and the config.
MODELS: dict[str, tuple[str, str, dict[str, object]]] = {
    "llama": ("llama", "Llama", WIDTHS | {"tie_word_embeddings": False, "rms_norm_eps": 1e-5}),
    "llama tied": ("llama", "Llama", WIDTHS | {"tie_word_embeddings": True}),
    "llama biases": ("llama", "Llama", WIDTHS | {"attention_bias": True, "mlp_bias": True}),
    "llama 3.1": ("llama", "Llama", WIDTHS | {"head_dim": 16, "rope_parameters": LLAMA3}),
    "llama yarn": ("llama", "Llama", WIDTHS | {"rope_parameters": YARN}),
    "mixtral": ("llama", "Mixtral", WIDTHS | {"num_local_experts": 4}),
    "smollm3": ("smollm3", "SmolLM3", WIDTHS | {"num_hidden_layers": 6}),
    "granite": ("granite", "Granite", WIDTHS | {"logits_scaling": 2.0, "residual_multiplier": 0.5}),
    "qwen2": ("qwen2", "Qwen2", WIDTHS | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", "Qwen3", WIDTHS | {"head_dim": 16}),
    "qwen2moe": (
        "qwen2moe",
        "Qwen2Moe",
        WIDTHS | MOE | {"shared_expert_intermediate_size": 24},
    ),
    "qwen3moe": ("qwen3moe", "Qwen3Moe", WIDTHS | MOE | {"head_dim": 8, "norm_topk_prob": True}),
    "gemma": ("gemma", "Gemma", WIDTHS | {"head_dim": 16}),
    "gemma2": (
        "gemma2",
        "Gemma2",
        WIDTHS | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
    ),
    "gemma3": (
        "gemma3",
        "Gemma3Text",
        WIDTHS
        | {"num_hidden_layers": 7, "head_dim": 16, "query_pre_attn_scalar": 16}
        | {"sliding_window": 8},
    ),
    "phi3": ("phi3", "Phi3", WIDTHS | {"sliding_window": 64}),
    "phi3 long": ("phi3", "Phi3", WIDTHS | {"rope_parameters": LONG}),
    "olmo2": ("olmo2", "Olmo2", WIDTHS),
    "starcoder2": ("starcoder2", "Starcoder2", WIDTHS | {"use_bias": True}),
    "nemotron": ("nemotron", "Nemotron", WIDTHS | {"head_dim": 8}),
    "gptneox": (
        "gptneox",
        "GPTNeoX",
        {k: v for k, v in WIDTHS.items() if k != "num_key_value_heads"} | {"rotary_pct": 0.5},
    ),
    "gpt2": (
        "gpt2",
        "GPT2",
        {"vocab_size": 320, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}
        | {"bos_token_id": 0, "eos_token_id": 0},
    ),
}
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def save_model(name: str, dtype: str, directory: Path):
    """Write a tiny model of a dtype whose norms plus 1 are exact; return the model."""
    import transformers

    _, family, fields = MODELS[name]
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**fields)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases that are all 1 or 0 would prove nothing
                parameter.add_(torch.randint(-64, 64, parameter.shape) / 256)
    model.to(_DTYPES[dtype]).save_pretrained(directory)
    # Read again: `to` has rounded the buffers of the one in memory, too.
    return transformers.AutoModelForCausalLM.from_pretrained(directory)


def write_gguf(directory: Path, name: str, kind: str, path: Path, **changes) -> Path:
    """Write the model of a directory as a GGUF file.

    Args:
        name: Of `MODELS`.
        kind: Type of the matrices: F32, F16, BF16, Q8_0, Q4_0.
        changes: Keys to set to another value, with ``__`` for a dot; None leaves one out.
    """
    import gguf

    architecture = MODELS[name][0]
    config = json.loads((directory / "config.json").read_text())
    writer = gguf.GGUFWriter(path, architecture)
    keys = _keys(architecture, config) | _vocabulary(directory, config["vocab_size"])
    for key, value in (keys | {k.replace("__", "."): v for k, v in changes.items()}).items():
        if value is not None:
            _add(writer, key, value)
    for tensor, values in _tensors(directory, architecture, config).items():
        _add_tensor(writer, tensor, values, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer, key, value):
    import gguf

    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING", list: "ARRAY"}
    writer.add_key_value(key, value, gguf.GGUFValueType[kinds[type(value)]])


def _add_tensor(writer, name, values, kind):
    import gguf

    small = values.ndim <= 1 or "_norm." in name or ".ffn_gate_inp" in name
    kind = "F32" if small or name == "position_embd.weight" else kind
    block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]
    kind = kind if values.shape[-1] % block == 0 else "F16"
    quantised = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    writer.add_tensor(name, quantised, raw_dtype=gguf.GGMLQuantizationType[kind])


# --- metadata ---


def _keys(architecture, config):
    """The keys that the converter writes for a config, without those that describe the file."""
    rope = config.get("rope_parameters") or {}
    local = rope.get("sliding_attention", {})
    rope = rope.get("full_attention", rope)
    heads = config.get("num_attention_heads", config.get("n_head"))
    width = config.get("hidden_size", config.get("n_embd"))
    head_dim = config.get("head_dim") or width // heads
    share = rope.get("partial_rotary_factor", config.get("rotary_pct", 1.0))
    keys = {
        "block_count": config.get("num_hidden_layers", config.get("n_layer")),
        "context_length": config.get("max_position_embeddings", config.get("n_positions")),
        "embedding_length": width,
        "feed_forward_length": config.get("intermediate_size", 4 * width),
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads"),
        "attention.layer_norm_rms_epsilon": config.get("rms_norm_eps"),
        "expert_count": config.get("num_local_experts", config.get("num_experts")),
        "expert_used_count": config.get("num_experts_per_tok"),
        "expert_feed_forward_length": config.get("moe_intermediate_size"),
        "expert_shared_feed_forward_length": config.get("shared_expert_intermediate_size"),
        "attn_logit_softcapping": config.get("attn_logit_softcapping"),
        "final_logit_softcapping": config.get("final_logit_softcapping"),
        "attention.scale": config.get("attention_multiplier"),
        "embedding_scale": config.get("embedding_multiplier"),
        "residual_scale": config.get("residual_multiplier"),
        "logit_scale": config.get("logits_scaling"),
        "attention.key_length": config.get("head_dim"),
        "attention.value_length": config.get("head_dim"),
        "rope.freq_base": rope.get("rope_theta"),
        "rope.freq_base_swa": local.get("rope_theta"),
    }
    eps = config.get("norm_eps", config.get("norm_epsilon", config.get("layer_norm_eps")))
    if (eps := config.get("layer_norm_epsilon", eps)) is not None:
        keys["attention.layer_norm_epsilon"] = eps
    if architecture in ("llama", "smollm3", "granite", "nemotron", "phi3", "gptneox"):
        keys["rope.dimension_count"] = int(share * head_dim)
    if architecture in ("llama", "granite", "smollm3"):
        keys["vocab_size"] = config["vocab_size"]
    if architecture in ("gemma2", "gemma3", "phi3"):
        keys["attention.sliding_window"] = config.get("sliding_window") or 0
    if architecture == "gptneox":
        keys["use_parallel_residual"] = config["use_parallel_residual"]
        keys["rope.freq_base"] = None
    if rope.get("rope_type") == "yarn":
        keys["rope.scaling.type"] = "yarn"
        keys["rope.scaling.factor"] = rope["factor"]
    if rope.get("rope_type") == "linear":
        keys["rope.scaling.type"] = "linear"
        keys["rope.scaling.factor"] = rope["factor"]
    if original := rope.get("original_max_position_embeddings"):
        if rope["rope_type"] != "llama3":
            keys["rope.scaling.original_context_length"] = original
    elif architecture == "phi3":
        keys["rope.scaling.original_context_length"] = config["original_max_position_embeddings"]
    return {f"{architecture}.{key}": value for key, value in keys.items()}


def _vocabulary(directory, rows):
    """The vocabulary of a byte-level tokenizer.json, padded to the rows of the embedding."""
    if not (directory / "tokenizer.json").is_file():
        return {}
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    by_id = {i: token for token, i in tokenizer["model"]["vocab"].items()}
    added = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    prefix = "tokenizer.ggml."
    return {
        f"{prefix}model": "gpt2",
        f"{prefix}pre": "gpt-2",
        f"{prefix}tokens": [added.get(i, by_id.get(i, f"[PAD{i}]")) for i in range(rows)],
        f"{prefix}token_type": [3 if i in added else 1 if i in by_id else 5 for i in range(rows)],
        f"{prefix}merges": merges,
        f"{prefix}bos_token_id": 0,
        f"{prefix}eos_token_id": 0,
        f"{prefix}padding_token_id": 0,
    }


# --- tensors ---


def _tensors(directory, architecture, config):
    import gguf

    state = {k: v.float() for f in directory.glob("*.safetensors") for k, v in load_file(f).items()}
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    number = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == architecture)
    names = gguf.get_tensor_name_map(number, layers)
    tensors = {}
    for name, values in _stacked(state).items():
        stem, _, suffix = name.rpartition(".")
        mapped = names.get_name(stem)
        assert mapped, name
        changed = _changed(architecture, config, name, values)
        tensors[f"{mapped}.{suffix}"] = changed.contiguous().numpy().astype(np.float32)
    return _scalings(config) | tensors


def _stacked(state):
    """The state of a model with the experts of a layer in one tensor."""
    result, experts = {}, {}
    for name, values in state.items():
        head, found, tail = name.partition(".experts.")
        if not found:
            result[name] = values
            continue
        expert, _, rest = tail.partition(".")
        experts.setdefault(f"{head}.experts.{rest}", {})[int(expert)] = values
    stacked = {n: torch.stack([v[i] for i in range(len(v))]) for n, v in experts.items()}
    return result | stacked


def _changed(architecture, config, name, values):
    heads = config.get("num_attention_heads")
    if architecture in ("llama", "smollm3", "granite"):
        for part, count in (("q_proj", heads), ("k_proj", config.get("num_key_value_heads"))):
            if f".{part}." in name:
                shape = (count, 2, values.shape[0] // count // 2, *values.shape[1:])
                return values.reshape(shape).swapaxes(1, 2).reshape(values.shape)
    if architecture.startswith(("gemma", "nemotron")) and name.endswith("norm.weight"):
        return values + 1
    if architecture == "gpt2" and values.ndim == 2 and ".h." in name:
        return values.T
    if architecture == "gptneox" and ".query_key_value." in name:
        shape = (heads, 3, config["hidden_size"] // heads, *values.shape[1:])
        return values.reshape(shape).swapaxes(0, 1).reshape(values.shape)
    return values


def _scalings(config):
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") == "longrope":
        factors = {"long": rope["long_factor"], "short": rope["short_factor"]}
        return {f"rope_factors_{k}.weight": np.array(v, np.float32) for k, v in factors.items()}
    if rope.get("rope_type") != "llama3":
        return {}
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**config), "cpu")
    dim = config["head_dim"]
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, dim, 2).float() / dim)
    return {"rope_freqs.weight": (plain / scaled).numpy()}
