"""Rank and mass of models against fp64 SVD of the attention that they output themselves."""

import numpy as np
import pytest
import tiny_models
import torch
import transformers

from inheritune.analysis.attention import THRESHOLDS, measure_attention
from inheritune.analysis.observe import OBSERVED_ATTENTION
from inheritune.analysis.rank import exact_rank
from inheritune.errors import Interrupted, UnsupportedModelError
from inheritune.system.signals import StopFlag

SMALL = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
# Soft-caps; learned sinks; latent attention; functions of their own that only hooks can see;
# layers without attention; one attention that several layers share.
MORE = {
    "gemma2": ("Gemma2", SMALL | {"attn_logit_softcapping": 2.0, "sliding_window": 8}),
    "gpt-oss": ("GptOss", SMALL | {"num_local_experts": 2, "num_experts_per_tok": 2,
                           "sliding_window": 8}),
    "deepseek": (
        "DeepseekV3",
        {k: v for k, v in SMALL.items() if k not in ("head_dim", "num_key_value_heads")}
        | {
            "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "v_head_dim": 8,
            "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "n_routed_experts": 4, "n_group": 1,
            "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
        },
    ),
    "bloom": ("Bloom", {"vocab_size": 320, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "falcon": (
        "Falcon",
        {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},
    ),
    "jamba": (
        "Jamba",
        SMALL | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2,
                 "use_mamba_kernels": False, "mamba_d_state": 4, "mamba_dt_rank": 4},
    ),
}  # fmt: skip


def model_of(family: str) -> transformers.PreTrainedModel:
    if family in tiny_models.FAMILIES:
        return tiny_models.build(family)
    name, settings = MORE[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def ids_of(sequences: int = 3, length: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 300, (sequences, length))


def naive(model: transformers.PreTrainedModel, ids: np.ndarray) -> list[np.ndarray]:
    """Rank and mass of each head, (H, 2), of the layers that have attention."""
    if model._can_set_attn_implementation():
        model.set_attn_implementation("eager")
    else:
        model.config._attn_implementation = "eager"
    with torch.no_grad():
        outputs = model(torch.from_numpy(ids), use_cache=False, output_attentions=True)
    found = []
    for weights in outputs.attentions:
        if weights is None:
            continue
        values = torch.linalg.svdvals(weights.double()) ** 2  # (B, H, T)
        share = values.cumsum(-1) / values.sum(-1, keepdim=True)
        rank = (share < 0.9 - 1e-9).sum(-1) + 1
        columns = (weights.double() ** 2).sum(-2).sort(-1, descending=True).values
        mass = ((columns.cumsum(-1) / columns.sum(-1, keepdim=True)) < 0.9 - 1e-9).sum(-1) + 1
        sink = weights.double().mean(-2).amax(-1)
        found.append(torch.stack([rank, mass, sink], -1).double().mean(0).numpy())
    return found


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "gemma3", "qwen3", "opt", "mixtral", "gpt-neo", *MORE]
)
def test_a_model_has_the_ranks_of_its_own_attention(family):
    model, ids = model_of(family), ids_of()
    total = model.config.get_text_config().num_hidden_layers
    own = model.config._attn_implementation
    found = measure_attention(model, total, ids)
    assert model.config._attn_implementation == own
    expected = naive(model, ids)
    assert len(found.layers) == len(expected)
    for layer, values in zip(found.layers, expected, strict=True):
        assert layer.rank.tolist() == values[:, 0].tolist()
        assert layer.mass.tolist() == values[:, 1].tolist()
        np.testing.assert_allclose(layer.sink, values[:, 2], rtol=1e-5)
        assert layer.max_rank == values[:, 0].max() == layer.rank_at[0.90]
    assert found.skipped == ([0, 2] if family == "jamba" else [])


def test_attention_statistics_are_equal_in_small_batches_and_with_plain_svd(monkeypatch):
    model, ids = model_of("llama"), ids_of(5)
    whole = measure_attention(model, 4, ids).as_json()
    with monkeypatch.context() as patched:
        patched.setattr("inheritune.analysis.attention.attention_rank", exact_rank)
        assert measure_attention(model, 4, ids).as_json() == whole
    monkeypatch.setattr("inheritune.analysis.attention._MATRICES", 1)
    single = measure_attention(model, 4, ids).as_json()
    assert single["layers"][0]["rank"] == whole["layers"][0]["rank"]


def test_a_window_shows_in_the_ranks_of_its_layers():
    model, ids = model_of("gemma3"), ids_of(2, 48)
    ranks = [layer.rank.min() for layer in measure_attention(model, 7, ids).layers]
    # Layer 5 attends to everything, all others to 8 tokens, which takes more singular values.
    assert max(ranks) > ranks[5] + 5 and min(ranks) == ranks[5]


def test_no_map_outlives_its_layer(monkeypatch):
    model, ids = model_of("llama"), ids_of(2, 32)
    alive: list[int] = []
    import weakref

    seen: list[weakref.ref] = []

    def ranks_of(matrices, thresholds):
        alive.append(sum(reference() is not None for reference in seen))
        seen.append(weakref.ref(matrices))
        return exact_rank(matrices, thresholds)

    monkeypatch.setattr("inheritune.analysis.attention.attention_rank", ranks_of)
    measure_attention(model, 4, ids)
    assert max(alive) == 0


def test_a_model_without_attention_is_refused_by_name():
    config = transformers.MambaConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=2, state_size=4, use_mambapy=False
    )
    model = transformers.MambaForCausalLM(config).eval()
    with pytest.raises(UnsupportedModelError, match="MambaForCausalLM cannot be observed"):
        measure_attention(model, 2, ids_of())


def test_observing_leaves_no_attention_function_registered():
    from transformers import AttentionInterface

    measure_attention(model_of("llama"), 4, ids_of())
    assert OBSERVED_ATTENTION not in AttentionInterface._global_mapping


def test_measure_attention_stops_between_forwards():
    stop = StopFlag()
    stop.signal_number = 15
    with pytest.raises(Interrupted):
        measure_attention(model_of("llama"), 4, ids_of(), stop=stop)


def test_a_sink_makes_a_layer_lazy():
    model = tiny_models.build("gpt2")
    with torch.no_grad():
        attention = model.transformer.h[2].attn
        attention.c_attn.weight[:, :64] = 0
        attention.c_attn.bias[:64] = 0
        # Every query likes the keys of position 0 only: their bias grows with what marks it.
        model.transformer.wpe.weight[0] = 0
        model.transformer.wpe.weight[0, 0] = 500
        attention.c_attn.bias[:32] = 10
        attention.c_attn.weight[0, 32:64] = 5
    found = measure_attention(model, 4, ids_of(2, 32))
    assert found.layers[2].is_lazy
    assert 2 in found.as_json()["lazy_layers"]
    assert found.layers[2].sink.min() > 0.9


def test_thresholds_of_the_design_are_all_there():
    assert THRESHOLDS == (0.80, 0.85, 0.90, 0.95)
