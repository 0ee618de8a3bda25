import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, GPTNeoXConfig, LlamaConfig

from inheritune.train.loss import loss_sum

SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, intermediate_size=48),
    "gpt2": GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gpt_neox": GPTNeoXConfig(**SMALL, intermediate_size=48, max_position_embeddings=64),
    "gemma2": Gemma2Config(**SMALL, intermediate_size=48, head_dim=8),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_models_own_loss_times_the_tokens(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    samples = torch.randint(0, 97, (3, 17))
    with torch.no_grad():
        # Given labels of equal length, transformers shifts by itself and leaves the last one out.
        own = model(input_ids=samples, labels=samples, use_cache=False).loss
        ours = loss_sum(model, samples)
    torch.testing.assert_close(ours / (3 * 16), own, rtol=1e-6, atol=1e-6)


def test_bf16_logits_are_summed_in_fp32() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    samples = torch.randint(0, 97, (3, 17))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert loss_sum(model, samples).dtype == torch.float32
