"""A training as `auto` sets it up: on a GPU where tests are run with `-m gpu`."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

from inheritune.model_files.training_memory import Layout, TrainedModel, estimate_memory
from inheritune.recipe.training import Train
from inheritune.system.processes import ALONE
from inheritune.system.signals import StopFlag
from inheritune.training import hardware
from inheritune.training.fsdp import layer_modules
from inheritune.training.hardware import choose_settings
from inheritune.training.optimizer import mean_and_clip
from inheritune.training.setup import TrainingSetup, make_setup
from inheritune.training.step import forward_backward

STEPS = 8
SEQUENCES = 64  # of a step
# By device: width, inside the MLP, heads of queries and keys, layers, rows; tokens of a sequence
SHAPES = {"cpu": (64, 160, 4, 2, 2, 512, 32), "cuda": (1024, 2816, 16, 4, 8, 32_000, 1024)}


class Runs:
    """Samples in which each id is followed by the next: learned in a few steps."""

    def num_samples(self, seq_len: int) -> int:
        return 10_000

    def samples(self, ids: NDArray[np.uint64], seq_len: int) -> NDArray[np.int64]:
        begins = ids.astype(np.int64)[:, None] * 7 % 50
        return (begins + np.arange(seq_len + 1)) % 50


def model_of(device: str) -> LlamaForCausalLM:
    width, inner, queries, keys, layers, rows, seq_len = SHAPES[device]
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    heads = {"num_attention_heads": queries, "num_key_value_heads": keys, "vocab_size": rows}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, max_position_embeddings=seq_len))


def losses(setup: TrainingSetup) -> list[float]:
    """Train; the mean loss of each step."""
    found = []
    for step in range(STEPS):
        sums = forward_backward(setup, step, step * SEQUENCES, StopFlag(), save_due=False)
        mean_and_clip(setup.params, sums.targets, 1.0)
        for group in setup.optimizer.param_groups:
            group["lr"] = 1e-3
        setup.optimizer.step()
        setup.optimizer.zero_grad(set_to_none=True)
        found.append(sums.loss / sums.targets)
    return found


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_auto_learns_and_takes_the_memory_that_it_estimates(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "choose_device", lambda: device)
    seq_len, model = SHAPES[device][-1], model_of(device)
    auto = {"micro_batch": "auto", "activation_checkpointing": "auto", "compile": "off"}
    batch = {"tokens": "1M", "seq_len": seq_len, "batch_tokens": SEQUENCES * seq_len}
    train = Train.model_validate(auto | batch)
    params = sum(p.numel() for p in model.parameters())
    in_layers = sum(p.numel() for m in layer_modules(model) for p in m.parameters())
    sizes = TrainedModel(
        model.config.to_dict(), params, in_layers, SHAPES[device][4], False, params
    )
    settings = choose_settings(train, 0.0, model=sizes)
    train = settings.resolved(train)
    assert SEQUENCES % train.resolved_micro_batch == 0
    setup = make_setup(model, train, settings, Runs(), ALONE)
    found = losses(setup)
    assert found[-1] < found[0] - 1
    if device == "cuda":
        layout = Layout(
            micro_batch=train.resolved_micro_batch,
            micro_batches=SEQUENCES // train.resolved_micro_batch,
            recomputes=setup.settings.activation_checkpointing,
            loss="op",
        )
        estimate = estimate_memory(sizes, layout, seq_len, settings.precision).total
        assert abs(estimate / torch.cuda.max_memory_allocated() - 1) < 0.15
