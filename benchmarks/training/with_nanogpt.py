"""Train nanoGPT's model from a clone, with the settings that are fastest on a CPU.

Its train.py computes in fp32 on a processor. Here its `GPT` runs in bf16 under autocast where the
processor has that, compiled, in a loop of the same steps: forward, backward, clip, AdamW.
"""

import json
import sys
from typing import Any

import torch
from torch import Tensor
from training.plain_loop import plain_loop
from training.shapes import Shape
from training.stream import recipe_of
from training.turns import Turns

from inheritune.training.hardware import choose_settings


def main(job: dict[str, Any]) -> None:
    sys.path.insert(0, job["clone"])
    from model import GPT, GPTConfig  # nanoGPT's

    shape, turns = Shape(**job["shape"]), Turns()
    settings = choose_settings(recipe_of(shape, job.get("recipe", {})), planned_flops=1e18)
    torch.manual_seed(0)
    config = GPTConfig(
        block_size=shape.length,
        vocab_size=shape.vocab,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_embd=shape.width,
    )
    model = GPT(config)
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cpu")
    compute = torch.compile(model) if settings.compile else model

    def loss_of(ids: Tensor, labels: Tensor) -> Tensor:
        with settings.autocast():
            return compute(ids, labels.contiguous())[1]  # type: ignore[no-any-return]

    plain_loop(turns, shape, model.parameters(), optimizer, loss_of)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
