"""A model made ready to train: kernels, loss, compiler, processes, optimizer."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from inheritune.data.tokens import TokenStream
from inheritune.recipe.schema import Train
from inheritune.system.processes import Processes
from inheritune.training.batches import micro_batches
from inheritune.training.distillation import Distillation, DistillationLoss
from inheritune.training.fsdp import layers_of, shard, sync_gradients
from inheritune.training.hardware import Settings, keep_large_blocks
from inheritune.training.kernels import (
    MATMUL_ATTENTION,
    agrees_with_the_model,
    register_matmul_attention,
    use_fused_gelu,
)
from inheritune.training.loss import TrainingObjective, logits_are_plain_head_output
from inheritune.training.optimizer import make_optimizer

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = ["TrainingSetup", "make_setup"]

LossFunction = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True)
class TrainingSetup:
    """What the loop works with.

    Attributes:
        callable_model: What gives logits: the model, or what stands around it when it is sharded.
        optimizer: Over the model's weights.
        params: The weights that it steps.
        compute_loss: The sum of the loss over the samples, (B, T + 1); with a distillation three
            sums, (3,), see `DistillationLoss`.
        settings: As used in the end: a fallback shows here.
        notes: A sentence for every fallback.
        distillation: Within the loss, if anything but the tokens is learnt from.
    """

    callable_model: "nn.Module"
    optimizer: torch.optim.AdamW
    params: "list[Tensor]"
    compute_loss: LossFunction
    settings: Settings
    notes: list[str]
    distillation: DistillationLoss | None = None

    def go_to(self, position: int) -> None:
        """Say at which place in the order of samples the next micro-batch begins."""
        if self.distillation is not None:
            self.distillation.position = position

    def last_of_step(self, last: bool) -> None:
        """Say whether the next micro-batch is the last one of its step."""
        sync_gradients(self.callable_model, last)


def make_setup(
    model: "PreTrainedModel",
    recipe: Train,
    settings: Settings,
    stream: TokenStream,
    processes: Processes,
    distillation: Distillation | None = None,
) -> TrainingSetup:
    """Apply the settings to a model, from the kernels outwards.

    Args:
        model: fp32 weights, the same in every process; changed in place.
        recipe: Optimizer and sequence length.
        settings: What to apply.
        stream: Training tokens, for the compiler's first call.
        processes: They share the model when there are several.
        distillation: What the model learns from besides the tokens.

    Raises:
        SourceError: The reference of a distillation has another vocabulary.
    """
    notes: list[str] = []
    if settings.keep_large_blocks:
        keep_large_blocks()
    model.to(settings.device).train()  # type: ignore[arg-type]
    if settings.fused_gelu:
        use_fused_gelu(model)
    checkpointing = _recompute_layers(model, settings, notes)
    attention = _use_attention(model, recipe, settings, notes)
    distill = None
    if distillation is None:
        loss = _choose_loss(model, settings, notes)
    else:
        distill = _make_distillation(model, distillation, recipe, stream)
        loss = "op" if distill.chunked_head else "logits"
        if settings.compile and settings.device == "cpu":
            notes.append("on a CPU a step with a reference is not compiled")
            settings = replace(settings, compile=False)
    settings = replace(
        settings, attention=attention, loss=loss, activation_checkpointing=checkpointing
    )
    whole: nn.Module = model
    root = TrainingObjective(model, loss == "op", distill)
    if settings.compile and settings.device == "cuda":
        # Never the whole model: inside one graph transformers builds a mask, and attention loses
        # its flash kernel.
        for layer in _all_layers(model, distill):
            layer.compile()
    if processes.size > 1:
        shard(root, model, processes, settings.gathers_bf16)
        whole = root
    optimizer = make_optimizer(model, recipe, fused=settings.fused_optimizer)
    optimizer.zero_grad(set_to_none=True)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    compute_loss, compiled = _loss_function(model, root, settings, recipe, stream, notes)
    settings = replace(settings, compile=compiled)
    return TrainingSetup(whole, optimizer, params, compute_loss, settings, notes, distill)


def _recompute_layers(model: "PreTrainedModel", settings: Settings, notes: list[str]) -> bool:
    """Have layers computed again in the backward pass; dropout then draws what it drew before."""
    if not settings.activation_checkpointing:
        return False
    if not model.supports_gradient_checkpointing:
        notes.append(f"{type(model).__name__} cannot recompute its layers: activations are kept")
        return False
    # Newer transformers call it so, and deprecate the older name.
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    return True


def _use_attention(
    model: "PreTrainedModel", recipe: Train, settings: Settings, notes: list[str]
) -> str:
    if settings.attention != "matmul":
        return "model"
    register_matmul_attention()
    if not agrees_with_the_model(model, model.config.get_text_config().vocab_size, recipe.seq_len):
        notes.append("the model's attention is more than causal: its own kernel is used")
        return "model"
    model.set_attn_implementation(MATMUL_ATTENTION)
    return "matmul"


def _choose_loss(model: "PreTrainedModel", settings: Settings, notes: list[str]) -> str:
    if settings.loss != "op":
        return "logits"
    if logits_are_plain_head_output(model):
        return "op"
    notes.append("the model does more to its logits than the head's product: they are kept whole")
    return "logits"


def _make_distillation(
    model: "PreTrainedModel", wanted: Distillation, recipe: Train, stream: TokenStream
) -> DistillationLoss:
    """The loss against the reference, seen to be 0 for a copy of it."""
    distill = DistillationLoss(model, wanted)
    distill.check(next(micro_batches(stream, recipe, 0, recipe.micro_batch)))
    return distill


def _all_layers(model: "PreTrainedModel", distill: DistillationLoss | None) -> "list[nn.Module]":
    """Of the model, and of the reference that runs beside it."""
    beside = None if distill is None else distill.beside
    return layers_of(model) + ([] if beside is None else layers_of(beside))


def _loss_function(
    model: "PreTrainedModel",
    root: TrainingObjective,
    settings: Settings,
    recipe: Train,
    stream: TokenStream,
    notes: list[str],
) -> tuple[LossFunction, bool]:
    def eager(samples: "Tensor") -> "Tensor":
        loss: Tensor = root(samples[:, :-1], samples[:, 1:])
        return loss

    if settings.processes > 1 or not settings.compile:
        return eager, settings.compile
    by_layer = settings.device == "cuda"
    compiled = eager if by_layer else torch.compile(eager, dynamic=False)
    try:  # the first call compiles; its gradients are thrown away
        samples = next(micro_batches(stream, recipe, 0, recipe.micro_batch))
        with settings.autocast():
            compiled(samples.to(settings.device)).sum().backward()
    except (MemoryError, torch.OutOfMemoryError):
        raise  # the eager step needs no less
    except Exception as error:
        # Whatever the compiler trips over, the eager step computes the same.
        notes.append(f"torch.compile failed ({type(error).__name__}), going on without it")
        for layer in _all_layers(model, root.distillation) if by_layer else []:
            layer._compiled_call_impl = None
        return eager, False
    finally:
        model.zero_grad(set_to_none=True)
    return compiled, True
