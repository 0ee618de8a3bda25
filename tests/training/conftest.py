import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from inheritune.recipe.training import Train
from inheritune.training.hardware import Settings

PLAIN = Settings(
    device="cpu",
    precision="fp32",
    attention="model",
    compile=False,
    fused_gelu=False,
    fused_optimizer=True,
    keep_large_blocks=False,
)


@pytest.fixture
def plain() -> Settings:
    """fp32, eager, the model's own attention."""
    return PLAIN


@pytest.fixture
def train_recipe() -> Train:
    """20 steps of 8 sequences of 16 tokens."""
    fields = {"tokens": 2560, "seq_len": 16, "batch_tokens": 128, "micro_batch": 8}
    rates = {"learning_rate": 1e-2, "min_learning_rate": 1e-3, "warmup_tokens": 256}
    return Train.model_validate(fields | rates | {"eval_every": 640})


@pytest.fixture
def small_llama() -> LlamaForCausalLM:
    """Two layers, tied, fresh with seed 0; its vocabulary covers the tiny corpus."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=320,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
        )
    )
