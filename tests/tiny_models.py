"""Tiny real models, written to disk by transformers itself; reached through the fixtures."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel

VOCAB = 320
_WIDTHS = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128}
_PLAIN = {k: v for k, v in _WIDTHS.items() if k not in {"num_key_value_heads", "head_dim"}}

# Name of the model class, and its config.
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("Llama", _WIDTHS | {"tie_word_embeddings": False}),
    "llama-tied": ("Llama", _WIDTHS | {"tie_word_embeddings": True}),
    "gpt2": ("GPT2", _GPT2 | {"bos_token_id": 0, "eos_token_id": 0}),
    "qwen3": ("Qwen3", _WIDTHS),
    "gemma3": ("Gemma3", _WIDTHS | {"num_hidden_layers": 7, "sliding_window": 8}),
    "gpt-neox": ("GPTNeoX", _PLAIN),
    "opt": ("OPT", _PLAIN | {"ffn_dim": 64, "word_embed_proj_dim": 16}),
    "smollm3": ("SmolLM3", _WIDTHS | {"num_hidden_layers": 6}),
    "olmo3": ("Olmo3", _WIDTHS | {"num_hidden_layers": 6, "sliding_window": 8}),
    "mixtral": ("Mixtral", _WIDTHS | {"num_local_experts": 4}),
    "gpt-neo": (
        "GPTNeo",
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "max_position_embeddings": 128,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 8,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    ),
}
_CLASSES = {"GPT2": "GPT2LMHeadModel", "Gemma3": "Gemma3ForCausalLM"}
_CONFIGS = {"Gemma3": "Gemma3TextConfig"}


def build(family: str, **changes: object) -> PreTrainedModel:
    """A model of a family with random weights, the same at every call."""
    name, settings = FAMILIES[family]
    config_class = getattr(transformers, _CONFIGS.get(name, f"{name}Config"))
    model_class = getattr(transformers, _CLASSES.get(name, f"{name}ForCausalLM"))
    torch.manual_seed(0)
    model = model_class(config_class(**(settings | changes))).eval()
    # Norms and biases as well: a tensor left at its initial value hides a lost one.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def save(
    family: str, directory: Path, dtype: torch.dtype = torch.float32, shard: str = "5GB"
) -> Path:
    """Write a model of a family as a model directory."""
    build(family).to(dtype).save_pretrained(directory, max_shard_size=shard)
    return directory


def train_tokenizer(directory: Path) -> int:
    """Write a byte-level BPE tokenizer with <|endoftext|> = 0; returns its size."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    code = "def take(first, layers):\n    return [layer for layer in layers[:first]]\n"
    prose = "the small model learns what the large one knew before it grew and was cut again"
    tokenizer.train_from_iterator([code, prose], trainer)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "model_max_length": 128,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2), "utf-8")
    return tokenizer.get_vocab_size()


def tiny_reference(directory: Path, family: str = "llama", **changes: object) -> Path:
    """A model with a tokenizer of its vocabulary: a Llama of 4 layers, width 32, 128 positions."""
    rows = train_tokenizer(directory)
    build(family, vocab_size=rows, **changes).save_pretrained(directory)
    return directory


def cache(make: Callable[[str], Path]) -> Callable[[str], Path]:
    """Make each model once."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = make(family)
        return made[family]

    return get


def save_gemma3n(directory: Path) -> None:
    """Ten layers, the last five of which share keys and values; a part of two weights for each."""
    text = transformers.Gemma3nTextConfig(
        vocab_size=64,
        vocab_size_per_layer_input=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=10,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        hidden_size_per_layer_input=4,
        num_kv_shared_layers=5,
        laurel_rank=4,
        altup_num_inputs=2,
        sliding_window=8,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    whole = transformers.Gemma3nForCausalLM(text).eval()
    whole.save_pretrained(directory)
