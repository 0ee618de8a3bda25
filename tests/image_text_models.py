"""Tiny models that also read images, written to disk by transformers itself."""

import json
from pathlib import Path
from typing import Any

import tiny_models
import torch
import transformers as T
from safetensors.torch import load_file, save_file

TEXT = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}


def mistral3() -> Any:
    vision = T.PixtralVisionConfig(**TOWER, image_size=8, patch_size=4)
    text = T.MistralConfig(**TEXT)
    config = T.Mistral3Config(
        text_config=text, vision_config=vision, image_token_index=5, tie_word_embeddings=False
    )
    return T.Mistral3ForConditionalGeneration(config)


def llava() -> Any:
    vision = T.CLIPVisionConfig(**TOWER, image_size=8, patch_size=4)
    text = T.LlamaConfig(**TEXT)
    config = T.LlavaConfig(text_config=text, vision_config=vision, image_token_index=5)
    return T.LlavaForConditionalGeneration(config)


def idefics3() -> Any:
    vision = T.Idefics3VisionConfig(**TOWER, image_size=8, patch_size=4)
    text = T.LlamaConfig(**TEXT)
    config = T.Idefics3Config(text_config=text, vision_config=vision, image_token_id=5)
    return T.Idefics3ForConditionalGeneration(config)


def qwen2_5_vl() -> Any:
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2}
    vision |= {"out_hidden_size": 32, "fullatt_block_indexes": [1], "patch_size": 4}
    config = T.Qwen2_5_VLConfig(
        text_config=TEXT | {"rope_parameters": MROPE}, vision_config=vision, image_token_id=5
    )
    return T.Qwen2_5_VLForConditionalGeneration(config)


def qwen2_vl() -> Any:
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4}
    text = TEXT | {"rope_parameters": MROPE}
    config = T.Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=5)
    return T.Qwen2VLForConditionalGeneration(config)


def qwen3_vl() -> Any:
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2}
    vision |= {"out_hidden_size": 32, "deepstack_visual_indexes": [0], "patch_size": 4}
    rope = MROPE | {"mrope_interleaved": True}
    text = TEXT | {"head_dim": 8, "rope_parameters": rope}
    config = T.Qwen3VLConfig(text_config=text, vision_config=vision, image_token_id=5)
    return T.Qwen3VLForConditionalGeneration(config)


def gemma3() -> Any:
    vision = T.SiglipVisionConfig(**TOWER, image_size=8, patch_size=4)
    text = T.Gemma3TextConfig(**TEXT, head_dim=8, sliding_window=8)
    config = T.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return T.Gemma3ForConditionalGeneration(config)


def qwen3_vl_moe() -> Any:
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2}
    vision |= {"out_hidden_size": 32, "deepstack_visual_indexes": [0], "patch_size": 4}
    text = TEXT | {"head_dim": 8, "rope_parameters": MROPE | {"mrope_interleaved": True}}
    text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = T.Qwen3VLMoeConfig(text_config=text, vision_config=vision, image_token_id=5)
    return T.Qwen3VLMoeForConditionalGeneration(config)


def paligemma() -> Any:
    return _paligemma(T.GemmaConfig(**TEXT, head_dim=8))


def paligemma2() -> Any:
    """Its class does not cap logits, as that of its text alone does."""
    return _paligemma(T.Gemma2Config(**TEXT, head_dim=8))


def _paligemma(text: Any) -> Any:
    vision = T.SiglipVisionConfig(**TOWER, image_size=8, patch_size=4)
    config = T.PaliGemmaConfig(
        text_config=text, vision_config=vision, projection_dim=32, image_token_index=5
    )
    return T.PaliGemmaForConditionalGeneration(config)


_EVERY = (mistral3, llava, idefics3, qwen2_vl, qwen2_5_vl, qwen3_vl, gemma3)
_EVERY += (qwen3_vl_moe, paligemma, paligemma2)
FAMILIES = {family.__name__: family for family in _EVERY}
SIBLINGS = {
    "mistral3": "MistralForCausalLM",
    "llava": "LlamaForCausalLM",
    "idefics3": "LlamaForCausalLM",
    "qwen2_5_vl": "Qwen2ForCausalLM",
    "qwen3_vl": "Qwen3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "qwen3_vl_moe": "Qwen3MoeForCausalLM",
    "paligemma": "GemmaForCausalLM",
}


def save_older_qwen2_vl(directory: Path) -> Any:
    """Write Qwen2-VL as it was published: the fields of its text at the top, and older names."""
    whole = save("qwen2_vl", directory)
    config = json.loads((directory / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope["rope_theta"], "model_type": config["model_type"]}
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    (directory / "config.json").write_text(json.dumps(text | config))
    held = load_file(directory / "model.safetensors")
    held = {n.replace("model.language_model.", "model."): weight for n, weight in held.items()}
    held = {n.replace("model.visual.", "visual."): weight for n, weight in held.items()}
    save_file(held, directory / "model.safetensors", {"format": "pt"})
    return whole


def save(family: str, directory: Path) -> Any:
    """Write a model of a family as a model directory with a tokenizer; return the model."""
    tiny_models.train_tokenizer(directory)
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    model.save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text("{}")
    return model
