"""Small values for the fields of configs, by meaning, and what single types need besides."""

from typing import Any

__all__ = ["ALWAYS", "OVERRIDES", "PATTERN_LAYERS", "SMALL"]

_WIDTH, _HEADS, _KV_HEADS, _HEAD = 32, 4, 2, 8

# Where the class leaves them open too.
ALWAYS: dict[str, Any] = {"vocab_size": 128}

SMALL: dict[str, Any] = {
    **dict.fromkeys(
        [
            "hidden_size",
            "n_embd",
            "n_embed",
            "d_model",
            "embedding_dim",
            "word_embed_proj_dim",
            "lru_width",
        ],
        _WIDTH,
    ),
    **dict.fromkeys(
        [
            *("intermediate_size", "ffn_dim", "dff", "dim_ff", "ffn_hidden_size", "n_inner"),
            *("dense_intermediate_size", "intermediate_size_mlp", "decoder_ffn_dim"),
            *("prefix_dense_intermediate_size", "encoder_ffn_dim"),
        ],
        48,
    ),
    **dict.fromkeys(
        [
            *("moe_intermediate_size", "shared_expert_intermediate_size", "router_hidden_size"),
            *("moe_shared_expert_intermediate_size", "shared_experts_intermediate_size"),
            *("expert_ffn_hidden_size", "shared_intermediate_size"),
        ],
        16,
    ),
    **dict.fromkeys(
        [
            *("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"),
            *("decoder_attention_heads", "encoder_attention_heads", "swa_num_attention_heads"),
            *("linear_num_heads", "linear_num_value_heads"),
        ],
        _HEADS,
    ),
    **dict.fromkeys(
        [
            *("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"),
            *("linear_num_key_heads", "index_n_heads", "num_global_key_value_heads"),
        ],
        _KV_HEADS,
    ),
    **dict.fromkeys(
        [
            *("head_dim", "dim_head", "kv_channels", "qk_nope_head_dim", "qk_rope_head_dim"),
            *("v_head_dim", "swa_head_dim", "linear_head_dim", "linear_key_head_dim"),
            *("linear_value_head_dim", "index_head_dim", "rotary_dim"),
        ],
        _HEAD,
    ),
    "qk_head_dim": 16,
    **dict.fromkeys(
        ["q_lora_rank", "kv_lora_rank", "o_lora_rank", "laurel_rank", "gated_norm_rank"], 16
    ),
    **dict.fromkeys(
        [
            *("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
            "zero_expert_num",
        ],
        4,
    ),
    **dict.fromkeys(["num_experts_per_tok", "moe_topk", "moe_k", "index_topk_blocks"], 2),
    **dict.fromkeys(["n_group", "topk_group", "n_shared_experts", "moe_num_shared_experts"], 1),
    **dict.fromkeys(
        [
            *("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"),
            *("max_target_positions", "max_source_positions", "rel_extent"),
        ],
        64,
    ),
    **dict.fromkeys(
        [
            *("sliding_window", "sliding_window_size", "window_size", "attention_window_size"),
            *("local_attention", "attention_chunk_size", "chunk_size", "mamba_chunk_size"),
            *("index_topk", "keep_window_size", "block_size"),
        ],
        8,
    ),
    # State spaces.
    **dict.fromkeys(["state_size", "mamba_d_state", "ssm_state_size"], 8),
    **dict.fromkeys(["mamba_n_heads", "mamba_num_heads", "n_mamba_heads"], 4),
    **dict.fromkeys(["mamba_d_head", "mamba_head_dim"], 16),
    **dict.fromkeys(["mamba_n_groups", "n_groups", "mamba_ngroups"], 1),
    **dict.fromkeys(["time_step_rank", "mamba_dt_rank"], 4),
    "mamba_d_ssm": 64,
    "attention_hidden_size": _WIDTH,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 128,
    "original_max_position_embeddings": 32,
    # Towers.
    "image_size": 32,
    "patch_size": 16,
    "num_mel_bins": 16,
}

# Enough layers for each kind to come, where four are not.
PATTERN_LAYERS = {
    **dict.fromkeys(["gemma3n", "gemma3n_text"], 6),
    **dict.fromkeys(["gemma3", "gemma3_text"], 7),
    **dict.fromkeys(["qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"], 5),
    **dict.fromkeys(["lfm3", "olmo_hybrid", "qwen3_next", "qwen4_exp", "qwen4_exp_text"], 5),
    **dict.fromkeys(["zamba", "zamba2"], 5),
}

_CONV_AND_ATTENTION = ["conv", "full_attention", "conv", "full_attention"]
_MAMBA_AND_ATTENTION = ["linear_attention", "full_attention"] * 2
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}

