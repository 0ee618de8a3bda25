import copy
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
)

from inheritune.training import chunked_loss, lazy_logits
from inheritune.training.loss import (
    TrainingObjective,
    _sum_by_op,
    cross_entropy_sum,
    logits_are_plain_head_output,
)

SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, intermediate_size=48),
    "gpt2": GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gpt_neox": GPTNeoXConfig(**SMALL, intermediate_size=48, max_position_embeddings=64),
    "gemma2": Gemma2Config(**SMALL, intermediate_size=48, head_dim=8),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_cross_entropy_sum_is_the_models_own_loss_times_the_tokens(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    samples = torch.randint(0, 97, (3, 17))
    with torch.no_grad():
        # Given labels of equal length, transformers shifts by itself and leaves the last one out.
        own = model(input_ids=samples, labels=samples, use_cache=False).loss
        ours = cross_entropy_sum(model, samples[:, :-1], samples[:, 1:])
    torch.testing.assert_close(ours / (3 * 16), own, rtol=1e-6, atol=1e-6)


def test_bf16_logits_are_summed_in_fp32() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    samples = torch.randint(0, 97, (3, 17))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert cross_entropy_sum(model, samples[:, :-1], samples[:, 1:]).dtype == torch.float32


FITS = {
    "llama": LlamaConfig(**SMALL, intermediate_size=48),
    "llama, tied": LlamaConfig(**SMALL, intermediate_size=48, tie_word_embeddings=True),
    "gpt2": CONFIGS["gpt2"],
    "gpt_neox": CONFIGS["gpt_neox"],
}
DOES_MORE = {
    "gemma2, soft-cap": CONFIGS["gemma2"],
    "granite, scale": GraniteConfig(**SMALL, intermediate_size=48, logits_scaling=8.0),
    "cohere, scale": CohereConfig(**SMALL, intermediate_size=48),
}


def fresh(config: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@pytest.mark.parametrize("name", FITS)
def test_plain_head_is_recognised_so_that_the_loss_can_be_fused(name: str) -> None:
    assert logits_are_plain_head_output(fresh(FITS[name]))


@pytest.mark.parametrize("name", DOES_MORE)
def test_head_followed_by_more_is_recognised(name: str) -> None:
    assert not logits_are_plain_head_output(fresh(DOES_MORE[name]))


@pytest.mark.parametrize("name", FITS | DOES_MORE)
def test_recognising_a_plain_head_leaves_every_weight_bit_for_bit(name: str) -> None:
    model = fresh((FITS | DOES_MORE)[name])
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    training = model.training
    logits_are_plain_head_output(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert model.training == training


@pytest.mark.parametrize("name", FITS)
def test_fused_loss_and_gradients_equal_those_of_the_logits(name: str) -> None:
    model = fresh(FITS[name]).eval()
    x, y = torch.randint(0, 97, (2, 3, 16))
    y[0, :5] = -100
    gradients, losses = [], []
    for fused in (False, True):
        model.zero_grad()
        loss = TrainingObjective(model, fused)(x, y)
        loss.backward()
        losses.append(loss.detach())
        gradients.append([param.grad.clone() for param in model.parameters()])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=1e-5)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


class Sizes(TorchDispatchMode):
    """Notes how many values each tensor of a computation has."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= {out.numel()} if isinstance(out, torch.Tensor) else set()
        return out


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize(("chunk", "block"), [(2**24, 2**24), (7 * 97, 2 * 97)])
def test_cross_entropy_in_chunks_matches_the_fp64_formula_and_never_holds_the_logits(
    chunk: int, block: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lazy_logits, "_CHUNK_LOGITS", chunk)
    monkeypatch.setattr(chunked_loss, "_BLOCK_LOGITS", block)
    model = fresh(FITS[name]).eval()
    x, y = torch.randint(0, 97, (2, 12, 16))
    y[0, :5] = -100
    with Sizes() as sizes:
        loss = TrainingObjective(model, avoids_logits=True)(x, y)
        (2 * loss).backward()
    exact = copy.deepcopy(model).double()
    exact.zero_grad()
    z = exact(input_ids=x, use_cache=False).logits[y != -100]
    expected = torch.nn.functional.cross_entropy(z, y[y != -100], reduction="sum")
    (2 * expected).backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    for ours, theirs in zip(model.parameters(), exact.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() <= 1e-5 * theirs.grad.norm() + 1e-7
    assert (12 * 16 * 97 in sizes.seen) == (chunk == 2**24)


def test_a_compiled_objective_compiles_the_layers_and_leaves_the_walk_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lazy_logits, "_CHUNK_LOGITS", 7 * 97)
    model = fresh(FITS["llama"])
    x, y = torch.randint(0, 97, (2, 3, 16))
    objective, compiled = (TrainingObjective(model, avoids_logits=True) for _ in range(2))
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph.code)
        return graph.forward

    compiled.compile(backend=backend, dynamic=False)
    losses, gradients = [], []
    for each in (objective, compiled):
        model.zero_grad()
        losses.append(each(x, y))
        losses[-1].backward()
        gradients.append([param.grad.clone() for param in model.parameters()])
    torch.testing.assert_close(losses[1], losses[0])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert sum(code.count("scaled_dot_product_attention(") for code in graphs) == 2  # layers
    assert not any("log_softmax" in code for code in graphs)


def test_gradients_known_from_the_walk_are_given_away_once() -> None:
    model = fresh(FITS["llama"]).eval()
    x, y = torch.randint(0, 97, (2, 3, 16))
    loss = TrainingObjective(model, avoids_logits=True)(x, y)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", FITS)
def test_the_fused_op_has_loss_and_gradients_of_the_logits(name: str) -> None:
    model = fresh(FITS[name]).eval()
    x, y = torch.randint(0, 97, (2, 3, 16))
    y[0, :5] = -100
    head = model.get_output_embeddings().weight
    losses = [
        _sum_by_op(lazy_logits.lazy_logits(model, x, avoids_logits=True), y.flatten()),
        cross_entropy_sum(model, x, y),
    ]
    ours, theirs = (torch.autograd.grad(loss, head)[0] for loss in losses)
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_fused_loss_is_summed_in_fp32_under_bf16() -> None:
    model = fresh(FITS["llama"]).eval()
    samples = torch.randint(0, 97, (64, 65))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours = TrainingObjective(model, avoids_logits=True)(samples[:, :-1], samples[:, 1:])
        theirs = cross_entropy_sum(model, samples[:, :-1], samples[:, 1:])
    assert ours.dtype == torch.float32
    assert abs(ours - theirs) / (64 * 64) < 2e-4
