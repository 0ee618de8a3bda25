"""Define the recipe section on training: length, batches, optimizer and speed."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from inheritune.recipe.values import (
    Amount,
    AmountOrZero,
    Count,
    CountOrZero,
    NonNegative,
    Only,
    Rate,
    RecipeSection,
    Seed,
    Share,
    Switch,
)


class Train(RecipeSection):
    """Length, batches, optimizer and speed of each training."""

    tokens: Amount
    """Training tokens of each round and variant."""
    seq_len: Annotated[int, Field(ge=8)] = 1024
    """Tokens per sequence."""
    batch_tokens: Amount = 393_216
    """Tokens per optimizer step, over all processes."""
    micro_batch: Count | Literal["auto"] = 8
    """Sequences per forward pass and process. auto: as many as a GPU has room for, by the estimate
    that `plan` shows; with activation_checkpointing: auto, layers are recomputed only where not
    even one has room otherwise. On a CPU at most 8. A continued training takes no more than
    before."""
    learning_rate: Rate = 3e-4
    """Peak learning rate."""
    min_learning_rate: NonNegative = 1e-5
    """Learning rate at the end of the schedules cosine and wsd."""
    warmup_tokens: AmountOrZero = 0
    """Tokens over which the learning rate rises linearly from 0."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """Learning rate schedule over tokens; every round starts it again."""
    weight_decay: NonNegative = 0.1
    """Decoupled weight decay, applied to matrices only."""
    betas: Annotated[list[float], Field(min_length=2, max_length=2)] = Field([0.9, 0.95])
    """AdamW's decay rates of its two moments."""
    clip_norm: Rate = 1.0
    """Largest global gradient norm."""
    dropout: Share = 0.0
    """Dropout probability; the one in the reference's config is not used."""
    seed: Seed = 0
    """Seed of the data order and of fresh weights."""
    only: Only | None = None
    """Weights to train; all others are frozen, without gradients and optimizer state. A list of
    embeddings, head, norms, layers such as last:3 or 0-2, and gap: each inherited layer behind
    which layers are left out. Trainings that begin with fresh weights train all. null: train
    all."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the computation; master weights are always fp32."""
    attention: Literal["auto", "matmul", "model"] = "auto"
    """matmul: batched matrix products, faster on a CPU for short sequences; model: the attention of
    the model's class."""
    compile: Switch = "auto"
    """torch.compile; auto: if it saves time overall."""
    fused_gelu: Switch = "auto"
    """Compute GPT-2's GELU in one kernel."""
    fused_optimizer: Switch = "auto"
    """Run AdamW in one kernel."""
    keep_large_blocks: Switch = "auto"
    """Let glibc keep freed memory instead of unmapping it at every step."""
    activation_checkpointing: Switch = "off"
    """on: recompute layers in the backward pass; less memory, but slower. auto: where a GPU has no
    room for what they would keep, by the same estimate."""
    parallel: Literal["auto", "shard", "hybrid"] = "auto"
    """How several processes hold the weights. shard: each has a share of one copy; hybrid: the
    processes of a machine, or shard_size of them, share a copy, and copies exchange gradients;
    auto: hybrid, or shard where one machine cannot hold a copy."""
    shard_size: Count | None = None
    """Processes that share one copy of the weights (parallel: hybrid); null: those of a machine."""
    offload: Literal["on", "off"] = "off"
    """on: several processes keep weights, gradients and optimizer state in the memory of their
    machine, and step there; slower."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What to do about a loss or gradient that is NaN or infinite."""
    max_skips: CountOrZero = 3
    """Consecutive non-finite steps to skip before stopping (nonfinite: skip)."""
    eval_every: Amount | None = None
    """Tokens between validations, besides the one at the end; null: a tenth of each training."""
    save_minutes: Rate = 20.0
    """Minutes between checkpoints."""
    keep: Count = 2
    """Checkpoints to keep."""
    timeout_minutes: Rate = 10.0
    """Minutes that several processes wait for one that is silent, as on a machine that is gone,
    before they end; longer than one of them reads or writes a model."""

    @property
    def resolved_micro_batch(self) -> int:
        """``micro_batch`` as a number; ``auto`` is resolved before, by `Settings.resolved`."""
        assert self.micro_batch != "auto"
        return self.micro_batch

    def num_steps(self, tokens: int) -> int:
        """Optimizer steps for a number of training tokens: whole batches, at least one."""
        return max(1, tokens // self.batch_tokens)

    @model_validator(mode="after")
    def _steps_are_whole(self) -> Self:
        factors, quantum = "seq_len", self.seq_len
        if self.micro_batch != "auto":
            factors, quantum = "seq_len x micro_batch", quantum * self.micro_batch
        if self.batch_tokens % quantum:
            below = self.batch_tokens // quantum * quantum
            nearest = " or ".join(str(v) for v in (below, below + quantum) if v)
            raise ValueError(
                f"batch_tokens {self.batch_tokens} is not a multiple of {factors} = "
                f"{quantum}; nearest: {nearest}"
            )
        return self

    @model_validator(mode="after")
    def _results_do_not_depend_on_the_device(self) -> Self:
        if self.micro_batch == "auto" and self.dropout:
            raise ValueError(
                "micro_batch: auto goes with dropout 0 alone: what is dropped depends on the "
                "sequences of a forward pass; state a number"
            )
        return self

    @model_validator(mode="after")
    def _shards_have_a_size(self) -> Self:
        if self.shard_size is not None and self.parallel != "hybrid":
            raise ValueError(f"shard_size {self.shard_size} goes with parallel: hybrid alone")
        return self

    @model_validator(mode="after")
    def _rates_fall(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate} is above "
                f"learning_rate {self.learning_rate}"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {self.betas} must lie in [0, 1)")
        return self