_QWEN_VISION = {"depth": 2, "num_heads": 4, "out_hidden_size": 32, "num_position_embeddings": 16}
_GEMMA4 = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "global_head_dim": 16,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
}

# By type, also of a part of a composite.
OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2, "first_k_dense_replace": 1},
    "beam": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    },
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 32},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": _MROPE, "sliding_attention": _MROPE},
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {
            "hidden_size": 32,
            "ffn_hidden_size": 48,
            "moe_num_experts": 4,
            "moe_top_k": 2,
        },
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "emu3": {"vocabulary_map": {"<image>": 100, "<|extra_200|>": 101}},
    "dots3_note_audio_encoder": {
        "downsample_hidden_size": 8,
        "feature_size": 16,
        "adapter_input_size": 32,
        "adapter_out_dim": 32,
    },
    "dots3_note_text": {
        "layer_types": ["indexed_attention", "sliding_attention"] * 2,
        "index_head_dim": 16,
        "head_dim": 16,
        **{f"swa_{name}": 4 for name in ("num_attention_heads", "num_key_value_heads")},
        **{f"swa_{name}": 16 for name in ("q_lora_rank", "kv_lora_rank", "head_dim")},
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "dots3_note_vision_encoder": {
        "adapter_in_dim": 32,
        "adapter_out_dim": 32,
        "num_local_experts": 4,
        "mlp_layer_types": ["dense", "sparse"],
    },
    "emu3_vqgan": {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1},
    "gemma4_assistant": {
        "text_config": {
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "num_kv_shared_layers": 4,
        }
    },
    "gemma4_audio": {"output_proj_dims": 32, "subsampling_conv_channels": [8, 8]},
    "gemma4_text": _GEMMA4 | {"num_kv_shared_layers": 2},
    "gemma4_unified_assistant": {"text_config": {"num_kv_shared_layers": 4}},
    "gemma4_unified_text": _GEMMA4,
    "gemma4_unified_vision": {"mm_embed_dim": 32, "mm_posemb_size": 16, "output_proj_dims": 32},
    "gemma4_vision": {"position_embedding_size": 16},
    "glm_moe_dsa": {"indexer_types": ["full", "shared"] * 2},
    "got_ocr2_vision": {"output_channels": 8, "mlp_dim": 48, "global_attn_indexes": [1]},
    "gemma3n_text": {
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0, 0.0, 0.0],
        "intermediate_size": [48, 64, 48, 64, 48, 64],
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": _MAMBA_AND_ATTENTION},
    "inkling2_text": {"layer_types": ["hybrid_sliding", "hybrid"] * 2},
    "inkling_text": {"layer_types": ["hybrid_sliding", "hybrid"] * 2},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "kolibri1": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "laguna": {"num_attention_heads_per_layer": [4, 2, 4, 2]},
    "lfm2": {"full_attn_idxs": [1, 3]},
    "lfm2_moe": {"layer_types": _CONV_AND_ATTENTION},
    "llama4_vision_model": {"projector_input_dim": 32, "projector_output_dim": 32},
    "mamba2": {"head_dim": 16},
    "minimax_m3_vl_text": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "ministral": {"head_dim": 8},
    "mllama_text_model": {"cross_attention_layers": [1, 3]},
    "nemotron": {"num_key_value_heads": 2},
    "phi4_multimodal_audio": {
        "ext_pw_out_channel": 32,
        "depthwise_separable_out_channel": 32,
        "nemo_conv_channels": 8,
    },
    "phi4_multimodal_vision": {"crop_size": 32},
    "qwen3_5_vision": _QWEN_VISION,
    "qwen3_5_moe_vision": _QWEN_VISION,
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
        "hc_lowrank": 8,
        "ple_layer_ids": [1, 3],
        "ple_embed_dim": 32,
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 64,
        "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 2,
        "eos_token_id": 2,
    },
    "qwen4_exp_vision": _QWEN_VISION,
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "qk_dim_factor": 1.0, "chunk_size": 4},
    "zamba": {"layers_block_type": [*["linear_attention", "hybrid"] * 2, "linear_attention"]},
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "hybrid", "linear_attention", "hybrid"],
        "num_mem_blocks": 2,
        "use_shared_attention_adapter": True,
        "adapter_rank": 4,
        # Derived by the class, and written out in its files.
        "hybrid_layer_ids": [1, 2, 4],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "mamba_headdim": 16,
        "num_key_value_heads": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}
