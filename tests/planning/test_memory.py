"""The estimated memory of a training, against what torch's allocator counts on a CPU."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from inheritune.model_files.training_memory import Layout, Memory, TrainedModel, estimate_memory
from inheritune.recipe.training import Train
from inheritune.system.processes import ALONE
from inheritune.system.signals import StopFlag
from inheritune.training.distillation import Distillation, FrozenReference
from inheritune.training.fsdp import layer_modules
from inheritune.training.hardware import Settings
from inheritune.training.optimizer import mean_and_clip
from inheritune.training.setup import TrainingSetup, make_setup
from inheritune.training.step import forward_backward

NO_IDS = {"bos_token_id": 0, "eos_token_id": 0}
NO_DROPOUT = {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}


def llama(width: int, inner: int, heads: tuple[int, int], layers: int, rows: int, **more: Any):
    """Config of Llama's shape; heads of queries and of keys."""
    kind = more.pop("kind", LlamaConfig)
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    sizes |= {"num_attention_heads": heads[0], "num_key_value_heads": heads[1]}
    sizes |= {"head_dim": width // heads[0], "vocab_size": rows, "max_position_embeddings": 256}
    return kind(**sizes, **NO_IDS, **more)


# Config, sequences of a micro-batch, micro-batches, tokens of a sequence, and how it is trained.
SHAPES = {
    "tied, in two passes": (
        llama(128, 352, (4, 2), 6, 1024, tie_word_embeddings=True),
        (4, 2, 64),
        {},
    ),
    "large vocabulary": (llama(64, 160, (4, 4), 2, 8192), (4, 1, 64), {}),
    "deep and narrow": (llama(64, 128, (2, 1), 16, 256), (4, 1, 128), {}),
    "GPT-2, attention by products": (
        GPT2Config(
            n_embd=128,
            n_head=4,
            n_layer=4,
            vocab_size=2048,
            n_positions=256,
            **NO_IDS,
            **NO_DROPOUT,
        ),
        (4, 1, 128),
        {"attention": "matmul"},
    ),
    "Pythia, wide": (
        GPTNeoXConfig(
            hidden_size=128,
            intermediate_size=512,
            num_attention_heads=4,
            num_hidden_layers=6,
            vocab_size=512,
            max_position_embeddings=256,
            **NO_IDS,
        ),
        (2, 2, 64),
        {},
    ),
    "Qwen 3, recomputed": (
        llama(128, 384, (4, 2), 6, 512, kind=Qwen3Config, tie_word_embeddings=True),
        (8, 1, 128),
        {"activation_checkpointing": True},
    ),
}


class RandomTokens:
    def __init__(self, rows: int) -> None:
        self.rows = rows

    def num_samples(self, seq_len: int) -> int:
        return 1000

    def samples(self, ids: Any, seq_len: int) -> Any:
        return np.random.default_rng(0).integers(0, self.rows, (len(ids), seq_len + 1))


def bytes_of(*models: torch.nn.Module) -> int:
    """Bytes of weights and buffers, those that are shared once."""
    tensors = [t for model in models for t in (*model.parameters(), *model.buffers())]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def train_setup(
    config: PreTrainedConfig, train: Train, precision: str, distilled: bool, more: dict[str, Any]
) -> tuple[TrainingSetup, int]:
    """A model to train, with the bytes that are there before its first step."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain = {"device": "cpu", "precision": precision, "attention": "model", "compile": False}
    off = {"fused_gelu": True, "fused_optimizer": True, "keep_large_blocks": False}
    settings = Settings(**plain | off | more)
    if not distilled:
        return make_setup(model, train, settings, RandomTokens(config.vocab_size), ALONE), bytes_of(
            model
        )
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    reference = AutoModelForCausalLM.from_config(config, dtype=dtype)
    learned = Distillation(FrozenReference(reference, settings, 1.0), 0.1)
    stream = RandomTokens(config.vocab_size)
    return make_setup(model, train, settings, stream, ALONE, learned), bytes_of(model, reference)


def measured_peak(setup: TrainingSetup) -> int:
    """The most bytes that two steps have allocated at a time."""
    stop = StopFlag()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        for step in range(2):
            sums = forward_backward(setup, step, 0, stop, save_due=False)
            mean_and_clip(setup.params, sums.targets, 1.0)
            setup.optimizer.step()
            setup.optimizer.zero_grad(set_to_none=True)
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return int(np.cumsum([size for _, size in changes]).max())


def compare(name: str, precision: str, distilled: bool, **more: Any) -> tuple[Memory, int]:
    """The estimate of a training, and its measured peak."""
    config, (micro_batch, passes, seq_len), shape_more = SHAPES[name]
    more = shape_more | more
    batch = micro_batch * passes * seq_len
    train = Train(tokens=batch, seq_len=seq_len, micro_batch=micro_batch, batch_tokens=batch)
    setup, before = train_setup(config, train, precision, distilled, more)
    params = sum(p.numel() for p in setup.model.parameters())
    model = TrainedModel(
        config=config.to_dict(),
        params=params,
        in_layers=sum(p.numel() for m in layer_modules(setup.model) for p in m.parameters()),
        layers=config.num_hidden_layers,
        tied=config.tie_word_embeddings,
        trained=params,
        reference=params * distilled,
        reference_layers=config.num_hidden_layers,
    )
    layout = Layout(
        micro_batch=micro_batch,
        micro_batches=passes,
        recomputes=more.get("activation_checkpointing", False),
        matmul_attention=more.get("attention") == "matmul",
        loss=more.get("loss", "logits"),
    )
    return estimate_memory(model, layout, seq_len, precision), before + measured_peak(setup)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("distilled", [False, True], ids=["cross-entropy", "distilled"])
def test_the_estimate_is_within_15_percent_of_the_measured_peak(
    name: str, distilled: bool, capsys: pytest.CaptureFixture
) -> None:
    precision = "fp32" if list(SHAPES).index(name) % 2 else "bf16"
    estimate, peak = compare(name, precision, distilled)
    ratio = estimate.total / peak
    with capsys.disabled():
        path = "distilled" if distilled else "cross-entropy"
        sys.stdout.write(f"\n{name}, {precision}, {path}: {peak / 1e6:.1f} MB, ratio {ratio:.3f}")
    assert abs(ratio - 1) < 0.15


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("chunk", [2**25, 2**19], ids=["one chunk", "four chunks"])
def test_the_estimate_of_a_loss_in_chunks_is_within_15_percent(
    precision: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inheritune.model_files.training_memory.CHUNK_LOGITS", chunk)
    monkeypatch.setattr("inheritune.training.lazy_logits._CHUNK_LOGITS", chunk)
    monkeypatch.setattr("inheritune.training.setup.are_small", lambda *_: False)
    estimate, peak = compare("large vocabulary", precision, False, loss="chunks")
    assert abs(estimate.total / peak - 1) < 0.15


def test_on_a_gpu_a_distillation_goes_through_a_chunk_as_one_block() -> None:
    config = SHAPES["large vocabulary"][0]
    params = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    model = TrainedModel(config.to_dict(), params, params // 2, 2, False, params, reference=params)
    cpu, gpu = (
        estimate_memory(model, Layout(micro_batch=16, loss=loss), 64, "bf16").logits
        for loss in ("logits", "op")
    )
    rows = 16 * 64 * config.vocab_size  # less than a chunk: four buffers in fp32
    assert gpu - cpu == 4 * 4 * (rows - 2**19)


def test_a_chunk_is_as_large_in_a_plan_as_in_a_training() -> None:
    from inheritune.model_files import training_memory as memory
    from inheritune.training import chunked_loss, lazy_logits

    assert lazy_logits._CHUNK_LOGITS == memory.CHUNK_LOGITS
    assert chunked_loss._BLOCK_LOGITS == memory._BLOCK_LOGITS
