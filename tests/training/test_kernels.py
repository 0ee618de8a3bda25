import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
)

from inheritune.training.kernels import (
    MATMUL_ATTENTION,
    agrees_with_the_model,
    register_matmul_attention,
)

SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MLP = {"intermediate_size": 48}


def model_of(config: PreTrainedConfig) -> torch.nn.Module:
    register_matmul_attention()
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


CAUSAL = {
    "llama": LlamaConfig(**SMALL, **MLP),
    "llama with shared keys": LlamaConfig(**SMALL, **MLP, num_key_value_heads=2),
    "gpt2": GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "opt": OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64),
    "mistral without a window": MistralConfig(
        **SMALL, **MLP, num_key_value_heads=2, sliding_window=None
    ),
}
MORE_THAN_CAUSAL = {
    "mistral, window 8": MistralConfig(**SMALL, **MLP, num_key_value_heads=2, sliding_window=8),
    "gemma2, soft-cap": Gemma2Config(**SMALL, **MLP, head_dim=8),
    "gemma3, window 8": Gemma3TextConfig(**SMALL, **MLP, head_dim=8, sliding_window=8),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_matmul_attention_agrees_with_causal_models(name: str) -> None:
    model = model_of(CAUSAL[name])
    own = model.config._attn_implementation
    assert agrees_with_the_model(model, 97, 48)
    assert model.config._attn_implementation == own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MORE_THAN_CAUSAL)
def test_models_that_are_more_than_causal_keep_their_own_attention(
    name: str, dtype: torch.dtype
) -> None:
    assert not agrees_with_the_model(model_of(MORE_THAN_CAUSAL[name]).to(dtype), 97, 48)


def test_matmul_attention_has_the_gradients_of_the_models_own() -> None:
    model = model_of(CAUSAL["llama with shared keys"])
    ids = torch.arange(48).remainder(97).unsqueeze(0)
    gradients = []
    for attention in ("eager", MATMUL_ATTENTION):
        model.set_attn_implementation(attention)
        model.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append([param.grad.clone() for param in model.parameters()])
    for own, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-6)


def test_matmul_attention_without_gradients_is_torchs_bit_for_bit() -> None:
    model = model_of(CAUSAL["llama"]).eval()
    ids = torch.arange(48).remainder(97).unsqueeze(0)
    with torch.no_grad():
        own = model(input_ids=ids, use_cache=False).logits
        model.set_attn_implementation(MATMUL_ATTENTION)
        assert torch.equal(model(input_ids=ids, use_cache=False).logits, own)


@pytest.mark.parametrize(("dtype", "calls"), [(torch.float32, 2), (torch.bfloat16, 0)])
def test_without_gradients_bf16_takes_the_products_and_fp32_the_librarys_kernel(
    dtype: torch.dtype, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(CAUSAL["llama with shared keys"]).to(dtype)
    model.set_attn_implementation(MATMUL_ATTENTION)
    own, seen = torch.nn.functional.scaled_dot_product_attention, []
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *of, **how: seen.append(of) or own(*of, **how),
    )
    with torch.no_grad():
        model(input_ids=torch.arange(48)[None], use_cache=False)
    assert len(seen) == calls


@pytest.mark.parametrize("name", CAUSAL)
def test_agreement_in_bf16_is_judged_by_its_own_rounding(name: str) -> None:
    assert agrees_with_the_model(model_of(CAUSAL[name]).bfloat16(), 97, 48)
