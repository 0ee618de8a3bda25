import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig

from inheritune.training.throughput import count_params, flops_per_token


def shape_of(config: PreTrainedConfig) -> torch.nn.Module:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model


def llama(tied: bool) -> torch.nn.Module:
    return shape_of(
        LlamaConfig(
            vocab_size=1000,
            hidden_size=64,
            intermediate_size=100,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
    )


# q and o are 64 x 64, k and v 64 x 32, three MLP matrices 64 x 100, two norms.
LAYER = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 100 + 2 * 64


def test_params_count_a_tied_head_once() -> None:
    assert count_params(llama(tied=True)) == 3 * LAYER + 64 + 1000 * 64
    assert count_params(llama(tied=False)) == 3 * LAYER + 64 + 2 * 1000 * 64


def test_flops_count_the_head_once_and_the_embedding_never() -> None:
    attention = 12 * 64 * 3 * 128 / 2  # 12 d Σ k, k = T / 2 in each of three layers
    expected = 6 * (3 * LAYER + 64 + 1000 * 64) + attention
    assert flops_per_token(llama(tied=True), seq_len=128) == expected
    assert flops_per_token(llama(tied=False), seq_len=128) == expected


def test_learned_positions_are_looked_up_not_multiplied() -> None:
    short = GPT2Config(vocab_size=1000, n_embd=64, n_layer=3, n_head=4, n_positions=64)
    long = GPT2Config(vocab_size=1000, n_embd=64, n_layer=3, n_head=4, n_positions=512)
    assert flops_per_token(shape_of(short), 32) == flops_per_token(shape_of(long), 32)


def test_thirteen_layers_of_openllama_3b_take_1_08e10_flops_per_token() -> None:
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=3200,
        intermediate_size=8640,
        num_hidden_layers=13,
        num_attention_heads=32,
    )
    assert round(flops_per_token(shape_of(config), 2048) / 1e10, 2) == 1.08
