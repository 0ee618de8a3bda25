"""Training speed beside Hugging Face defaults: whole steps, interleaved, medians and ratios.

    python benchmarks/train.py [--rounds 5] [--steps 6]

A step is forward, backward, clipping and AdamW on random tokens. Every arm has its own copy of the
model; arms take turns within a round, so that a drift of the machine meets all of them.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig

from inheritune.recipe import Train
from inheritune.train.attention import MATMUL_ATTENTION, register_matmul_attention
from inheritune.train.gelu import use_fused_gelu
from inheritune.train.loss import loss_sum
from inheritune.train.optimizer import make_optimizer, mean_and_clip
from inheritune.train.settings import choose_settings

SHAPES: dict[str, tuple[PreTrainedConfig, int, int]] = {  # config, batch, sequence
    "demo": (
        LlamaConfig(
            vocab_size=2048,
            hidden_size=160,
            intermediate_size=416,
            num_hidden_layers=8,
            num_attention_heads=5,
            tie_word_embeddings=True,
        ),
        16,
        128,
    ),
    "gpt": (GPT2Config(vocab_size=8192, n_embd=384, n_layer=8, n_head=6, n_positions=256), 8, 256),
}


def defaults(config: PreTrainedConfig, batch: int, length: int) -> Callable[[], None]:
    """What a loop around from_pretrained does when nothing is set: fp32, SDPA, dropout, foreach."""
    model = AutoModelForCausalLM.from_config(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        ids = torch.randint(0, config.vocab_size, (batch, length))
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(config: PreTrainedConfig, batch: int, length: int, **changes: str) -> Callable[[], None]:
    """The recipe of inheritune/train, with single parts switched."""
    fields = {"tokens": 10**9, "seq_len": length, "batch_tokens": batch * length}
    recipe = Train.model_validate(fields | {"micro_batch": batch, "compile": "off"} | changes)
    settings = choose_settings(recipe, planned_flops=1e18)
    for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, key):
            setattr(config, key, 0.0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    if settings.fused_gelu:
        use_fused_gelu(model)
    if settings.attention == "matmul":
        register_matmul_attention()
        model.set_attn_implementation(MATMUL_ATTENTION)
    optimizer = make_optimizer(model, recipe, fused=settings.fused_optimizer)
    params = list(model.parameters())

    def loss_of(samples: torch.Tensor) -> torch.Tensor:
        return loss_sum(model, samples)

    compute = torch.compile(loss_of, dynamic=False) if settings.compile else loss_of

    def step() -> None:
        samples = torch.randint(0, config.vocab_size, (batch, length + 1))
        with settings.autocast():
            loss = compute(samples)
        loss.backward()
        mean_and_clip(params, batch * length, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(name: str, rounds: int, steps: int) -> None:
    config, batch, length = SHAPES[name]
    arms = {
        "transformers defaults": defaults(type(config)(**config.to_dict()), batch, length),
        "ours": ours(config, batch, length),
        "ours, fp32": ours(config, batch, length, precision="fp32"),
        "ours, model's attention": ours(config, batch, length, attention="model"),
        "ours, compiled": ours(config, batch, length, compile="on"),
    }
    for step in arms.values():  # warm-up, and compiling
        step()
        step()
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm, step in arms.items():
            began = time.perf_counter()
            for _ in range(steps):
                step()
            times[arm].append((time.perf_counter() - began) / steps)
    base = times["transformers defaults"]
    print(f"\n{name}: batch {batch} x {length}")
    for arm, seconds in times.items():
        ratio = statistics.median(b / s for b, s in zip(base, seconds, strict=True))
        rate = batch * length / statistics.median(seconds)
        print(f"  {arm:<26}{rate:>9,.0f} tokens/s {ratio:>6.2f}x")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--shape", choices=SHAPES, action="append")
    options = parser.parse_args()
    torch.manual_seed(0)
    for shape in options.shape or SHAPES:
        measure(shape, options.rounds, options.steps)
