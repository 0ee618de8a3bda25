"""Run transformers.Trainer, as it comes or with every setting that makes it faster."""

import json
import sys
from typing import Any

import torch
from training.device import waiting_for
from training.plain_loop import random_batches
from training.shapes import Shape, config, without_dropout
from training.stream import recipe_of
from training.turns import Turns
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from inheritune.training.hardware import choose_device, choose_settings, keep_freed_memory
from inheritune.training.kernels import MATMUL_ATTENTION, register_matmul_attention, use_fused_gelu

_SAMPLES = 1 << 20  # an epoch is longer than anybody waits


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self, shape: Shape) -> None:
        self._rows = random_batches(shape, extra=0)

    def __len__(self) -> int:
        return _SAMPLES

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self._rows[index % len(self._rows)]
        return {"input_ids": row, "labels": row}


class StepEnds(TrainerCallback):
    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        self._turns.step_done()


def main(job: dict[str, Any]) -> None:
    shape, device = Shape(**job["shape"]), choose_device()
    turns = Turns(*waiting_for(device, job))
    recipe = recipe_of(shape, job.get("recipe", {}))
    settings = choose_settings(recipe, planned_flops=1e18)
    best, kernels = job.get("best", False), job.get("kernels", False)
    if kernels and settings.keep_large_blocks:
        keep_freed_memory()
    torch.manual_seed(0)
    with torch.device(device):
        made = without_dropout(shape) if best else config(shape)
        model = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    if kernels and settings.fused_gelu:
        use_fused_gelu(model)
    if kernels and settings.attention == "matmul":
        register_matmul_attention()
        model.set_attn_implementation(MATMUL_ATTENTION)
    faster = {
        "use_cpu": device == "cpu",  # it refuses bf16 on a processor that is not asked for
        "bf16": settings.precision == "bf16",
        "optim": "adamw_torch_fused",
        "torch_compile": settings.compile,
        "use_cache": False,
        "logging_nan_inf_filter": False,  # it waits for the device at every micro-batch
        "gradient_accumulation_steps": job.get("accumulate", 1),
    }
    arguments = TrainingArguments(
        output_dir=job["folder"],
        per_device_train_batch_size=shape.batch,
        max_steps=10**6,
        save_strategy="no",
        **(faster if best else {}),
    )
    Trainer(
        model=model, args=arguments, train_dataset=Rows(shape), callbacks=[StepEnds(turns)]
    ).train()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
