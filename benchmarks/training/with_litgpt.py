"""Run `litgpt pretrain` as a function, in litgpt's own environment: nothing of ours is imported.

`litgpt.pretrain.setup` with its defaults (bf16-mixed, torch.compile of the whole model, AdamW), a
config of the shape, and ids made up here; the csv logger, as tensorboard is not installed with it.
litgpt has no learned positions and no GPT-2, so that a GPT-2 has rotary embeddings instead.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.data import DataModule
from litgpt.pretrain import setup
from torch.utils.data import DataLoader, IterableDataset
from training.shapes import Shape
from training.turns import Turns


class Batches(IterableDataset[torch.Tensor]):
    """Whoever asks for the next batch has finished a step."""

    def __init__(self, shape: Shape, turns: Turns | None) -> None:
        generator = torch.Generator().manual_seed(0)
        size = (64, shape.batch, shape.length + 1)
        self._batches = torch.randint(0, shape.vocab, size, generator=generator)
        self._turns = turns

    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            for batch in self._batches:
                yield batch
                if self._turns:
                    self._turns.step_done()


class MadeUp(DataModule):
    def __init__(self, shape: Shape, turns: Turns) -> None:
        super().__init__()
        self._shape, self._turns = shape, turns

    def connect(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def train_dataloader(self) -> DataLoader[torch.Tensor]:
        return DataLoader(Batches(self._shape, self._turns), batch_size=None)

    def val_dataloader(self) -> DataLoader[torch.Tensor]:
        return DataLoader(Batches(self._shape, None), batch_size=None)


def config(shape: Shape) -> Config:
    common = {
        "name": "bench",
        "block_size": shape.length,
        "vocab_size": shape.vocab,
        "padded_vocab_size": shape.vocab,
        "n_layer": shape.layers,
        "n_head": shape.heads,
        "n_embd": shape.width,
        "intermediate_size": shape.inner,
        "parallel_residual": False,
        "rotary_percentage": 1.0,
    }
    if shape.kind == "gpt2":
        kind = {"bias": True, "attn_bias": True, "gelu_approximate": "tanh"}
    else:
        kind = {"bias": False, "norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP"}
    return Config(**common, **kind)


def main(job: dict[str, Any]) -> None:
    shape, turns = Shape(**job["shape"]), Turns()
    setup(
        "bench",
        model_config=config(shape),
        out_dir=Path(job["folder"], "out"),
        data=MadeUp(shape, turns),
        train=TrainArgs(
            save_interval=None,
            global_batch_size=shape.batch,
            micro_batch_size=shape.batch,
            max_tokens=10**6 * shape.tokens,
            max_norm=1.0,
            min_lr=4e-5,
            lr_warmup_steps=2000,
            tie_embeddings=shape.tied,
        ),
        eval=EvalArgs(interval=10**6, max_iters=1),
        devices=1,
        logger_name="csv",
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
