"""Prepare a model for training: kernels, loss, compiler, processes, optimizer."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from inheritune.data.tokens import TokenStream
from inheritune.recipe.training import Train
from inheritune.system.processes import Processes
from inheritune.training.batches import micro_batches
from inheritune.training.distillation import Distillation, FrozenReference, make_objective
from inheritune.training.fsdp import layer_modules, my_share, shard
from inheritune.training.hardware import Settings, keep_freed_memory
from inheritune.training.kernels import (
    MATMUL_ATTENTION,
    agrees_with_the_model,
    register_matmul_attention,
    use_fused_gelu,
)
from inheritune.training.lazy_logits import are_small
from inheritune.training.loss import TrainingObjective, logits_are_plain_head_output
from inheritune.training.optimizer import make_optimizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TrainingSetup:
    """A model with all that a step needs."""

    model: "PreTrainedModel"  # sharded where there are several processes
    objective: TrainingObjective
    optimizer: torch.optim.AdamW
    params: list[Tensor]  # the weights that the optimizer steps
    train: Train
    stream: TokenStream
    processes: Processes
    share: tuple[int, int]  # sequences [first, stop) of every step that are this process's
    settings: Settings  # as used in the end: a fallback shows here
    notes: tuple[str, ...]

    @property
    def logits_model(self) -> nn.Module:
        """The module that validation calls: a sharded model is gathered by the objective only."""
        return self.objective if self.processes.size > 1 else self.model


def make_setup(
    model: "PreTrainedModel",
    train: Train,
    settings: Settings,
    stream: TokenStream,
    processes: Processes,
    distillation: Distillation | None = None,
    mesh: DeviceMesh | None = None,
) -> TrainingSetup:
    """Apply the settings to a model, from the kernels outwards.

    Args:
        model: fp32 weights, the same in every process; changed in place.
        stream: Training tokens; the compiler and the checks of a distillation see the first.
        mesh: Where several processes share the weights; see `fsdp.mesh_of`.

    Raises:
        RecipeError: The batch does not divide by the number of processes.
        SourceError: The reference of a distillation has another vocabulary.
    """
    notes: list[str] = []
    share = my_share(train, processes)

    def first_batch() -> Tensor:
        return next(micro_batches(stream, train, 0, train.resolved_micro_batch))

    # --- memory and kernels ---
    if settings.keep_large_blocks:
        keep_freed_memory()
    if not settings.begins_on_host:
        model.to(settings.device)  # type: ignore[arg-type]
    model.train()
    if settings.fused_gelu:
        use_fused_gelu(model)
    recomputes = settings.activation_checkpointing and _recompute_layers(model, notes)
    attention = _use_attention(model, train, settings, notes)
    settings = replace(settings, activation_checkpointing=recomputes, attention=attention)

    # --- the loss: asked of the model while it is whole and not compiled ---
    if distillation is not None:
        source = distillation.source
        alone = processes.size == 1  # a sharded reference runs through its own root only
        if attention == "matmul" and alone and isinstance(source, FrozenReference):
            _use_attention(source.model, train, settings, [])  # it goes on with its own, if need be
        objective: TrainingObjective = make_objective(
            model, distillation, first_batch().to(settings.device), settings.begins_on_host
        )
        if settings.compile and settings.device == "cpu":
            notes.append("on a CPU a step with a reference is not compiled")
            settings = replace(settings, compile=False)
        settings = replace(settings, loss="chunks" if objective.avoids_logits else "logits")
    else:
        settings = replace(settings, loss=_possible_loss(model, train, settings, notes))
        avoids, takes_op = settings.loss != "logits", settings.loss == "op"
        objective = TrainingObjective(model, avoids, takes_op)

    # --- the compiler and the processes; layers are compiled before they are wrapped ---
    compiled: list[nn.Module] = []
    if settings.compile and settings.device == "cuda":
        # Never the whole model: inside one graph transformers builds a mask, and attention loses
        # its flash kernel.
        compiled = _layers_to_compile(model, distillation)
        for layer in compiled:
            layer.compile()
    elif settings.compile and processes.size == 1:
        compiled = [objective]
        objective.compile(dynamic=False)
    if mesh is not None:
        bf16, offloads = settings.gathers_bf16, settings.offloads
        shard(objective, model, mesh, bf16=bf16, offloads=offloads)

    # --- the optimizer, over what is left of the weights here ---
    optimizer = make_optimizer(model, train, fused=settings.fused_optimizer)
    optimizer.zero_grad(set_to_none=True)
    if compiled and processes.size == 1:
        works = _compiler_works(objective, settings, first_batch(), notes)
        settings = replace(settings, compile=works)
        for module in [] if works else compiled:
            module._compiled_call_impl = None
    return TrainingSetup(
        model=model,
        objective=objective,
        optimizer=optimizer,
        params=[param for group in optimizer.param_groups for param in group["params"]],
        train=train,
        stream=stream,
        processes=processes,
        share=share,
        settings=settings,
        notes=tuple(notes),
    )


def _recompute_layers(model: "PreTrainedModel", notes: list[str]) -> bool:
    """Have layers computed again in the backward pass; dropout then drops the same again."""
    if not model.supports_gradient_checkpointing:
        notes.append(f"{type(model).__name__} cannot recompute its layers: activations are kept")
        return False
    # Newer versions of transformers deprecate the second name.
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    return True


def _use_attention(
    model: "PreTrainedModel", train: Train, settings: Settings, notes: list[str]
) -> str:
    if settings.attention != "matmul":
        return "model"
    register_matmul_attention()
    if not agrees_with_the_model(model, model.config.get_text_config().vocab_size, train.seq_len):
        notes.append("the model's attention is more than causal: its own kernel is used")
        return "model"
    model.set_attn_implementation(MATMUL_ATTENTION)
    return "matmul"


def _possible_loss(
    model: "PreTrainedModel", train: Train, settings: Settings, notes: list[str]
) -> str:
    """Return how the loss is computed: as the settings say, or from the logits, see `Settings`."""
    rows = model.config.get_text_config(decoder=True).vocab_size
    if settings.loss == "chunks" and are_small(train.resolved_micro_batch * train.seq_len, rows):
        return "logits"
    if settings.loss == "logits" or logits_are_plain_head_output(model):
        return settings.loss
    notes.append("the model does more to its logits than the head's product: they are kept whole")
    return "logits"


def _layers_to_compile(
    model: "PreTrainedModel", distillation: Distillation | None
) -> list[nn.Module]:
    """The layers of the model, and of a reference that runs beside it."""
    source = None if distillation is None else distillation.source
    beside = layer_modules(source.model) if isinstance(source, FrozenReference) else []
    return layer_modules(model) + beside


def _compiler_works(
    objective: TrainingObjective, settings: Settings, samples: Tensor, notes: list[str]
) -> bool:
    """Make the first call, which compiles; its gradients are thrown away."""
    samples = samples.to(settings.device)
    try:
        with settings.autocast():
            loss: Any = objective(samples[:, :-1], samples[:, 1:])
            loss.sum().backward()
    except (MemoryError, torch.OutOfMemoryError):
        raise  # the eager step needs no less
    except Exception as error:
        # Whatever the compiler trips over, the eager step computes the same.
        notes.append(f"torch.compile failed ({type(error).__name__}), going on without it")
        return False
    finally:
        objective.zero_grad(set_to_none=True)
    return True
